"""Where f16 holds a product's operands, whatever the text: what "high" multiplies at twice TF32's rate.

f16 has TF32's eleven bits, but ends at 65504 and loses bits below 2^-14. A norm's rows have a known length,
|(x - mean) / deviation| <= sqrt(D), and so its weights bound what follows (Cauchy and Schwarz):

    w (g x + b) + c <= sqrt(D) |w g| + |w b + c|

Attention's weighed mean of values is no further from 0 than they are, an activation's result no further than its argument, or
than 1. Where there is no such bound TF32 multiplies: rows of another model, which cross-attention reads; what a head mask scales;
what relu2 squares; what a Python function gives. So nothing is checked while a model runs, and nothing waits.

The same sums say how large a number is in the mean, where x has deviation 1: too small a one would lose bits in f16. The sums are
made in float32, which is near enough.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from ..records import (
    ACTIVATION,
    ATTENTION,
    CALLER,
    PRODUCTS,
    RELATIVE_ATTENTION,
    Activated,
    Attended,
    Dense,
    Norm,
    Normed,
    Record,
    each,
)

Array = np.ndarray[Any, np.dtype[Any]]

MOST = 2.0**15  # half of what f16 reaches: the other half is for roundings on the way
LEAST = 2.0**-9  # in the mean: then f16's steps below 2^-14, 2^-24 each, are a sixteenth of TF32's rounding of it
UNIT = 2.0**-11  # f16's rounding, and TF32's
DEAD = 2.0**-6  # of a weight's usual row: one that training has made smaller yet may err as much as this one
UNBOUNDED = "relu2"  # the activation that goes further from 0 than its argument


class Bounds(NamedTuple):
    """What is known of rows before they are there: how far from 0 each column can come, and how large it is in the mean."""

    most: Array  # (K,)
    mean: Array  # (K,)


def halves(tree: dict[str, Any]) -> set[Record]:
    """The norms and dense layers of a model whose rows and weights f16 holds."""
    layers = [record for record in each(tree) if isinstance(record, Dense)]
    second = {layer.reads.values: layer for layer in layers if isinstance(layer.reads, Attended)}
    second |= {layer.reads.dense: layer for layer in layers if isinstance(layer.reads, Activated)}
    found: set[Record] = set()
    with np.errstate(over="ignore", invalid="ignore"):
        for layer in layers:
            if not isinstance(layer.reads, Normed):
                continue
            if layer.feeds in (ATTENTION, RELATIVE_ATTENTION):
                found |= _attention(layer, layer.reads, second[layer])
            elif layer.feeds == ACTIVATION:
                found |= _feed_forward(layer, layer.reads, second[layer])
            elif layer.feeds == CALLER and _holds(layer.parts[0], layer.reads):
                found |= {layer, *_own(layer.reads)}
    return found


def _attention(qkv: Dense, rows: Normed, second: Dense) -> set[Record]:
    if not all(_holds(part, rows) for part in qkv.parts):
        return set()
    query, key, value = (_made(part, bias, rows) for part, bias in zip(qkv.parts, qkv.biases, strict=True))
    read = second.parts[0]
    if not (_within(query) and _within(key) and _legible(read, value)):  # a small query or key makes scores of about 0
        return set()
    return {qkv, *_own(rows)} | ({second} if _rounds_well(read, value) and qkv.feeds == ATTENTION else set())


def _feed_forward(first: Dense, rows: Normed, second: Dense) -> set[Record]:
    if not (_holds(first.parts[0], rows) and _legible(second.parts[0], inner := _made(first.parts[0], first.biases[0], rows))):
        return set()
    return {first, *_own(rows)} | ({second} if _rounds_well(second.parts[0], inner) else set())


def _own(rows: Normed) -> set[Record]:
    """The norms that products alone read."""
    return {norm for norm in rows.norms if norm.feeds == PRODUCTS}


def _holds(weight: Any, rows: Normed) -> bool:
    """Whether f16 holds the rows of any of these norms, and the weight that reads them."""
    normed = [_normed(norm) for norm in rows.norms]
    return all(_legible(weight, each) and _rounds_well(weight, each) for each in normed)


def _legible(weight: Any, rows: Bounds) -> bool:
    """Whether rows stay within f16, and what a weight reads of them is large enough for its bits."""
    square = np.square(np.asarray(weight, np.float32))
    taken, whole = square @ np.square(rows.mean), square @ (rows.mean > 0).astype(np.float32)
    return _within(rows) and bool((taken >= np.float32(LEAST**2) * whole).all())


def _within(rows: Bounds) -> bool:
    return bool((rows.most <= MOST).all())


def _rounds_well(weight: Any, rows: Bounds) -> bool:
    """Whether a weight's f16 gives rows a product as near as rounding to eleven bits would leave it."""
    weight = np.asarray(weight, np.float32)
    lost, whole = (np.square(x) @ np.square(rows.mean) for x in (weight - weight.astype(np.float16), weight))
    return bool((lost <= np.float32(UNIT**2) * np.maximum(whole, np.float32(DEAD**2) * whole.mean())).all())


def _normed(norm: Norm) -> Bounds:
    gain, shift = (np.abs(np.asarray(x, np.float32)) for x in (norm.weight, norm.bias))
    return Bounds(math.sqrt(len(gain)) * gain + shift, np.hypot(gain, shift))


def _made(weight: Any, bias: Any, rows: Normed) -> Bounds:
    """What a dense layer makes of the rows of any of these norms."""
    weight, bias = (np.asarray(x, np.float32) for x in (weight, bias))
    made = []
    for norm in rows.norms:
        gain, shift = (np.asarray(x, np.float32) for x in (norm.weight, norm.bias))
        lengths, middle = np.sqrt(np.square(weight) @ np.square(gain)), weight @ shift + bias
        cancelled = np.abs(weight) @ np.abs(shift) + np.abs(bias)  # in the middle, but for two roundings to f16
        most = math.sqrt(len(gain)) * lengths + np.abs(middle) + 4 * UNIT * cancelled
        made.append(Bounds(np.maximum(most, np.abs(bias)), np.hypot(lengths, middle)))
    return Bounds(np.max([rows.most for rows in made], 0), np.min([rows.mean for rows in made], 0))
