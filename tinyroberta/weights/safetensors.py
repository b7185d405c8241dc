"""Safetensors files: mapped, never copied, one file or shards with an index."""

import json
import mmap
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from ..errors import Error
from .files import read_json, refuse_pointer, write_atomically, write_json

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
SINGLE = "model.safetensors"
SHARD_SIZE = 5 * 10**9
UNITS = {"": 1} | {f"{letter}{i}B": (1024 if i else 1000) ** n for n, letter in enumerate("KMGT", 1) for i in ("", "i")}
PIECE = 2**24


class Tensors(Mapping[str, Array]):
    """The tensors of one or more files, by name, as read-only views of the mapped files; from their metadata `aliases` and
    `format`, the framework that wrote them ("pt", "tf", "flax"), and `metadata`, all of it.

    Nothing is read before it is looked at. Raises Error where a file is corrupt or a tensor has a dtype that no weight has.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._views: dict[str, tuple[mmap.mmap, str, int, tuple[int, ...]]] = {}
        self._paths: dict[str, Path] = {}
        self.aliases: dict[str, str] = {}
        self.format = ""
        self.metadata: dict[str, str] = {}
        for path in paths:
            self._open(path)

    def _open(self, path: Path) -> None:
        refuse_pointer(path)
        try:
            with safetensors.safe_open(path, framework="np") as file:
                entries = []
                for name in file.offset_keys():
                    view = file.get_slice(name)
                    entries.append((name, str(view.get_dtype()), tuple(view.get_shape())))
                metadata = file.metadata() or {}
            with path.open("rb") as stream:
                mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except safetensors.SafetensorError as error:
            raise Error(f"{path} is not a whole safetensors file: {error}") from error
        except (OSError, ValueError) as error:
            raise Error(f"cannot read {path}: {error}") from error
        offset = 8 + int.from_bytes(mapped[:8], "little")
        for name, dtype, shape in entries:
            if name in self._views:
                raise Error(f"{path} and {self._paths[name]} both hold {name}")
            self._views[name], self._paths[name] = (mapped, dtype, offset, shape), path
            offset += int(np.prod(shape, dtype=object)) * _item_size(dtype, name, path)
        if offset != len(mapped):
            raise Error(f"{path} is not a whole safetensors file: {offset} bytes are described, it has {len(mapped)}")
        self.format = metadata.get("format", self.format)
        self.metadata |= metadata
        self.aliases |= {name: kept for name, kept in metadata.items() if kept in self._views and name not in self._views}

    def __getitem__(self, name: str) -> Array:
        mapped, dtype, offset, shape = self._views[name]
        if dtype not in DTYPES:
            raise Error(f"{self._paths[name]}: {name} is stored as {dtype}; weights can be {', '.join(DTYPES)}")
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(mapped, DTYPES[dtype], count, offset).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, read from the header alone."""
        return self._views[name][3]

    def dtype(self, name: str) -> str:
        """The dtype of a tensor as NumPy names it, or as the header does where no weight has it; nothing is read."""
        dtype = self._views[name][1]
        return DTYPES[dtype].name if dtype in DTYPES else dtype


def _item_size(dtype: str, name: str, path: Path) -> int:
    if dtype in DTYPES:
        return int(DTYPES[dtype].itemsize)
    digits = re.search(r"\d+", dtype)
    bits = 8 if dtype == "BOOL" else int(digits.group()) if digits else 0
    if bits == 0 or bits % 8:
        raise Error(f"{path}: {name} is stored as {dtype}; weights can be {', '.join(DTYPES)}")
    return bits // 8


