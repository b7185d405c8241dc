"""Attention over packed sequences, softmax(q k^T / sqrt(d) + bias) v (Vaswani et al. 2017), never holding an (S, S) matrix.

A block of work is 32 queries of one head of one sequence against all its keys. Scores stand transposed, (Sk, 32): a lane is a
query, so that softmax is plain vectors and needs no sums across lanes, and both products read keys and values where they lie:

    scores (Sk, 32) = K (Sk, d) (Q / sqrt(d))^T (d, 32)        p = exp(scores - max) / sum        out (32, d) = p^T V (Sk, d)

A thread needs memory for 32 Sk floats. Sums over keys are made of 256 products at a time. There are two kernels: the one in
order, which backends/bitwise.py defines to the bit, divides p by the sum; the one with fused multiply-adds divides the output,
which is less work.
"""

from functools import partial

import numpy as np

from ...bitwise import EXP_POLYNOMIAL, LEAST, LOG2_E, LOG_2_HIGH, LOG_2_LOW, ONE, SHIFT, ZERO, exp, power
from ..buffers import reused
from ..compiled import Kernel, carray, njit
from ..machine.lanes import exponentials, most_of_columns
from ..machine.memory import allocate, floats, free, words
from ..products.fma import multiply, multiply_in_order
from .launch import ATTENTION, QUERIES, layout, run
from .scores import exponentiate_by, keep, mask_head, mask_scores


def exp_fused(x):
    """exp of backends/bitwise.py in fused multiply-adds, of 16 numbers: relative 1.5e-7 up to 0, 0 below -87.3."""
    y = x.where(x < LEAST, LEAST, x)
    shifted = y.fused(LOG2_E, SHIFT)  # rounds to an integer
    n = shifted - SHIFT
    r = n.fused(-LOG_2_LOW, n.fused(-LOG_2_HIGH, y))
    p = r.fused(EXP_POLYNOMIAL[0], EXP_POLYNOMIAL[1])
    for c in EXP_POLYNOMIAL[2:]:
        p = p.fused(r, c)
    e = p.fused(r * r, r) + ONE
    return x.where(x < LEAST, ZERO, e * power(shifted))


exponentiate_fused = exponentiate_by(exponentials(exp_fused))
exponentiate_in_order = exponentiate_by(exponentials(exp))


@njit(error_model="numpy")
def attend(given, block, worker, in_order):
    """One block of work. in_order is None or True when this is compiled, so that the code has only one of the two orders."""
    table, heads, d, causal = given.table, given.heads, given.width, given.causal
    b, h, first, last = carray(words(table + block * 32), 4)
    start, stop = carray(words(given.starts + b * 8), 2)
    key, Sk = carray(words(given.first_keys + b * 8), 1)[0], carray(words(given.lengths + b * 8), 1)[0]
    Sq = stop - start
    n = last - first
    seen = min(Sk, Sk - Sq + first + n) if causal else Sk
    padded = (d + 15) // 16 * 16
    root = given.root

    scratch = given.scratch + worker * given.size
    q_at = scratch
    y_at = q_at + padded * QUERIES * 4
    p_at = y_at + padded * QUERIES * 4
    v_at = p_at + seen * QUERIES * 4
    q, y, p = carray(floats(q_at), (d, QUERIES)), carray(floats(y_at), (QUERIES, padded)), carray(floats(p_at), (seen, QUERIES))

    for i in range(QUERIES):
        if i < n:
            row = carray(floats(given.q + ((start + first + i) * given.q_row + h * d) * 4), d)
            for c in range(d):
                q[c, i] = row[c] * root
        else:
            for c in range(d):
                q[c, i] = np.float32(0)
    everything = carray(floats(p_at), seen * QUERIES)
    for i in range(seen * QUERIES):
        everything[i] = np.float32(0)
    k_at = given.k.at + (b * given.k.sequence + h * given.k.head + key * given.k.row) * 4
    if in_order is None:
        multiply(p_at, QUERIES, seen, QUERIES, k_at, given.k.row, 1, q_at, QUERIES, d)
    else:
        multiply_in_order(p_at, QUERIES, seen, QUERIES, k_at, given.k.row, 1, q_at, QUERIES, d)

    memory = allocate(2 * QUERIES * 4)
    mask_scores(given, p, b, h, first, n, Sk - Sq)
    most_of_columns(p_at, seen, memory)
    if in_order is None:
        exponentiate_fused(p_at, seen, memory, memory + QUERIES * 4)
    else:
        exponentiate_in_order(p_at, seen, memory, memory + QUERIES * 4)
    totals = carray(floats(memory + QUERIES * 4), QUERIES)
    if in_order is not None:
        for j in range(seen):
            row = p[j]
            for i in range(QUERIES):
                row[i] *= totals[i]
        for i in range(QUERIES):
            totals[i] = np.float32(1)
    mask_head(given, p, b, h, first, n)
    keep(given, p, totals, b, h, first, n, Sq, Sk)

    for i in range(QUERIES):
        row = y[i]
        for c in range(padded):
            row[c] = np.float32(0)
    values, value_row = given.v.at + (b * given.v.sequence + h * given.v.head + key * given.v.row) * 4, given.v.row
    if padded != d:
        copy = carray(floats(v_at), (seen, padded))
        for j in range(seen):
            row, source = copy[j], carray(floats(values + j * value_row * 4), d)
            for c in range(d):
                row[c] = source[c]
            for c in range(d, padded):
                row[c] = np.float32(0)
        values, value_row = v_at, padded
    if in_order is None:
        multiply(y_at, padded, n, padded, p_at, 1, QUERIES, values, value_row, seen)
    else:
        multiply_in_order(y_at, padded, n, padded, p_at, 1, QUERIES, values, value_row, seen)
    for i in range(n):
        out, row = carray(floats(given.out + ((start + first + i) * heads * d + h * d) * 4), d), y[i]
        for c in range(d):
            out[c] = row[c] * totals[i]
    free(memory)


@partial(Kernel, fields=ATTENTION)
def _attention(given, block, worker):
    attend(given, block, worker, None)


@partial(Kernel, fields=ATTENTION)
def _attention_in_order(given, block, worker):
    attend(given, block, worker, True)


def attention(q, k, v, sequences, heads, bias, head_mask, probs, fused=True):
    """(Tq, D), (Tk, D) x2 -> (Tq, D), and B x (H, Sq, Sk) if asked; not fused: to the bit as backends/bitwise.py."""
    d, laid = q.shape[1] // heads, layout(sequences)
    padded = -(-d // 16) * 16
    size = -(-((2 * padded + laid.longest) * QUERIES + (laid.longest * padded if padded != d else 0)) // 16) * 64
    out = reused(q.shape, np.float32)
    kernel = _attention if fused else _attention_in_order
    return out, run(kernel, np.float32, q, k, v, sequences.causal, laid, heads, bias, head_mask, probs, QUERIES, size, out)
