"""Fill the masks of sentences with the words a masked language model finds likeliest."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..backends.numpy import softmax
from ..errors import Error, ieee
from ..models import RobertaPreLayerNormForMaskedLM
from .batches import Answered
from .task import Long, Task, answers, single
from .tokenizer import check_text, decode, mask_token, stack, tokenize


class FillMask(Task):
    """A masked language model; mirrors transformers' FillMaskPipeline (4.57)."""

    head, name = "ForMaskedLM", "fill-mask"

    def __call__(
        self,
        inputs: Any,
        *,
        top_k: int = 5,
        targets: str | Sequence[str] | None = None,
        long: Long | None = None,
        batch_tokens: int | None = None,
        keep_errors: bool = False,
    ) -> Any:
        """A text -> a list of {"score", "token", "token_str", "sequence"}, likeliest first; of several masks, a list of lists.

        A list of texts gives a list (a list of one what that one gives, as transformers does), another iterable a generator, in
        order. Each mask is filled by itself. targets: the only words to choose from, with their probabilities among all; one that
        is not in the vocabulary stands for its first token, with a warning. long="window": the windows share no token, and
        `sequence` is a mask's own window. keep_errors: an Error stands in the place of a result. Raises Error on a text without a
        mask, and on one that cannot be read, when its turn comes.
        """
        if not isinstance(top_k, int) or top_k < 1:
            raise Error(f"top_k is {top_k!r}; it must be a whole number of at least 1")
        mask = mask_token(self.tokenizer)
        mask_id = self.tokenizer.token_to_id(mask)
        wanted = None if targets is None else self._targets(targets)

        def result(answer: Answered) -> Any:
            several = sum(map(len, answer.results)) > 1
            found = []
            for window, rows in zip(answer.windows, answer.results, strict=True):
                places = [place for place, token in enumerate(window.ids) if token == mask_id]
                found += [self._filled(window.ids, *one, top_k, wanted, several) for one in zip(places, rows, strict=True)]
            if not found:
                return Error(f"there is no {mask} in {answer.text[:80]!r}: put one where a word is to be found")
            return found if several else found[0]

        def run(texts: Iterable[Any]) -> Iterator[Any]:
            how: Any = {"long": long, "batch_tokens": batch_tokens, "keep_errors": keep_errors}
            for answer in self.answered(map(single, texts), lambda windows: self._logits(windows, mask_id), **how):
                found = answer.error or result(answer)
                if isinstance(found, Error) and not keep_errors:
                    raise found
                yield found

        found = answers(inputs, run)
        return found[0] if isinstance(inputs, list) and len(inputs) == 1 else found

    def _logits(self, windows: list[Any], mask: int) -> list[Any]:
        """The scores of every word at each window's masks, (masks, V)."""
        places = np.flatnonzero(np.concatenate([window.ids for window in windows]) == mask)
        counts = [window.ids.count(mask) for window in windows]
        if not len(places):
            return [np.empty((0, self.model.config.vocab_size))] * len(windows)
        return np.split(self.packed(windows, places=places)["logits"], np.cumsum(counts)[:-1])

    @ieee
    def _filled(
        self, ids: list[int], place: int, logits: Any, top_k: int, wanted: list[int] | None, several: bool
    ) -> list[dict[str, Any]]:
        """The likeliest words for a mask."""
        scores = softmax(logits)
        tokens = np.arange(len(scores)) if wanted is None else np.array(wanted)
        best = tokens[np.argsort(-scores[tokens], kind="stable")[:top_k]].tolist()
        pad = getattr(self.tokenizer, "pad_token", None)
        pad = None if pad is None else self.tokenizer.token_to_id(pad)
        found = []
        for token in best:
            filled = [one for one in [*ids[:place], token, *ids[place + 1 :]] if one != pad]
            sequence = decode(self.tokenizer, filled, skip_special_tokens=not several)
            word = {"score": float(scores[token]), "token": token, "token_str": decode(self.tokenizer, [token])}
            found.append({**word, "sequence": sequence})
        return found

    def _targets(self, targets: str | Sequence[str]) -> list[int]:
        """The ids of words, each once; of one that is not in the vocabulary its first token."""
        if not isinstance(targets, str | list | tuple) or not targets:
            raise Error(f"targets is {targets!r}; it must be a word or a list of at least one")
        words, found = self.tokenizer.get_vocab(), []
        for target in [targets] if isinstance(targets, str) else targets:
            check_text(target)
            number = words.get(target)
            if number is None:
                with self._reading:
                    number = next(iter(tokenize(self.tokenizer, [target], add_special_tokens=False)[0].ids), None)
                if number is None:
                    raise Error(f"the target {target!r} has no token")
                told = (
                    f"the target {target!r} is no token of the vocabulary: {self.tokenizer.id_to_token(number)!r} stands for it"
                )
                warnings.warn(told, stacklevel=3)
            if number >= self.model.config.vocab_size:
                raise Error(f"the target {target!r} has id {number}, and the model {self.model.config.vocab_size} words")
            found.append(number)
        return sorted(set(found))


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
