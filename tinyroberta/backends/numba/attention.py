"""Attention over packed sequences, softmax(q k^T / sqrt(d) + bias) v (Vaswani et al. 2017), never holding an (S, S) matrix.

A block of work is 32 queries of one head of one sequence against all its keys. Scores stand transposed, (Sk, 32): a lane is a
query, so that softmax is plain vectors and needs no sums across lanes, and both products read keys and values where they lie:

    scores (Sk, 32) = K (Sk, d) (Q / sqrt(d))^T (d, 32)        p = exp(scores - max) / sum        out (32, d) = p^T V (Sk, d)

Memory is 32 Sk floats a thread. Sums over keys are of 256 at a time. Probabilities that are kept or masked are these same p.
"""

import math
from functools import lru_cache
from types import FunctionType

import numpy as np

from .compiled import Kernel, carray, njit
from .elementwise import exp
from .gemm import DEPTH, ROWS, VECTORS, multiply, multiply_by_blocks
from .llvm import allocate, float_of, floats, fma_block, free, most_of_columns, words
from .threads import aligned, parallel, thread_limit

QUERIES = 32
GIVEN = 44
BIAS, HEAD_MASK = 24, 32  # where their address and four strides stand

# The product of gemm.py over blocks that round every product and every sum, as backends/bitwise.py.
fma_rows, fma_row = fma_block(ROWS, VECTORS, fused=False), fma_block(1, VECTORS, fused=False)
fma_rows_16, fma_row_16 = fma_block(ROWS, 1, fused=False), fma_block(1, 1, fused=False)
multiply_in_order = njit(error_model="numpy")(FunctionType(multiply_by_blocks.__code__, globals()))


@njit(error_model="numpy")
def soften(p, most, sums, part):  # (Sk, 32) scores -> probabilities, in place; most: the largest score of each query; room
    Sk = p.shape[0]
    for i in range(QUERIES):
        sums[i] = np.float32(0)
    for start in range(0, Sk, DEPTH):
        for i in range(QUERIES):
            part[i] = np.float32(0)
        for j in range(start, min(start + DEPTH, Sk)):
            row = p[j]
            for i in range(QUERIES):
                e = exp(row[i] - most[i])
                row[i] = e
                part[i] += e
        for i in range(QUERIES):
            sums[i] += part[i]
    for i in range(QUERIES):
        sums[i] = np.float32(1) / sums[i]
    for j in range(Sk):
        row = p[j]
        for i in range(QUERIES):
            row[i] *= sums[i]


@njit(error_model="numpy")
def place_of(g, mask, b, h, i, j):
    """The address of one number of a mask."""
    return g[mask] + (b * g[mask + 1] + h * g[mask + 2] + i * g[mask + 3] + j * g[mask + 4]) * 4


