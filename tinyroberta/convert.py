"""Any checkpoint that can be opened, written as a Hub repository has it: config.json, safetensors, what else lay there."""

import dataclasses
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .auto import load
from .encoder_decoder import EncoderDecoderModel
from .errors import Error, ieee
from .progress import progress
from .weights.checkpoint import weight_files, weights_of
from .weights.hub import SETTINGS, SMALL, TEXT, checkpoint_folder, is_beside
from .weights.safetensors import DTYPES, PIECE, SHARD_SIZE, Array, open_tensors, size_of

FLOATS = {dtype.name: dtype for dtype in DTYPES.values() if dtype.name in ("float32", "float16", "bfloat16")}


class Converted(NamedTuple):
    """What was written: how many tensors of how many bytes, and how far the outputs moved, by the largest of them."""

    folder: Path
    architecture: str
    tensors: int
    bytes: int
    difference: float
    left: tuple[str, ...] = ()  # files of the source, other than hidden ones, that were neither converted nor copied


@ieee
def convert(
    source: str | Path,
    destination: str | Path,
    dtype: str | None = None,
    max_shard_size: int | str = SHARD_SIZE,
    revision: str | None = None,
) -> Converted:
    """Write a checkpoint of any format as a folder of config.json and safetensors, with the small files beside the weights.

    dtype: "float32", "float16" or "bfloat16", or None for each tensor as it is stored. The folder is read again before it gets
    its name: its tensors must be those asked for, to the bit, and a few random texts must give the source's numbers, also to
    the bit where no tensor was rounded. Raises Error where the source cannot be opened, the destination is there and not
    empty, a number does not fit the dtype, or the check fails; then, and when stopped, nothing is left behind.
    """
    destination = Path(destination).expanduser()
    if dtype is not None and dtype not in FLOATS:
        raise Error(f"dtype is {dtype!r}; it must be one of {', '.join(FLOATS)}, or None to keep what is stored")
    max_shard_size = size_of(max_shard_size)
    if destination.is_symlink() or destination.is_file() or (destination.is_dir() and any(destination.iterdir())):
        raise Error(f"{destination} is already there; give a folder that is new or empty")
    folder = checkpoint_folder(source, revision, beside=True)
    model = load(folder, backend="numpy")
    if isinstance(model, EncoderDecoderModel):
        raise Error(f"{folder} holds an encoder-decoder, two models in one: load it and call its save_pretrained instead")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # loading has said it all
        return _converted(model, folder, destination, dtype, max_shard_size)


