"""What the tasks share: a checkpoint's model and tokenizer, and how texts become the windows that the model reads."""

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, Unpack

import numpy as np

from ..auto import class_of
from ..encoder_decoder import is_pair
from ..errors import Error
from ..family import KIN
from ..keywords import Running, running_of, settings_of
from ..weights.checkpoint import open_checkpoint, read_config, read_generation_config
from ..weights.hub import checkpoint_folder, on_disk
from .batches import BUDGET, BUDGET_ON_GPU, Answered, Compute, Reading, answered
from .tokenizer import load_tokenizer, read_texts

Long = Literal["error", "truncate", "window"]
LONG = ("error", "truncate", "window")


class Task:
    """A model with a head and its tokenizer; a subclass says which head, and what it makes of its scores."""

    head: ClassVar[str]  # the key in heads.HEADS
    name: ClassVar[str]  # transformers' name of the task

    def __init__(self, model: Any, tokenizer: Any, *, long: Long = "error", batch_tokens: int | None = None) -> None:
        """A task of a model of this library and a tokenizer that `load_tokenizer` gives.

        long: what is done with a text that is longer than the model reads, "error", "truncate" or "window"; batch_tokens: how
        many tokens go through the model together (4096, on a GPU 16384), which changes no result. Raises Error on a model with
        another head.
        """
        if getattr(type(model), "head", None) is None or not type(model).__name__.endswith(self.head):
            raise Error(f"{self.name} is a task for a model ...{self.head}, and was given a {type(model).__name__}")
        check_long(long)
        self.model, self.tokenizer, self.long = model, tokenizer, long
        usual = BUDGET_ON_GPU if model.backend == "cupy" else BUDGET
        self.batch_tokens = usual if batch_tokens is None else batch_tokens
        self._reading = threading.Lock()  # the tokenizer holds how texts are cut

    @classmethod
    def from_pretrained(cls, path_or_repo: str | Path | None = None, *, revision: str | None = None, **running: Any) -> Self:
        """The task of a checkpoint's folder or Hub repository, or of the embedded model where none is named.

        running: load's keywords (backend, dtype, matmul_precision, threads, reproducible), and the class's own. Raises Error on a
        checkpoint without that head or without a tokenizer, or as `load`.
        """
        own = {name: running.pop(name) for name in ("long", "batch_tokens") if name in running}
        return cls(*open_model(cls.head, cls.name, path_or_repo, revision, **running), **own)

    @property
    def longest(self) -> int:
        """How many tokens of a text the model reads, <s> and </s> among them: the least of its positions and its tokenizer's."""
        return longest_of(self.model, self.tokenizer)

    def answered(
        self,
        texts: Iterable[Any],
        compute: Compute,
        *,
        long: Long | None = None,
        batch_tokens: int | None = None,
        keep_errors: bool = False,
        **how: Any,
    ) -> Iterator[Answered]:
        """Texts, or pairs (text, text), with what `compute` gives for each of their windows, in order (batches.answered).

        An Error in a text's place is what it comes to.
        how: `max_length`, `stride` (tokens that a window shares with the one before it) and `strategy`, as tokenizers names them.
        A text that cannot be read raises its Error when its turn comes, after all before it; keep_errors yields it instead.
        """
        long = self.long if long is None else check_long(long)

        def read(chunk: list[Any]) -> list[Reading]:
            with self._reading:
                return self.read(chunk, long, **how)

        cut = 0
        for answer in answered(read, compute, texts, self.batch_tokens if batch_tokens is None else batch_tokens):
            if answer.error is not None and not keep_errors:
                raise answer.error
            cut += long == "truncate" and any(window.overflowing for window in answer.windows)
            yield answer
        if cut:
            told = f"{cut} text{' was' if cut == 1 else 's were'} longer than {how.get('max_length') or self.longest} tokens"
            warnings.warn(f"{told}, and cut", stacklevel=2)

    def read(self, texts: list[Any], long: Long, **how: Any) -> list[Reading]:
        """The windows of each text, or why it has none; `answered` calls it in a thread, one chunk at a time."""
        return read_texts(self.tokenizer, texts, self.model.config, self.longest, long, **how)

    def packed(self, windows: Sequence[Any], **asked: Any) -> dict[str, np.ndarray[Any, Any]]:
        """The model's scores for windows, NumPy arrays by the names of its output: (T, ...) of tokens, (B, ...) of windows."""
        return packed(self.model, self.tokenizer, windows, **asked)


