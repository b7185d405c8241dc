"""Rows to rows: layer norm, and cutting what comes out for the product that reads it.

A block is 16 rows, (16, D) float32, each read once from memory: two passes over it in the first-level cache give mean and
variance (Ba et al. 2016), a third the result, as float32 or as digits in tile layout (operands.py). Sums run in 64 lanes, in the
order of backends/bitwise.py.
"""

import math

import numpy as np

from ..bitwise import COARSE
from .buffers import contiguous, reused
from .compiled import Kernel, carray
from .cutting import write_row
from .machine.lanes import sum_lanes
from .machine.memory import allocate, bytes_, float_of, floats, free, words
from .operands import Cut
from .threads import parallel

total, total_of_squares = sum_lanes(False), sum_lanes(True)


@Kernel
def _rows(arguments, block, worker):
    """Norm where a weight is given, then float32 or slices."""
    given = carray(words(arguments), 12)
    x, stride, T, D, weight, bias, eps = given[0], given[1], given[2], given[3], given[4], given[5], given[6]
    out, scales, slices, steps = given[7], given[8], given[9], given[10]
    unit = 32 if slices == 1 else 64
    size = max((D + 63) // 64 * 64, steps * unit)
    whole = allocate(size * 4)
    buffer = carray(floats(whole), size)
    row = buffer[:D]
    for j in range(size):
        buffer[j] = np.float32(0)
    small = float_of(np.int32(eps))
    for r in range(16):
        t = block * 16 + r
        if t < T:
            source = carray(floats(x + t * stride * 4), D)
            for j in range(D):
                row[j] = source[j]
            if weight:
                gain, shift = carray(floats(weight), D), carray(floats(bias), D)
                mean = total(whole, D) / np.float32(D)
                for j in range(D):
                    row[j] -= mean
                variance = total_of_squares(whole, D) / np.float32(D)
                inverse = np.float32(1) / np.float32(math.sqrt(variance + small))
                for j in range(D):
                    row[j] = row[j] * inverse * gain[j] + shift[j]
        else:
            for j in range(D):
                row[j] = np.float32(0)
        if slices:
            scale, squares = write_row(whole, slices, out + block * steps * slices * 1024, steps, r)
            if slices > 1:
                carray(floats(scales + block * 64), 16)[r] = scale
                carray(bytes_(given[11] + block * 16), 16)[r] = t < T and squares < COARSE * D
        elif t < T:
            target = carray(floats(out + t * D * 4), D)
            for j in range(D):
                target[j] = row[j]
    free(whole)


def _bits(eps):
    return int(np.float32(eps).view(np.int32))


def layer_norm(x, weight, bias, eps):  # (T, D) float32 -> the same
    x = contiguous(x, np.float32)
    T, D = x.shape
    out = reused((T, D), np.float32)
    parallel(_rows, -(-T // 16), x, D, T, D, weight, bias, _bits(eps), out, 0, 0, 0, 0)
    return out


def cut(x, slices, weight=None, bias=None, eps=0.0):  # (T, D) float32, its rows contiguous -> Cut
    """Rows, or their layer norm, cut for a product."""
    if x.dtype != np.float32 or x.strides[1] != 4 or x.strides[0] % 4:
        x = contiguous(x, np.float32)
    T, D = x.shape
    steps, count = -(-D // (32 if slices == 1 else 64)), -(-T // 16)
    blocks = reused((count, steps, slices, 16, 64), np.int8)
    scales, coarse = (np.empty(count * 16, dtype) if slices > 1 else None for dtype in (np.float32, np.int8))
    parallel(_rows, count, x, x.strides[0] // 4, T, D, weight, bias, _bits(eps), blocks, scales, slices, steps, coarse)
    return Cut(blocks, scales, coarse, (T, D), slices)
