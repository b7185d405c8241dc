"""Text classification: labels, or a number, for texts and pairs of texts; mirrors transformers' TextClassificationPipeline."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from ..backends.numpy import softmax
from ..errors import Error, ieee
from .batches import Answered
from .task import Long, Task, answers

FUNCTIONS = ("sigmoid", "softmax", "none")


class TextClassification(Task):
    """A model with labels for a whole text."""

    head, name = "ForSequenceClassification", "text-classification"

    def __call__(
        self,
        inputs: Any,
        *,
        top_k: int | Literal[""] | None = "",
        function_to_apply: str | None = None,
        long: Long | None = None,
        batch_tokens: int | None = None,
        keep_errors: bool = False,
    ) -> Any:
        """Texts, or pairs as (text, text) or {"text": ..., "text_pair": ...} -> {"label": ..., "score": ...}.

        The shapes are those of transformers' pipeline. Without top_k a text gives a list of its likeliest label alone, a pair
        that label, a list of either a list of labels. With it, None for all, each text gives a list, likeliest first. Any other
        iterable gives a generator, in order. function_to_apply: "sigmoid", "softmax" or "none"; None for what the configuration
        says: none for regression, sigmoid for several labels at once or a single one, else softmax. long="window": the mean of
        the windows' scores, weighted by their tokens without the special ones. keep_errors: an Error stands in the place of a
        result. Raises Error on a text that cannot be read, when its turn comes.
        """
        if top_k != "" and top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise Error(f"top_k is {top_k!r}; it must be a whole number of at least 1, or None for all labels")
        labels, function = labels_of(self.model.config), self._function(function_to_apply)

        def result(answer: Answered) -> Any:
            scores = merged(answer, function)
            if top_k == "":
                return {"label": labels[int(scores.argmax())], "score": float(scores.max())}
            named = sorted(zip(labels, scores.tolist(), strict=True), key=lambda entry: -entry[1])[:top_k]
            return [{"label": label, "score": score} for label, score in named]

        def run(texts: Iterable[Any]) -> Iterator[Any]:
            how: Any = {"long": long, "batch_tokens": batch_tokens, "keep_errors": keep_errors}
            for answer in self.answered(map(pair_of, texts), self._logits, **how):
                yield answer.error or result(answer)

        found = answers(inputs, run, is_pair)
        return [found] if isinstance(inputs, str) and top_k == "" and not isinstance(found, Error) else found

    def _logits(self, windows: list[Any]) -> Sequence[Any]:
        return list(self.packed(windows)["logits"])

    def _function(self, name: str | None) -> str:
        """What is done with logits: what is asked for, or what the configuration's kind of problem needs."""
        config = self.model.config
        if name is None:
            several = config.problem_type == "multi_label_classification" or config.num_labels == 1
            return "none" if config.problem_type == "regression" else "sigmoid" if several else "softmax"
        if not isinstance(name, str) or name.lower() not in FUNCTIONS:
            raise Error(f"function_to_apply is {name!r}; it must be one of {', '.join(FUNCTIONS)}")
        return name.lower()


def labels_of(config: Any) -> list[str]:
    """A configuration's labels by number; raises Error where one has no name."""
    try:
        return [config.id2label[number] for number in range(config.num_labels)]
    except KeyError as error:
        raise Error(f"config: id2label names {config.num_labels} labels, and none for {error}") from error


def is_pair(given: Any) -> bool:
    """Whether this is one pair of texts."""
    return isinstance(given, tuple) and len(given) == 2


def pair_of(text: Any) -> Any:
    """A text, or a pair as the tokenizer reads it: one without a second text is none, as in transformers. Else an Error."""
    if isinstance(text, dict):
        if not {"text"} <= text.keys() <= {"text", "text_pair"}:
            return Error(f'a text has the keys {", ".join(map(str, text))}; it must have "text", and may have "text_pair"')
        text = (text["text"], text["text_pair"]) if text.get("text_pair") is not None else text["text"]
    if isinstance(text, list):
        return Error("a text is a list: a pair of texts is a tuple, or a dictionary")
    return text[0] if is_pair(text) and isinstance(text[1], str) and not text[1] else text


@ieee
def merged(answer: Answered, function: str) -> Any:  # -> (labels,)
    """The scores of a text: a window's, or the mean of several, weighted by their tokens without the special ones."""
    scores = np.stack([applied(logits, function) for logits in answer.results])
    if len(scores) == 1:
        return scores[0]
    weights = np.array([window.special_tokens_mask.count(0) for window in answer.windows], scores.dtype)
    return (scores * weights[:, None]).sum(0) / weights.sum()


def applied(logits: Any, function: str) -> Any:  # (labels,) -> (labels,)
    if function == "none":
        return logits
    return softmax(logits) if function == "softmax" else 1 / (1 + np.exp(-logits))
