"""Token classification: entities and where they stand in a text; mirrors transformers' TokenClassificationPipeline (4.57)."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from ..backends.numpy import softmax
from ..errors import Error, ieee
from .batches import Answered
from .classify import labels_of
from .task import Long, Task, answers, by_window, single

Strategy = Literal["none", "simple", "first", "average", "max"]
STRATEGIES = ("none", "simple", "first", "average", "max")
Entity = dict[str, Any]


class TokenClassification(Task):
    """A model with labels for every token."""

    head, name = "ForTokenClassification", "token-classification"

    def __call__(
        self,
        inputs: Any,
        *,
        aggregation_strategy: Strategy = "none",
        ignore_labels: Sequence[str] = ("O",),
        stride: int | None = None,
        is_split_into_words: bool = False,
        delimiter: str = " ",
        long: Long | None = None,
        batch_tokens: int | None = None,
        keep_errors: bool = False,
    ) -> Any:
        """A text -> a list of entities; a list of texts -> a list of lists; another iterable -> a generator of lists, in order.

        An entity is {"entity", "score", "index", "word", "start", "end"}, a token's, with aggregation_strategy="none"; else
        {"entity_group", "score", "word", "start", "end"}. start and end count characters of the text. Tokens whose label is one
        of ignore_labels are left out. stride: a text longer than the model reads is read in windows that share so many tokens,
        as with long="window", whose own stride is a quarter of a window; where windows share a token, the longer entity stays,
        or the likelier of two as long. `index` then counts in its window. is_split_into_words: a text is a list of words (one
        gives a list of one list), and start and end count in the words joined by `delimiter`. keep_errors: an Error stands in
        the place of a result. Raises Error on a text that cannot be read, when its turn comes.
        """
        strategy, ignored, labels = aggregation_strategy, _ignored(ignore_labels), labels_of(self.model.config)
        if not isinstance(strategy, str) or strategy.lower() not in STRATEGIES:
            raise Error(f"aggregation_strategy is {strategy!r}; it must be one of {', '.join(STRATEGIES)}")
        strategy = strategy.lower()  # type: ignore[assignment]
        if stride is not None:
            if long not in (None, "window"):
                raise Error(f'stride is for texts read in windows, and long is {long!r}: give long="window" or leave stride out')
            long, most = "window", self.longest - self.tokenizer.num_special_tokens_to_add(False)
            if not isinstance(stride, int) or not 0 <= stride < most:
                raise Error(f"stride is {stride!r}; in windows of {self.longest} tokens it must be from 0 to {most - 1}")
        how: Any = {
            "long": long,
            "batch_tokens": batch_tokens,
            "keep_errors": keep_errors,
            "stride": self.longest // 4 if stride is None else stride,
            "is_split_into_words": is_split_into_words,
        }

        def result(answer: Answered) -> list[Entity]:
            text, starts = answer.text, None
            if is_split_into_words:
                text, starts = delimiter.join(answer.text), _starts(answer.text, delimiter)
            found = []
            for window, logits in zip(answer.windows, answer.results, strict=True):
                tokens = self._tokens(text, window, logits, starts)
                entities = _aggregated(self.tokenizer, tokens, labels, strategy)
                found += [entity for entity in entities if entity.get("entity", entity.get("entity_group")) not in ignored]
            return _without_overlaps(found) if len(answer.windows) > 1 else found

        def run(texts: Iterable[Any]) -> Iterator[Any]:
            texts = map(_words if is_split_into_words else single, texts)
            for answer in self.answered(texts, self._logits, **how):
                yield answer.error or result(answer)

        def is_one(given: Any) -> bool:
            words = is_split_into_words and isinstance(given, list | tuple) and bool(given)
            return bool(words) and all(isinstance(word, str) for word in given)

        found = answers(inputs, run, is_one)
        return [found] if is_split_into_words and is_one(inputs) else found

    def _logits(self, windows: list[Any]) -> list[Any]:
        return by_window(self.packed(windows)["logits"], windows)

    @ieee
    def _tokens(self, text: str, window: Any, logits: Any, starts: Sequence[int] | None) -> list[Entity]:
        """A window's tokens but for special ones, each with its scores, where it stands, and whether it goes on with a word."""
        tokenizer, tokens = self.tokenizer, []
        unknown = getattr(tokenizer, "unk_token", None)
        unknown = None if unknown is None else tokenizer.token_to_id(unknown)
        prefixed = bool(getattr(tokenizer.model, "continuing_subword_prefix", None))
        for index, (token, scores) in enumerate(zip(window.ids, softmax(logits), strict=True)):
            if window.special_tokens_mask[index]:
                continue
            start, end = window.offsets[index]
            if starts is not None and window.word_ids[index] is not None:
                start, end = start + starts[window.word_ids[index]], end + starts[window.word_ids[index]]
            word, there = tokenizer.id_to_token(token), text[start:end]
            goes_on = len(word) != len(there) if prefixed else start > 0 and " " not in text[start - 1 : start + 1]
            if token == unknown:
                word, goes_on = there, False
            place = {"word": word, "start": start, "end": end, "index": index}
            tokens.append({**place, "scores": scores, "is_subword": goes_on})
        return tokens


