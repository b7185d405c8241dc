"""What a product reads: rows, or a weight, cut into slices of signed 8-bit digits or rounded to bf16, as tiles read them.

Rows (T, K) lie in blocks of 16: (T/16, K/unit, slices, 16, 64) bytes, of which the last two axes are a tile.
A weight (O, K) lies in panels of 32 outputs: (O/32, K/unit, slices, 2, 16, 16, 4) bytes, two tiles beside each other, in which 4
bytes of one output stand together, and those of 16 outputs fill a tile's row.

What is cut into digits has a scale for each row or output; bf16 has none. To add a kind of number, or another count of slices: an
Operand here; what writes it in cutting.py; what multiplies it in products/ (tiles.py and dots.py choose by slices and diagonals,
sums.py puts 2 to 4 diagonals together and gives a coarse row one more); and its row in products/levels.py.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .buffers import aligned, by_numpy, reused
from .sizes import ROW, TILE_ROWS

FLOAT32, DIGITS, BF16 = range(3)  # kinds of numbers


class Operand(NamedTuple):
    """How a product reads numbers: in so many slices, as digits or bf16 (`kind`), `unit` of which fill a tile's row: a step."""

    kind: int
    slices: int
    unit: int


THREE_DIGITS, TWO_DIGITS, ROUNDED = Operand(DIGITS, 3, 64), Operand(DIGITS, 2, 64), Operand(BF16, 1, 32)


@dataclass(frozen=True)
class Cut:
    """Rows (T, K) as blocks of slices, with their scales and which of them are coarse; those of bf16 have neither."""

    blocks: Any
    scales: Any
    coarse: Any  # int8
    shape: tuple[int, int]
    operand: Operand

    def __getitem__(self, rows: slice) -> "Cut":
        """Some of the rows, their digits as they are."""
        (T, K), (steps, slices) = self.shape, self.blocks.shape[1:3]
        each = self.blocks.transpose(0, 3, 1, 2, 4).reshape(-1, steps, slices, ROW)[:T][rows]
        padded = np.zeros((-(-len(each) // TILE_ROWS) * TILE_ROWS, *each.shape[1:]), np.int8)
        padded[: len(each)] = each
        blocks = aligned((len(padded) // TILE_ROWS, steps, slices, TILE_ROWS, ROW), np.int8)
        blocks[:] = padded.reshape(-1, TILE_ROWS, steps, slices, ROW).transpose(0, 2, 3, 1, 4)
        if self.scales is None:
            return Cut(blocks, None, None, (len(each), K), self.operand)
        scales, coarse = np.ones(len(padded), np.float32), np.zeros(len(padded), np.int8)
        scales[: len(each)], coarse[: len(each)] = self.scales[:T][rows], self.coarse[:T][rows]
        return Cut(blocks, scales, coarse, (len(each), K), self.operand)


def blocks_shape(T, K, operand):
    """The shape of the blocks of rows (T, K)."""
    return -(-T // TILE_ROWS), -(-K // operand.unit), operand.slices, TILE_ROWS, ROW


def room(T, K):
    """A Cut of bf16 in which a kernel will write T rows of K numbers.

    What is beyond the last row and the last column must be zero, since products read it: rows beyond the last are made zero here,
    and so is the last step of columns, of which the kernel then writes the first K.
    """
    blocks = reused(blocks_shape(T, K, ROUNDED), np.int8)
    if T % TILE_ROWS:
        blocks[-1, :, :, T % TILE_ROWS :] = 0
    if K % ROUNDED.unit:
        by_numpy()
        blocks[:, -1] = 0
    return Cut(blocks, None, None, (T, K), ROUNDED)


def whole_rows(x):  # Cut -> (T, K) float32
    """The numbers that cut rows stand for."""
    T, K = x.shape
    if x.operand.kind == BF16:
        bits = x.blocks.view(np.uint16)[:, :, 0].swapaxes(1, 2).astype(np.uint32, order="C")  # no second array: memory costs most
        bits <<= 16
        return np.ascontiguousarray(bits.view(np.float32).reshape(len(bits) * bits.shape[1], -1)[:T, :K])
    numbers = x.blocks[:, :, 0].swapaxes(1, 2).astype(np.float32, order="C")
    for digits in range(1, x.operand.slices):  # 24 bits at most, which float32 holds
        numbers *= 256
        numbers += x.blocks[:, :, digits].swapaxes(1, 2)
    rows = numbers.reshape(len(x.scales), -1)
    rows *= (x.scales / np.float32(256 ** (x.operand.slices - 1)))[:, None]
    return np.ascontiguousarray(rows[:T, :K])