def packed(model: Any, tokenizer: Any, windows: Sequence[Any], **asked: Any) -> dict[str, np.ndarray[Any, Any]]:
    """A model's output for windows without padding (model.packed), as NumPy arrays by name."""
    types = [window.type_ids for window in windows] if reads_types(model, tokenizer) else None
    output = model.packed([window.ids for window in windows], types, **asked)
    return {name: model.ops.to_numpy(value) for name, value in output.items()}


def reads_types(model: Any, tokenizer: Any) -> bool:
    """Whether the second text of a pair has a type of its own: BERT's tokenizers give it, and the model must know it."""
    return getattr(tokenizer, "gives_types", False) and model.config.type_vocab_size > 1


def longest_of(model: Any, tokenizer: Any) -> int:
    """How many tokens of a text a model reads, at most as many as its tokenizer's files say."""
    said = getattr(tokenizer, "model_max_length", None)
    return int(min(model.config.usable_length, said or np.inf))


def by_window(x: Any, windows: Sequence[Any]) -> list[Any]:  # (T, ...) -> a part (tokens, ...) for each window
    """What was computed packed, cut into windows."""
    return np.split(x, np.cumsum([len(window) for window in windows])[:-1])


def check_long(long: str) -> Any:
    """`long` itself; raises Error where it is none of LONG."""
    if long not in LONG:
        raise Error(f"long is {long!r}; it must be one of {', '.join(LONG)}")
    return long


def open_model(
    head: str, name: str, path_or_repo: str | Path | None, revision: str | None, **running: Unpack[Running]
) -> tuple[Any, Any]:
    """The model with a head and the tokenizer of a checkpoint, or the embedded ones; raises Error where there is no such head."""
    from .. import demo

    if path_or_repo is None:
        if revision is not None:
            raise Error(f"revision {revision} is of a Hub repository: name it")
        return demo.load(name, **running), load_tokenizer(demo.FOLDER)
    running = running_of(dict(running), on_disk(path_or_repo))
    settings_of(**running)
    folder = checkpoint_folder(path_or_repo, revision)
    if is_pair(read_config(folder)):
        raise Error(f"{folder} holds an encoder-decoder, and {name} runs one model: tinyroberta.load reads it")
    stored = open_checkpoint(folder)
    _, config = class_of(folder, stored)
    kind = KIN[config.model_type][head]
    tokenizer = load_tokenizer(folder)
    parts = {shape.split(".")[0] for shape in kind.head_shapes(config)}
    if parts and not any(part in name.split(".") for name in stored for part in parts):
        held = (config.architectures or ["the bare model"])[0]
        raise Error(f"{folder} holds no head for {name}: its config.json names {held}")
    model = kind.from_stored(stored, config, str(folder), **running)
    model.generation_config = read_generation_config(folder)
    return model, tokenizer


def single(text: Any) -> Any:
    """The text itself; an Error where it is a pair or a list."""
    return Error(f"a text is of type {type(text).__name__}; it must be a string") if isinstance(text, tuple | list) else text


def answers(given: Any, run: Callable[[Iterable[Any]], Iterator[Any]], is_one: Callable[[Any], bool] = lambda _: False) -> Any:
    """What a task gives for what it is given: one input's answer, a list for a list, a generator for another iterable.

    A string or a dictionary is one input, and what `is_one` says. Raises Error on what is no iterable.
    """
    if isinstance(given, str | bytes | dict) or is_one(given):
        (answer,) = run([given])
        return answer
    if isinstance(given, list | tuple):
        return list(run(given))
    if not isinstance(given, Iterable):
        raise Error(f"a text is of type {type(given).__name__}; it must be a string")
    return run(given)
