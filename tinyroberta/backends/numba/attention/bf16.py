"""Attention as float32.py has it, its products of bf16: on tiles, or by dot products.

Queries, keys and values are bf16 as they come, or float32 in three parts, each the rest of those before it: six products of
parts, the smallest first, are as accurate as float32's, on a unit sixteen times as fast. A block of work is all or some queries
of one head of one sequence, 32 at a time; keys and values are laid out once for all of them, as operands of a product
(../operands.py has the layouts), K as rows, V^T as rows, what is transposed as panels:

    scores (Sk, 32) = K (Sk, d) (Q / sqrt(d))^T        p = exp(scores - max)        out^T (d, 32) = V^T (d, Sk) p / sum

p is float32, with a sum of its own, and cut like the rest for the second product; what comes out is then divided by the sum.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from ml_dtypes import bfloat16

from ...bitwise import LEAST, LOG2_E, SHIFT, ZERO
from ..buffers import reused
from ..compiled import Kernel, carray, njit
from ..machine import amx
from ..machine.bf16 import copy_halves, pair_halves, round_lanes, scale_32, split_lanes, split_pairs
from ..machine.lanes import Lanes, copy_lanes, exponentials, most_of_columns, scale_lanes, transpose_lanes
from ..machine.memory import floats, words
from ..operands import ROUNDED, room
from ..paths import missing_dots
from ..products.dots import dot_block
from ..products.tiles import bf16_tiles
from ..threads import thread_limit
from .call import ATTENTION, QUERIES, call, layout
from .float32 import exponentiate_fused
from .scores import add_bias, exponentiate_by, keep, mask_head

BLOCKS_A_THREAD = 4  # at least, where there is as much work: so that no thread waits long for the last


class Kind(NamedTuple):
    """How numbers of a kind become bf16; the functions of machine/bf16.py that do so for 16 of them."""

    size: int  # bytes of one
    parts: int
    place: Any
    pair: Any
    scale: Any
    exponentiate: Any


EXP2_POLYNOMIAL = tuple(map(np.float32, (
    0.0013276471781185737, 0.009675541332718807, 0.055507132741524426, 0.24022119723883112,
    0.6931469670643575, 1.0000000716546718,
)))  # fmt: skip


def rough_exp(x: Lanes) -> Lanes:
    """e^x up to 0 for what is then rounded to bf16, two thirds of exp_fused's work: relative 1.5e-6, 0 below -87.3."""
    y = x.where(x < LEAST, LEAST, x)
    shifted = y.fused(LOG2_E, SHIFT)  # rounds to an integer
    f = y.fused(LOG2_E, SHIFT - shifted)
    p = f.fused(EXP2_POLYNOMIAL[0], EXP2_POLYNOMIAL[1])
    for c in EXP2_POLYNOMIAL[2:]:
        p = p.fused(f, c)
    return x.where(x < LEAST, ZERO, p.scaled(shifted))


HALVES = Kind(2, 1, copy_halves, pair_halves, scale_32("bfloat16", 1), exponentiate_by(exponentials(rough_exp)))


FLOATS = Kind(4, 3, split_lanes(3), split_pairs(3), scale_32("float32", 3), exponentiate_fused)


ONE = np.float32(1)


