"""Whether a text gets the same bits alone, in batches, in another order, beside other lengths and with more threads."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..auto import load
from ..backends import Array
from ..errors import Error
from ..tap import trace
from .live import is_backend, padded, running_of

LENGTHS = (16, 16, 16, 1, 2, 7, 15, 17, 33, 64)  # of the texts that are tried; the first stand for equal lengths
EQUAL = LENGTHS.count(LENGTHS[0])
BATCHES = (2, 3, 5, 8, 16, 33, 64)
Arrays = dict[str, Array]


def check(backend: str | None, source: str) -> dict[str, Any]:
    """Whether texts get the bits that they have alone in every way to run a backend (`cpu:medium`; None: the default one).

    {"backend", "verdict": "same" or "differs", "first": the first op of the first way that is not equal, or null,
    "ways": [{"way", "first"}]}. Raises Error on a backend that is not there.
    """
    if backend is not None and not is_backend(backend):
        raise Error(f"--invariance holds a backend to itself, such as cpu or cpu:medium; {backend!r} is none")
    model: Any = load(source, **({} if backend is None else running_of(backend)))
    if hasattr(model, "decoder") or type(model).__name__.endswith("MultipleChoice"):
        raise Error(f"--invariance runs models of one text a row; {source} is a {type(model).__name__}")
    return check_model(model)


def check_model(model: Any) -> dict[str, Any]:
    """The same of a model, whose threads are set while it runs."""
    settings, threads = model.settings, _threads()
    usable, random = model.config.usable_length, np.random.default_rng(0)
    words = np.setdiff1d(np.arange(model.config.vocab_size), [model.config.pad_token_id])
    texts = [random.choice(words, max(1, min(length, usable))).tolist() for length in LENGTHS]
    equal, every = list(range(EQUAL)), list(range(len(texts)))
    ways: list[tuple[str, list[int], int | None]] = [("alone once more", [0], settings.threads)]
    ways += [(f"alone, threads={n}", [8], n) for n in threads]
    ways += [(f"a batch of {n}", [equal[i % EQUAL] for i in range(n)], settings.threads) for n in BATCHES]
    ways += [("beside other lengths", every, settings.threads), ("permuted", every[::-1], settings.threads)]
    ways += [(f"beside other lengths, threads={n}", every, n) for n in threads]
    try:
        alone: dict[int, Arrays] = {}
        for index, text in enumerate(texts):
            with trace(model) as seen:
                model(**padded([text], 0))
            alone[index] = {name: seen[name] for name in seen}
        found = []
        for way, batch, count in ways:
            model.settings = settings._replace(threads=count)
            found.append({"way": way, "first": _first(model, [texts[i] for i in batch], [alone[i] for i in batch])})
    finally:
        model.settings = settings
    first = next((way["first"] for way in found if way["first"] is not None), None)
    told = ", ".join([model.backend, settings.dtype, settings.matmul_precision, *(["reproducible"] * settings.reproducible)])
    return {"backend": told, "verdict": "same" if first is None else "differs", "first": first, "ways": found}


def _threads() -> list[int]:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return sorted({1, 2, count})


def _first(model: Any, texts: Sequence[list[int]], alone: Sequence[Arrays]) -> str | None:
    """The first op by which a text of a batch has other bits than alone; "output" where only the untraced output has."""
    wrong: set[str] = set()

    def hear(name: str, x: Array) -> None:
        sequences = seen.calls[-1].rows.sequences  # type: ignore[union-attr]
        starts = sequences.query_start
        for b, own in enumerate(alone):
            rows = x[starts[b] : starts[b + 1]] if len(x) == starts[-1] else x[b : b + 1]
            if name.endswith(".probs"):
                rows = rows[:, :, : sequences.key_length[b]]
            if not np.array_equal(rows, own[name], equal_nan=True):
                wrong.add(name)

    given = padded(list(texts), model.config.pad_token_id or 0)
    with trace(model, [], {"*": hear}) as seen:
        traced = model(**given)
    for name in model.tap_names():
        if name in wrong:
            return name
    for _ in range(3):  # as it is run without a trace: computed, recorded and played
        plain = model(**given)
        if any(not _equal(model, traced[name], plain[name]) for name in plain if name != "past_key_values"):
            return "output"
    return None


def _equal(model: Any, a: Any, b: Any) -> bool:
    return a is b or np.array_equal(model.ops.to_numpy(a), model.ops.to_numpy(b), equal_nan=True)