def shard_names(index: Path) -> list[str]:
    """The files that a model.safetensors.index.json names, sorted; raises Error where one leads out of its folder."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise Error(f"{index} has no weight_map")
    names = set()
    for name in weight_map.values():
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise Error(f"{index} names a shard {name!r}, which is not a file beside it")
        names.add(name)
    return sorted(names)


def shards_beside(index: Path) -> list[Path]:
    """The files that an index names, in its folder; raises Error as shard_names, and where one is not there."""
    shards = [index.with_name(name) for name in shard_names(index)]
    if absent := [shard.name for shard in shards if not shard.is_file()]:
        raise Error(f"{index} names {', '.join(absent)}, which {index.parent} does not hold")
    return shards


def files_of(path: Path, single: str) -> tuple[list[Path], Path | None]:
    """The files of weights and the index that named them, if one did: `path` is a file of weights, an index, or a folder with
    the `single` file or the index of its shards.

    Raises Error where the folder holds neither, or not all of the shards.
    """
    index = path / f"{single}.index.json" if path.is_dir() else path
    if path.is_dir() and (path / single).is_file():
        return [path / single], None
    if path.is_dir() and not index.is_file():
        raise Error(f"{path} holds neither {single} nor {index.name}")
    return (shards_beside(index), index) if index.name.endswith(".index.json") else ([path], None)


def check_whole(index: Path | None, names: Iterable[str]) -> None:
    """Raise Error where shards lack a tensor that the index says they hold."""
    if index is not None and (lacking := sorted(set(read_json(index)["weight_map"]) - set(names))):
        raise Error(f"{index} names tensors that its shards do not hold: {', '.join(lacking[:8])}")


def open_tensors(path: Path) -> Tensors:
    """The tensors of a safetensors file, of an index's shards, or of a folder that holds either.

    Raises Error where the folder has neither, a shard is missing, or a shard lacks a tensor that the index says it holds.
    """
    files, index = files_of(path, SINGLE)
    tensors = Tensors(files)
    check_whole(index, tensors)
    return tensors


def size_of(size: int | str) -> int:
    """Bytes of a number of bytes, or of a size as Hugging Face spells it ("500MB", "5GB", "1.5GiB"); raises Error on others."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?) ?([KMGT]i?B)?", size, re.ASCII) if isinstance(size, str) else None
    number: object = int(float(match[1]) * UNITS[match[2] or ""]) if match else size
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise Error(f'max_shard_size is {size!r}; it must be a number of bytes of at least 1, or a size such as "500MB" or "5GB"')
    return number


def save_tensors(
    folder: Path,
    tensors: Mapping[str, Array],
    shard_size: int | str = SHARD_SIZE,
    written: Callable[[int], object] = lambda _: None,
) -> None:
    """Write tensors as model.safetensors, or as shards of at most `shard_size` (size_of) with an index where they take more.

    Every file is whole or absent, the index is written last, and files of an earlier save that the new one lacks are removed
    at the end. Metadata say format "pt", so that transformers reads them. `written` is told of every few bytes on their way.
    Raises Error on a size that is none, and where a file cannot be written.
    """
    shard_size = size_of(shard_size)
    groups: list[dict[str, Array]] = [{}]
    room = shard_size
    for name, value in tensors.items():
        if value.nbytes > room and groups[-1]:
            groups.append({})
            room = shard_size
        groups[-1][name] = value
        room -= value.nbytes
    count = len(groups)
    files = ["model.safetensors"] if count == 1 else [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    for file, group in zip(files, groups, strict=True):
        write_file(folder / file, group, written=written)
    index = folder / "model.safetensors.index.json"
    if count > 1:
        total = sum(value.nbytes for value in tensors.values())
        weight_map = {name: file for file, group in zip(files, groups, strict=True) for name in group}
        write_json(index, {"metadata": {"total_size": total}, "weight_map": weight_map})
    else:
        index.unlink(missing_ok=True)
    for path in folder.glob("model*.safetensors"):
        if path.name not in files and re.fullmatch(r"model(-\d{5}-of-\d{5})?\.safetensors", path.name):
            path.unlink()


def write_file(
    path: Path,
    tensors: Mapping[str, Array],
    metadata: Mapping[str, str] | None = None,
    written: Callable[[int], object] = lambda _: None,
) -> None:
    """One file, whole or not at all: the header's length in 8 bytes, the header, the tensors.

    Those of wider numbers come first, so that all are aligned.
    """
    ordered = sorted(tensors.items(), key=lambda entry: (-entry[1].dtype.itemsize, entry[0]))
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    offset = 0
    for name, value in ordered:
        if value.dtype not in NAMES:
            raise Error(f"cannot write {path}: {name} is {value.dtype}; weights can be {', '.join(DTYPES)}")
        offsets = [offset, offset + value.nbytes]
        header[name] = {"dtype": NAMES[value.dtype], "shape": list(value.shape), "data_offsets": offsets}
        offset += value.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    pieces = (value for _, value in ordered)
    write_atomically(path, lambda part: stream(part, [len(text).to_bytes(8, "little"), text], pieces, written))


def stream(path: Path, head: Iterable[bytes], arrays: Iterable[Array], written: Callable[[int], object]) -> None:
    """Write bytes, then arrays, a few megabytes at a time."""
    with path.open("wb") as file:
        file.writelines(head)
        for array in arrays:
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            for start in range(0, flat.size, PIECE):
                written(file.write(flat[start : start + PIECE].data))
