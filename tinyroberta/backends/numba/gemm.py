"""Matrix products, activation(x W^T + b) + residual, on the fastest unit that the machine has.

Tiles or dot products of int8: x (T, K) and W (O, K) are cut into slices (slices.py); digit products of one diagonal i + j add
up exactly in int32, and
    y = (c0 + (c1 2^-8 + (c2 2^-16 + c3 2^-24))) (scale_row scale_column)    in float32, in that order
with as many diagonals as kept: three slices make 6 products with diagonals 0 to 2, 8 with 3; two slices 3 or 4. A row with
outliers has one diagonal more than the rest.
Of bf16: one product, float32 sums. FMA: float32 panels (O/32, K, 32), sums of 256 products at a time.

A block of work is a panel of 32 outputs for a chunk of rows that stays in the second-level cache; meanwhile the panel after the
next is fetched, since with few rows reading weights costs as much as multiplying. Inside, 16 x 32 sums stay in tiles (all
diagonals in one pass; 16 x 16 where there are four), or those of 2 to 8 rows in registers. A row's result does not depend on
where in a block it stands.
"""

from functools import partial
from typing import Any

import numpy as np
from ml_dtypes import bfloat16

from .. import bitwise
from . import amx
from .buffers import address, aligned, by_numpy, contiguous, reused
from .compiled import Kernel, carray, njit
from .elementwise import CODES, GELU, NONE, ROUGH_GELU, activate
from .llvm import (
    FEATURES,
    add_lanes,
    allocate,
    bytes_,
    call_kernel,
    combine_lanes,
    copy_lanes,
    dot_block,
    floats,
    fma_block,
    free,
    halves,
    prefetch,
    round_lanes,
    words,
)
from .norm import room
from .paths import missing_dots
from .slices import PANEL
from .threads import parallel, thread_limit

CHUNK_BYTES = 5 << 18  # of cut rows; the cache holds two panels beside them

zero_0, zero_1, zero_2, zero_3, zero_4, zero_5, zero_6, zero_7 = (amx.zero(t) for t in range(8))
store_0, store_1, store_2, store_3, store_4, store_5 = (amx.store(t) for t in range(6))
load_4, load_5, load_6, load_7 = (amx.load(t) for t in range(4, 8))
# dot_C of tiles 6 and 7; dot_CAB of others
dot_0, dot_1, dot_2, dot_3, dot_4, dot_5 = (amx.dot_int8(t, 6, 7) for t in range(6))
dot_047, dot_147, dot_247, dot_157, dot_257, dot_357, dot_267, dot_367 = (
    amx.dot_int8(*t) for t in ((0, 4, 7), (1, 4, 7), (2, 4, 7), (1, 5, 7), (2, 5, 7), (3, 5, 7), (2, 6, 7), (3, 6, 7))
)
dot_046, dot_246, dot_256, dot_347 = (amx.dot_int8(*t) for t in ((0, 4, 6), (2, 4, 6), (2, 5, 6), (3, 4, 7)))
half_046, half_147, half_256, half_357 = (amx.dot_bf16(*t) for t in ((0, 4, 6), (1, 4, 7), (2, 5, 6), (3, 5, 7)))

A, B, ROW_SCALES, COLUMN_SCALES, BIAS, RESIDUAL, OUT, T, O, STEPS, CHUNK, KIND, ACTIVATE, CONFIG, THREADS, STRIDE, X_STRIDE = (
    range(17)
)
SLICES, DIAGONALS, COARSE, GIVES, GIVEN = 17, 18, 19, 20, 21
FLOATS, HALVES, BLOCKS = range(3)  # what a product gives: rows (T, O) of float32 or of bf16, or bf16 cut for the next product


@Kernel
def _activate_block(arguments, count, kind):
    """Not a loop's kernel: count float32 at an address, so that the activations are compiled once, not into every product."""
    activate(arguments, count, kind)


