"""How an operand is cut: a row is written as signed 8-bit digits or rounded to bf16, and a weight becomes panels of such rows.

A row is scaled to 24-bit integers (16-bit for two slices) and written in signed base-256 digits, x = scale (s0 + s1/256 +
s2/65536), so that products of digits are exact in int32 (Ozaki et al. 2012; Ootomo et al. 2024). The definition, to the bit:

    factor = min(top / max|row|, 2^126)   one float32 division; 1 for a row of zeros
    N = rint(x factor)                    one float32 product, ties to even
    s2 = N mod 256, as one of -128..127; then N = (N - s2) / 256 gives s1 likewise; s0 is what is left
    scale = 256^(slices - 1) / factor     NaN for a row that is not finite

operands.py has the layouts.
"""

import math
from functools import partial

import numpy as np

from .arguments import Fields
from .buffers import address, aligned
from .compiled import Kernel, carray, njit
from .machine.bf16 import round_lanes
from .machine.memory import allocate, bits_of, bytes_, float_of, floats, free, integers, words
from .operands import BF16, ROUNDED, THREE_DIGITS, TWO_DIGITS
from .sizes import PANEL, ROW, SUMS, TILE, TILE_ROWS
from .threads import parallel

WRITTEN = (THREE_DIGITS, TWO_DIGITS, ROUNDED)  # what cut_row and round_row know, and products/ with them

# What two or three digits of 127 make, less 1, by which rounding may pass it.
TOP_2, TOP_3 = np.float32(127 * 257 - 1), np.float32(127 * 65793 - 1)
MOST = np.float32(2.0**126)
NAN = np.float32(math.nan)


@njit(error_model="numpy")
def cut_row(x, slices, place, steps):
    """Write a row of steps x 64 float32 as digits at an address, a tile's bytes from slice to slice: three slices, or else two.

    Returns its scale and the sum of the squares of its first slice.
    """
    most, squares = np.int32(0), np.int32(0)
    for j in range(steps * ROW):
        most = max(most, np.int32(bits_of(x[j]) & np.int32(0x7FFFFFFF)))
    finite = most < 0x7F800000
    largest = float_of(most) if finite else np.float32(0)
    top = TOP_3 if slices == 3 else TOP_2
    factor = np.float32(1) if largest == 0 else top / largest
    factor = min(factor, MOST)
    if not finite:
        for j in range(steps * ROW):
            x[j] = np.float32(0)
    if slices == 3:
        for k in range(steps):
            high, middle, low = (
                carray(bytes_(place + 3 * k * TILE), ROW),
                carray(bytes_(place + (3 * k + 1) * TILE), ROW),
                carray(bytes_(place + (3 * k + 2) * TILE), ROW),
            )
            row = x[k * ROW : (k + 1) * ROW]
            for j in range(ROW):
                n = np.int32(np.rint(row[j] * factor))
                low[j] = np.int8(n)
                n = np.int32(n + np.int32(128)) >> np.int32(8)
                middle[j] = np.int8(n)
                n = np.int32(n + np.int32(128)) >> np.int32(8)
                high[j] = np.int8(n)
                squares = np.int32(squares + np.int32(n * n))
        scale = np.float32(65536) / factor
    else:
        for k in range(steps):
            high, low = carray(bytes_(place + 2 * k * TILE), ROW), carray(bytes_(place + (2 * k + 1) * TILE), ROW)
            row = x[k * ROW : (k + 1) * ROW]
            for j in range(ROW):
                n = np.int32(np.rint(row[j] * factor))
                low[j] = np.int8(n)
                n = np.int32(n + np.int32(128)) >> np.int32(8)
                high[j] = np.int8(n)
                squares = np.int32(squares + np.int32(n * n))
        scale = np.float32(256) / factor
    return scale if finite else NAN, squares


@njit(error_model="numpy")
def round_row(x, place, steps):
    """Write a row of steps x 32 float32 as bf16, both at addresses, a tile's bytes from step to step."""
    for k in range(steps):
        round_lanes(x + 2 * k * ROW, place + k * TILE), round_lanes(x + (2 * k + 1) * ROW, place + k * TILE + ROW // 2)


@njit(error_model="numpy")
def write_row(x, kind, slices, block, steps, row):
    """A row of float32 at an address as row `row` of the block at another; returns what cut_row does."""
    place = block + row * ROW
    if kind == BF16:
        round_row(x, place, steps)
        return np.float32(1), np.int32(0)
    return cut_row(carray(floats(x), steps * ROW), slices, place, steps)


@partial(Kernel, fields=Fields("weights", "each", "O", "K", "kind", "slices", "unit", "steps", "panels", "scales"))
def _pack_weights(given, block, worker):
    """A block of work is a panel: 32 rows of the weight are cut, then groups of 4 bytes are transposed within each tile."""
    each, O, K, slices, steps = given.each, given.O, given.K, given.slices, given.steps
    weights = carray(words(given.weights), O // each)
    unit = given.unit
    size = steps * slices * TILE
    memory = allocate(2 * size + steps * unit * 4 + ROW)
    start = (memory + ROW - 1) // ROW * ROW
    row = carray(floats(start + 2 * size), steps * unit)
    for j in range(K, steps * unit):
        row[j] = np.float32(0)
    scale = carray(floats(given.scales + block * SUMS), PANEL)
    for c in range(PANEL):
        o = block * PANEL + c
        if o < O:
            source = carray(floats(weights[o // each] + o % each * K * 4), K)
            for j in range(K):
                row[j] = source[j]
        else:
            for j in range(K):
                row[j] = np.float32(0)
        scale[c], _ = write_row(start + 2 * size, given.kind, slices, start + c // TILE_ROWS * size, steps, c % TILE_ROWS)
    for tile in range(steps * slices):
        for half in range(2):
            source = carray(integers(start + half * size + tile * TILE), (16, 16))
            target = carray(integers(given.panels + ((block * steps * slices + tile) * 2 + half) * TILE), (16, 16))
            for r in range(16):
                for c in range(16):
                    target[r, c] = source[c, r]
    free(memory)


def pack_weights(weights, operand):  # P x (O/P, K) float32 -> panels, (O/32 * 32,) scales
    """Weights of the same shape (query, key and value, say), joined, as panels that are cut as an Operand says."""
    if operand not in WRITTEN:
        raise TypeError(f"no row is written as {operand} (cutting.py), nor multiplied (products/)")
    (each, K), addresses = weights[0].shape, np.array([address(weight) for weight in weights], np.int64)
    O, steps = each * len(weights), -(-K // operand.unit)
    count = -(-O // PANEL)
    panels, scales = aligned((count, steps, operand.slices, 2 * TILE), np.int8), aligned((count * PANEL,), np.float32)
    shape = {"each": each, "O": O, "K": K, "steps": steps, **operand._asdict()}
    parallel(_pack_weights, count, weights=addresses, panels=panels, scales=scales, **shape)
    return panels, scales
