"""Where f16 holds a product's operands, whatever the text: what "high" multiplies at twice TF32's rate.

f16 has TF32's eleven bits, but ends at 65504 and loses bits below 2^-14. A norm's rows have a known length,
|(x - mean) / deviation| <= sqrt(D), and so its weights bound what follows (Cauchy and Schwarz):

    w (g x + b) + c <= sqrt(D) |w g| + |w b + c|

Attention's weighed mean of values is no further from 0 than they are, an activation's result no further than its argument, or
than 1. Where there is no such bound TF32 multiplies: rows of another model, which cross-attention reads; what a head mask scales;
what relu2 squares; what a Python function gives. So nothing is checked while a model runs, and nothing waits.

The same sums say how large a number is in the mean, where x has deviation 1: too small a one would lose bits. They are float32's,
which are near enough.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Tree = dict[str, Any]
Path = tuple[str, ...]

MOST = 2.0**15  # half of what f16 reaches: the other half is for roundings on the way
LEAST = 2.0**-9  # in the mean: then f16's steps below 2^-14, 2^-24 each, are a sixteenth of TF32's rounding of it
UNIT = 2.0**-11  # f16's rounding, and TF32's
DEAD = 2.0**-6  # of a weight's usual row: one that training has made smaller yet may err as much as this one
UNBOUNDED = "relu2"  # the activation that goes further from 0 than its argument


class Bounds(NamedTuple):
    """What is known of rows before they are there: how far from 0 each column can come, and how large it is in the mean."""

    most: Array  # (K,)
    mean: Array  # (K,)


def halves(tree: Tree) -> set[Path]:  # names as in a checkpoint -> paths
    """The norms and dense layers of a model, each by its path, whose rows and weights f16 holds.

    `attention.self` stands for its queries, keys and values.
    """
    found: set[Path] = set()
    norms = [tree.get("embeddings", {}).get("LayerNorm")]  # one of which makes the rows that come next, in post-norm models
    with np.errstate(over="ignore", invalid="ignore"):
        for index, layer in tree.get("encoder", {}).get("layer", {}).items():
            places = {("attention", *place) for place in _attention(layer["attention"], norms)}
            read = (layer[name]["output"].get("LayerNorm") for name in ("attention", "crossattention") if name in layer)
            places |= _feed_forward(layer["intermediate"], layer["output"], list(read))
            found |= {("encoder", "layer", index, *place) for place in places}
            norms = [layer["output"].get("LayerNorm")]
        if "lm_head" in tree:
            found |= {("lm_head", *place) for place in _lm_head(tree["lm_head"], [tree.get("LayerNorm", norms[0])])}
    return found


def _attention(branch: Tree, norms: Sequence[Tree | None]) -> set[Path]:
    norms, own = ([branch["LayerNorm"]], {("LayerNorm",)}) if "LayerNorm" in branch else (norms, set())
    parts, second = [branch["self"][part] for part in ("query", "key", "value")], branch["output"]["dense"]["weight"]
    if not all(_holds(part, norms) for part in parts):
        return set()
    query, key, value = (_made(part, norms) for part in parts)
    if not (_within(query) and _within(key) and _legible(second, value)):  # a small query or key makes scores of about 0
        return set()
    context = {("output", "dense")} if _rounds_well(second, value) and "distance_embedding" not in branch["self"] else set()
    return {("self",), *own, *context}


def _feed_forward(branch: Tree, output: Tree, norms: Sequence[Tree | None]) -> set[Path]:
    norms, own = ([branch["LayerNorm"]], {("LayerNorm",)}) if "LayerNorm" in branch else (norms, set())
    second = output["dense"]["weight"]
    if not (_holds(branch["dense"], norms) and _legible(second, inner := _made(branch["dense"], norms))):
        return set()
    bent = {("output", "dense")} if _rounds_well(second, inner) else set()
    return {("intermediate", *place) for place in {("dense",), *own}} | bent


def _lm_head(branch: Tree, norms: Sequence[Tree | None]) -> set[Path]:
    first = {("dense",)} if _holds(branch["dense"], norms) else set()
    second = {("layer_norm",), ("decoder",)} if _holds(branch["decoder"], [branch["layer_norm"]]) else set()
    return first | second


def _holds(dense: Tree, norms: Sequence[Tree | None]) -> bool:
    """Whether f16 holds the rows of any of these norms, and the weight that reads them."""
    weight, rows = dense["weight"], [_normed(norm) for norm in norms if norm is not None]
    return len(rows) == len(norms) and all(_legible(weight, each) and _rounds_well(weight, each) for each in rows)


def _legible(weight: Any, rows: Bounds) -> bool:
    """Whether f16 holds rows, and what a weight takes of them is not too small for it."""
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


def _normed(norm: Tree) -> Bounds:
    gain, shift = (np.abs(np.asarray(norm[leaf], np.float32)) for leaf in ("weight", "bias"))
    return Bounds(math.sqrt(len(gain)) * gain + shift, np.hypot(gain, shift))


def _made(dense: Tree, norms: Sequence[Tree | None]) -> Bounds:
    """What a dense layer makes of the rows of any of these norms."""
    weight, bias = (np.asarray(dense[leaf], np.float32) for leaf in ("weight", "bias"))
    made = []
    for norm in norms:
        assert norm is not None
        gain, shift = (np.asarray(norm[leaf], np.float32) for leaf in ("weight", "bias"))
        lengths, middle = np.sqrt(np.square(weight) @ np.square(gain)), weight @ shift + bias
        cancelled = np.abs(weight) @ np.abs(shift) + np.abs(bias)  # in the middle, but for two roundings to f16
        most = math.sqrt(len(gain)) * lengths + np.abs(middle) + 4 * UNIT * cancelled
        made.append(Bounds(np.maximum(most, np.abs(bias)), np.hypot(lengths, middle)))
    return Bounds(np.max([rows.most for rows in made], 0), np.min([rows.mean for rows in made], 0))
