"""From a product's sums to its results: bias, activation, residual, and the form in which what reads them wants them."""

import numpy as np

from ..compiled import carray, njit
from ..machine.bf16 import round_lanes
from ..machine.lanes import add_lanes, copy_lanes
from ..machine.memory import floats, halves
from ..machine.system import call_kernel

A, B, ROW_SCALES, COLUMN_SCALES, BIAS, RESIDUAL, OUT, T, O, STEPS, CHUNK, KIND, ACTIVATE, CONFIG, THREADS, STRIDE, X_STRIDE = (
    range(17)
)
SLICES, DIAGONALS, COARSE, GIVES, GIVEN = 17, 18, 19, 20, 21
FLOATS, HALVES, BLOCKS = range(3)  # what a product gives: rows (T, O) of float32 or of bf16, or bf16 cut for the next product


@njit(error_model="numpy")
def hold_bias(at, given, panel):
    """A panel's 32 biases at an address, 0 beyond the last output."""
    held, bias = carray(floats(at), 32), carray(floats(given[BIAS]), given[O])
    for c in range(32):
        held[c] = bias[panel * 32 + c] if given[BIAS] and panel * 32 + c < given[O] else np.float32(0)


@njit(error_model="numpy")
def deliver_halves(y, rows, width, given, first, panel):
    """As bf16: a panel of outputs is one step of the next product."""
    panels = (given[O] + 31) // 32
    for r in range(rows):
        row, t = y + r * 128, first + r
        if given[GIVES] == BLOCKS:
            out = given[OUT] + ((t // 16 * panels + panel) * 16 + t % 16) * 64
        else:
            out = given[OUT] + (t * given[O] + panel * 32) * 2
        if given[GIVES] == BLOCKS or width == 32:
            round_lanes(row, out), round_lanes(row + 64, out + 32)
        else:
            round_lanes(row, row), round_lanes(row + 64, row + 32)
            rounded, to = carray(halves(row), width), carray(halves(out), width)
            for c in range(width):
                to[c] = rounded[c]


@njit(error_model="numpy")
def deliver(y, height, given, first, panel):
    """Activation and residual on (height, 32) sums at an address; then those rows from `first` on that there are go out."""
    rows, width = min(height, given[T] - first), min(32, given[O] - panel * 32)
    if given[KIND]:
        call_kernel(given[ACTIVATE], y, height * 32, given[KIND])
    if given[GIVES] != FLOATS:
        deliver_halves(y, rows, width, given, first, panel)
        return
    out = given[OUT] + (first * given[O] + panel * 32) * 4
    residual = given[RESIDUAL] + (first * given[STRIDE] + panel * 32) * 4
    if width == 32 and given[RESIDUAL]:
        for r in range(rows):
            add_lanes(y + r * 128, residual + r * given[STRIDE] * 4, out + r * given[O] * 4)
            add_lanes(y + r * 128 + 64, residual + r * given[STRIDE] * 4 + 64, out + r * given[O] * 4 + 64)
    elif width == 32:
        for r in range(rows):
            copy_lanes(y + r * 128, out + r * given[O] * 4)
            copy_lanes(y + r * 128 + 64, out + r * given[O] * 4 + 64)
    else:
        for r in range(rows):
            row, to = carray(floats(y + r * 128), width), carray(floats(out + r * given[O] * 4), width)
            more = carray(floats(residual + r * given[STRIDE] * 4), width)
            for c in range(width):
                to[c] = row[c] + more[c] if given[RESIDUAL] else row[c]


@njit(error_model="numpy")
def add_bias(y, height, bias):
    for r in range(height):
        add_lanes(y + r * 128, bias, y + r * 128)
        add_lanes(y + r * 128 + 64, bias + 64, y + r * 128 + 64)
