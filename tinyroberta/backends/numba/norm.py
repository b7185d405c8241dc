"""Rows to rows: layer norm, and cutting what comes out for the product that reads it.

A block is 16 rows, (16, D) float32, each read once from memory: two passes over it in the first-level cache give mean and
variance (Ba et al. 2016), a third the result, as float32 or as digits in tile layout (operands.py). Sums run in 64 lanes, in the
order of backends/bitwise.py.
"""

import math
from functools import partial

import numpy as np

from ..bitwise import COARSE
from .arguments import Fields
from .buffers import contiguous, reused
from .compiled import Kernel, carray
from .cutting import write_row
from .machine.lanes import sum_lanes
from .machine.memory import allocate, bytes_, floats, free
from .operands import DIGITS, FLOAT32, Cut, blocks_shape
from .sizes import ROW, TILE, TILE_ROWS
from .threads import parallel

total, total_of_squares = sum_lanes(False), sum_lanes(True)


GIVEN = Fields(
    "x", "x_row", "T", "D",
    "weight", "bias",  # the norm's; 0 where the rows are only cut
    "out", "scales", "coarse", "kind", "slices", "unit", "steps",
    eps=np.float32,
)  # fmt: skip


@partial(Kernel, fields=GIVEN)
def _rows(given, block, worker):
    """Norm a block's rows if a weight is given, then write them as float32 or cut them."""
    T, D, slices, steps = given.T, given.D, given.slices, given.steps
    size = max((D + ROW - 1) // ROW * ROW, steps * given.unit)
    whole = allocate(size * 4)
    buffer = carray(floats(whole), size)
    row = buffer[:D]
    for j in range(size):
        buffer[j] = np.float32(0)
    for r in range(TILE_ROWS):
        t = block * TILE_ROWS + r
        if t < T:
            source = carray(floats(given.x + t * given.x_row * 4), D)
            for j in range(D):
                row[j] = source[j]
            if given.weight:
                gain, shift = carray(floats(given.weight), D), carray(floats(given.bias), D)
                mean = total(whole, D) / np.float32(D)
                for j in range(D):
                    row[j] -= mean
                variance = total_of_squares(whole, D) / np.float32(D)
                inverse = np.float32(1) / np.float32(math.sqrt(variance + given.eps))
                for j in range(D):
                    row[j] = row[j] * inverse * gain[j] + shift[j]
        else:
            for j in range(D):
                row[j] = np.float32(0)
        if given.kind != FLOAT32:
            scale, squares = write_row(whole, given.kind, slices, given.out + block * steps * slices * TILE, steps, r)
            if given.kind == DIGITS:
                carray(floats(given.scales + block * TILE_ROWS * 4), TILE_ROWS)[r] = scale
                carray(bytes_(given.coarse + block * TILE_ROWS), TILE_ROWS)[r] = t < T and squares < COARSE * D
        elif t < T:
            target = carray(floats(given.out + t * D * 4), D)
            for j in range(D):
                target[j] = row[j]
    free(whole)


def layer_norm(x, weight, bias, eps):  # (T, D) float32 -> the same
    """Rows normed; as backends/bitwise.py to the bit."""
    x = contiguous(x, np.float32)
    T, D = x.shape
    out = reused((T, D), np.float32)
    cuts = {"scales": None, "coarse": None, "kind": FLOAT32, "slices": 0, "unit": 0, "steps": 0}
    parallel(_rows, -(-T // TILE_ROWS), x=x, x_row=D, T=T, D=D, weight=weight, bias=bias, eps=eps, out=out, **cuts)
    return out


def cut(x, operand, weight=None, bias=None, eps=0.0):  # (T, D) float32, its rows contiguous -> Cut
    """Rows cut for a product, or their layer norm where a weight is given."""
    if x.dtype != np.float32 or x.strides[1] != 4 or x.strides[0] % 4:
        x = contiguous(x, np.float32)
    T, D = x.shape
    count, steps, *_ = shape = blocks_shape(T, D, operand)
    blocks, digits = reused(shape, np.int8), operand.kind == DIGITS
    scales, coarse = (np.empty(count * TILE_ROWS, dtype) if digits else None for dtype in (np.float32, np.int8))
    cuts = {"scales": scales, "coarse": coarse, "steps": steps, **operand._asdict()}
    parallel(_rows, count, x=x, x_row=x.strides[0] // 4, T=T, D=D, weight=weight, bias=bias, eps=eps, out=blocks, **cuts)
    return Cut(blocks, scales, coarse, (T, D), operand)
