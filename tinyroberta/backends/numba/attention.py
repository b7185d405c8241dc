"""Attention over packed sequences, softmax(q k^T / sqrt(d) + bias) v (Vaswani et al. 2017), never holding an (S, S) matrix.

A block of work is 32 queries of one head of one sequence against all its keys. Scores stand transposed, (Sk, 32): a lane is a
query, so that softmax is plain vectors and needs no sums across lanes, and both products read keys and values where they lie:

    scores (Sk, 32) = K (Sk, d) (Q / sqrt(d))^T (d, 32)        p = exp(scores - max) / sum        out (32, d) = p^T V (Sk, d)

Memory is 32 Sk floats a thread. Sums over keys are of 256 at a time. What is divided by the sum is p, as backends/bitwise.py
says, or, in fused multiply-adds, the output.
"""

import math
from functools import lru_cache
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np

from ..bitwise import EXP_POLYNOMIAL, LEAST, LOG2_E, LOG_2_HIGH, LOG_2_LOW, ONE, SHIFT, ZERO
from . import amx
from .buffers import address, contiguous, reused
from .compiled import Kernel, carray, njit
from .elementwise import OF_LANES
from .gemm import DEPTH, ROWS, VECTORS, multiply, multiply_by_blocks
from .llvm import allocate, exponentials, float_of, floats, fma_block, free, most_of_columns, words
from .threads import parallel, thread_limit

QUERIES = 32
# What a kernel is given: addresses and shapes; K and V begin at an address with three strides, the masks with four.
TABLE, HEADS, WIDTH, CAUSAL, STARTS, KEYS, LENGTHS, ROOT, SCRATCH, SIZE, Q, Q_ROW = range(12)
K, KEPT, V, OUT, BIAS, HEAD_MASK, CONFIG, GIVEN = 12, 16, 17, 21, 22, 27, 32, 33

# The product of gemm.py over blocks that round every product and every sum, as backends/bitwise.py.
fma_rows, fma_row = fma_block(ROWS, VECTORS, fused=False), fma_block(1, VECTORS, fused=False)
fma_rows_16, fma_row_16 = fma_block(ROWS, 1, fused=False), fma_block(1, 1, fused=False)
multiply_in_order = njit(error_model="numpy")(FunctionType(multiply_by_blocks.__code__, globals()))


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
    return x.where(x < LEAST, ZERO, e * shifted.power())


def exponentiate_by(exponentials):
    @njit(error_model="numpy")
    def exponentiate(p, rows, most, totals):
        """(rows, 32) scores at an address, in place -> exp(score - most) of each query; 1 / their sums."""
        sums = carray(floats(totals), QUERIES)
        for i in range(QUERIES):
            sums[i] = np.float32(0)
        for start in range(0, rows, DEPTH):
            exponentials(p + start * 128, min(DEPTH, rows - start), most, totals)
        for i in range(QUERIES):
            sums[i] = np.float32(1) / sums[i]

    return exponentiate


exponentiate_fused = exponentiate_by(exponentials(exp_fused))
exponentiate_in_order = exponentiate_by(exponentials(OF_LANES["exp"]))


@njit(error_model="numpy")
def place_of(g, mask, b, h, i, j):
    """The address of one number of a mask."""
    return g[mask] + (b * g[mask + 1] + h * g[mask + 2] + i * g[mask + 3] + j * g[mask + 4]) * 4


@njit(error_model="numpy")
def add_bias(g, p, b, h, first, n, past):
    """Onto scores (seen, 32) of n queries from `first` on: the bias; minus infinity where a query must not see a key."""
    if g[BIAS]:
        for j in range(p.shape[0]):
            bias = place_of(g, BIAS, b, h, first, j)
            for i in range(n):
                p[j, i] += carray(floats(bias + i * g[BIAS + 3] * 4), 1)[0]
    if g[CAUSAL]:
        for j in range(max(0, past + first + 1), p.shape[0]):
            for i in range(min(n, j - (past + first))):
                p[j, i] = np.float32(-math.inf)


