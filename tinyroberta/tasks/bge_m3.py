"""BGE-M3's three outputs: one dense vector a text, a weight for each of its tokens, and a vector for each of them.

The recipe is FlagEmbedding's (1.3, BGEM3FlagModel), on the last hidden states h of a text's tokens:

dense    h of <s>, of length 1: what the folder's own modules say too
sparse   relu(h w + b), a number a token; the greatest of equal tokens; without <s>, </s>, <pad> and <unk>, and what is 0
colbert  h W^T + b of every token but <s>, of length 1 each

Scores of a query and a passage: the product of the dense vectors; the sum over shared tokens of the products of their weights;
the mean over the query's tokens of the greatest product with any of the passage's. Padding, which in FlagEmbedding may win the
last with a 0 where all products are negative, does not exist here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import Error
from .sentence_transformers import open_weights, tensor

Array = np.ndarray[Any, np.dtype[Any]]
OUTPUTS = ("dense", "sparse", "colbert")
FILES = {"sparse": "sparse_linear.pt", "colbert": "colbert_linear.pt"}
UNUSED = {"cls_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


class Linears(NamedTuple):
    """The two layers beside a BGE-M3 checkpoint, (weight, bias) each: (1, D) and (C, D)."""

    sparse: tuple[Array, Array]
    colbert: tuple[Array, Array]


def read_linears(folder: Path, hidden_size: int) -> Linears | None:
    """The layers beside a checkpoint, from *.pt or *.safetensors; None where there are none.

    Raises Error where only one of them is there, and on other shapes.
    """
    folder = folder if folder.is_dir() else folder.parent
    names = [name.removesuffix(".pt") for name in FILES.values()]
    there = [name for name in names if any((folder / f"{name}{suffix}").is_file() for suffix in (".pt", ".safetensors"))]
    if not there:
        return None
    if there != names:
        raise Error(f"{folder} has {there[0]} but not {(set(names) - set(there)).pop()}: BGE-M3 has both")
    layers = []
    for name in names:
        stored = open_weights(folder, name)
        rows = 1 if name == names[0] else stored.shape("weight")[0] if "weight" in stored and stored.shape("weight") else 1
        layers.append((tensor(stored, "weight", (rows, hidden_size), folder), tensor(stored, "bias", (rows,), folder)))
    return Linears(*layers)


def unused_tokens(tokenizer: Any) -> set[int]:
    """The ids of tokens that have no weight."""
    texts = [getattr(tokenizer, name, None) or usual for name, usual in UNUSED.items()]
    return {number for number in map(tokenizer.token_to_id, texts) if number is not None}


def sparse(ids: Sequence[Sequence[int]], weights: Sequence[Array], unused: set[int]) -> dict[int, float]:
    """{token id: weight} of a text's windows, their ids and weights (tokens, 1): the greatest of equal tokens."""
    found: dict[int, float] = {}
    for window, numbers in zip(ids, weights, strict=True):
        for token, weight in zip(window, numbers[:, 0].tolist(), strict=True):
            if weight > 0 and token not in unused and weight > found.get(token, 0.0):
                found[token] = weight
    return found


def lexical_score(a: Mapping[int, float], b: Mapping[int, float]) -> float:
    """The sum over the tokens of both of the products of their weights."""
    return sum(weight * b[token] for token, weight in a.items() if token in b)


def colbert_score(query: Array, passage: Array) -> float:  # (n, D), (m, D)
    """The mean over the query's tokens of the greatest product with one of the passage's; 0 where either has none."""
    return float((query @ passage.T).max(1).mean()) if len(query) and len(passage) else 0.0


def scores(queries: Mapping[str, Any], passages: Mapping[str, Any], weights: Sequence[float] | None = None) -> dict[str, Array]:
    """The scores of query n with passage n, of encode's three outputs each: float32 (N,) of each kind and of weighted means.

    weights: of dense, sparse, colbert, [1, 1, 1] where None. Raises Error on others than three, or of which the sum is 0.
    """
    w = [1.0, 1.0, 1.0] if weights is None else list(weights)
    if len(w) != 3 or not all(isinstance(x, int | float) for x in w) or not sum(w) or not w[0] + w[1]:
        raise Error(f"weights_for_different_modes is {weights!r}; it must be three numbers, of dense, sparse and colbert")
    a, b = queries, passages
    found = {
        "colbert": [colbert_score(x, y) for x, y in zip(a["colbert"], b["colbert"], strict=True)],
        "sparse": [lexical_score(x, y) for x, y in zip(a["sparse"], b["sparse"], strict=True)],
        "dense": [float(x @ y) for x, y in zip(a["dense"], b["dense"], strict=True)],
    }
    kinds = {name: np.array(x, np.float32) for name, x in found.items()}
    both = kinds["sparse"] * w[1] + kinds["dense"] * w[0]
    return kinds | {
        "sparse+dense": (both / (w[1] + w[0])).astype(np.float32),
        "colbert+sparse+dense": ((kinds["colbert"] * w[2] + both) / sum(w)).astype(np.float32),
    }
