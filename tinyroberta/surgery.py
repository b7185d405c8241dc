"""New tensors from old ones: drawing a fresh model, pruning heads, resizing the vocabulary. Every function returns new data."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .config import RobertaPreLayerNormConfig
from .weights.names import WORDS, Shape

Array = np.ndarray[Any, np.dtype[Any]]
DECODER = "lm_head.decoder"


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
        elif name == f"{DECODER}.weight" and config.tie_word_embeddings:
            tensors[name] = tensors[WORDS]
        else:
            tensors[name] = random.standard_normal(shape, np.float32) * np.float32(config.initializer_range)
            if name.endswith(("word_embeddings.weight", "position_embeddings.weight")) and config.pad_token_id is not None:
                tensors[name][config.pad_token_id] = 0
    return tensors
