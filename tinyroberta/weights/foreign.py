"""Arrays in another framework's file: where they lie in the mapped bytes, and what PyTorch calls them."""

import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ..errors import Error
from .files import refuse_pointer
from .safetensors import Array, Tensors

Shape = tuple[int, ...]

DTYPES = {name: np.dtype(name) for name in ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")}
DTYPES["bfloat16"] = np.dtype(ml_dtypes.bfloat16)
MOST = 20_000  # tensors, groups or dicts in one file: a larger count is an attack, not a model
NAME_LIMIT = 512  # characters of a tensor's whole name
RANK_LIMIT = 8


class Place(NamedTuple):
    """An array in a mapped file: whole, or in pieces one after another."""

    path: Path
    data: mmap.mmap
    dtype: np.dtype[Any]
    shape: Shape
    pieces: tuple[tuple[int, int], ...]  # (offset, bytes)

    def read(self) -> Array:
        """A read-only view of the file where the array lies there whole and aligned, else a copy."""
        (offset, size), *more = self.pieces
        if not more and offset % self.dtype.itemsize == 0:
            return np.frombuffer(self.data, self.dtype, size // self.dtype.itemsize, offset).reshape(self.shape)
        copy = np.empty(self.shape, self.dtype)
        flat, start = copy.reshape(-1).view(np.uint8), 0
        for offset, size in self.pieces:
            flat[start : start + size] = np.frombuffer(self.data, np.uint8, size, offset)
            start += size
        copy.flags.writeable = False
        self.forget()
        return copy

    def forget(self) -> None:
        """Give back the memory that the file's pages took, once what they hold was copied; they can be read again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for offset, size in self.pieces:
                start = offset // mmap.PAGESIZE * mmap.PAGESIZE
                self.data.madvise(mmap.MADV_DONTNEED, start, offset + size - start)


def place(
    path: Path, name: str, data: mmap.mmap, dtype: np.dtype[Any], shape: Shape, pieces: tuple[tuple[int, int], ...]
) -> Place:
    """An array's place, checked; raises Error where its shape and its bytes disagree."""
    if len(name) > NAME_LIMIT:
        raise Error(f"{path}: {name[:40]}... is a name of {len(name)} characters; it may have {NAME_LIMIT}")
    if len(shape) > RANK_LIMIT or any(size < 1 for size in shape):
        raise Error(f"{path}: {name} has shape {shape}; a weight has up to {RANK_LIMIT} dimensions and at least one number")
    needed, held = math.prod(shape) * dtype.itemsize, sum(size for _, size in pieces)
    if needed != held or any(offset < 0 or offset + size > len(data) for offset, size in pieces):
        raise Error(f"{path}: {name} of shape {shape} and {dtype} takes {needed} bytes, the file has {held} for it")
    return Place(path, data, dtype, shape, pieces)


def mapped(path: Path) -> mmap.mmap:
    """A file's bytes, mapped and not read; raises Error where it is missing, empty or a Git LFS pointer."""
    refuse_pointer(path)
    try:
        with path.open("rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise Error(f"cannot read {path}: {error}") from error


def transposed(kernel: Array) -> Array:  # (I, O) -> (O, I)
    """A copy whose rows are the columns, made in panels of 64 rows: several times as fast as at once."""
    weight = np.empty(kernel.shape[::-1], kernel.dtype)
    for row in range(0, len(kernel), 64):
        weight[:, row : row + 64] = kernel[row : row + 64].T
    weight.flags.writeable = False
    return weight


class Places(Mapping[str, Array]):
    """Mapped arrays by the names that their file gives them (names.Stored)."""

    def __init__(self, places: Mapping[str, Place]) -> None:
        self.places = places
        self.aliases: dict[str, str] = {}

    def __getitem__(self, name: str) -> Array:
        return self.places[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def shape(self, name: str) -> Shape:
        """The shape of a tensor; nothing is read."""
        return self.places[name].shape

    def dtype(self, name: str) -> str:
        """The dtype of a tensor as NumPy names it; nothing is read."""
        return self.places[name].dtype.name


class Renamed(Mapping[str, Array]):
    """Another framework's arrays under PyTorch's names, its (in, out) kernels as (out, in) weights (names.Stored).

    `own` is {the file's name: (PyTorch's name, whether a kernel)}. Files may hold a tensor several times, as Keras does with what
    two layers share; they are compared when it is read. Raises Error where such copies differ.
    """

    def __init__(self, stored: Tensors | Places, own: Mapping[str, tuple[str, bool]], where: Path) -> None:
        self._stored, self._where = stored, where
        self._sources: dict[str, list[str]] = {}
        self._kernels = {name for name, kernel in own.values() if kernel}
        self.aliases: dict[str, str] = {}
        for source, (name, _) in own.items():
            copies = self._sources.setdefault(name, [])
            copies.append(source)
            if stored.shape(source) != stored.shape(copies[0]):
                raise Error(f"{where} holds both {copies[0]} and {source} for {name}, of different shapes")

    def __getitem__(self, name: str) -> Array:
        source, *copies = self._sources[name]
        array = self._stored[source]
        for copy in copies:
            other = self._stored[copy]
            if other.dtype != array.dtype or not np.array_equal(other.reshape(-1).view("u1"), array.reshape(-1).view("u1")):
                raise Error(f"{self._where} holds both {source} and {copy} for {name}, and they differ")
        if name not in self._kernels:
            return array
        weight = transposed(array)
        if isinstance(self._stored, Places):
            self._stored.places[source].forget()
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def shape(self, name: str) -> Shape:
        """The shape of a tensor as PyTorch has it; nothing is read."""
        shape = self._stored.shape(self._sources[name][0])
        return shape[::-1] if name in self._kernels else shape

    def dtype(self, name: str) -> str:
        """The dtype of a tensor as NumPy names it; nothing is read."""
        return self._stored.dtype(self._sources[name][0])

    def sources(self, name: str) -> list[str]:
        """The names that the file gives a tensor: several where it holds it more than once."""
        return self._sources[name]
