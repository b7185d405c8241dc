"""From a product's sums to its results: bias, activation, residual, and the form in which what reads them wants them."""

import numpy as np

from ..arguments import Fields
from ..compiled import carray, njit
from ..machine.bf16 import round_lanes
from ..machine.lanes import add_lanes, copy_lanes
from ..machine.memory import floats, halves
from ..machine.system import call_kernel

# What every product is given: rows x by a weight; chunk and threads, which say what to compute and to fetch; then its results.
OUTPUT = (
    "x",
    "weight",
    "chunk",
    "threads",
    "T",
    "O",
    "out",
    "gives",
    "bias",
    "activation",
    "activate",
    "residual",
    "residual_row",
)
CUT = Fields(*OUTPUT, "slices", "diagonals", "steps", "row_scales", "column_scales", "coarse", "config")
FLOATS, HALVES, BLOCKS = range(3)  # what a product gives: rows (T, O) of float32 or of bf16, or bf16 cut for the next product


@njit(error_model="numpy")
def hold_bias(at, given, panel):
    """A panel's 32 biases at an address, 0 beyond the last output."""
    held, bias = carray(floats(at), 32), carray(floats(given.bias), given.O)
    for c in range(32):
        held[c] = bias[panel * 32 + c] if given.bias and panel * 32 + c < given.O else np.float32(0)


@njit(error_model="numpy")
def deliver_halves(y, rows, width, given, first, panel):
    """As bf16: a panel of outputs is one step of the next product."""
    panels = (given.O + 31) // 32
    for r in range(rows):
        row, t = y + r * 128, first + r
        if given.gives == BLOCKS:
            out = given.out + ((t // 16 * panels + panel) * 16 + t % 16) * 64
        else:
            out = given.out + (t * given.O + panel * 32) * 2
        if given.gives == BLOCKS or width == 32:
            round_lanes(row, out), round_lanes(row + 64, out + 32)
        else:
            round_lanes(row, row), round_lanes(row + 64, row + 32)
            rounded, to = carray(halves(row), width), carray(halves(out), width)
            for c in range(width):
                to[c] = rounded[c]


@njit(error_model="numpy")
def deliver(y, height, given, first, panel):
    """Activation and residual on (height, 32) sums at an address; then those rows from `first` on that there are go out."""
    rows, width = min(height, given.T - first), min(32, given.O - panel * 32)
    if given.activation:
        call_kernel(given.activate, y, height * 32, given.activation)
    if given.gives != FLOATS:
        deliver_halves(y, rows, width, given, first, panel)
        return
    out = given.out + (first * given.O + panel * 32) * 4
    residual = given.residual + (first * given.residual_row + panel * 32) * 4
    if width == 32 and given.residual:
        for r in range(rows):
            add_lanes(y + r * 128, residual + r * given.residual_row * 4, out + r * given.O * 4)
            add_lanes(y + r * 128 + 64, residual + r * given.residual_row * 4 + 64, out + r * given.O * 4 + 64)
    elif width == 32:
        for r in range(rows):
            copy_lanes(y + r * 128, out + r * given.O * 4)
            copy_lanes(y + r * 128 + 64, out + r * given.O * 4 + 64)
    else:
        for r in range(rows):
            row, to = carray(floats(y + r * 128), width), carray(floats(out + r * given.O * 4), width)
            more = carray(floats(residual + r * given.residual_row * 4), width)
            for c in range(width):
                to[c] = row[c] + more[c] if given.residual else row[c]


@njit(error_model="numpy")
def add_bias(y, height, bias):
    for r in range(height):
        add_lanes(y + r * 128, bias, y + r * 128)
        add_lanes(y + r * 128 + 64, bias + 64, y + r * 128 + 64)
