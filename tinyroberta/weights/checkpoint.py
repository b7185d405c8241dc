"""From a folder or file to its tensors: the formats a checkpoint may have, in order of preference."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..errors import Error
from . import fairseq, flax, safetensors, tf, torch_bin
from .files import read_json
from .safetensors import Array


class Stored(Protocol):
    """Tensors by name, with shapes known before a tensor is read, and aliases from the file's metadata."""

    aliases: dict[str, str]

    def __getitem__(self, name: str, /) -> Array: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...
    def shape(self, name: str) -> tuple[int, ...]: ...


def open_safetensors(folder: Path) -> Stored:
    """The tensors of safetensors files under PyTorch's names: those that TensorFlow or Flax wrote say so in their metadata."""
    tensors = safetensors.open_tensors(folder)
    if tensors.format not in ("tf", "flax"):
        return tensors
    return (tf if tensors.format == "tf" else flax).renamed(tensors, folder)


class Part:
    """The tensors of a checkpoint under `prefix.`, by what follows it: one of several models in a file."""

    def __init__(self, stored: Stored, prefix: str) -> None:
        start = f"{prefix}."
        self._stored = stored
        self._sources = {name.removeprefix(start): name for name in stored if name.startswith(start)}
        self.aliases: dict[str, str] = {}
        for alias, kept in stored.aliases.items():
            name = alias.removeprefix(start)
            if not alias.startswith(start) or name in self._sources:
                continue
            if kept.startswith(start):
                self.aliases[name] = kept.removeprefix(start)
            else:
                self._sources[name] = kept  # another part's tensor, which this one shares

    def __getitem__(self, name: str) -> Array:
        return self._stored[self._sources[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, before it is read."""
        return self._stored.shape(self._sources[name])


class Format(NamedTuple):
    """A way in which weights are stored: the files that show it, any one of them, and what opens the folder that holds one."""

    name: str
    files: tuple[str, ...]
    open: Callable[[Path], Stored]


FORMATS = (
    Format("safetensors", ("model.safetensors", "model.safetensors.index.json"), open_safetensors),
    Format("torch", (torch_bin.SINGLE, torch_bin.INDEX), torch_bin.open_torch_folder),
    Format("tf", (tf.SINGLE, f"{tf.SINGLE}.index.json"), tf.open_tf),
    Format("flax", (flax.SINGLE, f"{flax.SINGLE}.index.json"), flax.open_flax),
    Format("fairseq", ("*.pt",), fairseq.open_fairseq),
)


def format_of(path: Path) -> Format:
    """The first of FORMATS that a folder holds; a file is a fairseq checkpoint; raises Error where there is none."""
    if path.is_file():
        return FORMATS[-1]
    for form in FORMATS:
        if any(any(path.glob(file)) for file in form.files):
            return form
    known = ", ".join(form.files[0] for form in FORMATS)
    raise Error(f"{path} holds neither model.safetensors nor another file of weights that is read here: {known}")


def open_checkpoint(path: Path) -> Stored:
    """The tensors of a checkpoint folder or file, each read when it is looked at; raises Error as its format's reader does."""
    return format_of(path).open(path)


def read_config(path: Path) -> dict[str, Any]:
    """A checkpoint's config.json, or what a fairseq checkpoint says of its model; raises Error where there is none."""
    if path.is_file() or (not (path / "config.json").is_file() and any(path.glob("*.pt"))):
        return fairseq.read_fairseq_config(path)
    return read_json(path / "config.json")