@njit(error_model="numpy")
def attend(arguments, block, worker, in_order):
    """in_order is None or not when this is compiled: only one way to multiply is in the code."""
    g = carray(words(arguments), GIVEN)
    table, heads, d, causal = g[0], g[1], g[2], g[3]
    b, h, first = carray(words(table + block * 24), 3)
    start, stop = carray(words(g[4] + b * 8), 2)
    key, Sk = carray(words(g[5] + b * 8), 1)[0], carray(words(g[6] + b * 8), 1)[0]
    Sq = stop - start
    n = min(QUERIES, Sq - first)
    seen = min(Sk, Sk - Sq + first + n) if causal else Sk
    padded = (d + 15) // 16 * 16
    root = float_of(np.int32(g[7]))

    scratch = g[8] + worker * g[9]
    q_at = scratch
    y_at = q_at + padded * QUERIES * 4
    p_at = y_at + padded * QUERIES * 4
    v_at = p_at + seen * QUERIES * 4
    q, y, p = carray(floats(q_at), (d, QUERIES)), carray(floats(y_at), (QUERIES, padded)), carray(floats(p_at), (seen, QUERIES))

    for i in range(QUERIES):
        if i < n:
            row = carray(floats(g[10] + ((start + first + i) * g[11] + h * d) * 4), d)
            for c in range(d):
                q[c, i] = row[c] * root
        else:
            for c in range(d):
                q[c, i] = np.float32(0)
    everything = carray(floats(p_at), seen * QUERIES)
    for i in range(seen * QUERIES):
        everything[i] = np.float32(0)
    k_at = g[12] + (b * g[13] + h * g[14] + key * g[15]) * 4
    if in_order is None:
        multiply(p_at, QUERIES, seen, QUERIES, k_at, g[15], 1, q_at, QUERIES, d)
    else:
        multiply_in_order(p_at, QUERIES, seen, QUERIES, k_at, g[15], 1, q_at, QUERIES, d)

    if g[BIAS]:
        for j in range(seen):
            bias = place_of(g, BIAS, b, h, first, j)
            for i in range(n):
                p[j, i] += carray(floats(bias + i * g[BIAS + 3] * 4), 1)[0]
    if causal:
        for j in range(max(0, Sk - Sq + first + 1), seen):
            for i in range(min(n, j - (Sk - Sq + first))):
                p[j, i] = np.float32(-math.inf)
    memory = allocate(3 * QUERIES * 4)
    room = carray(floats(memory), (3, QUERIES))
    most_of_columns(p_at, seen, memory)
    soften(p, room[0], room[1], room[2])
    free(memory)
    if g[HEAD_MASK]:
        for j in range(seen):
            mask = place_of(g, HEAD_MASK, b, h, first, j)
            for i in range(n):
                p[j, i] *= carray(floats(mask + i * g[HEAD_MASK + 3] * 4), 1)[0]
    if g[16]:
        kept = carray(floats(carray(words(g[16] + b * 8), 1)[0] + (h * Sq + first) * Sk * 4), (n, Sk))
        for i in range(n):
            for j in range(seen):
                kept[i, j] = p[j, i]

    for i in range(QUERIES):
        row = y[i]
        for c in range(padded):
            row[c] = np.float32(0)
    values, value_row = g[17] + (b * g[18] + h * g[19] + key * g[20]) * 4, g[20]
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
        out, row = carray(floats(g[21] + ((start + first + i) * heads * d + h * d) * 4), d), y[i]
        for c in range(d):
            out[c] = row[c]


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
    x = np.ascontiguousarray(x, np.float32)
    return [x, *(0 if size == 1 else stride // 4 for size, stride in zip(x.shape, x.strides, strict=True))]


def _places(x, d):
    """Keys or values, (Tk, H d) or a cache (B, H, capacity, d): contiguous in d, with strides of sequence, head and row."""
    x = x if x.dtype == np.float32 and x.strides[-1] == 4 else np.ascontiguousarray(x, np.float32)
    if x.ndim == 4:
        return [x, *(stride // 4 for stride in x.strides[:3])]
    return [x, 0, d, x.strides[0] // 4]


@lru_cache(8)  # every layer of a model asks for the same
def _blocks(starts, heads):  # the bytes of (B + 1,) int64 -> (blocks, 3)
    """Which sequence, head and first query each block of work has."""
    starts = np.frombuffer(starts, np.int64)
    blocks = -(-(starts[1:] - starts[:-1]) // QUERIES)
    b = np.repeat(np.arange(len(blocks)), blocks * heads)
    within = np.arange(len(b)) - np.repeat(np.cumsum(blocks * heads) - blocks * heads, blocks * heads)
    return np.stack([b, within // blocks[b], within % blocks[b] * QUERIES], 1)


def attention(q, k, v, sequences, heads, bias, head_mask, probs, fused=True):
    """(Tq, D), (Tk, D) x2 -> (Tq, D), and B x (H, Sq, Sk) if asked; not fused: to the bit as backends/bitwise.py."""
    Tq, D = q.shape
    d = D // heads
    q = q if q.dtype == np.float32 and q.strides[1] == 4 else np.ascontiguousarray(q, np.float32)
    starts, keys, lengths = (np.ascontiguousarray(x, np.int64) for x in sequences[:3])
    table = _blocks(starts.tobytes(), heads)
    counts = starts[1:] - starts[:-1]
    kept = [np.zeros((heads, Sq, Sk), np.float32) for Sq, Sk in zip(counts, lengths, strict=True)] if probs else None
    where = np.array([x.ctypes.data for x in kept], np.int64) if kept is not None else None
    padded = -(-d // 16) * 16
    longest = int(lengths.max())
    size = (2 * padded + longest) * QUERIES + (longest * padded if padded != d else 0)
    size = -(-size // 16) * 64
    scratch = aligned((thread_limit(), size), np.int8)
    out = np.empty((Tq, D), np.float32)
    root = int(np.float32(1 / math.sqrt(d)).view(np.int32))
    values = [table, heads, d, int(sequences.causal), starts, keys, lengths, root, scratch, size, q, q.strides[0] // 4]
    values += [*_places(k, d), where, *_places(v, d), out]
    values += [0] * (BIAS - len(values)) + _spread(bias) + [0] * (HEAD_MASK - BIAS - 5) + _spread(head_mask)
    parallel(_attention if fused else _attention_in_order, len(table), *values, *[0] * (GIVEN - len(values)))
    return out, kept
