"""A trace of a backend that is named in a few words: `numpy:float64`, `cpu:high`, `cpu:reproducible`, `cupy`."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .. import traces
from ..backends import BACKENDS, DTYPES, FORMERLY, PRECISIONS, Array
from ..errors import Error
from ..tap import trace
from . import transplant

MOST_TOKENS = 64  # of a text that is drawn


def is_backend(told: str) -> bool:
    """Whether a text names a backend, and not a file."""
    return told.partition(":")[0] in (*BACKENDS, *FORMERLY)


def running_of(told: str) -> dict[str, Any]:
    """How a model is run, from BACKEND[:WORD...]: a word is a dtype, a precision, `reproducible` or `threads=N`.

    Raises Error on another word.
    """
    backend, *words = told.split(":")
    running: dict[str, Any] = {"backend": backend}
    for word in words:
        if word in DTYPES:
            running["dtype"] = word
        elif word in PRECISIONS:
            running["matmul_precision"] = word
        elif word == "reproducible":
            running["reproducible"] = True
        elif word.startswith("threads=") and word[8:].isdecimal():
            running["threads"] = int(word[8:])
        else:
            known = ", ".join((*DTYPES, *PRECISIONS, "reproducible", "threads=N"))
            raise Error(f"{told}: {word!r} is no way to run {backend}; it can be {known}")
    return running


def run(model: Any, inputs: Mapping[str, Array], hashes: bool = True, padding: bool = False) -> traces.TraceFile:
    """What passes through a model for (B, S) inputs; with `padding` at padding too."""
    if hasattr(model, "decoder"):
        raise Error("an encoder-decoder pair is not run here: trace it in Python, and compare the files that trace.save writes")
    places = None if padding else np.zeros(0, int)
    call = traces.Recorded("", np.shape(inputs["input_ids"]), places, dict(inputs))
    with trace(model) as seen:
        transplant.replay(model, call)
    return traces.of_model(model, seen.calls, hashes)


def drawn_inputs(config: Any, seed: int = 0, lengths: Iterable[int] = (3, 17, MOST_TOKENS, 9)) -> dict[str, Array]:
    """Texts of random ids, padded on the right, none of them padding's id."""
    random = np.random.default_rng(seed)
    usable = max(1, config.usable_length)
    cut = [min(length, usable) for length in lengths]
    allowed = np.setdiff1d(np.arange(config.vocab_size), [config.pad_token_id])
    ids = np.full((len(cut), max(cut)), config.pad_token_id or 0)
    mask = np.zeros_like(ids)
    for row, length in enumerate(cut):
        ids[row, :length], mask[row, :length] = random.choice(allowed, length), 1
    return {"input_ids": ids, "attention_mask": mask}


def padded(texts: list[list[int]], pad: int) -> dict[str, Array]:
    """Lists of ids as (B, S) ids and mask, padded on the right."""
    longest = max(map(len, texts))
    ids = np.array([text + [pad] * (longest - len(text)) for text in texts], np.int64)
    mask = np.array([[1] * len(text) + [0] * (longest - len(text)) for text in texts], np.int64)
    return {"input_ids": ids, "attention_mask": mask}
