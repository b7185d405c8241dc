"""New tensors from old ones: drawing a fresh model, pruning heads, resizing the vocabulary. Every function returns new data."""

import dataclasses
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .config import RobertaPreLayerNormConfig
from .errors import Error, RangeError, ieee
from .weights.names import DECODER, DECODER_BIAS, WORDS, Shape
from .weights.safetensors import DTYPES

Array = np.ndarray[Any, np.dtype[Any]]
Surgery = tuple[RobertaPreLayerNormConfig, dict[str, Array]]
ROWS = 2048  # of an embedding table at a time: a few megabytes as float64


@ieee
def new_tensors(
    config: RobertaPreLayerNormConfig, encoder: Mapping[str, Shape], head: Mapping[str, Shape], seed: int
) -> dict[str, Array]:
    """Fresh float32 tensors as transformers draws them: normal of initializer_range, norms 1 and 0, biases and padding 0.

    Raises Error on a seed that is not a whole number of at least 0.
    """
    random = np.random.default_rng(_whole(seed, "seed", 0))
    tensors: dict[str, Array] = {}
    for name, shape in {**encoder, **head}.items():
        if "LayerNorm.weight" in name or "layer_norm.weight" in name:
            tensors[name] = np.ones(shape, np.float32)
        elif name.endswith(".bias"):
            tensors[name] = np.zeros(shape, np.float32)
        elif name == DECODER and config.tie_word_embeddings:
            tensors[name] = tensors[WORDS]
        else:
            tensors[name] = random.standard_normal(shape, np.float32) * np.float32(config.initializer_range)
            if name.endswith(("word_embeddings.weight", "position_embeddings.weight")) and config.pad_token_id is not None:
                tensors[name][config.pad_token_id] = 0
    return tensors


def prune(config: RobertaPreLayerNormConfig, tensors: Mapping[str, Array], heads: Mapping[int, Sequence[int]]) -> Surgery:
    """Without these heads: rows of query, key and value and columns of output.dense; mirrors transformers' prune_heads.

    Heads are named by their original numbers; pruning one again changes nothing. Raises RangeError on a layer or head that is
    not there, Error where a layer would lose all of its heads, or `heads` does not map layers to lists of heads.
    """
    try:
        chosen = {operator.index(layer): {operator.index(head) for head in named} for layer, named in heads.items()}
    except (AttributeError, TypeError) as error:
        raise Error(f"heads_to_prune is {heads!r}; it must map layers to lists of heads, as {{0: [1, 2]}} does") from error
    d, pruned, changed = config.head_size, dict(config.pruned_heads), dict(tensors)
    for layer, named in chosen.items():
        if not 0 <= layer < config.num_hidden_layers:
            raise RangeError(f"there is no layer {layer} to prune; the model has 0 to {config.num_hidden_layers - 1}")
        if wrong := [head for head in sorted(named) if not 0 <= head < config.num_attention_heads]:
            raise RangeError(f"there is no head {wrong[0]} to prune; a layer has 0 to {config.num_attention_heads - 1}")
        gone = set(pruned.get(layer, ()))
        left = [head for head in range(config.num_attention_heads) if head not in gone]
        kept = [place for place, head in enumerate(left) if head not in named]
        if not kept:
            raise Error(f"layer {layer} would lose all of its heads; one must stay")
        columns = (np.array(kept)[:, None] * d + np.arange(d)).ravel()
        name = f"encoder.layer.{layer}.attention."
        for part in ("query", "key", "value"):
            for leaf in ("weight", "bias"):
                changed[f"{name}self.{part}.{leaf}"] = changed[f"{name}self.{part}.{leaf}"][columns]
        changed[f"{name}output.dense.weight"] = changed[f"{name}output.dense.weight"][:, columns]
        pruned[layer] = sorted(gone | named)
    return dataclasses.replace(config, pruned_heads={layer: named for layer, named in pruned.items() if named}), changed


def with_embeddings(config: RobertaPreLayerNormConfig, tensors: Mapping[str, Array], name: str, weight: Array) -> Surgery:
    """With a copy of another word-embedding table, or decoder weight; what is tied follows, and the bias fits its length.

    Raises Error where the model has no such table, the shape does not fit, or words and head would have different lengths.
    """
    if name not in tensors:
        raise Error("this model has no output embeddings: only the language models have")
    if weight.ndim != 2 or weight.shape[1] != config.hidden_size or weight.dtype not in FLOATS:
        raise Error(f"embeddings must be floats of shape (words, {config.hidden_size}); these are {weight.dtype} {weight.shape}")
    follows = DECODER in tensors and name == WORDS and _tied(config, tensors)
    if DECODER in tensors and not follows and len(weight) != config.vocab_size:
        other = "head" if name == WORDS else "vocabulary"
        raise Error(
            f"these are {len(weight)} embeddings, the {other} has {config.vocab_size} words: use resize_token_embeddings first"
        )
    return _with_table(config, tensors, (name, DECODER) if follows else (name,), weight.copy())