@njit(error_model="numpy")
def mask_head(g, p, b, h, first, n):
    if g[HEAD_MASK]:
        for j in range(p.shape[0]):
            mask = place_of(g, HEAD_MASK, b, h, first, j)
            for i in range(n):
                p[j, i] *= carray(floats(mask + i * g[HEAD_MASK + 3] * 4), 1)[0]


@njit(error_model="numpy")
def keep(g, p, totals, b, h, first, n, Sq, Sk):
    """The probabilities, times what their queries have in `totals`, if they were asked for."""
    if not g[KEPT]:
        return
    kept = carray(floats(carray(words(g[KEPT] + b * 8), 1)[0] + (h * Sq + first) * Sk * 4), (n, Sk))
    for i in range(n):
        for j in range(p.shape[0]):
            kept[i, j] = p[j, i] * totals[i]


@njit(error_model="numpy")
def attend(arguments, block, worker, in_order):
    """in_order is None or not when this is compiled: only one way to multiply is in the code."""
    g = carray(words(arguments), GIVEN)
    table, heads, d, causal = g[TABLE], g[HEADS], g[WIDTH], g[CAUSAL]
    b, h, first, last = carray(words(table + block * 32), 4)
    start, stop = carray(words(g[STARTS] + b * 8), 2)
    key, Sk = carray(words(g[KEYS] + b * 8), 1)[0], carray(words(g[LENGTHS] + b * 8), 1)[0]
    Sq = stop - start
    n = last - first
    seen = min(Sk, Sk - Sq + first + n) if causal else Sk
    padded = (d + 15) // 16 * 16
    root = float_of(np.int32(g[ROOT]))

    scratch = g[SCRATCH] + worker * g[SIZE]
    q_at = scratch
    y_at = q_at + padded * QUERIES * 4
    p_at = y_at + padded * QUERIES * 4
    v_at = p_at + seen * QUERIES * 4
    q, y, p = carray(floats(q_at), (d, QUERIES)), carray(floats(y_at), (QUERIES, padded)), carray(floats(p_at), (seen, QUERIES))

    for i in range(QUERIES):
        if i < n:
            row = carray(floats(g[Q] + ((start + first + i) * g[Q_ROW] + h * d) * 4), d)
            for c in range(d):
                q[c, i] = row[c] * root
        else:
            for c in range(d):
                q[c, i] = np.float32(0)
    everything = carray(floats(p_at), seen * QUERIES)
    for i in range(seen * QUERIES):
        everything[i] = np.float32(0)
    k_at = g[K] + (b * g[K + 1] + h * g[K + 2] + key * g[K + 3]) * 4
    if in_order is None:
        multiply(p_at, QUERIES, seen, QUERIES, k_at, g[K + 3], 1, q_at, QUERIES, d)
    else:
        multiply_in_order(p_at, QUERIES, seen, QUERIES, k_at, g[K + 3], 1, q_at, QUERIES, d)

    memory = allocate(2 * QUERIES * 4)
    add_bias(g, p, b, h, first, n, Sk - Sq)
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
    mask_head(g, p, b, h, first, n)
    keep(g, p, totals, b, h, first, n, Sq, Sk)

    for i in range(QUERIES):
        row = y[i]
        for c in range(padded):
            row[c] = np.float32(0)
    values, value_row = g[V] + (b * g[V + 1] + h * g[V + 2] + key * g[V + 3]) * 4, g[V + 3]
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
        out, row = carray(floats(g[OUT] + ((start + first + i) * heads * d + h * d) * 4), d), y[i]
        for c in range(d):
            out[c] = row[c] * totals[i]
    free(memory)


@Kernel
def _attention(arguments, block, worker):
    attend(arguments, block, worker, None)


@Kernel
def _attention_in_order(arguments, block, worker):
    attend(arguments, block, worker, True)