def keys_of(kind):
    size, place = kind.size, kind.place

    @njit(error_model="numpy")
    def lay(rows, row, count, d, out, apart, zeros):
        """(count, d), rows so many numbers apart -> blocks of 16 rows, zeros where there is no row or no column."""
        steps = (d + 31) // 32
        for j in range((count + 15) // 16 * 16):
            target = out + (j // 16 * steps * 16 + j % 16) * 64
            for c in range(0, steps * 32, 16):
                source = rows + (j * row + c) * size if j < count and c < d else zeros
                place(source, ONE, target + c // 32 * 1024 + c % 32 * 2, apart)

    return lay


def values_of(kind):
    size, parts, pair = kind.size, kind.parts, kind.pair

    @njit(error_model="numpy")
    def lay(rows, row, count, d, out, apart, zeros, pairs):
        """(count, d) -> its transpose as blocks: 16 columns, 32 rows as 16 pairs, at a time; d a multiple of 16."""
        steps = (count + 31) // 32
        for step in range(steps):
            for column in range(0, d, 16):
                for r in range(16):
                    j = step * 32 + 2 * r
                    even = rows + (j * row + column) * size
                    odd = even + row * size
                    pair(even if j < count else zeros, odd if j + 1 < count else zeros, pairs + r * 64, 1024)
                for part in range(parts):
                    target = out + part * apart + (column // 16 * steps + step) * 1024
                    transpose_lanes(pairs + part * 1024, 64, target, 64)

    return lay


def queries_of(kind):
    size, parts, scale = kind.size, kind.parts, kind.scale

    @njit(error_model="numpy")
    def lay(rows, row, n, d, root, out, apart, zeros, scaled):
        """(n, d), times root -> a panel of 32 queries."""
        for step in range((d + 31) // 32):
            for half in range(2):
                for r in range(16):
                    i, c = half * 16 + r, step * 32
                    source = rows + (i * row + c) * size
                    beside = source + 16 * size if i < n and c + 16 < d else zeros
                    scale(source if i < n else zeros, beside, root, scaled + r * 64, 1024)
                for part in range(parts):
                    transpose_lanes(scaled + part * 1024, 64, out + part * apart + (step * 2 + half) * 1024, 64)

    return lay


def probabilities_of(kind):
    cut = split_pairs(kind.parts)

    @njit(error_model="numpy")
    def lay(p, seen, out, apart, zeros):
        """(seen, 32) of float32 -> a panel of 32 queries whose depth are the keys, zeros beyond the last."""
        for pair in range((seen + 31) // 32 * 16):
            at, j = out + pair // 16 * 2048 + pair % 16 * 64, 2 * pair
            for half in range(2):
                even = p + j * 128 + half * 64
                cut(even if j < seen else zeros, even + 128 if j + 1 < seen else zeros, at + half * 1024, apart)

    return lay


@njit(error_model="numpy")
def deliver(y, totals, n, d, first, column, D, as_floats, out, turned):
    """(d, 32) sums, times what their queries have in `totals`, -> columns of n rows of (T, D) float32, or a Cut of bf16."""
    for c in range(d):
        scale_lanes(y + c * 128, totals, y + c * 128)
        scale_lanes(y + c * 128 + 64, totals + 64, y + c * 128 + 64)
    steps = (D + 31) // 32
    for c in range(column, column + d, 16):
        for start in range(0, n, 16):
            transpose_lanes(y + ((c - column) * 32 + start) * 4, 128, turned, 64)
            for i in range(min(16, n - start)):
                t = first + start + i
                if as_floats:
                    copy_lanes(turned + i * 64, out + (t * D + c) * 4)
                else:
                    round_lanes(turned + i * 64, out + ((t // 16 * steps + c // 32) * 16 + t % 16) * 64 + c % 32 * 2)


def places(start, d, Sk, parts):
    """Bytes of a part of queries, keys, values, probabilities; where a thread's scratch holds what `attend` names; its end."""
    wide, deep = (d + 31) // 32, (Sk + 31) // 32
    of_q, of_k, of_v, of_p = wide * 2048, deep * wide * 2048, deep * d * 64, deep * 2048
    zeros = start + parts * 1024
    most = zeros + 64
    queries = most + 2 * QUERIES * 4
    y = queries + parts * of_q
    k = y + (d + 16) * QUERIES * 4
    v = k + parts * of_k
    scores = v + parts * of_v
    panel = scores + deep * 32 * QUERIES * 4
    return of_q, of_k, of_v, of_p, zeros, most, queries, y, k, v, scores, panel, panel + parts * of_p


places_in = njit(error_model="numpy")(places)


def by(multiply, kind):
    """A kernel's body; multiply(out, left, blocks, stride, left_apart, right, steps, right_apart): (16 blocks, 32) sums."""
    lay_keys, lay_values, lay_queries, lay_probabilities = (of(kind) for of in (keys_of, values_of, queries_of, probabilities_of))
    size, parts, exponentiate = kind.size, kind.parts, kind.exponentiate

    @njit(error_model="numpy")
    def attend(given, block, worker):
        heads, d = given.heads, given.width
        b, h, begin, end = carray(words(given.table + block * 32), 4)
        start, stop = carray(words(given.starts + b * 8), 2)
        key, Sk = carray(words(given.first_keys + b * 8), 1)[0], carray(words(given.lengths + b * 8), 1)[0]
        past, root = Sk - (stop - start), given.root
        wide, deep = (d + 31) // 32, (Sk + 31) // 32  # steps of the two products

        turned = given.scratch + worker * given.size
        of_q, of_k, of_v, of_p, zeros, most, queries, y, k, v, scores, panel, _ = places_in(turned, d, Sk, parts)
        nothing = carray(floats(zeros), 16)
        for c in range(16):
            nothing[c] = np.float32(0)
        totals_at = most + QUERIES * 4
        totals = carray(floats(totals_at), QUERIES)

        keys = given.k.at + (b * given.k.sequence + h * given.k.head + key * given.k.row) * size
        values = given.v.at + (b * given.v.sequence + h * given.v.head + key * given.v.row) * size
        lay_keys(keys, given.k.row, Sk, d, k, of_k, zeros)
        lay_values(values, given.v.row, Sk, d, v, of_v, zeros, turned)
        for first in range(begin, end, QUERIES):
            n = min(QUERIES, end - first)
            seen = min(Sk, past + first + n) if given.causal else Sk
            p = carray(floats(scores), (seen, QUERIES))
            rows = given.q + ((start + first) * given.q_row + h * d) * size
            lay_queries(rows, given.q_row, n, d, root, queries, of_q, zeros, turned)
            multiply(scores, k, (seen + 15) // 16, wide * 1024, of_k, queries, wide, of_q)
            add_bias(given, p, b, h, first, n, past)
            most_of_columns(scores, seen, most)
            exponentiate(scores, seen, most, totals_at)
            mask_head(given, p, b, h, first, n)
            keep(given, p, totals, b, h, first, n, stop - start, Sk)
            lay_probabilities(scores, seen, panel, of_p, zeros)
            multiply(y, v, d // 16, deep * 1024, of_v, panel, (seen + 31) // 32, of_p)
            deliver(y, totals_at, n, d, start + first, h * d, heads * d, parts > 1, given.out, turned)

    return attend


def on_tiles(parts):
    @njit(error_model="numpy")
    def multiply(out, left, blocks, stride, left_apart, right, steps, right_apart):
        for block in range(0, blocks, 2):
            s, at = out + block * 2048, left + block * stride
            below = at + stride if block + 1 < blocks else 0
            bf16_tiles(s, at, below, right, steps, 0, 0, parts, left_apart, right_apart)

    return multiply


eight_rows = dot_block(8, ROUNDED, 1)


@njit(error_model="numpy")
def by_dots(out, left, blocks, stride, left_apart, right, steps, right_apart):
    for row in range(0, blocks * 16, 8):
        eight_rows(out + row * 128, left + row // 16 * stride + row % 16 * 64, right, steps, 0, 0)


floats_on_tiles, halves_on_tiles, halves_by_dots = by(on_tiles(3), FLOATS), by(on_tiles(1), HALVES), by(by_dots, HALVES)


@partial(Kernel, fields=ATTENTION)
def _attention_on_tiles(given, block, worker):
    amx.configure(given.config)
    floats_on_tiles(given, block, worker)
    amx.release()


@partial(Kernel, fields=ATTENTION)
def _bf16_attention_on_tiles(given, block, worker):
    amx.configure(given.config)
    halves_on_tiles(given, block, worker)
    amx.release()


@partial(Kernel, fields=ATTENTION)
def _bf16_attention_by_dots(given, block, worker):
    halves_by_dots(given, block, worker)


_attention_on_tiles.missing = _bf16_attention_on_tiles.missing = amx.missing


_bf16_attention_by_dots.missing = partial(missing_dots, True)


def attention(tiles, q, k, v, sequences, heads, bias, head_mask, probs):
    """(Tq, D), (Tk, D) x2, heads a multiple of 16 wide: bf16 -> Cut, float32 on tiles -> (Tq, D) float32; and B x (H, Sq, Sk)."""
    (T, D), laid = q.shape, layout(sequences)
    kind = HALVES if q.dtype == bfloat16 else FLOATS
    *_, size = places(0, D // heads, laid.longest, kind.parts)
    groups = -(-int(laid.groups.sum()) * heads // (BLOCKS_A_THREAD * thread_limit()))
    queries = min(groups, int(laid.groups.max())) * QUERIES
    given = (sequences.causal, laid, heads, bias, head_mask, probs, queries, size)
    if kind is FLOATS:
        out = reused((T, D), np.float32)
        return out, call(_attention_on_tiles, np.float32, q, k, v, *given, out)
    cut, kernel = room(T, D), _bf16_attention_on_tiles if tiles else _bf16_attention_by_dots
    return cut, call(kernel, bfloat16, q, k, v, *given, cut.blocks)
