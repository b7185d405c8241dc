"""Rows to rows: layer norm, and cutting what comes out for the product that reads it.

A block is 16 rows, (16, D) float32, each read once from memory: two passes over it in the first-level cache give mean and
variance (Ba et al. 2016), a third the result, as float32 or as digits in tile layout (slices.py). Sums run in 64 lanes, in the
order of backends/bitwise.py.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..bitwise import COARSE
from .buffers import aligned, by_numpy, contiguous, reused
from .compiled import Kernel, carray
from .llvm import allocate, bytes_, float_of, floats, free, sum_lanes, words
from .slices import write_row
from .threads import parallel


@dataclass(frozen=True)
class Cut:
    """Rows (T, K) as blocks of slices, with their scales and which of them have outliers; one slice is bf16 and has neither."""

    blocks: Any
    scales: Any
    coarse: Any  # int8
    shape: tuple[int, int]
    slices: int

    def __getitem__(self, rows: slice) -> "Cut":
        """Some of the rows, their digits as they are."""
        T, K = self.shape
        steps = self.blocks.shape[1]
        each = self.blocks.transpose(0, 3, 1, 2, 4).reshape(-1, steps, self.slices, 64)[:T][rows]
        padded = np.zeros((-(-len(each) // 16) * 16, *each.shape[1:]), np.int8)
        padded[: len(each)] = each
        blocks = aligned((len(padded) // 16, steps, self.slices, 16, 64), np.int8)
        blocks[:] = padded.reshape(-1, 16, steps, self.slices, 64).transpose(0, 2, 3, 1, 4)
        if self.scales is None:
            return Cut(blocks, None, None, (len(each), K), 1)
        scales, coarse = np.ones(len(padded), np.float32), np.zeros(len(padded), np.int8)
        scales[: len(each)], coarse[: len(each)] = self.scales[:T][rows], self.coarse[:T][rows]
        return Cut(blocks, scales, coarse, (len(each), K), self.slices)


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


def room(T, K):
    """A Cut of bf16 whose T rows of K are still to be written; zeros below them, and beside them until one is."""
    blocks = reused((-(-T // 16), -(-K // 32), 1, 16, 64), np.int8)
    if T % 16:
        blocks[-1, :, :, T % 16 :] = 0
    if K % 32:
        by_numpy()
        blocks[:, -1] = 0
    return Cut(blocks, None, None, (T, K), 1)


def whole(x):  # Cut -> (T, K) float32
    """The numbers that cut rows stand for."""
    T, K = x.shape
    if x.slices == 1:
        bits = x.blocks.view(np.uint16)[:, :, 0].swapaxes(1, 2).reshape(-1, x.blocks.shape[1] * 32).astype(np.uint32) << 16
        return np.ascontiguousarray(bits.view(np.float32)[:T, :K])
    digits = x.blocks.astype(np.float64) / 256.0 ** np.arange(x.slices)[:, None, None]
    rows = digits.sum(2).swapaxes(1, 2).reshape(len(x.scales), -1) * x.scales[:, None]
    return rows[:T, :K].astype(np.float32)
