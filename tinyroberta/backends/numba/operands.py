"""What a product reads: rows, or a weight, cut into signed 8-bit slices or rounded to bf16, as tiles read them.

Layout, "blocks", for rows (T, K): (T/16, K/unit, slices, 16, 64) bytes, unit = 64 values a tile row, or 32 of bf16
(slices = 1, no scale).
Layout, "panels", for weights (O, K): (O/32, K/unit, slices, 2, 16, 16, 4) bytes: 32 outputs as two tiles of 16 x (16 x 4 bytes).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .buffers import aligned, by_numpy, reused

PANEL = 32  # outputs a panel


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


def room(T, K):
    """A Cut of bf16 whose T rows of K are still to be written; zeros below them, and beside them until one is."""
    blocks = reused((-(-T // 16), -(-K // 32), 1, 16, 64), np.int8)
    if T % 16:
        blocks[-1, :, :, T % 16 :] = 0
    if K % 32:
        by_numpy()
        blocks[:, -1] = 0
    return Cut(blocks, None, None, (T, K), 1)


def whole_rows(x):  # Cut -> (T, K) float32
    """The numbers that cut rows stand for."""
    T, K = x.shape
    if x.slices == 1:
        bits = x.blocks.view(np.uint16)[:, :, 0].swapaxes(1, 2).reshape(-1, x.blocks.shape[1] * 32).astype(np.uint32) << 16
        return np.ascontiguousarray(bits.view(np.float32)[:T, :K])
    digits = x.blocks.astype(np.float64) / 256.0 ** np.arange(x.slices)[:, None, None]
    rows = digits.sum(2).swapaxes(1, 2).reshape(len(x.scales), -1) * x.scales[:, None]
    return rows[:T, :K].astype(np.float32)