def _converted(model: Any, folder: Path, destination: Path, dtype: str | None, max_shard_size: int) -> Converted:
    """Write a folder beside the destination, check it and give it its name."""
    stored = even(model.tensors)
    model = type(model)(model.config, stored, backend="numpy")
    expected = sample(model)
    part = destination.absolute().with_name(f".{destination.absolute().name}.{secrets.token_hex(4)}.part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.mkdir()
            converted = _write(model, stored, expected, folder, part, dtype, max_shard_size)
            if destination.exists():
                destination.rmdir()
            part.rename(destination)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise Error(f"cannot write {destination}: {error.strerror or error}") from error
    return converted._replace(folder=destination)


def even(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The same tensors in one piece each, tied ones still one: rows that lie otherwise would be summed in another order."""
    pieces = {id(value): np.require(value, requirements=["C", "A"]) for value in tensors.values()}
    return {name: pieces[id(value)] for name, value in tensors.items()}


def sample(model: Any) -> dict[str, Array]:
    """A model's outputs for two random texts of up to 16 tokens (two of two choices for multiple choice)."""
    config = model.config
    tokens = np.setdiff1d(np.arange(config.vocab_size), [] if config.pad_token_id is None else [config.pad_token_id])
    length = min(config.usable_length, 16)
    shape = (2, 2, length) if type(model).__name__.endswith("MultipleChoice") else (2, length)
    outputs = model(np.random.default_rng(0).choice(tokens, shape))
    return {name: value for name, value in outputs.items() if isinstance(value, np.ndarray)}


def _write(
    model: Any, stored: dict[str, Array], expected: dict[str, Array], source: Path, part: Path, dtype: str | None, shard_size: int
) -> Converted:
    """Fill the folder `part` and check it."""
    cls, config = type(model), model.config
    unique = {id(value): name for name, value in stored.items()}
    size = sum(stored[name].nbytes for name in unique.values())
    with progress(size, "converting") as told:

        def advance(count: float) -> None:
            told(count / 3)  # every byte is cast, written and compared

        tensors = _cast(stored, dtype, advance)
        kept = size / max(1, sum(tensors[name].nbytes for name in unique.values()))  # for each byte of the bar
        if dtype is not None:
            key = next((key for key in ("torch_dtype", "dtype") if key in config.extra), "dtype")
            config = dataclasses.replace(config, extra={**config.extra, key: dtype})
        rewritten = cls(config, tensors, backend="numpy")
        rewritten.save_pretrained(part, max_shard_size=shard_size, written=lambda count: advance(count * kept))
        left = _copy(source, part)
        again = cls.from_pretrained(part, backend="numpy")
        for name, value in tensors.items():
            if not _same(again.tensors[name], value):
                raise Error(f"{name} read again from {part} is not what was written: the disk or the memory is at fault")
            advance(value.nbytes * kept if name in unique.values() else 0)
    difference = 0.0
    for name, value in sample(again).items():
        difference = max(difference, float(np.abs(value - expected[name]).max() / max(np.abs(expected[name]).max(), 1e-30)))
    rounded = any(_rounds(value.dtype, tensors[name].dtype) for name, value in stored.items())
    if not rounded and difference != 0.0:
        raise Error(f"{part} read again gives other numbers than {source}, by {difference:.1g} of the largest: this is a bug")
    written = [path.stat().st_size for path in part.glob("*.safetensors")]
    return Converted(part, cls.__name__, len(open_tensors(part)), sum(written), difference, left)


def _copy(source: Path, part: Path) -> tuple[str, ...]:
    """Copy what lies beside the weights (hub.is_beside); returns the names of what is left out.

    A file of weights is given for its folder where a config.json lies beside it; elsewhere its tokenizer is all that is its own.
    """
    folder = source if source.is_dir() else source.parent
    form, _ = weights_of(source)
    own = form.files if source.is_dir() else (source.name,)
    read = {"config.json", *own, *(path.name for path in weight_files(source))}
    whole = source.is_dir() or (folder / "config.json").is_file()
    left = []
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if whole and not name.startswith("."))
        for path in sorted(Path(where, name) for name in files):
            name = path.relative_to(folder).as_posix()
            if not path.is_file() or name in read or path.name.startswith(".") or not (whole or name in (*SETTINGS, *TEXT)):
                continue
            if is_beside(name) and path.stat().st_size <= SMALL:
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, part / name)
            else:
                left.append(name)
    return tuple(left)


def _cast(stored: dict[str, Array], dtype: str | None, advance: Callable[[float], object]) -> dict[str, Array]:
    done: dict[int, Array] = {}
    for name, value in stored.items():
        if id(value) in done:
            continue
        done[id(value)] = value if dtype is None else value.astype(FLOATS[dtype], copy=False)
        if done[id(value)] is not value and not np.array_equal(np.isfinite(done[id(value)]), np.isfinite(value)):
            largest = np.abs(value[np.isfinite(value)]).max()
            raise Error(f"{name} has numbers up to {largest:.3g}, which do not fit {dtype}; choose float32 or bfloat16")
        advance(value.nbytes)
    return {name: done[id(value)] for name, value in stored.items()}


def _rounds(old: np.dtype[Any], new: np.dtype[Any]) -> bool:
    return old != new and not (new == np.float32 and old.itemsize < 4)


def _same(one: Array, other: Array) -> bool:
    """Equal to the bit, compared a few megabytes at a time."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    flat, flat_other = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (one, other))
    return all(np.array_equal(flat[i : i + PIECE], flat_other[i : i + PIECE]) for i in range(0, flat.size, PIECE))
