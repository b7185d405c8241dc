"""Products of float32 by multiply-adds in registers, the weight in panels (O/32, K, 32) of float32, bf16 or f16."""

from functools import partial

import numpy as np

from ..arguments import Fields
from ..buffers import address, aligned, contiguous
from ..compiled import Kernel, carray, cgutils, intrinsic, ir, njit, types
from ..machine.bf16 import widen
from ..machine.emit import F32, I64, LANES, broadcast, prefetch_line
from ..machine.features import FEATURES, FUSED
from ..machine.memory import allocate, floats, free, words
from ..sizes import PANEL, ROW, SUMS, TILE_ROWS
from ..threads import parallel
from .launch import run
from .outputs import OUTPUT, add_held_bias, deliver, hold_bias


def fma_block(rows, vectors, kind="float32", fused=FUSED, fetches=0):
    """An intrinsic: C[r, :] += sum over k of A[r, k] B[k, :], for `rows` rows and 16 `vectors` columns, sums in registers.

    Strides are in floats: C's and B's rows, A's rows and columns; B's numbers may also be bfloat16 or float16, its strides in
    those. A row's bits do not depend on `rows` or `vectors`. fused: a product and its sum are rounded once. With every k so many
    cache lines from `ahead` on are fetched, and `ahead` moves by `pace` bytes.
    """
    size = 4 if kind == "float32" else 2
    name = "llvm.fma.v16f32"

    @intrinsic
    def block(typingctx, c, c_row, a, a_row, a_column, b, b_row, depth, ahead, pace):
        def codegen(context, builder, signature, args):
            c, c_row, a, a_row, a_column, b, b_row, depth, ahead, pace = args
            sums = [[cgutils.alloca_once(builder, LANES) for _ in range(vectors)] for _ in range(rows)]
            zero = ir.Constant(LANES, [0.0] * 16)
            for row in sums:
                for place in row:
                    builder.store(zero, place)

            def at(base, index, stride, size=4):
                return builder.add(base, builder.mul(builder.mul(index, stride), I64(size)))

            with cgutils.for_range(builder, depth, intp=I64) as loop:
                k = loop.index
                right = at(b, k, b_row, size)
                loaded = [widen(builder, builder.add(right, I64(16 * size * v)), kind) for v in range(vectors)]
                left = at(a, k, a_column)
                for line in range(fetches):
                    prefetch_line(builder, builder.add(builder.add(ahead, builder.mul(k, pace)), I64(64 * line)))
                for r in range(rows):
                    pointer = builder.inttoptr(at(left, a_row, I64(r)), F32.as_pointer())
                    spread = broadcast(builder, builder.load(pointer, align=4))
                    for v in range(vectors):
                        old = builder.load(sums[r][v])
                        if fused:
                            function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(LANES, [LANES] * 3), name)
                            new = builder.call(function, [spread, loaded[v], old])
                        else:
                            new = builder.fadd(builder.fmul(spread, loaded[v]), old)
                        builder.store(new, sums[r][v])
            for r in range(rows):
                for v in range(vectors):
                    address = builder.add(at(c, c_row, I64(r)), I64(64 * v))
                    pointer = builder.inttoptr(address, LANES.as_pointer())
                    total = builder.fadd(builder.load(pointer, align=4), builder.load(sums[r][v]))
                    builder.store(total, pointer, align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 10), codegen

    return block


WIDE = "avx512f" in FEATURES  # 32 registers of 16 floats; else 16 of 8
ROWS_AT_ONCE, VECTORS = (8, 2) if WIDE else (6, 1)
DEPTH = 256  # products that one register sums
CHUNK_ROWS = 128


