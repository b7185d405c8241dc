"""Rows as digits, and exact products of them: the route "sliced" to float32's accuracy (kernels/digits.cuh).

A row is cut into three 8-bit digits a number and one scale. A product of two digits is an integer, and the integer tensor cores
add such products up without an error; the products of digits i and j with one i + j are a diagonal. M rows of x, N of w.
"""

from dataclasses import dataclass
from typing import Any

import cupy as cp
import numpy as np

from ..bitwise import DEEPEST
from . import device
from .launch import DIGITS, FLOAT, Tile, at_once, launch_rows, launch_tiles

Array = Any

STEP = 64  # numbers of a row whose digits lie together
SLICED = Tile(rows=128, columns=64, threads=256, shared=2 * (128 + 64) * (3 * STEP + 16))  # two stages of both operands' rows
BUSY = 96  # large tiles that occupy a GPU


@dataclass(frozen=True)
class Cut:
    """Rows as digits (T, K / 64 rounded up, 3, 64) int8 and scales (T,): kernels/digits.cuh."""

    digits: Array
    scales: Array

    def __len__(self) -> int:
        return len(self.scales)

    def __getitem__(self, rows: slice) -> "Cut":
        return Cut(self.digits[rows], self.scales[rows])


def cut(x: Array) -> list[Cut]:  # (T, K) -> DEEPEST of K at a time
    """Rows as digits, in as many pieces as it takes for a piece's sums of products to fit into int32."""
    x = x.astype(FLOAT, copy=False)
    x = x if x.strides[1] == x.itemsize else cp.ascontiguousarray(x)
    (T, K), row, cuts = x.shape, x.strides[0] // x.itemsize, []
    for start in range(0, K, DEEPEST):
        part = x[:, start : start + DEEPEST]
        width = part.shape[1]
        y = empty_cut(T, width)
        if T:
            name = f"cut_rows<{at_once(width | row, part)}>"
            launch_rows(name, T, x=part, digits=y.digits, scales=y.scales, width=width, row=row)
        cuts.append(y)
    return cuts


def empty_cut(rows: int, width: int) -> Cut:
    """Memory for so many rows as digits."""
    return Cut(cp.empty((rows, -(-width // STEP), 3, STEP), DIGITS), cp.empty(rows, FLOAT))


def whole(x: Cut) -> Any:  # -> (T, K rounded up to 64) float32
    """The numbers that cut rows stand for, in NumPy."""
    digits = x.digits.get().astype(np.float64) / 256.0 ** np.arange(3)[:, None]
    rows = digits.sum(2).reshape(len(x), -1) * x.scales.get()[:, None]
    return rows.astype(FLOAT)


def digit_product(x: Cut, w: Cut, diagonals: int, bias: Array | None, gelu: bool, residual: Array | None) -> Array:  # -> (M, N)
    """gelu(x w^T + bias), GELU if asked, plus `residual`; of the products of digits, the first `diagonals` diagonals."""
    M, N = len(x), len(w)
    y = cp.empty((M, N), FLOAT)
    if M:
        name, tile = f"linear_sliced<{diagonals}>", SLICED
        if device.hopper():
            groups, columns, stages = _block(M, N, diagonals)
            name = f"linear_sliced_wgmma<{diagonals}, {groups}, {columns}, {stages}>"
            rows = 64 * groups
            tile = Tile(rows, columns, 128 * groups, 3 * STEP * stages * (rows + columns) + 8 * columns)
        launch_tiles(
            name, tile, M, N, x=x.digits, x_scales=x.scales, w=w.digits, w_scales=w.scales,
            bias=bias, residual=residual, y=y, steps=w.digits.shape[1], gelu=gelu,
        )  # fmt: skip
    return y


def _block(M: int, N: int, diagonals: int) -> tuple[int, int, int]:
    """Warpgroups, columns and stages of linear_sliced_wgmma's block: a large one, unless it would leave multiprocessors idle."""
    tiles = {columns: -(-M // 128) * -(-N // columns) for columns in ((128, 96) if diagonals == 3 else (96,))}
    if max(tiles.values()) < BUSY:
        return 1, 32, 6
    return 2, min(tiles, key=lambda columns: -(-tiles[columns] // device.multiprocessors()) * columns), 4
