"""Question answering: the spans of a context that answer a question; mirrors transformers' QuestionAnsweringPipeline (4.57)."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import Error, ieee
from ..generation import check_count
from .batches import Answered, Reading
from .task import Long, Task, answers, by_window
from .tokenizer import check_text, tokenize

LONGEST = 384  # tokens of a window, the question among them
STRIDE = 128  # tokens that windows share
OUT = np.float32(-10000.0)  # the score of a place that cannot be in an answer


class QuestionAnswering(Task):
    """A model that scores every token as an answer's start and end."""

    head, name = "ForQuestionAnswering", "question-answering"

    def __call__(
        self,
        *inputs: Any,
        question: Any = None,
        context: Any = None,
        top_k: int = 1,
        doc_stride: int | None = None,
        max_answer_len: int = 15,
        max_seq_len: int | None = None,
        max_question_len: int | None = None,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
        batch_tokens: int | None = None,
        keep_errors: bool = False,
    ) -> Any:
        """A question and its context -> {"score", "start", "end", "answer"}, or a list of several, likeliest first.

        They are given as two strings, as `question` and `context` (a list of questions with one context or a list of them), or
        as {"question": ..., "context": ...} or (question, context); a list gives a list (a list of one that one's answer, as
        transformers does), another iterable a generator, in order. A context is read in windows of max_seq_len tokens (384, or
        what the model reads), the question in each of them, that share doc_stride tokens (128, or half a window). An answer has
        at most max_answer_len tokens, and begins and ends with words, align_to_words. handle_impossible_answer: that there is
        none, "", is an answer too. max_question_len cuts a question; where it is None none is cut, which is what transformers
        does with any. keep_errors: an Error stands in the place of a result. Raises Error on a question or context that is
        empty, and on a question that leaves a window no room, when its turn comes.
        """
        check_count("top_k", top_k, 1)
        check_count("max_answer_len", max_answer_len, 1)
        length = min(self.longest, LONGEST) if max_seq_len is None else max_seq_len
        check_count("max_seq_len", length, 1)
        stride = min(length // 2, STRIDE) if doc_stride is None else doc_stride
        check_count("doc_stride", stride, 0)
        if max_question_len is not None:
            check_count("max_question_len", max_question_len, 1)
        if length > self.longest or stride > length:
            what = f"max_seq_len is {length}" if length > self.longest else f"doc_stride is {stride}"
            raise Error(f"{what}; it must be at most {min(length, self.longest)}")
        how: Any = {"batch_tokens": batch_tokens, "keep_errors": keep_errors, "most": max_question_len}
        how |= {"max_length": length, "stride": stride, "strategy": "only_second", "long": "window"}

        def result(answer: Answered) -> Any:
            found = self._answers(answer, top_k, handle_impossible_answer, max_answer_len, align_to_words)
            return found[0] if len(found) == 1 else found

        def run(texts: Iterable[Any]) -> Iterator[Any]:
            for answer in self.answered(map(_asked, texts), self._scores, **how):
                yield answer.error or result(answer)

        given = _given(inputs, question, context)
        found = answers(given, run, _is_pair)
        return found[0] if isinstance(given, list) and len(given) == 1 else found

    def read(self, texts: list[Any], long: Long, **how: Any) -> list[Reading]:
        """As of any task, once each question is known to leave room for its context, or cut to `most` tokens."""
        most, room = how.pop("most"), how["max_length"] - self.tokenizer.num_special_tokens_to_add(True)
        texts = list(texts)
        fine = [number for number, text in enumerate(texts) if not isinstance(text, Error)]
        read = tokenize(self.tokenizer, [texts[number][0] for number in fine], add_special_tokens=False) if fine else []
        for number, question in zip(fine, read, strict=True):
            text, context = texts[number]
            if most is not None and len(question) > most:
                text, count = text[: question.offsets[most - 1][1]], most
            else:
                count = len(question)
            texts[number] = (text, context)
            if count >= room - how["stride"] and count + self._length(context) > room:
                most_of_it = max(room - how["stride"] - 1, 0)
                told = f"its windows of {how['max_length']} tokens, which share {how['stride']}, have room for {most_of_it}"
                texts[number] = Error(f"a question has {count} tokens, and {told}: give max_question_len or a smaller doc_stride")
        return super().read(texts, long, **how)

    def _length(self, text: str) -> int:
        """A context's tokens, its own alone."""
        return len(tokenize(self.tokenizer, [text], add_special_tokens=False)[0])

    def _scores(self, windows: list[Any]) -> list[Any]:
        scores = self.packed(windows)
        ends = [by_window(scores[name], windows) for name in ("start_logits", "end_logits")]
        return list(zip(*ends, strict=True))

    @ieee
    def _answers(self, answer: Answered, top_k: int, impossible: bool, longest: int, align: bool) -> list[dict[str, Any]]:
        """The likeliest answers of all windows together; the scores of one that several give, whatever its case, are summed."""
        context, none = answer.text[1], 1000000.0
        found: dict[str, dict[str, Any]] = {}
        first = getattr(self.tokenizer, "cls_token", None)
        first = None if first is None else self.tokenizer.token_to_id(first)
        for window, (start, end) in zip(answer.windows, answer.results, strict=True):
            allowed = np.array([part == 1 for part in window.sequence_ids]) | (np.array(window.ids) == first)
            start, end = _probabilities(start, allowed), _probabilities(end, allowed)
            none = min(none, float(start[0] * end[0]))
            start[0] = end[0] = 0  # the place that stands for no answer
            for s, e, score in _spans(start, end, top_k * 2 + 10 if align else top_k, longest, allowed):
                at, to = _characters(window, s, e, align)
                same = context[at:to].lower()
                if same in found:
                    found[same]["score"] += score
                else:
                    found[same] = {"score": score, "start": at, "end": to, "answer": context[at:to]}
        all_of_them = list(found.values())
        if impossible:
            all_of_them.append({"score": none, "start": 0, "end": 0, "answer": ""})
        return sorted(all_of_them, key=lambda one: -one["score"])[:top_k]


def _given(inputs: Sequence[Any], question: Any, context: Any) -> Any:
    """What is asked, of the ways to ask it."""
    if (question is None) != (context is None) or bool(inputs) == (question is not None) or len(inputs) > 2:
        raise Error(
            "give a question and a context: as question= and context=, as two strings, or as a dictionary with these keys"
        )
    if len(inputs) == 2:
        return tuple(inputs)
    if inputs:
        return inputs[0]
    if not isinstance(question, list):
        return {"question": question, "context": context}
    contexts = context if isinstance(context, list) else [context] * len(question)
    if len(contexts) != len(question):
        raise Error(f"there are {len(question)} questions and {len(contexts)} contexts: give as many, or one context")
    return [{"question": one, "context": other} for one, other in zip(question, contexts, strict=True)]


def _is_pair(given: Any) -> bool:
    return isinstance(given, tuple) and len(given) == 2 and not isinstance(given[0], dict | tuple)


def _asked(given: Any) -> Any:
    """A question and its context; an Error where they are neither, or empty."""
    if isinstance(given, Error):
        return given
    if isinstance(given, dict):
        if given.keys() != {"question", "context"}:
            told = ", ".join(map(str, given)) or "none"
            return Error(f'the keys are {told}; a question has the keys "question" and "context"')
        given = (given["question"], given["context"])
    if not _is_pair(given):
        return Error(f"a question is {given!r:.60}; it must be a dictionary of question and context, or a tuple of both")
    try:
        for text, what in zip(given, ("question", "context"), strict=True):
            check_text(text)
            if not text:
                return Error(f"the {what} is empty")
    except Error as error:
        return error
    return given


def _probabilities(logits: Any, allowed: Any) -> Any:  # (S,) -> (S,)
    x = np.where(allowed, logits, OUT.astype(logits.dtype))
    x = np.exp(x - x.max())
    return x / x.sum()


def _spans(start: Any, end: Any, top_k: int, longest: int, allowed: Any) -> Iterator[tuple[int, int, float]]:
    """The likeliest of all spans of at most `longest` tokens, as start, end and probability; mirrors decode_spans."""
    scores = np.tril(np.triu(start[:, None] * end), longest - 1)
    flat = scores.ravel()
    if top_k == 1:
        order = np.array([flat.argmax()])
    elif len(flat) < top_k:
        order = np.argsort(-flat)
    else:
        order = np.argpartition(-flat, top_k)[:top_k] if len(flat) > top_k else np.arange(top_k)
        order = order[np.argsort(-flat[order])]
    for s, e in zip(*np.unravel_index(order, scores.shape), strict=True):
        if allowed[s] and allowed[e]:
            yield int(s), int(e), float(scores[s, e])


def _characters(window: Any, start: int, end: int, align: bool) -> tuple[int, int]:
    """Where a span of tokens begins and ends in the context: with words where the tokenizer knows them."""
    if align:
        words = window.token_to_word(start), window.token_to_word(end)
        places = [None if word is None else window.word_to_chars(word, 1) for word in words]
        if places[0] is not None and places[1] is not None:
            return places[0][0], places[1][1]
    return window.offsets[start][0], window.offsets[end][1]
