"""What a checkpoint can do, seen from its files: vectors of texts, scores of pairs, or labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal

from ..errors import Error, ieee
from ..keywords import running_of
from ..tasks.batches import BUDGET_ON_GPU
from ..tasks.classify import TextClassification
from ..tasks.embed import Embedder
from ..tasks.sentence_transformers import modules_of
from ..tasks.task import Task, reads_types
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
        self.cutters = {side: cutter(task.tokenizer, self.longest, side) for side in ("left", "right")}

    @ieee
    def forward(self, windows: list[Any]) -> Sequence[Any]:
        """What the model gives for each window: its last hidden states (tokens, D), the backend's, or its logits (labels,)."""
        if self.kind == "embedding":
            model, types = self.task.model, reads_types(self.task.model, self.task.tokenizer)
            states = model.packed([w.ids for w in windows], [w.type_ids for w in windows] if types else None).last_hidden_state
            return [states[start:end] for start, end in pairwise(accumulate(map(len, windows), initial=0))]
        return list(self.task.packed(windows)["logits"])

    def read(self, texts: Sequence[Any], truncate: bool = False, side: str | None = None) -> list[Any]:
        """Texts, pairs of texts or lists of ids -> a window of each.

        truncate cuts longer texts, on the side that is named, or that the tokenizer's files name. Raises Error on a text that is
        no Unicode or an id that the model lacks, and TooLong.
        """
        for text in texts:
            for part in () if isinstance(text, list) else text if isinstance(text, tuple) else (text,):
                check_text(part)
        end = side or self.side
        strings = [text for text in texts if not isinstance(text, list)]
        encodings = iter(encoded(self.cutters[end] if truncate else self.task.tokenizer, strings))
        windows = [Ids(text) if isinstance(text, list) else next(encodings) for text in texts]
        for n, window in enumerate(windows):
            if len(window) > self.longest:
                if not truncate:
                    told = f"text {n + 1} has {len(window)} tokens; this model reads at most {self.longest}"
                    raise TooLong(f'{told}: shorten it, or send "truncate": true')
                window = windows[n] = Ids(window.ids[-self.longest :] if end == "left" else window.ids[: self.longest])
            if max(window.ids, default=0) >= self.task.model.config.vocab_size:
                raise Error(f"an id is {max(window.ids)}; this model has {self.task.model.config.vocab_size} words")
        return windows

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


def encoded(tokenizer: Any, texts: Sequence[Any], **how: Any) -> list[Any]:
    """Texts, or pairs of them, as encodings; raises Error where the tokenizer cannot read one."""
    try:
        return list(tokenizer.encode_batch(list(texts), **how))
    except BaseException as error:  # the package panics with what is no Exception
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise Error(f"the tokenizer cannot read the text: {error}") from error
        raise


def cutter(tokenizer: Any, length: int, side: str) -> Any:
    """A copy of a tokenizer that cuts texts; several threads read with one, so none is changed once the server runs."""
    copy = type(tokenizer).from_str(tokenizer.to_str())
    copy.encode_special_tokens = tokenizer.encode_special_tokens
    copy.enable_truncation(length, direction=side)
    return copy


def budget_of(served: Served) -> int:
    """How many tokens go through the model together where nobody says; 1 is one text alone.

    On CPUs no token gets cheaper past some hundred. A row's bits are its own in the compiled kernels and where they are
    reproducible; a BLAS may round otherwise for another number of rows, so there each text has a pass of its own.
    """
    model = served.task.model
    if model.backend == "cupy":
        return BUDGET_ON_GPU
    alone = model.backend == "numpy"
    if model.backend == "cpu":
        from ..backends.numba.paths import chosen_path  # not everywhere importable

        alone = chosen_path() == "blas"
    return 1 if alone and not model.settings.reproducible else 1024
