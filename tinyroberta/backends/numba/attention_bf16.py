"""Attention as attention.py has it, of bf16 queries, keys and values: both products on tiles or by dot products, float32 sums.

A block of work is some hundred queries of one head of one sequence, 32 at a time; the keys and values are laid out once for all
of them, as gemm.py's operands (slices.py has the layouts), K as rows, V^T as rows, what is transposed as panels:

    scores (Sk, 32) = K (Sk, d) (Q / sqrt(d))^T        p = exp(scores - max)        out^T (d, 32) = V^T (d, Sk) p / sum

p is float32, with a sum of its own, and rounded to bf16 for the second product; what comes out is then divided by the sum.
"""

import math
from functools import partial

import numpy as np
from ml_dtypes import bfloat16

from . import amx
from .attention import (
    CAUSAL,
    CONFIG,
    GIVEN,
    HEADS,
    KEYS,
    LENGTHS,
    OUT,
    Q_ROW,
    QUERIES,
    ROOT,
    SCRATCH,
    SIZE,
    STARTS,
    TABLE,
    WIDTH,
    K,
    Q,
    V,
    add_bias,
    call,
    keep,
    layout,
    mask_head,
)
from .compiled import Kernel, carray, njit
from .gemm import bf16_tiles
from .llvm import (
    bits_of,
    copy_lanes,
    dot_block,
    float_of,
    floats,
    fused,
    halves,
    most_of_columns,
    pair_lanes,
    round_lanes,
    round_pairs,
    scale_halves,
    scale_lanes,
    transpose_lanes,
    words,
)
from .norm import room
from .paths import missing_dots
from .threads import thread_limit

LOG2_E, SHIFT = np.float32(math.log2(math.e)), np.float32(1.5 * 2**23)
# 2^r for r from -1/2 to 1/2
POWER = tuple(map(np.float32, (0.009570101, 0.05591786, 0.24024745, 0.6931218, 0.99999926)))
BLOCKS_A_THREAD = 4  # at least, where there is as much work: so that no thread waits long for the last