@njit(error_model="numpy")
def hold_bias(at, given, panel):
    """A panel's 32 biases at an address, 0 beyond the last output."""
    held, bias = carray(floats(at), 32), carray(floats(given[BIAS]), given[O])
    for c in range(32):
        held[c] = bias[panel * 32 + c] if given[BIAS] and panel * 32 + c < given[O] else np.float32(0)


@njit(error_model="numpy")
def deliver_halves(y, rows, width, given, first, panel):
    """As bf16: a panel of outputs is one step of the next product."""
    panels = (given[O] + 31) // 32
    for r in range(rows):
        row, t = y + r * 128, first + r
        if given[GIVES] == BLOCKS:
            out = given[OUT] + ((t // 16 * panels + panel) * 16 + t % 16) * 64
        else:
            out = given[OUT] + (t * given[O] + panel * 32) * 2
        if given[GIVES] == BLOCKS or width == 32:
            round_lanes(row, out), round_lanes(row + 64, out + 32)
        else:
            round_lanes(row, row), round_lanes(row + 64, row + 32)
            rounded, to = carray(halves(row), width), carray(halves(out), width)
            for c in range(width):
                to[c] = rounded[c]


@njit(error_model="numpy")
def deliver(y, height, given, first, panel):
    """Activation and residual on (height, 32) sums at an address; then those rows from `first` on that there are go out."""
    rows, width = min(height, given[T] - first), min(32, given[O] - panel * 32)
    if given[KIND]:
        call_kernel(given[ACTIVATE], y, height * 32, given[KIND])
    if given[GIVES] != FLOATS:
        deliver_halves(y, rows, width, given, first, panel)
        return
    out = given[OUT] + (first * given[O] + panel * 32) * 4
    residual = given[RESIDUAL] + (first * given[STRIDE] + panel * 32) * 4
    if width == 32 and given[RESIDUAL]:
        for r in range(rows):
            add_lanes(y + r * 128, residual + r * given[STRIDE] * 4, out + r * given[O] * 4)
            add_lanes(y + r * 128 + 64, residual + r * given[STRIDE] * 4 + 64, out + r * given[O] * 4 + 64)
    elif width == 32:
        for r in range(rows):
            copy_lanes(y + r * 128, out + r * given[O] * 4)
            copy_lanes(y + r * 128 + 64, out + r * given[O] * 4 + 64)
    else:
        for r in range(rows):
            row, to = carray(floats(y + r * 128), width), carray(floats(out + r * given[O] * 4), width)
            more = carray(floats(residual + r * given[STRIDE] * 4), width)
            for c in range(width):
                to[c] = row[c] + more[c] if given[RESIDUAL] else row[c]


@njit(error_model="numpy")
def add_bias(y, height, bias):
    for r in range(height):
        add_lanes(y + r * 128, bias, y + r * 128)
        add_lanes(y + r * 128 + 64, bias + 64, y + r * 128 + 64)


combine_2, combine_3, combine_4 = combine_lanes(2), combine_lanes(3), combine_lanes(4)


@njit(error_model="numpy")
def combine(s, diagonals, given, rows, panel, height, bias, y):  # (height, diagonals, 32) int32 -> (height, 32)
    """A row's sums put together: as many diagonals as were asked for, one more where the row is coarse."""
    row_scales, coarse = carray(floats(given[ROW_SCALES] + rows * 64), 16), carray(bytes_(given[COARSE] + rows * 16), 16)
    for r in range(height):
        used, scale = diagonals if coarse[r] else given[DIAGONALS], row_scales[r]
        for half in range(0, 128, 64):
            sums, scales = s + r * diagonals * 128 + half, given[COLUMN_SCALES] + panel * 128 + half
            if used == 2:
                combine_2(sums, 128, scale, scales, bias + half, y + r * 128 + half)
            elif used == 3:
                combine_3(sums, 128, scale, scales, bias + half, y + r * 128 + half)
            else:
                combine_4(sums, 128, scale, scales, bias + half, y + r * 128 + half)


@njit(error_model="numpy")
def diagonals_of(given, rows):
    """How many diagonals of a block's sums are needed."""
    coarse = carray(bytes_(given[COARSE] + rows * 16), 16)
    more = False
    for r in range(16):
        more |= coarse[r] != 0
    return given[DIAGONALS] + 1 if more and given[DIAGONALS] <= given[SLICES] else given[DIAGONALS]


@njit(error_model="numpy")
def six(s, left, right, steps, ahead, lines):
    """Slices 3 x 3, diagonals 0 to 2: 16 x 32 sums in tiles 0 to 5."""
    zero_0(), zero_1(), zero_2(), zero_3(), zero_4(), zero_5()
    for _ in range(steps):
        for line in range(lines):
            prefetch(ahead + line * 64)
        ahead += lines * 64
        load_6(left, 64)
        load_7(right, 64), dot_0(), load_7(right + 1024, 64), dot_1()
        load_7(right + 2048, 64), dot_2(), load_7(right + 3072, 64), dot_3()
        load_7(right + 4096, 64), dot_4(), load_7(right + 5120, 64), dot_5()
        load_6(left + 1024, 64)
        load_7(right, 64), dot_2(), load_7(right + 1024, 64), dot_3()
        load_7(right + 2048, 64), dot_4(), load_7(right + 3072, 64), dot_5()
        load_6(left + 2048, 64)
        load_7(right, 64), dot_4(), load_7(right + 1024, 64), dot_5()
        left, right = left + 3072, right + 6144
    store_0(s, 384), store_1(s + 64, 384), store_2(s + 128, 384)
    store_3(s + 192, 384), store_4(s + 256, 384), store_5(s + 320, 384)


@njit(error_model="numpy")
def eight(s, left, right, steps, ahead, lines):
    """Slices 3 x 3, diagonals 0 to 3: 16 x 16 sums, one half of the panel after the other."""
    for half in range(2):
        a, b = left, right + half * 1024
        zero_0(), zero_1(), zero_2(), zero_3()
        for _ in range(steps):
            if half == 0:
                for line in range(lines):
                    prefetch(ahead + line * 64)
                ahead += lines * 64
            load_4(a, 64), load_5(a + 1024, 64), load_6(a + 2048, 64)
            load_7(b, 64), dot_047(), dot_157(), dot_267()
            load_7(b + 2048, 64), dot_147(), dot_257(), dot_367()
            load_7(b + 4096, 64), dot_247(), dot_357()
            a, b = a + 3072, b + 6144
        p = s + half * 64
        store_0(p, 512), store_1(p + 128, 512), store_2(p + 256, 512), store_3(p + 384, 512)


@njit(error_model="numpy")
def three(s, left, right, steps, ahead, lines):
    """Slices 2 x 2, diagonals 0 and 1."""
    zero_0(), zero_1(), zero_2(), zero_3()
    for _ in range(steps):
        for line in range(lines):
            prefetch(ahead + line * 64)
        ahead += lines * 64
        load_4(left, 64), load_5(left + 1024, 64)
        load_6(right, 64), dot_046(), dot_256(), load_7(right + 1024, 64), dot_147(), dot_357()
        load_6(right + 2048, 64), dot_246(), load_7(right + 3072, 64), dot_347()
        left, right = left + 2048, right + 4096
    store_0(s, 256), store_1(s + 64, 256), store_2(s + 128, 256), store_3(s + 192, 256)


@njit(error_model="numpy")
def four(s, left, right, steps, ahead, lines):
    """Slices 2 x 2, all of them: diagonals 0 to 2."""
    zero_0(), zero_1(), zero_2(), zero_3(), zero_4(), zero_5()
    for _ in range(steps):
        for line in range(lines):
            prefetch(ahead + line * 64)
        ahead += lines * 64
        load_6(left, 64)
        load_7(right, 64), dot_0(), load_7(right + 1024, 64), dot_1()
        load_7(right + 2048, 64), dot_2(), load_7(right + 3072, 64), dot_3()
        load_6(left + 1024, 64)
        load_7(right, 64), dot_2(), load_7(right + 1024, 64), dot_3()
        load_7(right + 2048, 64), dot_4(), load_7(right + 3072, 64), dot_5()
        left, right = left + 2048, right + 4096
    store_0(s, 384), store_1(s + 64, 384), store_2(s + 128, 384)
    store_3(s + 192, 384), store_4(s + 256, 384), store_5(s + 320, 384)


@Kernel
def _sliced_products(arguments, block, worker):
    given = carray(words(arguments), GIVEN)
    steps, panels, slices = given[STEPS], (given[O] + 31) // 32, given[SLICES]
    chunk, panel = block // panels, block % panels
    first, last = chunk * given[CHUNK], min((chunk + 1) * given[CHUNK], (given[T] + 15) // 16)
    size = steps * slices * 2048
    following = panel + given[THREADS]
    lines = (slices * 32 - 1) // (last - first) + 1 if following < panels else 0
    ahead = given[B] + following * size
    memory = allocate(8192 + 2048 + 128 + 64)
    s = (memory + 63) // 64 * 64
    y, bias = s + 8192, s + 8192 + 2048
    hold_bias(bias, given, panel)
    amx.configure(given[CONFIG])
    for rows in range(first, last):
        left, right, diagonals = given[A] + rows * steps * slices * 1024, given[B] + panel * size, diagonals_of(given, rows)
        if slices == 3 and diagonals == 3:
            six(s, left, right, steps, ahead, lines)
        elif slices == 3:
            eight(s, left, right, steps, ahead, lines)
        elif diagonals == 2:
            three(s, left, right, steps, ahead, lines)
        else:
            four(s, left, right, steps, ahead, lines)
        ahead += lines * 64 * steps
        combine(s, diagonals, given, rows, panel, 16, bias, y)
        deliver(y, 16, given, rows * 16, panel)
    amx.release()
    free(memory)


@njit(error_model="numpy")
def bf16_tiles(s, left, below, right, steps, ahead, lines, parts, left_apart, right_apart):
    """(32, 32) sums of two blocks of 16 rows with a panel, in tiles 0 to 3; the lower half is 0 where `below` is.

    Of operands in parts, so many bytes apart, the products i + j < parts, the smallest first.
    """
    zero_0(), zero_1(), zero_2(), zero_3()
    for diagonal in range(parts - 1, -1, -1):
        for i in range(diagonal + 1):
            a, b = left + i * left_apart, right + (diagonal - i) * right_apart
            if below:
                c = below + i * left_apart
                for _ in range(steps):
                    for line in range(lines):
                        prefetch(ahead + line * 64)
                    ahead += lines * 64
                    load_4(a, 64), load_6(b, 64), half_046(), load_7(b + 1024, 64), half_147()
                    load_5(c, 64), half_256(), half_357()
                    a, b, c = a + 1024, b + 2048, c + 1024
            else:
                for _ in range(steps):
                    for line in range(lines):
                        prefetch(ahead + line * 64)
                    ahead += lines * 64
                    load_4(a, 64), load_6(b, 64), half_046(), load_7(b + 1024, 64), half_147()
                    a, b = a + 1024, b + 2048
    store_0(s, 128), store_1(s + 64, 128), store_2(s + 2048, 128), store_3(s + 2112, 128)


@Kernel
def _bf16_products(arguments, block, worker):
    given = carray(words(arguments), GIVEN)
    steps, panels = given[STEPS], (given[O] + 31) // 32
    chunk, panel = block // panels, block % panels
    first, last = chunk * given[CHUNK], min((chunk + 1) * given[CHUNK], (given[T] + 15) // 16)
    size = steps * 2048
    following = panel + given[THREADS]
    lines = 31 // ((last - first + 1) // 2) + 1 if following < panels else 0
    ahead = given[B] + following * size
    memory = allocate(4096 + 128 + 64)
    s = (memory + 63) // 64 * 64
    hold_bias(s + 4096, given, panel)
    amx.configure(given[CONFIG])
    for rows in range(first, last, 2):
        left = given[A] + rows * steps * 1024
        below = left + steps * 1024 if rows + 1 < last else 0
        bf16_tiles(s, left, below, given[B] + panel * size, steps, ahead, lines, 1, 0, 0)
        ahead += lines * 64 * steps
        add_bias(s, 32, s + 4096)
        deliver(s, 32, given, rows * 16, panel)
    amx.release()
    free(memory)


dots_22, dots_23, dots_33 = (dot_block(4, slices, diagonals) for slices, diagonals in ((2, 2), (2, 3), (3, 3)))
dots_34, dots_bf16, only_dots_bf16 = dot_block(2, 3, 4), dot_block(8, 1, 1), dot_block(8, 1, 1, fetches=2)


@njit(error_model="numpy")
def to_fetch(given, first, last, panel, size, height):
    """The panel that this thread will read next, its end, and the pace at which blocks of `height` rows fetch it together."""
    following = panel + given[THREADS]
    ahead = given[B] + following * size
    if following >= (given[O] + 31) // 32:
        return ahead, ahead, 0
    blocks = (min(last * 16, given[T]) - first * 16 + height - 1) // height
    return ahead, ahead + size, (size // (16 * given[STEPS]) - 1) // blocks + 1


@Kernel
def _sliced_dots(arguments, block, worker):
    """The same sums as the tiles', 4 rows at a time."""
    given = carray(words(arguments), GIVEN)
    steps, panels, slices = given[STEPS], (given[O] + 31) // 32, given[SLICES]
    chunk, panel = block // panels, block % panels
    first, last = chunk * given[CHUNK], min((chunk + 1) * given[CHUNK], (given[T] + 15) // 16)
    memory = allocate(8192 + 2048 + 128 + 64)
    s = (memory + 63) // 64 * 64
    size = steps * slices * 2048
    y, bias, right = s + 8192, s + 8192 + 2048, given[B] + panel * size
    ahead, end, pace = to_fetch(given, first, last, panel, size, 4)
    pace = min(pace, 64)
    hold_bias(bias, given, panel)
    for rows in range(first, last):
        height, diagonals = min(16, given[T] - rows * 16), diagonals_of(given, rows)
        for r in range(0, height, 4):
            sums, left = s + r * diagonals * 128, given[A] + rows * steps * slices * 1024 + r * 64
            pace = pace if ahead < end else 0
            if slices == 3 and diagonals == 3:
                dots_33(sums, left, right, steps, ahead, pace)
            elif slices == 3:
                dots_34(sums, left, right, steps, ahead, pace)
                dots_34(sums + 1024, left + 128, right, steps, ahead, 0)
            elif diagonals == 2:
                dots_22(sums, left, right, steps, ahead, pace)
            else:
                dots_23(sums, left, right, steps, ahead, pace)
            ahead += pace * steps * 16
        combine(s, diagonals, given, rows, panel, height, bias, y)
        deliver(y, height, given, rows * 16, panel)
    free(memory)


@Kernel
def _bf16_dots(arguments, block, worker):
    given = carray(words(arguments), GIVEN)
    steps, panels = given[STEPS], (given[O] + 31) // 32
    chunk, panel = block // panels, block % panels
    first, last = chunk * given[CHUNK], min((chunk + 1) * given[CHUNK], (given[T] + 15) // 16)
    memory = allocate(2048 + 128 + 64)
    s = (memory + 63) // 64 * 64
    right = given[B] + panel * steps * 2048
    ahead, end, pace = to_fetch(given, first, last, panel, steps * 2048, 8)
    hold_bias(s + 2048, given, panel)
    for rows in range(first, last):
        height = min(16, given[T] - rows * 16)
        for r in range(0, height, 8):
            left, pace = given[A] + rows * steps * 1024 + r * 64, pace if ahead < end else 0
            if pace > 64:
                only_dots_bf16(s + r * 128, left, right, steps, ahead, pace)
            else:
                dots_bf16(s + r * 128, left, right, steps, ahead, pace)
            ahead += pace * steps * 16
        add_bias(s, height, s + 2048)
        deliver(s, height, given, rows * 16, panel)
    free(memory)


# a unit's kernel for one slice, and for more
CUT_PRODUCTS = {"tiles": (_bf16_products, _sliced_products), "dots": (_bf16_dots, _sliced_dots)}
for _unit, _kernels in CUT_PRODUCTS.items():
    for _kernel, _bf16 in zip(_kernels, (True, False), strict=True):
        _kernel.missing = amx.missing if _unit == "tiles" else partial(missing_dots, _bf16)

WIDE = "avx512f" in FEATURES  # 32 registers of 16 floats; else 16 of 8
ROWS, VECTORS = (8, 2) if WIDE else (6, 1)
fma_rows, fma_row = fma_block(ROWS, VECTORS), fma_block(1, VECTORS)
fma_rows_16, fma_row_16 = fma_block(ROWS, 1), fma_block(1, 1)
DEPTH = 256  # products that one register sums


def multiply_by_blocks(c, c_row, rows, columns, a, a_row, a_column, b, b_row, depth):
    """C (rows, columns) += A (rows, depth) B (depth, columns), columns a multiple of 16; strides in floats."""
    for k in range(0, depth, DEPTH):
        some = min(DEPTH, depth - k)
        left, right = a + k * a_column * 4, b + k * b_row * 4
        for column in range(0, columns, 16 * VECTORS):
            full = column + 16 * VECTORS <= columns
            for row in range(0, rows // ROWS * ROWS, ROWS):
                place, x = c + (row * c_row + column) * 4, left + row * a_row * 4
                if full:
                    fma_rows(place, c_row, x, a_row, a_column, right + column * 4, b_row, some, 0, 0)
                else:
                    fma_rows_16(place, c_row, x, a_row, a_column, right + column * 4, b_row, some, 0, 0)
            for row in range(rows // ROWS * ROWS, rows):
                place, x = c + (row * c_row + column) * 4, left + row * a_row * 4
                if full:
                    fma_row(place, c_row, x, a_row, a_column, right + column * 4, b_row, some, 0, 0)
                else:
                    fma_row_16(place, c_row, x, a_row, a_column, right + column * 4, b_row, some, 0, 0)


multiply = njit(error_model="numpy")(multiply_by_blocks)

KINDS = ("float32", "bfloat16", "float16")  # of a panel's numbers
HELD_AS = {np.dtype(name): kind for kind, name in enumerate(("float32", "uint16", "float16"))}


def by_panel(kind):
    """multiply, of rows by a panel (K, 32) of numbers of a kind: y (rows, 32) += x (rows, K) panel.

    The blocks of rows together fetch what comes next, the panel's next numbers or the following panel's first.
    """
    many, only, one = (fma_block(rows, VECTORS, kind, fetches=n) for rows, n in ((ROWS, 1), (ROWS, 2), (1, 2)))
    size = 4 if kind == "float32" else 2

    @njit(error_model="numpy")
    def multiply(y, rows, x, x_row, panel, depth, following):
        full = rows // ROWS * ROWS
        pace = (32 * size - 1) // (max(1, rows // ROWS) * 2 // VECTORS) + 1
        for k in range(0, depth, DEPTH):
            some = min(DEPTH, depth - k)
            ahead = panel + (k + DEPTH) * 32 * size if k + DEPTH < depth else following
            for column in range(0, 32, 16 * VECTORS):
                right = panel + (k * 32 + column) * size
                for row in range(0, full, ROWS):
                    place, left = y + (row * 32 + column) * 4, x + (row * x_row + k) * 4
                    if pace > 64:
                        only(place, 32, left, x_row, 1, right, 32, some, ahead, pace)
                    else:
                        many(place, 32, left, x_row, 1, right, 32, some, ahead, pace)
                    ahead += some * pace
                for row in range(full, rows):
                    fetched = pace if row == 0 else 0
                    one(y + (row * 32 + column) * 4, 32, x + (row * x_row + k) * 4, x_row, 1, right, 32, some, ahead, fetched)
                    ahead += some * fetched

    return multiply


multiply_float32, multiply_bfloat16, multiply_float16 = (by_panel(kind) for kind in KINDS)


@Kernel
def _fma_products(arguments, block, worker):
    given = carray(words(arguments), GIVEN)
    K, panels, row, kind = given[STEPS], (given[O] + 31) // 32, given[X_STRIDE], given[SLICES]
    chunk, panel = block // panels, block % panels
    first, last = chunk * given[CHUNK], min((chunk + 1) * given[CHUNK], given[T])
    bias = allocate((last - first + 1) * 128)
    y, x, right = bias + 128, given[A] + first * row * 4, given[B] + panel * K * (64 if kind else 128)
    sums = carray(floats(y), (last - first) * 32)
    for i in range(len(sums)):
        sums[i] = np.float32(0)
    following = panel + given[THREADS]
    following = given[B] + following * K * (64 if kind else 128) if following < panels else right
    hold_bias(bias, given, panel)
    if kind == 0:
        multiply_float32(y, last - first, x, row, right, K, following)
    elif kind == 1:
        multiply_bfloat16(y, last - first, x, row, right, K, following)
    else:
        multiply_float16(y, last - first, x, row, right, K, following)
    add_bias(y, last - first, bias)
    deliver(y, last - first, given, first, panel)
    free(bias)


def _run(
    kernel, x, row_scales, weight, column_scales, bias, residual, shape, steps, chunks, activation, stride=0,
    cut=(0, 0, None), gives=FLOATS,
):  # fmt: skip
    T, O = shape
    result: Any = room(T, O) if gives == BLOCKS else reused(shape, bfloat16 if gives == HALVES else np.float32)
    if not T:
        return result
    out = result.blocks if gives == BLOCKS else result
    residual_stride, kind = 0, CODES[activation or "linear"]
    kind = ROUGH_GELU if kind == GELU and gives != FLOATS else kind
    if residual is not None:
        residual = residual if residual.strides[1] == 4 else contiguous(residual, np.float32)
        residual_stride = residual.strides[0] // 4
    activate_at = _activate_block.address if kind != NONE else 0
    panels = -(-O // PANEL)
    parallel(
        kernel, chunks[1] * panels, x, weight, row_scales, column_scales, bias, residual, out, T, O, steps, chunks[0], kind,
        activate_at, amx.CONFIG, thread_limit(), residual_stride, stride, *cut, gives,
    )  # fmt: skip
    return result


def _chunks(T, row_bytes):
    """How many blocks of 16 rows make a chunk, an even number, and how many chunks there are, of nearly one size."""
    T, most = max(T, 1), max(32, CHUNK_BYTES // row_bytes // 32 * 32)
    each = -(-T // (-(-T // most) * 32))
    return 2 * each, -(-T // (each * 32))


def cut_product(unit, x, weight, scales, diagonals, O, bias, activation, residual, gives=FLOATS):
    """norm.Cut (T, K) and panels of slices.pack_weights -> (T, O), on tiles or by dot products; a residual only to float32."""
    steps, slices = x.blocks.shape[1:3]
    kernel = CUT_PRODUCTS[unit][slices > 1]
    chunks = _chunks(x.shape[0], steps * slices * 64)
    shape = (x.shape[0], O)
    cut = (slices, diagonals, x.coarse)
    return _run(
        kernel, x.blocks, x.scales, weight, scales, bias, residual, shape, steps, chunks, activation, cut=cut, gives=gives
    )


def fma_product(x, weight, O, bias, activation, residual):
    """(T, K) float32 and panels (O/32, K, 32) of float32, float16, or bfloat16 as uint16 -> (T, O) float32."""
    T, K = x.shape
    if x.dtype != np.float32 or x.strides[1] != 4:
        x = contiguous(x, np.float32)
    chunk = max(1, min(T, 128))
    chunks = (chunk, -(-T // chunk))
    stride = x.strides[0] // 4
    cut = HELD_AS[weight.dtype], 0, None
    return _run(_fma_products, x, None, weight, None, bias, residual, (T, O), K, chunks, activation, stride, cut)


@Kernel
def _pack_panels(arguments, block, worker):
    """A block is a panel: 32 rows side by side, 16 columns at a time, so that what is written stays in the first-level cache."""
    given = carray(words(arguments), 5)
    each, O, K = given[1], given[2], given[3]
    parts, panel = carray(words(given[0]), O // each), carray(floats(given[4] + block * K * 128), (K, 32))
    for start in range(0, K, 16):
        stop = min(start + 16, K)
        for c in range(32):
            o = block * 32 + c
            if o < O:
                row = carray(floats(parts[o // each] + o % each * K * 4), K)
                for k in range(start, stop):
                    panel[k, c] = row[k]
            else:
                for k in range(start, stop):
                    panel[k, c] = np.float32(0)


def pack_panels(parts):  # P x (O/P, K) float32 -> (O/32, K, 32)
    """A weight, given in parts of the same shape, as panels for fma_product, in half the bytes where that loses nothing."""
    (each, K), places = parts[0].shape, np.array([address(part) for part in parts], np.int64)
    O = each * len(parts)
    panels = aligned((-(-O // PANEL), K, PANEL), np.float32)
    parallel(_pack_panels, len(panels), places, each, O, K, panels)
    for halved in (_as_bf16, _as_f16):
        if halved(panels[:1]) is not None and (half := halved(panels)) is not None:
            return half
    return panels


def _as_bf16(x):
    bits = x.view(np.uint32)
    if (bits & 0xFFFF).any():
        return None
    half = aligned(x.shape, np.uint16)
    half[:] = bits >> 16
    return half


def _as_f16(x):
    half = aligned(x.shape, np.float16)
    with np.errstate(over="ignore"):
        half[:] = x
    return half if np.array_equal(half, x) else None


@Kernel
def _finish(arguments, block, worker):
    """16 rows of a product that BLAS has done, in place."""
    given = carray(words(arguments), 8)
    T, O = given[4], given[5]
    for t in range(block * 16, min(block * 16 + 16, T)):
        y = carray(floats(given[0] + t * O * 4), O)
        bias = carray(floats(given[1]), O)
        for c in range(O):
            y[c] += bias[c]
        if given[6]:
            call_kernel(given[7], given[0] + t * O * 4, O, given[6])
        if given[2]:
            residual = carray(floats(given[2] + t * given[3] * 4), O)
            for c in range(O):
                y[c] += residual[c]


def blas_product(x, weight, O, bias, activation, residual):
    """(T, K), (O, K) float32 -> (T, O), by NumPy's BLAS."""
    return _finished(np.matmul(x, weight.T, dtype=np.float32), bias, activation, residual)


def digit_product(x, weight, scales, diagonals, O, bias, activation, residual):
    """As cut_product, its digits multiplied by NumPy's BLAS: exact too, so equal to the bit, and slow."""
    (T, K), slices = x.shape, x.slices
    rows = x.blocks.transpose(2, 0, 3, 1, 4).reshape(slices, len(x.scales), -1)
    columns = weight.reshape(*weight.shape[:3], 2, 16, 16, 4).transpose(2, 0, 3, 5, 1, 4, 6).reshape(slices, len(scales), -1)
    y = bitwise.sliced_product(rows[:, :T, :K], x.scales[:T], columns[:, :O, :K], scales[:O], diagonals)
    return _finished(y, bias, activation, residual)


def _finished(y, bias, activation, residual):
    """Bias, activation and residual, in place."""
    by_numpy()
    kind, stride = CODES[activation or "linear"], 0
    if residual is not None:
        residual = residual if residual.strides[1] == 4 else np.ascontiguousarray(residual)
        stride = residual.strides[0] // 4
    activate_at = _activate_block.address if kind != NONE else 0
    parallel(_finish, -(-len(y) // 16), y, bias, residual, stride, len(y), y.shape[1], kind, activate_at)
    return y