def _ignored(labels: Any) -> tuple[str, ...]:
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        raise Error(f"ignore_labels is {labels!r}; it must be a list of labels")
    return tuple(labels)


def _words(text: Any) -> Any:
    if isinstance(text, Error):
        return text
    if not isinstance(text, list | tuple) or not text:
        return Error(f"with is_split_into_words a text is a list of words, and this one is {text!r:.60}")
    return list(text)


def _starts(words: Sequence[str], delimiter: str) -> list[int]:
    """Where each word begins in the text that they make."""
    return [0, *np.cumsum([len(word) + len(delimiter) for word in words]).tolist()]


def _aggregated(tokenizer: Any, tokens: list[Entity], labels: Sequence[str], strategy: str) -> list[Entity]:
    """Tokens by themselves, or words, or tokens, in groups of one label."""
    if strategy in ("none", "simple"):
        entities = [_labelled(token["scores"], labels) for token in tokens]
        places = [{name: token[name] for name in ("index", "word", "start", "end")} for token in tokens]
        found = [{**entity, **place} for entity, place in zip(entities, places, strict=True)]
        return found if strategy == "none" else _groups(tokenizer, found)
    words: list[list[Entity]] = []
    for token in tokens:
        if words and token["is_subword"]:
            words[-1].append(token)
        else:
            words.append([token])
    return _groups(tokenizer, [_word(tokenizer, word, labels, strategy) for word in words])


def _labelled(scores: Any, labels: Sequence[str]) -> Entity:
    best = int(scores.argmax())
    return {"entity": labels[best], "score": float(scores[best])}


def _word(tokenizer: Any, tokens: list[Entity], labels: Sequence[str], strategy: str) -> Entity:
    """A word of one or several tokens: the first one's label, the most certain one's, or that of their mean."""
    if strategy == "first":
        scores = tokens[0]["scores"]
    elif strategy == "max":
        scores = max(tokens, key=lambda token: token["scores"].max())["scores"]
    else:
        scores = np.stack([token["scores"] for token in tokens]).mean(0)
    return {**_labelled(scores, labels), **_span(tokenizer, tokens)}


def _span(tokenizer: Any, tokens: list[Entity]) -> Entity:
    """The text of several tokens, and where it begins and ends."""
    words = [token["word"] for token in tokens]
    text = " ".join(words) if tokenizer.decoder is None else tokenizer.decoder.decode(words)
    return {"word": text, "start": tokens[0]["start"], "end": tokens[-1]["end"]}


def _groups(tokenizer: Any, entities: list[Entity]) -> list[Entity]:
    """Neighbours of one label in one entity; a label B-... begins another."""
    groups: list[list[Entity]] = []
    for entity in entities:
        begins, tag = _tag(entity["entity"])
        if groups and not begins and tag == _tag(groups[-1][-1]["entity"])[1]:
            groups[-1].append(entity)
        else:
            groups.append([entity])
    return [
        {
            "entity_group": group[0]["entity"].split("-", 1)[-1],
            "score": float(np.mean([entity["score"] for entity in group])),
            **_span(tokenizer, group),
        }
        for group in groups
    ]


def _tag(label: str) -> tuple[bool, str]:
    """Whether a label says that an entity begins, and which kind it is."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def _without_overlaps(entities: list[Entity]) -> list[Entity]:
    """Of entities of several windows that overlap, the longer one, or the likelier of two as long.

    transformers gives the first entity twice where that is of no character, a space before a word; here it is given once.
    """
    kept: list[Entity] = []
    for entity in sorted(entities, key=lambda entity: entity["start"]):
        before = kept[-1] if kept else None
        if before is None or not before["start"] <= entity["start"] < before["end"]:
            kept.append(entity)
            continue
        length, other = entity["end"] - entity["start"], before["end"] - before["start"]
        if length > other or (length == other and entity["score"] > before["score"]):
            kept[-1] = entity
    return kept