@njit(error_model="numpy")
def lay_keys(rows, row, count, d, out, zeros):
    """(count, d) of bf16, rows so many numbers apart -> blocks of 16 rows, zeros where there is no row or no column."""
    steps = (d + 31) // 32
    for j in range((count + 15) // 16 * 16):
        target = out + (j // 16 * steps * 16 + j % 16) * 64
        for step in range(steps):
            source = rows + (j * row + step * 32) * 2
            if j < count and step * 32 + 32 <= d:
                copy_lanes(source, target + step * 1024)
            else:
                copy_lanes(zeros, target + step * 1024)
                if j < count:
                    left, right = carray(halves(source), 16), carray(halves(target + step * 1024), 16)
                    for c in range(16):
                        right[c] = left[c]


@njit(error_model="numpy")
def lay_values(rows, row, count, d, out, zeros, pairs):
    """(count, d) of bf16 -> its transpose as blocks: 16 columns, 32 rows as 16 pairs, at a time; d a multiple of 16."""
    steps = (count + 31) // 32
    for step in range(steps):
        for column in range(0, d, 16):
            for r in range(16):
                j = step * 32 + 2 * r
                even = rows + (j * row + column) * 2
                pair_lanes(even if j < count else zeros, even + row * 2 if j + 1 < count else zeros, pairs + r * 64)
            transpose_lanes(pairs, 64, out + (column // 16 * steps + step) * 1024, 64)


@njit(error_model="numpy")
def lay_queries(rows, row, n, d, root, out, zeros, scaled):
    """(n, d) of bf16, times root -> a panel of 32 queries."""
    for step in range((d + 31) // 32):
        for half in range(2):
            for r in range(16):
                i = half * 16 + r
                source = rows + (i * row + step * 32) * 2
                scale_halves(source if i < n else zeros, root, scaled + r * 64)
                scale_halves(source + 32 if i < n and step * 32 + 16 < d else zeros, root, scaled + r * 64 + 32)
            transpose_lanes(scaled, 64, out + (step * 2 + half) * 1024, 64)


@njit(error_model="numpy")
def power_of_two(x):
    """2^x for x up to 0, relative 4e-6; 2^-126 is the least."""
    y = max(x, np.float32(-126))
    shifted = y + SHIFT  # rounds to an integer
    r = y - (shifted - SHIFT)
    p = fused(POWER[0], r, POWER[1])
    for c in POWER[2:]:
        p = fused(p, r, c)
    return float_of(np.int32(bits_of(p) + ((bits_of(shifted) - np.int32(0x4B400000)) << np.int32(23))))


@njit(error_model="numpy")
def exponentiate(p, most, sums):  # (seen, 32) scores, in place -> exp(score - most) of each query, and 1 / their sums
    for i in range(QUERIES):
        sums[i] = np.float32(0)
    for j in range(p.shape[0]):
        row = p[j]
        for i in range(QUERIES):
            e = power_of_two((row[i] - most[i]) * LOG2_E)
            row[i] = e
            sums[i] += e
    for i in range(QUERIES):
        sums[i] = np.float32(1) / sums[i]


@njit(error_model="numpy")
def lay_probabilities(p, seen, out, zeros):
    """(seen, 32) of float32 -> bf16, a panel of 32 queries whose depth are the keys, zeros beyond the last."""
    for pair in range((seen + 31) // 32 * 16):
        at, j = out + pair // 16 * 2048 + pair % 16 * 64, 2 * pair
        for half in range(2):
            even = p + j * 128 + half * 64
            round_pairs(even if j < seen else zeros, even + 128 if j + 1 < seen else zeros, at + half * 1024)


@njit(error_model="numpy")
def deliver(y, totals, n, d, first, column, D, out, turned):
    """(d, 32) sums, times what their queries have in `totals`, -> columns of n rows of a Cut (T, D) of bf16."""
    for c in range(d):
        scale_lanes(y + c * 128, totals, y + c * 128)
        scale_lanes(y + c * 128 + 64, totals + 64, y + c * 128 + 64)
    steps = (D + 31) // 32
    for c in range(0, d, 16):
        step, half = (column + c) // 32, (column + c) % 32
        for start in range(0, n, 16):
            transpose_lanes(y + (c * 32 + start) * 4, 128, turned, 64)
            for i in range(min(16, n - start)):
                t = first + start + i
                round_lanes(turned + i * 64, out + ((t // 16 * steps + step) * 16 + t % 16) * 64 + half * 2)


def by(multiply):
    """A kernel's body; multiply(out, left, blocks, stride, right, steps): (16 blocks, 32) sums of blocks of rows with a panel."""

    @njit(error_model="numpy")
    def attend(arguments, block, worker):
        g = carray(words(arguments), GIVEN)
        heads, d = g[HEADS], g[WIDTH]
        b, h, begin, end = carray(words(g[TABLE] + block * 32), 4)
        start, stop = carray(words(g[STARTS] + b * 8), 2)
        key, Sk = carray(words(g[KEYS] + b * 8), 1)[0], carray(words(g[LENGTHS] + b * 8), 1)[0]
        past, root = Sk - (stop - start), float_of(np.int32(g[ROOT]))
        wide, deep = (d + 31) // 32, (Sk + 31) // 32  # steps of the two products

        turned = g[SCRATCH] + worker * g[SIZE]
        zeros, most = turned + 1024, turned + 1024 + 64
        queries = most + 2 * QUERIES * 4 + 64
        y = queries + wide * 2048
        k = y + (d + 16) * 128
        v = k + deep * wide * 2048
        scores = v + deep * d * 64
        panel = scores + (deep + 1) * 4096
        nothing = carray(floats(zeros), 16)
        for c in range(16):
            nothing[c] = np.float32(0)
        of_queries = carray(floats(most), (2, QUERIES))

        lay_keys(g[K] + (b * g[K + 1] + h * g[K + 2] + key * g[K + 3]) * 2, g[K + 3], Sk, d, k, zeros)
        lay_values(g[V] + (b * g[V + 1] + h * g[V + 2] + key * g[V + 3]) * 2, g[V + 3], Sk, d, v, zeros, turned)
        for first in range(begin, end, QUERIES):
            n = min(QUERIES, end - first)
            seen = min(Sk, past + first + n) if g[CAUSAL] else Sk
            p = carray(floats(scores), (seen, QUERIES))
            lay_queries(g[Q] + ((start + first) * g[Q_ROW] + h * d) * 2, g[Q_ROW], n, d, root, queries, zeros, turned)
            multiply(scores, k, (seen + 15) // 16, wide * 1024, queries, wide)
            add_bias(g, p, b, h, first, n, past)
            most_of_columns(scores, seen, most)
            exponentiate(p, of_queries[0], of_queries[1])
            mask_head(g, p, b, h, first, n)
            keep(g, p, of_queries[1], b, h, first, n, stop - start, Sk)
            lay_probabilities(scores, seen, panel, zeros)
            multiply(y, v, d // 16, deep * 1024, panel, (seen + 31) // 32)
            deliver(y, most + QUERIES * 4, n, d, start + first, h * d, heads * d, g[OUT], turned)

    return attend


@njit(error_model="numpy")
def on_tiles(out, left, blocks, stride, right, steps):
    for block in range(0, blocks, 2):
        at = left + block * stride
        bf16_tiles(out + block * 2048, at, at + stride if block + 1 < blocks else 0, right, steps, 0, 0)


eight_rows = dot_block(8, 1, 1, fetches=False)


@njit(error_model="numpy")
def by_dots(out, left, blocks, stride, right, steps):
    for row in range(0, blocks * 16, 8):
        eight_rows(out + row * 128, left + row // 16 * stride + row % 16 * 64, right, steps, right)


attend_on_tiles, attend_by_dots = by(on_tiles), by(by_dots)


@Kernel
def _bf16_attention_on_tiles(arguments, block, worker):
    amx.configure(carray(words(arguments), GIVEN)[CONFIG])
    attend_on_tiles(arguments, block, worker)
    amx.release()


@Kernel
def _bf16_attention_by_dots(arguments, block, worker):
    attend_by_dots(arguments, block, worker)


_bf16_attention_on_tiles.missing = amx.missing
_bf16_attention_by_dots.missing = partial(missing_dots, True)


def attention(tiles, q, k, v, sequences, heads, bias, head_mask, probs):
    """(Tq, D), (Tk, D) x2 of bf16, heads a multiple of 16 wide -> Cut (Tq, D) of bf16, and B x (H, Sq, Sk) float32 if asked."""
    (T, D), laid = q.shape, layout(sequences)
    d = D // heads
    wide, deep = -(-d // 32), -(-laid.longest // 32)
    size = 1024 + 128 + 2 * QUERIES * 4 + wide * 2048 + (d + 16) * 128 + deep * (wide * 2048 + d * 64 + 4096 + 2048) + 4096
    groups = -(-int(laid.groups.sum()) * heads // (BLOCKS_A_THREAD * thread_limit()))
    queries = min(groups, int(laid.groups.max())) * QUERIES
    out, kernel = room(T, D), _bf16_attention_on_tiles if tiles else _bf16_attention_by_dots
    return out, call(kernel, bfloat16, q, k, v, sequences.causal, laid, heads, bias, head_mask, probs, queries, size, out.blocks)
