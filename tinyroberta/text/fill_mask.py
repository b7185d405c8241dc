"""Fill the masks of sentences with the words a masked language model finds likeliest."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import Error, ieee
from ..models import RobertaPreLayerNormForMaskedLM
from .tokenizer import MASK, encode


class Candidate(NamedTuple):
    """A word for a mask: the token's text, its probability, and the sentence with it."""

    mask: int  # which of the sentence's masks, from 0
    token: str
    probability: float
    sentence: str


@ieee
def fill_mask(
    model: RobertaPreLayerNormForMaskedLM, tokenizer: Any, texts: Sequence[str], top_k: int = 5
) -> list[list[Candidate]]:
    """For each text, the `top_k` likeliest tokens for each of its masks, likeliest first; each mask is filled by itself.

    Raises Error on a text without <mask>, or as `encode` does.
    """
    if top_k < 1:
        raise Error(f"top_k is {top_k}; it must be at least 1")
    for text in texts:
        if MASK not in text:
            raise Error(f"there is no {MASK} in {text[:80]!r}: put one where a word is to be found")
    mask_id = tokenizer.token_to_id(MASK)
    if mask_id is None:
        raise Error(f"the tokenizer has no {MASK}")
    ids, attention_mask = encode(tokenizer, texts, model.config)
    places = ids == mask_id
    counts = places.sum(1)
    if any(count != text.count(MASK) for count, text in zip(counts, texts, strict=True)):
        raise Error(f"the tokenizer does not read {MASK} as its mask")
    logits = model.ops.to_numpy(model(ids, attention_mask=attention_mask, logits_to_keep=places).logits)
    return [
        [
            Candidate(number, token, probability, _filled(text, number, token))
            for number, scores in enumerate(rows)
            for token, probability in _likeliest(tokenizer, scores, top_k)
        ]
        for text, rows in zip(texts, np.split(logits, np.cumsum(counts)[:-1]), strict=True)
    ]


def _likeliest(tokenizer: Any, logits: Any, top_k: int) -> list[tuple[str, float]]:
    logits = logits.astype(np.float64)
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    best = np.argsort(-probabilities, kind="stable")[:top_k]
    before = tokenizer.encode("a", add_special_tokens=False).ids  # a token's space is its own only behind another token
    start = len(tokenizer.decode(before))
    texts = (tokenizer.decode([*before, int(token)], skip_special_tokens=False)[start:] for token in best)
    return [(text, float(probabilities[token])) for text, token in zip(texts, best, strict=True)]


def _filled(text: str, number: int, token: str) -> str:
    """The text with its mask of that number replaced; a mask swallows the spaces before it, and the token brings its own."""
    parts = text.split(MASK)
    before, after = MASK.join(parts[: number + 1]).rstrip(), MASK.join(parts[number + 1 :])
    return (before + token if before else token.lstrip()) + after