def multiply_by(fused):
    """multiply(...): C (rows, columns) += A (rows, depth) B (depth, columns), columns a multiple of 16; strides in floats.

    fused: a product and its sum are rounded once, else each, as backends/bitwise.py has it.
    """
    many, one = fma_block(ROWS_AT_ONCE, VECTORS, fused=fused), fma_block(1, VECTORS, fused=fused)
    many_16, one_16 = fma_block(ROWS_AT_ONCE, 1, fused=fused), fma_block(1, 1, fused=fused)

    @njit(error_model="numpy")
    def multiply(c, c_row, rows, columns, a, a_row, a_column, b, b_row, depth):
        for k in range(0, depth, DEPTH):
            some = min(DEPTH, depth - k)
            left, right = a + k * a_column * 4, b + k * b_row * 4
            for column in range(0, columns, 16 * VECTORS):
                full = column + 16 * VECTORS <= columns
                for row in range(0, rows // ROWS_AT_ONCE * ROWS_AT_ONCE, ROWS_AT_ONCE):
                    place, x = c + (row * c_row + column) * 4, left + row * a_row * 4
                    if full:
                        many(place, c_row, x, a_row, a_column, right + column * 4, b_row, some, 0, 0)
                    else:
                        many_16(place, c_row, x, a_row, a_column, right + column * 4, b_row, some, 0, 0)
                for row in range(rows // ROWS_AT_ONCE * ROWS_AT_ONCE, rows):
                    place, x = c + (row * c_row + column) * 4, left + row * a_row * 4
                    if full:
                        one(place, c_row, x, a_row, a_column, right + column * 4, b_row, some, 0, 0)
                    else:
                        one_16(place, c_row, x, a_row, a_column, right + column * 4, b_row, some, 0, 0)

    return multiply


multiply, multiply_in_order = multiply_by(FUSED), multiply_by(False)
NUMBERS = ("float32", "bfloat16", "float16")  # the types that a panel's numbers may have; bf16 is held in uint16 arrays here
HELD_AS = {np.dtype(name): number for number, name in enumerate(("float32", "uint16", "float16"))}


def by_panel(kind):
    """multiply, of rows by a panel (K, 32) of numbers of a kind: y (rows, 32) += x (rows, K) panel.

    The blocks of rows together fetch what comes next, the panel's next numbers or the following panel's first.
    """
    many, only, one = (fma_block(rows, VECTORS, kind, fetches=n) for rows, n in ((ROWS_AT_ONCE, 1), (ROWS_AT_ONCE, 2), (1, 2)))
    size = 4 if kind == "float32" else 2

    @njit(error_model="numpy")
    def multiply(y, rows, x, x_row, panel, depth, following):
        full = rows // ROWS_AT_ONCE * ROWS_AT_ONCE
        pace = (PANEL * size - 1) // (max(1, rows // ROWS_AT_ONCE) * 2 // VECTORS) + 1
        for k in range(0, depth, DEPTH):
            some = min(DEPTH, depth - k)
            ahead = panel + (k + DEPTH) * PANEL * size if k + DEPTH < depth else following
            for column in range(0, PANEL, 16 * VECTORS):
                right = panel + (k * PANEL + column) * size
                for row in range(0, full, ROWS_AT_ONCE):
                    place, left = y + (row * PANEL + column) * 4, x + (row * x_row + k) * 4
                    if pace > ROW:
                        only(place, PANEL, left, x_row, 1, right, PANEL, some, ahead, pace)
                    else:
                        many(place, PANEL, left, x_row, 1, right, PANEL, some, ahead, pace)
                    ahead += some * pace
                for row in range(full, rows):
                    fetched = pace if row == 0 else 0
                    place, left = y + (row * PANEL + column) * 4, x + (row * x_row + k) * 4
                    one(place, PANEL, left, x_row, 1, right, PANEL, some, ahead, fetched)
                    ahead += some * fetched

    return multiply


multiply_float32, multiply_bfloat16, multiply_float16 = (by_panel(kind) for kind in NUMBERS)


@partial(Kernel, fields=Fields(*OUTPUT, "x_row", "K", "held_as"))
def fma_products(given, block, worker):
    """Products of float32 rows by a panel of whichever numbers."""
    K, panels, row, held_as = given.K, (given.O + PANEL - 1) // PANEL, given.x_row, given.held_as
    chunk, panel = block // panels, block % panels
    first, last = chunk * given.chunk, min((chunk + 1) * given.chunk, given.T)
    bias = allocate((last - first + 1) * SUMS)
    y, x, right = bias + SUMS, given.x + first * row * 4, given.weight + panel * K * PANEL * (2 if held_as else 4)
    sums = carray(floats(y), (last - first) * PANEL)
    for i in range(len(sums)):
        sums[i] = np.float32(0)
    following = panel + given.threads
    following = given.weight + following * K * PANEL * (2 if held_as else 4) if following < panels else right
    hold_bias(bias, given, panel)
    if held_as == 0:
        multiply_float32(y, last - first, x, row, right, K, following)
    elif held_as == 1:
        multiply_bfloat16(y, last - first, x, row, right, K, following)
    else:
        multiply_float16(y, last - first, x, row, right, K, following)
    add_held_bias(y, last - first, bias)
    deliver(y, last - first, given, first, panel)
    free(bias)


def fma_product(x, weight, O, bias, activation, residual):
    """(T, K) float32 and panels (O/32, K, 32) of float32, float16, or bfloat16 as uint16 -> (T, O) float32."""
    T, K = x.shape
    if x.dtype != np.float32 or x.strides[1] != 4:
        x = contiguous(x, np.float32)
    chunk = max(1, min(T, CHUNK_ROWS))
    given = {"x_row": x.strides[0] // 4, "K": K, "held_as": HELD_AS[weight.dtype]}
    return run(fma_products, x, weight, (T, O), (chunk, -(-T // chunk)), bias, activation, residual, **given)


@partial(Kernel, fields=Fields("weights", "each", "O", "K", "panels"))
def _pack_panels(given, block, worker):
    """A block of work is a panel: 32 rows are laid beside each other, 16 columns at a time, which the first-level cache holds."""
    each, O, K = given.each, given.O, given.K
    weights, panel = carray(words(given.weights), O // each), carray(floats(given.panels + block * K * SUMS), (K, PANEL))
    for start in range(0, K, TILE_ROWS):
        stop = min(start + TILE_ROWS, K)
        for c in range(PANEL):
            o = block * PANEL + c
            if o < O:
                row = carray(floats(weights[o // each] + o % each * K * 4), K)
                for k in range(start, stop):
                    panel[k, c] = row[k]
            else:
                for k in range(start, stop):
                    panel[k, c] = np.float32(0)


def pack_panels(weights):  # P x (O/P, K) float32 -> (O/32, K, 32)
    """Weights of the same shape, joined, as panels for fma_product; as bf16 or f16 where that loses nothing."""
    (each, K), addresses = weights[0].shape, np.array([address(weight) for weight in weights], np.int64)
    O = each * len(weights)
    panels = aligned((-(-O // PANEL), K, PANEL), np.float32)
    parallel(_pack_panels, len(panels), weights=addresses, each=each, O=O, K=K, panels=panels)
    for halved in (_as_bf16, _as_f16):
        if halved(panels[:1]) is not None and (half := halved(panels)) is not None:
            return half
    return panels


def _as_bf16(x):
    """The same numbers as bf16, or None where some are not."""
    bits = x.view(np.uint32)
    if (bits & 0xFFFF).any():
        return None
    half = aligned(x.shape, np.uint16)
    half[:] = bits >> 16
    return half


def _as_f16(x):
    """The same numbers as f16, or None where some are not."""
    half = aligned(x.shape, np.float16)
    with np.errstate(over="ignore"):
        half[:] = x
    return half if np.array_equal(half, x) else None
