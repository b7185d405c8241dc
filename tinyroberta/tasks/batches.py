"""Texts of any number through a model: in order, by groups of a budget of tokens, in memory that does not grow with them.

Nothing is padded and nothing is sorted: a group is whatever texts come next, up to the budget, and goes through the model packed
(models.py: packed). While one chunk of texts is computed the next is read by the tokenizer. A text that is cut into windows may
lie in several groups; it is answered when the last of them has been computed.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from ..errors import Error

BUDGET = 4096  # tokens of a group: past some thousand no token gets cheaper, and memory grows
BUDGET_ON_GPU = 16384  # there a group that is smaller leaves multiprocessors idle
CHARACTERS = 4 * 4  # of a chunk, for each token of the budget: some four groups, at about four characters a token
SHORTEST = 4  # tokens of a text on average, where a chunk is bounded by its texts

Reading = list[Any] | Error  # a text's encodings, a window each; or why it cannot be read
Read = Callable[[list[Any]], Sequence[Reading]]
Compute = Callable[[list[Any]], Sequence[Any]]


class Answered(NamedTuple):
    """A text, its windows (tokenizers.Encodings) and what was computed for each of them; or the Error that the text deserves."""

    text: Any
    windows: list[Any]
    results: list[Any]
    error: Error | None = None


def answered(read: Read, compute: Compute, texts: Iterable[Any], budget: int = BUDGET) -> Iterator[Answered]:
    """Each text with what `compute` gives for its windows, in the order of the texts.

    read: texts -> for each its windows, or an Error; it runs in a thread of its own. compute: windows -> a result for each. texts
    may be any iterable, also one of Chunks, which is then taken as it comes. Raises Error on a budget below 1.
    """
    if budget < 1:
        raise Error(f"batch_tokens is {budget}; it must be at least 1")
    chunks = texts if isinstance(texts, Chunks) else chunked(texts, max(BUDGET, budget))
    waiting: deque[tuple[list[Any], Future[Sequence[Reading]]]] = deque()
    with ThreadPoolExecutor(1, "tokenizer") as thread:
        for chunk in chunks:
            if chunk:
                waiting.append((chunk, thread.submit(read, chunk)))
            while len(waiting) > bool(chunk):
                yield from _computed(*_read(waiting.popleft()), compute, budget)
        for pair in waiting:
            yield from _computed(*_read(pair), compute, budget)


class Chunks:
    """Texts in lists, as they come; an empty list says that for now there is no more, and that those before it are waited for."""

    def __init__(self, chunks: Iterable[list[Any]]) -> None:
        self.chunks = chunks

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self.chunks)


def chunked(texts: Iterable[Any], budget: int) -> Iterator[list[Any]]:
    """Texts in lists, each of some groups of `budget` tokens."""
    chunk: list[Any] = []
    length = 0
    for text in texts:
        chunk.append(text)
        length += _length(text)
        if length >= CHARACTERS * budget or len(chunk) >= budget // SHORTEST:
            yield chunk
            chunk, length = [], 0
    if chunk:
        yield chunk


def mapped(function: Callable[[Any], Any], texts: Iterable[Any]) -> Iterable[Any]:
    """What a function makes of each text, as they come; Chunks of Chunks."""
    return Chunks([function(text) for text in chunk] for chunk in texts) if isinstance(texts, Chunks) else map(function, texts)


def _length(text: Any) -> int:
    """The characters of a text, of the texts in a pair, or of a text's words."""
    return len(text) if isinstance(text, str) else sum(map(_length, text)) if isinstance(text, tuple | list) else 1


def groups(lengths: Sequence[int], budget: int) -> Iterator[slice]:
    """Runs of neighbours of about equal sums, none above the budget but of one alone that is longer."""
    total = sum(lengths)
    aim = total / max(1, -(-total // budget))
    start = tokens = 0
    for at, length in enumerate(lengths):
        if at > start and (tokens + length > budget or tokens >= aim):
            yield slice(start, at)
            start, tokens = at, 0
        tokens += length
    if start < len(lengths):
        yield slice(start, len(lengths))


def _read(pair: tuple[list[Any], Future[Sequence[Reading]]]) -> tuple[list[Any], Sequence[Reading]]:
    chunk, future = pair
    return chunk, future.result()


def _computed(chunk: list[Any], readings: Sequence[Reading], compute: Compute, budget: int) -> Iterator[Answered]:
    """A chunk's texts answered, each as soon as its last window is computed."""
    windows = [window for reading in readings if not isinstance(reading, Error) for window in reading]
    parts = groups([len(window) for window in windows], budget)
    results: deque[Any] = deque()
    for text, reading in zip(chunk, readings, strict=True):
        if isinstance(reading, Error):
            yield Answered(text, [], [], reading)
            continue
        while len(results) < len(reading):
            results.extend(compute(windows[next(parts)]))
        yield Answered(text, reading, [results.popleft() for _ in reading])
