"""Multiple choice: which of several texts goes on from a prompt. transformers has no pipeline for it; its documents' recipe."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..backends.numpy import softmax
from ..errors import Error, ieee
from .batches import Answered
from .classify import merged
from .task import Long, Task, answers


class MultipleChoice(Task):
    """A model with a score for each of several continuations."""

    head, name = "ForMultipleChoice", "multiple-choice"

    def __call__(
        self,
        *inputs: Any,
        prompt: Any = None,
        choices: Any = None,
        top_k: int | None = None,
        long: Long | None = None,
        batch_tokens: int | None = None,
        keep_errors: bool = False,
    ) -> Any:
        """A prompt and its choices -> a list of {"choice", "index", "score"}, likeliest first; the scores' sum is 1.

        They are given as two arguments, as `prompt` and `choices`, or as {"prompt": ..., "choices": [...]} or (prompt, [...]); a
        list of these gives a list of lists, another iterable a generator, in order. The prompt and each choice are read as a
        pair of texts, and the scores are the softmax of their logits. index: the choice's number, from 0. long="window": a
        pair's logit is the mean of its windows', weighted by their tokens without the special ones. keep_errors: an Error stands
        in the place of a result. Raises Error on a prompt without choices, and on a text that cannot be read, when its turn
        comes.
        """
        if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise Error(f"top_k is {top_k!r}; it must be a whole number of at least 1, or None for all choices")
        if (prompt is None) != (choices is None) or bool(inputs) == (prompt is not None) or len(inputs) > 2:
            raise Error(
                "give a prompt and its choices: as prompt= and choices=, as two arguments, or as a dictionary with these keys"
            )
        given = inputs[0] if len(inputs) == 1 else tuple(inputs) or {"prompt": prompt, "choices": choices}

        def run(questions: Iterable[Any]) -> Iterator[Any]:
            counts: deque[int] = deque()
            pairs = _pairs(questions, counts)
            answered = self.answered(pairs, self._logits, long=long, batch_tokens=batch_tokens, keep_errors=True)
            for first in answered:
                several = [first, *(next(answered) for _ in range(counts.popleft() - 1))]
                error = next((answer.error for answer in several if answer.error is not None), None)
                if error is not None and not keep_errors:
                    raise error
                yield error or _ranked(several)[:top_k]

        return answers(given, run, _is_question)

    def _logits(self, windows: list[Any]) -> list[Any]:
        return list(self.packed(windows)["logits"])


def _is_question(given: Any) -> bool:
    return isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], str | bytes)


def _pairs(questions: Iterable[Any], counts: deque[int]) -> Iterator[Any]:
    """The pairs of each question, or an Error in their place, as they come; how many there are goes to counts."""
    for question in questions:
        pairs = _read(question)
        counts.append(len(pairs))
        yield from pairs


def _read(question: Any) -> list[Any]:
    if isinstance(question, dict) and question.keys() == {"prompt", "choices"}:
        question = (question["prompt"], question["choices"])
    if not isinstance(question, tuple) or len(question) != 2:
        return [Error(f"a question is {question!r:.60}; it must be a dictionary of prompt and choices, or a tuple of both")]
    prompt, choices = question
    if isinstance(choices, str | bytes) or not isinstance(choices, Sequence) or not choices:
        return [Error(f"the choices are {choices!r:.60}; they must be a list of at least one text")]
    return [(prompt, choice) for choice in choices]


@ieee
def _ranked(pairs: Sequence[Answered]) -> list[dict[str, Any]]:
    scores = softmax(np.concatenate([merged(pair, "none") for pair in pairs]))
    found = [{"choice": pair.text[1], "index": index, "score": float(scores[index])} for index, pair in enumerate(pairs)]
    return sorted(found, key=lambda one: -one["score"])
