"""New tensors from old ones: drawing a fresh model, pruning heads, resizing the vocabulary. Every function returns new data."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .config import RobertaPreLayerNormConfig
from .errors import Error, RangeError
from .weights.names import DECODER, DECODER_BIAS, WORDS, Shape

Array = np.ndarray[Any, np.dtype[Any]]
Surgery = tuple[RobertaPreLayerNormConfig, dict[str, Array]]


def new_tensors(
    config: RobertaPreLayerNormConfig, encoder: Mapping[str, Shape], head: Mapping[str, Shape], seed: int
) -> dict[str, Array]:
    """Fresh float32 tensors as transformers draws them: normal of initializer_range, norms 1 and 0, biases and padding 0."""
    random = np.random.default_rng(seed)
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
    not there, Error where a layer would lose all of its heads.
    """
    d, pruned, changed = config.head_size, dict(config.pruned_heads), dict(tensors)
    for layer, named in heads.items():
        if not 0 <= layer < config.num_hidden_layers:
            raise RangeError(f"there is no layer {layer} to prune; the model has 0 to {config.num_hidden_layers - 1}")
        if wrong := [head for head in named if not 0 <= head < config.num_attention_heads]:
            raise RangeError(f"there is no head {wrong[0]} to prune; a layer has 0 to {config.num_attention_heads - 1}")
        gone = set(pruned.get(layer, ()))
        left = [head for head in range(config.num_attention_heads) if head not in gone]
        kept = [place for place, head in enumerate(left) if head not in set(named)]
        if not kept:
            raise Error(f"layer {layer} would lose all of its heads; one must stay")
        columns = (np.array(kept)[:, None] * d + np.arange(d)).ravel()
        name = f"encoder.layer.{layer}.attention."
        for part in ("query", "key", "value"):
            for leaf in ("weight", "bias"):
                changed[f"{name}self.{part}.{leaf}"] = changed[f"{name}self.{part}.{leaf}"][columns]
        changed[f"{name}output.dense.weight"] = changed[f"{name}output.dense.weight"][:, columns]
        pruned[layer] = sorted(gone | set(named))
    return dataclasses.replace(config, pruned_heads={layer: named for layer, named in pruned.items() if named}), changed


def with_embeddings(config: RobertaPreLayerNormConfig, tensors: Mapping[str, Array], name: str, weight: Array) -> Surgery:
    """With another word-embedding table, or another decoder weight; what is tied to it follows, and the bias fits its length.

    Raises Error where the model has no such table or the shape does not fit.
    """
    if name not in tensors:
        raise Error("this model has no output embeddings: only the language models have")
    if weight.ndim != 2 or weight.shape[1] != config.hidden_size or weight.dtype.kind not in "fV":
        raise Error(f"embeddings must be floats of shape (words, {config.hidden_size}); these are {weight.dtype} {weight.shape}")
    changed = dict(tensors)
    tied = DECODER in tensors and tensors[DECODER] is tensors[WORDS] and name == WORDS
    for key in (name, DECODER) if tied else (name,):
        changed[key] = weight
    if name == DECODER or tied:
        bias = tensors[DECODER_BIAS]
        changed[DECODER_BIAS] = np.pad(bias[: len(weight)], (0, max(0, len(weight) - len(bias))))
    if name == WORDS:
        config = dataclasses.replace(config, vocab_size=len(weight))
    return config, changed


def resize(
    config: RobertaPreLayerNormConfig,
    tensors: Mapping[str, Array],
    count: int | None,
    multiple: int | None,
    mean_resizing: bool,
    seed: int,
) -> Surgery:
    """With a vocabulary of `count` words, rounded up to a multiple; mirrors transformers' resize_token_embeddings.

    Raises Error on a count or multiple that is not a whole number of at least 1.
    """
    count = config.vocab_size if count is None else count
    for value, name in ((count, "new_num_tokens"), (multiple, "pad_to_multiple_of")):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise Error(f"{name} is {value!r}; it must be a whole number of at least 1")
    if multiple is not None:
        count = -(-count // multiple) * multiple
    if config.pad_token_id is not None and count <= config.pad_token_id:
        raise Error(f"a vocabulary of {count} words would lose the padding token {config.pad_token_id}")
    random = np.random.default_rng(seed)
    tied = DECODER in tensors and tensors[DECODER] is tensors[WORDS]
    words = _resized(tensors[WORDS], count, mean_resizing, config.initializer_range, random)
    new_config, changed = with_embeddings(config, tensors, WORDS, words)
    if DECODER in tensors and not tied:
        decoder = _resized(tensors[DECODER], count, mean_resizing, config.initializer_range, random)
        _, changed = with_embeddings(new_config, changed, DECODER, decoder)
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
    added = count - len(table)
    if added <= 0:
        return table[:count]
    if mean_resizing:
        old = table.astype(np.float64)
        centred = old - old.mean(0)
        rows = old.mean(0) + random.standard_normal((added, len(old))) @ centred * math.sqrt(1e-9 / len(old))
    else:
        rows = random.standard_normal((added, table.shape[1])) * spread
    return np.concatenate([table, rows.astype(table.dtype)])