def _spread(x):
    """A mask (B or 1, H or 1, Sq or 1, Sk or 1): contiguous, with strides in floats, 0 where it broadcasts."""
    if x is None:
        return [None, 0, 0, 0, 0]
    x = contiguous(x, np.float32)
    return [x, *(0 if size == 1 else stride // 4 for size, stride in zip(x.shape, x.strides, strict=True))]


def _places(x, d):
    """Keys or values, (Tk, H d) or a cache (B, H, capacity, d), with strides of sequence, head and row, in numbers."""
    if x.ndim == 4:
        return [x, *(stride // x.itemsize for stride in x.strides[:3])]
    return [x, 0, d, x.strides[0] // x.itemsize]


class Layout(NamedTuple):
    """What a kernel reads of Sequences."""

    starts: Any  # (B + 1,) int64
    keys: Any  # (B,)
    lengths: Any  # (B,)
    longest: int  # of the keys
    groups: Any  # (B,), of 32 queries


@lru_cache(8)  # every layer of a model asks for the same
def _layout(*sequences):  # the bytes of int32
    starts, keys, lengths = (np.frombuffer(x, np.int32).astype(np.int64) for x in sequences)
    return Layout(starts, keys, lengths, int(lengths.max()), -(-np.diff(starts) // QUERIES))


def layout(sequences):
    """The Layout of Sequences."""
    return _layout(*(np.ascontiguousarray(x, np.int32).tobytes() for x in sequences[:3]))


@lru_cache(8)
def _blocks(starts, heads, queries):  # the bytes of (B + 1,) int64 -> (blocks, 4)
    """Which sequence, head, first query and query after the last each block of work has."""
    starts = np.frombuffer(starts, np.int64)
    lengths = starts[1:] - starts[:-1]
    blocks = -(-lengths // queries)
    b = np.repeat(np.arange(len(blocks)), blocks * heads)
    within = np.arange(len(b)) - np.repeat(np.cumsum(blocks * heads) - blocks * heads, blocks * heads)
    first = within % blocks[b] * queries
    return np.stack([b, within // blocks[b], first, np.minimum(first + queries, lengths[b])], 1)


def call(kernel, dtype, q, k, v, causal, laid, heads, bias, head_mask, probs, queries, size, out):
    """Run a kernel over blocks of so many queries, with `size` bytes for each thread; the probabilities, if asked."""
    q, k, v = (x if x.dtype == dtype and x.strides[-1] == x.itemsize else contiguous(x, dtype) for x in (q, k, v))
    d, (starts, keys, lengths, _, _) = q.shape[1] // heads, laid
    table, kept, where = _blocks(starts.tobytes(), heads, queries), None, None
    if probs:
        kept = [np.zeros((heads, Sq, Sk), np.float32) for Sq, Sk in zip(np.diff(starts), lengths, strict=True)]
        where = np.array([address(x) for x in kept], np.int64)
    root, scratch = int(np.float32(1 / math.sqrt(d)).view(np.int32)), reused((thread_limit(), size), np.int8)
    values = [table, heads, d, int(causal), starts, keys, lengths, root, scratch, size, q, q.strides[0] // q.itemsize]
    values += [*_places(k, d), where, *_places(v, d), out, *_spread(bias), *_spread(head_mask), amx.CONFIG]
    parallel(kernel, len(table), *values)
    return kept


def attention(q, k, v, sequences, heads, bias, head_mask, probs, fused=True):
    """(Tq, D), (Tk, D) x2 -> (Tq, D), and B x (H, Sq, Sk) if asked; not fused: to the bit as backends/bitwise.py."""
    d, laid = q.shape[1] // heads, layout(sequences)
    padded = -(-d // 16) * 16
    size = -(-((2 * padded + laid.longest) * QUERIES + (laid.longest * padded if padded != d else 0)) // 16) * 64
    out = reused(q.shape, np.float32)
    kernel = _attention if fused else _attention_in_order
    return out, call(kernel, np.float32, q, k, v, sequences.causal, laid, heads, bias, head_mask, probs, QUERIES, size, out)
