"""Fill the masks of sentences with the words a masked language model finds likeliest."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import Error, ieee
from ..models import RobertaPreLayerNormForMaskedLM
from .tokenizer import mask_token, stack, tokenize


class Candidate(NamedTuple):
    """A word for a mask: the token's text and id, its probability, and the sentence with it."""

    mask: int  # which of the sentence's masks, from 0
    token: str
    token_id: int
    probability: float
    sentence: str


@ieee
def fill_mask(
    model: RobertaPreLayerNormForMaskedLM, tokenizer: Any, texts: Sequence[str], top_k: int = 5
) -> list[list[Candidate]]:
    """For each text, the `top_k` likeliest tokens for each of its masks, likeliest first; each mask is filled by itself.

    The mask is the tokenizer's own (`load_tokenizer`). Raises Error on a text without one, or as `encode` does.
    """
    if top_k < 1:
        raise Error(f"top_k is {top_k}; it must be at least 1")
    mask = mask_token(tokenizer)
    encodings = tokenize(tokenizer, texts)
    mask_id = tokenizer.token_to_id(mask)
    for text, encoding in zip(texts, encodings, strict=True):
        count = encoding.ids.count(mask_id)
        if count < text.count(mask):
            raise Error(f"the tokenizer does not read every {mask} in {text[:80]!r} as its mask")
        if count == 0:
            raise Error(f"there is no {mask} in {text[:80]!r}: put one where a word is to be found")
    ids, attention_mask = stack(encodings, model.config)
    places = ids == mask_id
    logits = model.ops.to_numpy(model(ids, attention_mask=attention_mask, logits_to_keep=places).logits)
    return [
        [
            Candidate(number, _text_of(tokenizer, token), token, probability, _filled(tokenizer, text, span, token))
            for number, (span, scores) in enumerate(zip(_spans(text, encoding, mask_id), rows, strict=True))
            for token, probability in _likeliest(scores, top_k)
        ]
        for text, encoding, rows in zip(texts, encodings, np.split(logits, np.cumsum(places.sum(1))[:-1]), strict=True)
    ]


def _likeliest(logits: Any, top_k: int) -> list[tuple[int, float]]:
    logits = logits.astype(np.float64)
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    return [(int(token), float(probabilities[token])) for token in np.argsort(-probabilities, kind="stable")[:top_k]]


def _text_of(tokenizer: Any, token: int) -> str:
    """A token's text as it stands behind another word, with its space; that word need not be in the vocabulary."""
    piece = tokenizer.id_to_token(token)
    if piece is None:
        return ""  # the model has more words than its tokenizer
    if tokenizer.decoder is None:
        return f" {piece}"
    before = "a" + (getattr(tokenizer.model, "end_of_word_suffix", None) or "")
    return str(tokenizer.decoder.decode([before, piece])).removeprefix("a")


def _spans(text: str, encoding: Any, mask_id: int) -> list[tuple[int, int]]:
    """Where the masks stand in the text, without the spaces that they take in."""
    spans = []
    for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        if token == mask_id:
            mask = text[start:end]
            spans.append((end - len(mask.lstrip()), start + len(mask.rstrip())))
    return spans


def _filled(tokenizer: Any, text: str, span: tuple[int, int], token: int) -> str:
    """The text with one mask replaced; a token brings its own space, except where the decoder sets spaces between words."""
    before, after = text[: span[0]], text[span[1] :]
    word = _text_of(tokenizer, token)
    if not before.strip():
        return word.lstrip() + after
    spaced = type(tokenizer.decoder).__name__ in ("NoneType", "WordPiece", "BPEDecoder")
    return (before + word.lstrip() if spaced and word.startswith(" ") else before.rstrip() + word) + after
