"""tasks/batches.py: order, groups, laziness, errors and the bits of what is computed in whatever company."""

import threading
import weakref
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyroberta import Error
from tinyroberta.demo import FOLDER
from tinyroberta.tasks.batches import BUDGET, SHORTEST, Chunks, answered, chunked, groups

TEXTS = BUDGET // SHORTEST  # of a chunk, at most
some = settings(max_examples=200, deadline=None, derandomize=True)


def read(texts: list[Any]) -> list[Any]:
    """A window of up to three letters each; "!" cannot be read."""
    return [Error(f"no {text}") if "!" in text else [text[i : i + 3] for i in range(0, max(len(text), 1), 3)] for text in texts]


@some
@given(lengths=st.lists(st.integers(0, 9)), budget=st.integers(1, 20))
def test_groups_are_neighbours_within_the_budget(lengths: list[int], budget: int) -> None:
    found = list(groups(lengths, budget))
    assert [length for part in found for length in lengths[part]] == lengths
    assert all(sum(lengths[part]) <= budget or part.stop - part.start == 1 for part in found)


@some
@given(texts=st.lists(st.text("ab!", max_size=8)), budget=st.integers(1, 12))
def test_every_text_is_answered_in_order_with_its_own_windows(texts: list[str], budget: int) -> None:
    seen = []

    def compute(windows: list[str]) -> list[str]:
        seen.append(sum(map(len, windows)))
        return [window.upper() for window in windows]

    found = list(answered(read, compute, iter(texts), budget))
    assert [answer.text for answer in found] == texts
    for answer in found:
        assert ("!" in answer.text) == (answer.error is not None)
        assert answer.error is not None or "".join(answer.results) == answer.text.upper()
    assert all(tokens <= max(budget, 3) for tokens in seen)


def test_a_stream_without_an_end_is_answered_in_memory_that_does_not_grow() -> None:
    class Text(str):
        __slots__ = ("__weakref__",)

    alive: weakref.WeakSet[Text] = weakref.WeakSet()
    most = drawn = 0

    def stream() -> Iterator[str]:
        nonlocal drawn, most
        while True:
            text = Text("a" * 100)
            alive.add(text)
            drawn += 1
            most = max(most, len(alive))
            yield text

    answers = answered(read, lambda windows: windows, stream(), 64)
    assert len(list(islice(answers, 20_000))) == 20_000
    answers.close()
    assert drawn <= 20_000 + 3 * TEXTS
    assert most <= 4 * TEXTS


def test_the_next_chunk_is_read_while_one_is_computed() -> None:
    second = threading.Event()

    def reading(texts: list[str]) -> list[Any]:
        if texts == ["second"]:
            second.set()
        return [[text] for text in texts]

    def compute(windows: list[str]) -> list[str]:
        assert windows != ["first"] or second.wait(20)
        return windows

    assert len(list(answered(reading, compute, Chunks([["first"], ["second"]])))) == 2


def test_what_has_arrived_is_answered_before_more_is_waited_for() -> None:
    got: list[str] = []

    def arriving() -> Iterator[list[str]]:
        yield ["one"]
        yield []
        assert got == ["one"]
        yield ["two"]

    found = (
        answer.text for answer in answered(lambda texts: [[text] for text in texts], lambda windows: windows, Chunks(arriving()))
    )
    for text in found:
        got.append(text)  # noqa: PERF402 - one at a time, as they come
    assert got == ["one", "two"]


def test_an_error_of_the_iterable_or_the_tokenizer_comes_through() -> None:
    def failing() -> Iterator[str]:
        yield "a"
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        list(answered(read, lambda windows: windows, failing()))

    def broken(_: list[str]) -> list[Any]:
        raise Error("no")

    with pytest.raises(Error, match="no"):
        list(answered(broken, lambda windows: windows, ["a"]))
    with pytest.raises(Error, match="batch_tokens is 0"):
        list(answered(read, lambda windows: windows, ["a"], 0))


def test_chunks_are_of_bounded_length() -> None:
    assert [len(chunk) for chunk in chunked(["a"] * (TEXTS + 1), BUDGET)] == [TEXTS, 1]
    assert [len(chunk) for chunk in chunked(["a" * 10**6] * 3, BUDGET)] == [1, 1, 1]
    assert list(chunked([], BUDGET)) == []
    assert list(chunked([("a", None), None, ("a", ("b", 5))], BUDGET)) == [[("a", None), None, ("a", ("b", 5))]]


def test_a_long_text_is_refused_cut_or_read_in_windows() -> None:
    pytest.importorskip("tokenizers")
    from tinyroberta.demo import load
    from tinyroberta.tasks.tokenizer import load_tokenizer, read_texts

    tokenizer, config = load_tokenizer(FOLDER), load().config
    texts: list[Any] = ["short", "word " * 20, "\ud800", ("a", 5), "", 7]
    refused = read_texts(tokenizer, texts, config, 10)
    assert "a text has 2" in str(refused[1])
    assert "surrogate" in str(refused[2])
    assert "type int" in str(refused[3])
    assert "type int" in str(refused[5])
    assert [len(refused[0]), len(refused[4])] == [1, 1]
    (cut,) = read_texts(tokenizer, texts[1:2], config, 10, "truncate")
    assert [len(window) for window in cut] == [10]
    (windows,) = read_texts(tokenizer, texts[1:2], config, 10, "window", stride=2)
    whole = tokenizer.encode(texts[1]).ids
    assert all(window.ids[0] == whole[0] and window.ids[-1] == whole[-1] for window in windows)
    inner = [window.ids[1:-1] for window in windows]
    assert inner[0] + [token for window in inner[1:] for token in window[2:]] == whole[1:-1]
    assert all(before[-2:] == after[:2] for before, after in pairwise(inner))
    for how in ({"max_length": 0}, {"max_length": 11}, {"long": "window", "stride": 9}, {"long": "truncate", "stride": -1}):
        with pytest.raises(Error):
            read_texts(tokenizer, ["a"], config, 10, **how)


def test_a_texts_bits_depend_on_no_budget_and_no_neighbour() -> None:
    pytest.importorskip("tokenizers")
    pytest.importorskip("numba")
    from tinyroberta.tasks.task import Task, by_window

    class Words(Task):
        head, name = "ForMaskedLM", "fill-mask"

    task = Words.from_pretrained(backend="numba")
    texts = [f"{'The sea was calm. ' * (n % 7)}She <mask> {n}." for n in range(20)]

    def scores(texts: list[str], budget: int) -> dict[str, bytes]:
        def compute(windows: list[Any]) -> list[Any]:
            return by_window(task.packed(windows)["logits"], windows)

        return {a.text: a.results[0].tobytes() for a in task.answered(texts, compute, batch_tokens=budget)}

    wanted = scores(texts, 10**6)
    assert scores(texts[::-1], 1) == wanted
    assert scores(texts, 100) == wanted