def _with_table(config: RobertaPreLayerNormConfig, tensors: Mapping[str, Array], names: Sequence[str], table: Array) -> Surgery:
    changed = {**tensors, **dict.fromkeys(names, table)}
    if DECODER in names:
        bias = tensors[DECODER_BIAS]
        changed[DECODER_BIAS] = np.pad(bias[: len(table)], (0, max(0, len(table) - len(bias))))
    if WORDS in names:
        config = dataclasses.replace(config, vocab_size=len(table))
    return config, changed


def _tied(config: RobertaPreLayerNormConfig, tensors: Mapping[str, Array]) -> bool:
    """Whether words and head are one weight: an untied model may share an array by chance, and a tied one's may differ."""
    return config.tie_word_embeddings and tensors[DECODER] is tensors[WORDS]


@ieee
def resize(
    config: RobertaPreLayerNormConfig,
    tensors: Mapping[str, Array],
    count: int | None,
    multiple: int | None,
    mean_resizing: bool,
    seed: int,
) -> Surgery:
    """With a vocabulary of `count` words, rounded up to a multiple; mirrors transformers' resize_token_embeddings.

    Raises Error on a count or multiple that is not a whole number of at least 1, or a seed that is not one of at least 0.
    """
    count = config.vocab_size if count is None else _whole(count, "new_num_tokens", 1)
    if multiple is not None:
        multiple = _whole(multiple, "pad_to_multiple_of", 1)
        count = -(-count // multiple) * multiple
    if config.pad_token_id is not None and count <= config.pad_token_id:
        raise Error(f"a vocabulary of {count} words would lose the padding token {config.pad_token_id}")
    random = np.random.default_rng(_whole(seed, "seed", 0))
    headed = DECODER in tensors
    tied = headed and _tied(config, tensors)
    words = _resized(tensors[WORDS], count, mean_resizing, config.initializer_range, random)
    new_config, changed = _with_table(config, tensors, (WORDS, DECODER) if tied else (WORDS,), words)
    if headed and not tied:
        decoder = _resized(tensors[DECODER], count, mean_resizing, config.initializer_range, random)
        _, changed = _with_table(new_config, changed, (DECODER,), decoder)
        added = count - len(tensors[DECODER_BIAS])
        if added > 0 and mean_resizing:
            bias = changed[DECODER_BIAS].copy()
            bias[-added:] = tensors[DECODER_BIAS].astype(np.float64).mean()
            changed[DECODER_BIAS] = bias
    return new_config, changed


def _resized(
    table: Array, count: int, mean_resizing: bool, spread: float, random: np.random.Generator
) -> Array:  # (V, D) -> (count, D)
    """New rows: the mean of the old with 1e-9 of their covariance, which keeps what the others are scored (Hewitt 2021)."""
    V, D = table.shape
    if count <= V:
        return table[:count]
    mean, factor = _moments(table) if mean_resizing else (0.0, None)
    rows = np.empty((count, D), table.dtype)
    rows[:V] = table
    for start in range(V, count, ROWS):
        drawn = random.standard_normal((min(ROWS, count - start), D))
        rows[start : start + ROWS] = mean + (drawn * spread if factor is None else drawn @ factor * math.sqrt(1e-9))
    return rows


def _moments(table: Array) -> tuple[Array, Array]:  # (V, D) -> (D,), (D, D)
    """The mean of the rows and a factor F of their covariance F^T F, a few rows at a time: a table's float64 copy is large."""

    def pieces() -> Iterator[Array]:
        return (table[start : start + ROWS].astype(np.float64) for start in range(0, len(table), ROWS))

    mean = sum((rows.sum(0) for rows in pieces()), np.zeros(table.shape[1])) / len(table)
    covariance = sum(((rows - mean).T @ (rows - mean) for rows in pieces()), np.zeros((table.shape[1],) * 2)) / len(table)
    values, vectors = np.linalg.eigh(covariance)
    return mean, np.sqrt(values.clip(0))[:, None] * vectors.T


def _whole(value: Any, name: str, least: int) -> int:
    try:
        number = -1 if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = -1
    if number < least:
        raise Error(f"{name} is {value!r}; it must be a whole number of at least {least}")
    return number


FLOATS = tuple(dtype for dtype in DTYPES.values() if dtype.kind in "fV")
