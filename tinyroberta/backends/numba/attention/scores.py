"""What is done with scores (Sk, 32), a lane a query: bias and causality, softmax, the mask of a head, keeping probabilities."""

import math

import numpy as np

from ..compiled import carray, njit
from ..machine.memory import floats, words
from ..products.fma import DEPTH
from ..sizes import SUMS
from .launch import QUERIES


def exponentiate_by(exponentials):
    @njit(error_model="numpy")
    def exponentiate(p, rows, most, totals):
        """(rows, 32) scores at an address, in place -> exp(score - most) of each query; 1 / their sums."""
        sums = carray(floats(totals), QUERIES)
        for i in range(QUERIES):
            sums[i] = np.float32(0)
        for start in range(0, rows, DEPTH):
            exponentials(p + start * SUMS, min(DEPTH, rows - start), most, totals)
        for i in range(QUERIES):
            sums[i] = np.float32(1) / sums[i]

    return exponentiate


@njit(error_model="numpy")
def place_of(mask, b, h, i, j):
    """The address of one number of a mask."""
    return mask.at + (b * mask.sequence + h * mask.head + i * mask.query + j * mask.key) * 4


@njit(error_model="numpy")
def mask_scores(given, p, b, h, first, n, past):
    """Add the bias to scores (seen, 32) of n queries from `first` on, and set those to minus infinity that causality hides."""
    if given.bias.at:
        for j in range(p.shape[0]):
            bias = place_of(given.bias, b, h, first, j)
            for i in range(n):
                p[j, i] += carray(floats(bias + i * given.bias.query * 4), 1)[0]
    if given.causal:
        for j in range(max(0, past + first + 1), p.shape[0]):
            for i in range(min(n, j - (past + first))):
                p[j, i] = np.float32(-math.inf)


@njit(error_model="numpy")
def mask_head(given, p, b, h, first, n):
    """Multiply probabilities by head_mask, where there is one."""
    if given.head_mask.at:
        for j in range(p.shape[0]):
            mask = place_of(given.head_mask, b, h, first, j)
            for i in range(n):
                p[j, i] *= carray(floats(mask + i * given.head_mask.query * 4), 1)[0]


@njit(error_model="numpy")
def keep(given, p, totals, b, h, first, n, Sq, Sk):
    """Store the probabilities if they were asked for, each multiplied by what its query has in `totals`."""
    if not given.kept:
        return
    kept = carray(floats(carray(words(given.kept + b * 8), 1)[0] + (h * Sq + first) * Sk * 4), (n, Sk))
    for i in range(n):
        for j in range(p.shape[0]):
            kept[i, j] = p[j, i] * totals[i]
