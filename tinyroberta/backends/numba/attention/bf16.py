"""Attention as float32.py has it, its products of bf16: on tiles, or by dot products.

Queries, keys and values are bf16 already, or they are float32 and each number is split into three bf16 parts whose sum it is.
Six products of parts, the smallest first, are as accurate as float32's, on a unit that is sixteen times as fast. A block of
work is all or some queries of one head of one sequence, taken 32 at a time. Keys and values are laid out once for all of
these, as operands of a product (../operands.py): K and V^T in blocks, what they are multiplied by in panels.

    scores (Sk, 32) = K (Sk, d) (Q / sqrt(d))^T        p = exp(scores - max)        out^T (d, 32) = V^T (d, Sk) p / sum

p is float32 and is summed as such; for the second product it is split or rounded like the rest. The result is divided by the sum.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from ml_dtypes import bfloat16

from ...bitwise import LEAST, LOG2_E, SHIFT, ZERO
from ..buffers import reused
from ..compiled import Kernel, carray, njit
from ..machine import amx
from ..machine.bf16 import copy_shorts, pair_shorts, round_lanes, scale_32, split_lanes, split_pairs
from ..machine.lanes import Lanes, copy_lanes, exponentials, most_of_columns, scale_lanes, transpose_lanes
from ..machine.memory import floats, words
from ..operands import ROUNDED, room
from ..paths import missing_dots
from ..products.dots import dot_block
from ..products.tiles import multiply_bf16_tiles
from ..sizes import BLOCK_SUMS, ROW, SUMS, TILE, TILE_ROWS
from ..threads import thread_limit
from .float32 import exponentiate_fused
from .launch import ATTENTION, QUERIES, layout, run
from .scores import exponentiate_by, keep, mask_head, mask_scores

UNIT = ROUNDED.unit
BLOCKS_A_THREAD = 4  # at least, where there is so much work, so that no thread waits long for the last one


class Numbers(NamedTuple):
    """How queries, keys and values are held, and the functions of machine/bf16.py that turn 16 of their numbers into bf16."""

    size: int  # bytes of one
    parts: int
    place: Any  # of keys
    pair: Any  # of values
    scale: Any  # of queries
    exponentiate: Any  # scores, in place


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


FROM_BF16 = Numbers(2, 1, copy_shorts, pair_shorts, scale_32("bfloat16", 1), exponentiate_by(exponentials(rough_exp)))


FROM_FLOAT32 = Numbers(4, 3, split_lanes(3), split_pairs(3), scale_32("float32", 3), exponentiate_fused)


ONE = np.float32(1)


def keys_of(numbers):
    """The function that lays out keys of such numbers."""
    size, place = numbers.size, numbers.place

    @njit(error_model="numpy")
    def lay(rows, row, count, d, out, apart, zeros):
        """Lay out (count, d), whose rows are `row` numbers apart, as blocks of 16 rows, with zeros where no row or column is."""
        steps = (d + UNIT - 1) // UNIT
        for j in range((count + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS):
            target = out + (j // TILE_ROWS * steps * TILE_ROWS + j % TILE_ROWS) * ROW
            for c in range(0, steps * UNIT, 16):
                source = rows + (j * row + c) * size if j < count and c < d else zeros
                place(source, ONE, target + c // UNIT * TILE + c % UNIT * 2, apart)

    return lay


def values_of(numbers):
    """The function that lays out values of such numbers."""
    size, parts, pair = numbers.size, numbers.parts, numbers.pair

    @njit(error_model="numpy")
    def lay(rows, row, count, d, out, apart, zeros, pairs):
        """Lay out the transpose of (count, d) as blocks, 16 columns of 32 rows (as 16 pairs) at a time; d is a multiple of 16."""
        steps = (count + UNIT - 1) // UNIT
        for step in range(steps):
            for column in range(0, d, TILE_ROWS):
                for r in range(16):
                    j = step * UNIT + 2 * r
                    even = rows + (j * row + column) * size
                    odd = even + row * size
                    pair(even if j < count else zeros, odd if j + 1 < count else zeros, pairs + r * ROW, TILE)
                for part in range(parts):
                    target = out + part * apart + (column // TILE_ROWS * steps + step) * TILE
                    transpose_lanes(pairs + part * TILE, ROW, target, ROW)

    return lay


def queries_of(numbers):
    """The function that lays out queries of such numbers."""
    size, parts, scale = numbers.size, numbers.parts, numbers.scale

    @njit(error_model="numpy")
    def lay(rows, row, n, d, root, out, apart, zeros, scaled):
        """Lay out (n, d), multiplied by root, as a panel of 32 queries."""
        for step in range((d + UNIT - 1) // UNIT):
            for half in range(2):
                for r in range(16):
                    i, c = half * 16 + r, step * UNIT
                    source = rows + (i * row + c) * size
                    beside = source + 16 * size if i < n and c + 16 < d else zeros
                    scale(source if i < n else zeros, beside, root, scaled + r * ROW, TILE)
                for part in range(parts):
                    transpose_lanes(scaled + part * TILE, ROW, out + part * apart + (step * 2 + half) * TILE, ROW)

    return lay


def probabilities_of(numbers):
    """The function that lays out probabilities, in as many parts as the values have."""
    split = split_pairs(numbers.parts)

    @njit(error_model="numpy")
    def lay(p, seen, out, apart, zeros):
        """Lay out (seen, 32) float32 as a panel of 32 queries whose depth is the keys, with zeros beyond the last key."""
        for pair in range((seen + UNIT - 1) // UNIT * 16):
            at, j = out + pair // 16 * 2 * TILE + pair % 16 * ROW, 2 * pair
            for half in range(2):
                even = p + j * SUMS + half * ROW
                split(even if j < seen else zeros, even + SUMS if j + 1 < seen else zeros, at + half * TILE, apart)

    return lay


@njit(error_model="numpy")
def write_columns(y, totals, n, d, first, column, D, as_floats, out, turned):
    """Multiply (d, 32) sums by what their queries have in `totals`; write them to columns of n rows of (T, D) or a Cut."""
    for c in range(d):
        scale_lanes(y + c * SUMS, totals, y + c * SUMS)
        scale_lanes(y + c * SUMS + ROW, totals + ROW, y + c * SUMS + ROW)
    steps = (D + UNIT - 1) // UNIT
    for c in range(column, column + d, 16):
        for start in range(0, n, 16):
            transpose_lanes(y + (c - column) * SUMS + start * 4, SUMS, turned, ROW)
            for i in range(min(16, n - start)):
                t = first + start + i
                if as_floats:
                    copy_lanes(turned + i * ROW, out + (t * D + c) * 4)
                else:
                    place = (t // TILE_ROWS * steps + c // UNIT) * TILE + t % TILE_ROWS * ROW + c % UNIT * 2
                    round_lanes(turned + i * ROW, out + place)


def scratch_of(start, d, Sk, parts):
    """How a thread's scratch, which begins at `start`, is used: how many bytes a part of queries, keys, values and probabilities
    takes; where what `attend` names is; where the scratch ends.
    """
    wide, deep = (d + UNIT - 1) // UNIT, (Sk + UNIT - 1) // UNIT
    of_q, of_k, of_v, of_p = wide * 2 * TILE, deep * wide * 2 * TILE, deep * d * ROW, deep * 2 * TILE
    zeros = start + parts * TILE
    most = zeros + ROW
    queries = most + 2 * QUERIES * 4
    y = queries + parts * of_q
    k = y + (d + TILE_ROWS) * SUMS
    v = k + parts * of_k
    scores = v + parts * of_v
    panel = scores + deep * UNIT * SUMS
    return of_q, of_k, of_v, of_p, zeros, most, queries, y, k, v, scores, panel, panel + parts * of_p


scratch_in = njit(error_model="numpy")(scratch_of)


def by(multiply, numbers):
    """A kernel's body; multiply(out, left, blocks, stride, left_apart, right, steps, right_apart) writes (16 blocks, 32) sums."""
    lay_keys, lay_values, lay_queries, lay_probabilities = (
        of(numbers) for of in (keys_of, values_of, queries_of, probabilities_of)
    )
    size, parts, exponentiate = numbers.size, numbers.parts, numbers.exponentiate

    @njit(error_model="numpy")
    def attend(given, block, worker):
        heads, d = given.heads, given.width
        b, h, begin, end = carray(words(given.table + block * 32), 4)
        start, stop = carray(words(given.starts + b * 8), 2)
        key, Sk = carray(words(given.first_keys + b * 8), 1)[0], carray(words(given.lengths + b * 8), 1)[0]
        past, root = Sk - (stop - start), given.root
        wide, deep = (d + UNIT - 1) // UNIT, (Sk + UNIT - 1) // UNIT  # steps of the two products

        turned = given.scratch + worker * given.size
        of_q, of_k, of_v, of_p, zeros, most, queries, y, k, v, scores, panel, _ = scratch_in(turned, d, Sk, parts)
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
            multiply(scores, k, (seen + TILE_ROWS - 1) // TILE_ROWS, wide * TILE, of_k, queries, wide, of_q)
            mask_scores(given, p, b, h, first, n, past)
            most_of_columns(scores, seen, most)
            exponentiate(scores, seen, most, totals_at)
            mask_head(given, p, b, h, first, n)
            keep(given, p, totals, b, h, first, n, stop - start, Sk)
            lay_probabilities(scores, seen, panel, of_p, zeros)
            multiply(y, v, d // TILE_ROWS, deep * TILE, of_v, panel, (seen + UNIT - 1) // UNIT, of_p)
            write_columns(y, totals_at, n, d, start + first, h * d, heads * d, parts > 1, given.out, turned)

    return attend


def on_tiles(parts):
    """The multiply of `by` on tiles, of operands in so many parts."""

    @njit(error_model="numpy")
    def multiply(out, left, blocks, stride, left_apart, right, steps, right_apart):
        for block in range(0, blocks, 2):
            s, at = out + block * BLOCK_SUMS, left + block * stride
            below = at + stride if block + 1 < blocks else 0
            multiply_bf16_tiles(s, at, below, right, steps, 0, 0, parts, left_apart, right_apart)

    return multiply


eight_rows = dot_block(8, ROUNDED, 1)


@njit(error_model="numpy")
def by_dots(out, left, blocks, stride, left_apart, right, steps, right_apart):
    """The multiply of `by` by dot products, of operands in one part."""
    for row in range(0, blocks * TILE_ROWS, 8):
        eight_rows(out + row * SUMS, left + row // TILE_ROWS * stride + row % TILE_ROWS * ROW, right, steps, 0, 0)


float32_on_tiles, bf16_on_tiles, bf16_by_dots = by(on_tiles(3), FROM_FLOAT32), by(on_tiles(1), FROM_BF16), by(by_dots, FROM_BF16)


@partial(Kernel, fields=ATTENTION)
def _attention_on_tiles(given, block, worker):
    amx.configure(given.config)
    float32_on_tiles(given, block, worker)
    amx.release()


@partial(Kernel, fields=ATTENTION)
def _bf16_attention_on_tiles(given, block, worker):
    amx.configure(given.config)
    bf16_on_tiles(given, block, worker)
    amx.release()


@partial(Kernel, fields=ATTENTION)
def _bf16_attention_by_dots(given, block, worker):
    bf16_by_dots(given, block, worker)


_attention_on_tiles.missing = _bf16_attention_on_tiles.missing = amx.missing


_bf16_attention_by_dots.missing = partial(missing_dots, True)


def attention(tiles, q, k, v, sequences, heads, bias, head_mask, probs):
    """(Tq, D), (Tk, D) x2, heads a multiple of 16 wide: bf16 -> Cut, float32 on tiles -> (Tq, D) float32; and B x (H, Sq, Sk)."""
    (T, D), laid = q.shape, layout(sequences)
    numbers = FROM_BF16 if q.dtype == bfloat16 else FROM_FLOAT32
    *_, size = scratch_of(0, D // heads, laid.longest, numbers.parts)
    groups = -(-int(laid.groups.sum()) * heads // (BLOCKS_A_THREAD * thread_limit()))
    queries = min(groups, int(laid.groups.max())) * QUERIES
    given = (sequences.causal, laid, heads, bias, head_mask, probs, queries, size)
    if numbers is FROM_FLOAT32:
        out = reused((T, D), np.float32)
        return out, run(_attention_on_tiles, np.float32, q, k, v, *given, out)
    cut, kernel = room(T, D), _bf16_attention_on_tiles if tiles else _bf16_attention_by_dots
    return cut, run(kernel, bfloat16, q, k, v, *given, cut.blocks)
