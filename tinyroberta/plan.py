"""What each weight is for: one walk over a model's tree of weights, which says so once, in the order of forward.py.

A leaf of the checkpoint's tree, {"weight": ..., "bias": ...}, becomes a record of backends/records.py: a norm, a table, or a
dense layer, which says what makes the rows that it multiplies and who reads its result. So a backend prepares weights by their
roles, and knows no name of a layer, a head or a tensor. The names stay the tree's; only self-attention's query, key and value
become one dense layer, `qkv`.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from .backends.records import (
    ACTIVATION,
    ATTENTION,
    CALLER,
    CROSS_ATTENTION,
    DISTANCES,
    POSITIONS,
    PRODUCTS,
    RELATIVE_ATTENTION,
    SEGMENTS,
    STREAM,
    WORDS,
    Activated,
    Attended,
    Dense,
    Elsewhere,
    Norm,
    Normed,
    Source,
    Table,
)

Tree = dict[str, Any]
TABLES = {"word_embeddings": WORDS, "position_embeddings": POSITIONS, "token_type_embeddings": SEGMENTS}


def plan(tree: Mapping[str, Any]) -> Tree:
    """The records of a model's weights, given as a nested dict of the checkpoint's names."""
    sublayers = itertools.count()
    planned: Tree = {}
    stream: Source = Elsewhere()
    if "embeddings" in tree:
        planned["embeddings"], stream = _embeddings(tree["embeddings"], next(sublayers))
    if "encoder" in tree:
        layers: Tree = {}
        for index, layer in tree["encoder"]["layer"].items():
            layers[index], stream = _layer(layer, stream, sublayers)
        planned["encoder"] = {"layer": layers}
    if "LayerNorm" in tree:
        planned["LayerNorm"] = _norm(tree["LayerNorm"], STREAM, next(sublayers))
        stream = Normed((planned["LayerNorm"],))
    for name in tree.keys() - planned.keys():
        planned[name] = _lm_head(tree[name], stream, next(sublayers)) if name == "lm_head" else _head(tree[name], next(sublayers))
    return {name: planned[name] for name in tree}


def _embeddings(branch: Tree, sublayer: int) -> tuple[Tree, Source]:
    normed = "LayerNorm" in branch
    planned: Tree = {name: Table(branch[name]["weight"], of, normed) for name, of in TABLES.items() if name in branch}
    if not normed:
        return planned, Elsewhere()
    norm = _norm(branch["LayerNorm"], STREAM, sublayer)
    return planned | {"LayerNorm": norm}, Normed((norm,))


def _layer(branch: Tree, stream: Source, sublayers: Any) -> tuple[Tree, Source]:
    """A layer, and what makes the stream of rows behind it: a norm in a post-norm model, else a sum (Elsewhere)."""
    planned: Tree = {}
    planned["attention"], stream = _attention(branch["attention"], stream, next(sublayers))
    if "crossattention" in branch:  # a call without a source skips it, so its norm or the one before makes the stream
        planned["crossattention"], crossed = _cross_attention(branch["crossattention"], stream, next(sublayers))
        stream = (
            Normed((*stream.norms, *crossed.norms)) if isinstance(stream, Normed) and isinstance(crossed, Normed) else crossed
        )
    sublayer = next(sublayers)
    rows, norm = _read(branch["intermediate"], stream, sublayer)
    first = _dense([branch["intermediate"]["dense"]], rows, ACTIVATION, sublayer)
    planned["intermediate"] = norm | {"dense": first}
    planned["output"], stream = _added(branch["output"], Activated(first), sublayer)
    return planned, stream


def _attention(branch: Tree, stream: Source, sublayer: int) -> tuple[Tree, Source]:
    own = dict(branch["self"])
    rows, norm = _read(branch, stream, sublayer)
    relative = "distance_embedding" in own
    parts = [own.pop(part) for part in ("query", "key", "value")]
    qkv = _dense(parts, rows, RELATIVE_ATTENTION if relative else ATTENTION, sublayer)
    tables = {"distance_embedding": Table(own["distance_embedding"]["weight"], DISTANCES, False)} if relative else {}
    output, stream = _added(branch["output"], Attended(qkv), sublayer)
    return norm | {"self": {"qkv": qkv} | tables, "output": output}, stream


def _cross_attention(branch: Tree, stream: Source, sublayer: int) -> tuple[Tree, Source]:
    """Queries are made of the stream; keys and values of another model's rows, of which nothing is known."""
    rows, norm = _read(branch, stream, sublayer)
    own = {
        part: _dense([branch["self"][part]], rows if part == "query" else Elsewhere(), CROSS_ATTENTION, sublayer)
        for part in ("query", "key", "value")
    }
    output, stream = _added(branch["output"], Elsewhere(), sublayer)
    return norm | {"self": own, "output": output}, stream


def _read(branch: Tree, stream: Source, sublayer: int) -> tuple[Source, Tree]:
    """What a sublayer's products read: the rows of a norm of its own, which they alone read, or the stream as it is."""
    if "LayerNorm" not in branch:
        return stream, {}
    norm = _norm(branch["LayerNorm"], PRODUCTS, sublayer)
    return Normed((norm,)), {"LayerNorm": norm}


def _added(branch: Tree, reads: Source, sublayer: int) -> tuple[Tree, Source]:
    """The dense layer whose result is added to the stream, in a post-norm model with a norm; what makes the stream behind it."""
    planned: Tree = {"dense": _dense([branch["dense"]], reads, STREAM, sublayer)}
    if "LayerNorm" not in branch:
        return planned, Elsewhere()
    planned["LayerNorm"] = _norm(branch["LayerNorm"], STREAM, sublayer)
    return planned, Normed((planned["LayerNorm"],))


def _lm_head(branch: Tree, stream: Source, sublayer: int) -> Tree:
    norm = _norm(branch["layer_norm"], PRODUCTS, sublayer)
    return {
        "dense": _dense([branch["dense"]], stream, CALLER, sublayer),
        "layer_norm": norm,
        "decoder": _dense([branch["decoder"]], Normed((norm,)), CALLER, sublayer),
    }


def _head(branch: Tree, sublayer: int) -> Any:
    """A head, or a layer of it."""
    if "weight" in branch:
        return _dense([branch], Elsewhere(), CALLER, sublayer)
    return {name: _head(part, sublayer) for name, part in branch.items()}


def _dense(parts: list[Tree], reads: Source, feeds: str, sublayer: int) -> Dense:
    weights = tuple(part["weight"] for part in parts)
    biases = tuple(part["bias"] if "bias" in part else np.zeros(len(part["weight"]), np.float32) for part in parts)
    return Dense(weights, biases, reads, feeds, sublayer)


def _norm(leaf: Tree, feeds: str, sublayer: int) -> Norm:
    return Norm(leaf["weight"], leaf["bias"], feeds, sublayer)
