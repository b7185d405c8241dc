"""What a checkpoint can do, seen from its files: vectors of texts, scores of pairs, or labels."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import Error, ieee
from ..keywords import running_of
from ..tasks.classify import TextClassification
from ..tasks.embed import Embedder
from ..tasks.sentence_transformers import modules_of
from ..tasks.task import Task, by_window
from ..tasks.tokenizer import check_text
from ..weights.checkpoint import read_config
from ..weights.hub import checkpoint_folder, on_disk

Kind = Literal["embedding", "reranker", "classifier"]
EMBEDDED = "tinyroberta"  # the name of the embedded model


class TooLong(Error):
    """A text has more tokens than the model reads."""


@dataclass
class Ids:
    """A text that came as the ids of its tokens, in place of a tokenizers.Encoding."""

    ids: list[int]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def type_ids(self) -> list[int]:
        """All of them the first text's."""
        return [0] * len(self.ids)

    offsets = special_tokens_mask = ()


class Served:
    """A checkpoint and how its texts are read."""

    def __init__(self, task: Task, kind: Kind, name: str) -> None:
        self.task, self.kind, self.name = task, kind, name
        self.longest = task.longest
        if isinstance(task, Embedder):
            self.longest = min(task.longest, task.max_seq_length)
        self.side: str = getattr(task.tokenizer, "truncation_side", "right")
        self._reading = threading.Lock()  # the tokenizer holds how texts are cut

    @ieee
    def forward(self, windows: list[Any]) -> Sequence[Any]:
        """What the model gives for each window: its last hidden states (tokens, D), or its logits (labels,)."""
        if self.kind == "embedding":
            return by_window(self.task.packed(windows)["last_hidden_state"], windows)
        return list(self.task.packed(windows)["logits"])

    def read(self, texts: Sequence[Any], truncate: bool = False, side: str | None = None) -> list[Any]:
        """Texts, pairs of texts or lists of ids -> a window of each.

        truncate cuts longer texts, on the side that is named, or that the tokenizer's files name. Raises Error on a text that is
        no Unicode or an id that the model lacks, and TooLong.
        """
        windows: list[Any] = [Ids(text) if isinstance(text, list) else None for text in texts]
        for text in texts:
            for part in () if isinstance(text, list) else text if isinstance(text, tuple) else (text,):
                check_text(part)
        fine = [n for n, window in enumerate(windows) if window is None]
        if fine:
            for n, encoding in zip(fine, self.encode([texts[n] for n in fine]), strict=True):
                windows[n] = encoding
        long = [n for n, window in enumerate(windows) if len(window) > self.longest]
        if long and not truncate:
            told = f"text {long[0] + 1} has {len(windows[long[0]])} tokens; this model reads at most {self.longest}"
            raise TooLong(f'{told}: shorten it, or send "truncate": true')
        for n in long:
            windows[n] = self._cut(texts[n], windows[n], side or self.side)
        for window in windows:
            if max(window.ids, default=0) >= self.task.model.config.vocab_size:
                raise Error(f"an id is {max(window.ids)}; this model has {self.task.model.config.vocab_size} words")
        return windows

    def encode(self, texts: Sequence[Any], **how: Any) -> list[Any]:
        """Texts as encodings of any length."""
        with self._reading:
            return self._encoded(texts, **how)

    def _cut(self, text: Any, window: Any, side: str) -> Any:
        if isinstance(window, Ids):
            return Ids(window.ids[-self.longest :] if side == "left" else window.ids[: self.longest])
        tokenizer = self.task.tokenizer
        with self._reading:
            tokenizer.enable_truncation(self.longest, direction=side)
            try:
                return self._encoded([text])[0]
            finally:
                tokenizer.no_truncation()

    def _encoded(self, texts: Sequence[Any], **how: Any) -> list[Any]:
        try:
            return list(self.task.tokenizer.encode_batch(list(texts), **how))
        except BaseException as error:  # the package panics with what is no Exception
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                raise Error(f"the tokenizer cannot read the text: {error}") from error
            raise

    def warm(self) -> None:
        """Compute one text, so that what is compiled on first use is compiled."""
        self.forward(self.read(["a"] if self.kind != "reranker" else [("a", "a")]))


def open_served(path_or_repo: str | Path | None, revision: str | None = None, **running: Any) -> Served:
    """The checkpoint of a folder or a Hub repository, by what it can do; the embedded model's vectors where none is named.

    A folder whose modules.json has a Pooling, and a checkpoint without a head for labels, give vectors; one label makes a
    reranker, several a classifier. running: load's keywords. Raises Error as the tasks' from_pretrained.
    """
    if path_or_repo is None:
        return Served(Embedder.from_pretrained(None, revision=revision, **running), "embedding", EMBEDDED)
    running = running_of(running, on_disk(path_or_repo))
    folder = checkpoint_folder(path_or_repo, revision, beside=True)
    name = Path(path_or_repo).resolve().name if on_disk(path_or_repo) else str(path_or_repo)
    if not (folder.is_dir() and "Pooling" in modules_of(folder)):
        said = read_config(folder).get("architectures")
        if isinstance(said, list) and any(str(one).endswith("ForSequenceClassification") for one in said):
            task = TextClassification.from_pretrained(folder, **running)
            return Served(task, "reranker" if task.model.config.num_labels == 1 else "classifier", name)
    return Served(Embedder.from_pretrained(folder, **running), "embedding", name)


def vectors(found: Sequence[Any]) -> Any:  # [(D,)] -> (N, D)
    """Vectors in one array, float32."""
    return np.stack(found).astype(np.float32, copy=False)


def budget_of(served: Served) -> int:
    """How many tokens go through the model together where nobody says; 1 is one text alone.

    On CPUs no token gets cheaper past some hundred. A row's bits are its own in Numba's kernels and where they are reproducible;
    a BLAS may round otherwise for another number of rows, so there each text has a pass of its own.
    """
    model = served.task.model
    if model.backend == "cupy":
        return 16384
    alone = model.backend == "numpy"
    if model.backend == "numba":
        from ..backends.numba.paths import chosen_path  # not importable without Numba

        alone = chosen_path() == "blas"
    return 1 if alone and not model.settings.reproducible else 1024
