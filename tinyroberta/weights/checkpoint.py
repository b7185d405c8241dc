"""From a folder or file to its tensors: the formats a checkpoint may have, in order of preference."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple, Protocol

from ..errors import Error
from . import fairseq, flax, safetensors, tf, torch_bin
from .files import read_json
from .safetensors import Array, files_of

WRAPPING = re.compile(r"(?:module\.|model\.|_orig_mod\.)+")  # what DataParallel, Lightning and torch.compile put before a name


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


def unwrapped(name: str) -> str:
    """A tensor's name without what was put around the model."""
    return WRAPPING.sub("", name, count=1) if WRAPPING.match(name) else name


class Part:
    """The tensors of a checkpoint under `prefix.`, by what follows it: one of several models in a file; with "" the only one.

    `shared` are tensors of other parts that this one uses as its own: {the name here: the file's name}.
    """

    def __init__(self, stored: Stored, prefix: str, shared: Mapping[str, str] | None = None) -> None:
        start = f"{prefix}." if prefix else ""
        named = ((unwrapped(name), name) for name in stored)
        self._stored = stored
        self._sources = {name.removeprefix(start): source for name, source in named if name.startswith(start)}
        self._sources |= shared or {}
        own = {source: name for name, source in self._sources.items()}
        self.aliases: dict[str, str] = {}
        for alias, kept in stored.aliases.items():
            name = unwrapped(alias).removeprefix(start)
            if not unwrapped(alias).startswith(start) or name in self._sources:
                continue
            if kept in own:
                self.aliases[name] = own[kept]
            else:
                self._sources[name] = kept  # another part's tensor, which this one shares

    def source(self, name: str) -> str:
        """The file's name of a tensor."""
        return self._sources[name]

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
    """A way in which weights are stored: the files of a folder that show it, the one or the index of its shards, how a file of
    any other name ends, and what opens a folder or a file.
    """

    name: str
    files: tuple[str, ...]
    suffix: str
    open: Callable[[Path], Stored]


def _format(name: str, single: str, opened: Callable[[Path], Stored]) -> Format:
    return Format(name, (single, f"{single}.index.json"), Path(single).suffix, opened)


TORCH = _format("torch", torch_bin.SINGLE, torch_bin.open_torch_path)
FORMATS = (
    _format("safetensors", safetensors.SINGLE, open_safetensors),
    TORCH,
    _format("tf", tf.SINGLE, tf.open_tf),
    _format("flax", flax.SINGLE, flax.open_flax),
)
FAIRSEQ = Format("fairseq", (), ".pt", fairseq.open_fairseq)
PICKLED = (".pt", ".pth", ".ckpt")  # torch.save's files by any name: fairseq's checkpoints and plain state dicts
SUFFIXES = (*(form.suffix for form in FORMATS), *PICKLED)
CHOSEN = ("pytorch_model.pt", "model.pt", "checkpoint_best.pt", "checkpoint_last.pt")  # of a folder that holds several
NO_WEIGHTS = re.compile(r"optimizer|scheduler|scaler|rng_state|random_states|training_args")  # what trainers keep beside them


def is_weights(path: PurePath) -> bool:
    """Whether a path's name is one that a file of weights, or an index of shards, may have."""
    return path.name.removesuffix(".index.json").endswith(SUFFIXES)


def weights_of(path: Path) -> tuple[Format, Path]:
    """The format of a folder's or a file's weights, and what to open: the folder, or the file.

    Of a folder it is the first of FORMATS that it holds, else the one torch.save'd file in it. Raises Error where there is
    none, where several of those could be meant, and on a file of another name.
    """
    if path.is_dir():
        for form in FORMATS:
            if any((path / file).is_file() for file in form.files):
                return form, path
        path = _pickled(path)
    name = path.name.removesuffix(".index.json")
    if name.endswith(PICKLED):
        return (FAIRSEQ if fairseq.is_fairseq(torch_bin.read_torch(path)) else TORCH), path
    for form in FORMATS:
        if name.endswith(form.suffix):
            return form, path
    raise Error(f"{path} is no file of weights that is read here: their names end in {', '.join(SUFFIXES)}")


def _pickled(folder: Path) -> Path:
    """The torch.save'd file in a folder; raises Error where there is none, or one of several could be meant."""
    named = (file for file in sorted(folder.iterdir()) if file.suffix in PICKLED and not NO_WEIGHTS.match(file.name))
    files = [file for file in named if file.is_file()]
    chosen = [file for name in CHOSEN for file in files if file.name == name] or files
    if len(files) > 1 and chosen is files:
        raise Error(f"{folder} holds {len(files)} files of torch.save, none of them {' or '.join(CHOSEN)}; give the path of one")
    if chosen:
        return chosen[0]
    known = ", ".join((*(form.files[0] for form in FORMATS), *(f"*{suffix}" for suffix in PICKLED)))
    steps = [(int(inner.name.split("-")[1]), inner.name) for inner in folder.glob("checkpoint-*") if inner.name[11:].isdecimal()]
    told = f"; its last checkpoint is {max(steps)[1]}: give that folder" if steps else ""
    raise Error(f"{folder} holds neither model.safetensors nor another file of weights that is read here: {known}{told}")


def weight_files(path: Path) -> list[Path]:
    """The files that hold a checkpoint's weights, one or the shards; raises Error as weights_of."""
    form, path = weights_of(path)
    return files_of(path, form.files[0])[0] if form.files else [path]


def open_checkpoint(path: Path) -> Stored:
    """The tensors of a checkpoint folder or file, each read when it is looked at; raises Error as its format's reader does."""
    form, path = weights_of(path)
    return form.open(path)


def beside(path: Path, name: str) -> Path:
    """A file of a checkpoint by its name: in the folder, or beside the file of weights."""
    return (path if path.is_dir() else path.parent) / name


def read_config(path: Path) -> dict[str, Any]:
    """A checkpoint's config.json, or what a fairseq checkpoint says of its model; raises Error where there is none.

    A fairseq file that is given itself speaks for itself; in a folder its config.json does.
    """
    config = beside(path, "config.json")
    if path.is_file() and path.name.endswith(PICKLED):
        if not config.is_file() or fairseq.is_fairseq(torch_bin.read_torch(path)):
            return fairseq.read_fairseq_config(path)
    elif not config.is_file() and any(file.suffix in PICKLED for file in path.glob("*")):
        return fairseq.read_fairseq_config(_pickled(path))
    return read_json(config)


def read_generation_config(path: Path) -> dict[str, Any] | None:
    """A checkpoint's generation_config.json; None where it has none."""
    config = beside(path, "generation_config.json")
    return read_json(config) if config.is_file() else None
