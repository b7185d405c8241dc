"""From a product's sums to its results: bias, activation, residual, and the form in which what reads them wants them."""

import numpy as np

from ..arguments import Fields
from ..compiled import carray, njit
from ..machine.bf16 import round_lanes
from ..machine.lanes import add_lanes, copy_lanes
from ..machine.memory import floats, shorts
from ..machine.system import call_kernel
from ..sizes import PANEL, ROW, SUMS, TILE_ROWS

# What every product is given: its operands, then what says which rows a block of work has and what to fetch, then its results.
RESULTS = ("T", "O", "out", "gives", "bias", "activation", "activate", "residual", "residual_row")
OUTPUT = ("x", "weight", "chunk", "threads", *RESULTS)
CUT = Fields(*OUTPUT, "slices", "diagonals", "steps", "row_scales", "column_scales", "coarse", "config")
# What a product gives: rows (T, O) of float32 or of bf16, or bf16 cut for the next product.
GIVES_FLOAT32, GIVES_BF16, GIVES_BLOCKS = range(3)


@njit(error_model="numpy")
def hold_bias(at, given, panel):
    """A panel's biases at an address, 0 beyond the last output."""
    held, bias = carray(floats(at), PANEL), carray(floats(given.bias), given.O)
    for c in range(PANEL):
        held[c] = bias[panel * PANEL + c] if given.bias and panel * PANEL + c < given.O else np.float32(0)


@njit(error_model="numpy")
def deliver_bf16(y, rows, width, given, first, panel):
    """Write results as bf16; a panel of 32 outputs is one step (32 numbers deep) of the product that reads them."""
    panels = (given.O + PANEL - 1) // PANEL
    for r in range(rows):
        row, t = y + r * SUMS, first + r
        if given.gives == GIVES_BLOCKS:
            out = given.out + ((t // TILE_ROWS * panels + panel) * TILE_ROWS + t % TILE_ROWS) * ROW
        else:
            out = given.out + (t * given.O + panel * PANEL) * 2
        if given.gives == GIVES_BLOCKS or width == PANEL:
            round_lanes(row, out), round_lanes(row + ROW, out + ROW // 2)
        else:
            round_lanes(row, row), round_lanes(row + ROW, row + ROW // 2)
            rounded, to = carray(shorts(row), width), carray(shorts(out), width)
            for c in range(width):
                to[c] = rounded[c]


@njit(error_model="numpy")
def deliver(y, height, given, first, panel):
    """Apply activation and residual to (height, 32) sums at an address, and write the rows from `first` on that exist."""
    rows, width = min(height, given.T - first), min(PANEL, given.O - panel * PANEL)
    if given.activation:
        call_kernel(given.activate, y, height * PANEL, given.activation)
    if given.gives != GIVES_FLOAT32:
        deliver_bf16(y, rows, width, given, first, panel)
        return
    out = given.out + (first * given.O + panel * PANEL) * 4
    residual = given.residual + (first * given.residual_row + panel * PANEL) * 4
    if width == PANEL and given.residual:
        for r in range(rows):
            add_lanes(y + r * SUMS, residual + r * given.residual_row * 4, out + r * given.O * 4)
            add_lanes(y + r * SUMS + ROW, residual + r * given.residual_row * 4 + ROW, out + r * given.O * 4 + ROW)
    elif width == PANEL:
        for r in range(rows):
            copy_lanes(y + r * SUMS, out + r * given.O * 4)
            copy_lanes(y + r * SUMS + ROW, out + r * given.O * 4 + ROW)
    else:
        for r in range(rows):
            row, to = carray(floats(y + r * SUMS), width), carray(floats(out + r * given.O * 4), width)
            more = carray(floats(residual + r * given.residual_row * 4), width)
            for c in range(width):
                to[c] = row[c] + more[c] if given.residual else row[c]


@njit(error_model="numpy")
def add_held_bias(y, height, bias):
    """Add what hold_bias wrote to each row of (height, 32) sums; all by address."""
    for r in range(height):
        add_lanes(y + r * SUMS, bias, y + r * SUMS)
        add_lanes(y + r * SUMS + ROW, bias + ROW, y + r * SUMS + ROW)
