"""Flax checkpoints: flax_model.msgpack, and safetensors files that Flax wrote.

The file is a MessagePack map of maps whose leaves are arrays in extension type 1: (shape, dtype, bytes) packed once more
(flax/serialization.py); an array past 2^30 bytes is a map of its shape and of one-dimensional chunks. Only the little of
MessagePack that such a file uses is read here, in place, so that a file is opened without reading its arrays.
"""

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import Error
from .foreign import DTYPES, MOST, NAME_LIMIT, RANK_LIMIT, Place, Places, Renamed, Shape, mapped, place
from .safetensors import Tensors, files_of

DEPTH_LIMIT = 32
CHUNKED = "__msgpack_chunked_array__"
SINGLE = "flax_model.msgpack"
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "gamma": "weight", "beta": "bias"}

# MessagePack's first bytes (github.com/msgpack/msgpack/blob/master/spec.md): a value in the byte itself, or a length after it
MAP, ARRAY, STRING, BINARY, EXTENSION, NUMBER = "map", "array", "string", "binary", "extension", "number"
SIZED = {
    0xC4: (BINARY, "B"), 0xC5: (BINARY, ">H"), 0xC6: (BINARY, ">I"),
    0xC7: (EXTENSION, "B"), 0xC8: (EXTENSION, ">H"), 0xC9: (EXTENSION, ">I"),
    0xCC: (NUMBER, "B"), 0xCD: (NUMBER, ">H"), 0xCE: (NUMBER, ">I"), 0xCF: (NUMBER, ">Q"),
    0xD9: (STRING, "B"), 0xDA: (STRING, ">H"), 0xDB: (STRING, ">I"),
    0xDC: (ARRAY, ">H"), 0xDD: (ARRAY, ">I"), 0xDE: (MAP, ">H"), 0xDF: (MAP, ">I"),
}  # fmt: skip
FIXED = {0xC3: (NUMBER, 1)} | {0xD4 + power: (EXTENSION, 1 << power) for power in range(5)}


class Leaf(NamedTuple):
    """An array of extension type 1: its bytes from `offset` on."""

    dtype: np.dtype[Any]
    shape: Shape
    offset: int
    size: int


class Reader:
    """A place in a mapped MessagePack file that moves on as values are read; raises Error on anything a checkpoint has not."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at, self.nodes = path, data, 0, 0

    def refused(self, reason: str) -> Error:
        return Error(f"{self.path} is not a whole Flax checkpoint: {reason} (byte {self.at})")

    def take(self, size: int) -> int:
        """Where the next `size` bytes begin, moving past them."""
        start = self.at
        if size > len(self.data) - start:
            raise self.refused(f"{size} bytes are described, {len(self.data) - start} are left")
        self.at = start + size
        return start

    def token(self) -> tuple[str, int]:
        """The next value's kind, and its length (a number's value; how many entries a map has)."""
        first = self.data[self.take(1)]
        for kind, least, most in (NUMBER, 0, 0x7F), (MAP, 0x80, 0x8F), (ARRAY, 0x90, 0x9F), (STRING, 0xA0, 0xBF):
            if least <= first <= most:
                return kind, first - least
        if first in FIXED:
            return FIXED[first]
        if first not in SIZED:
            raise self.refused(f"it holds MessagePack's {first:#04x}, which no array needs")
        kind, form = SIZED[first]
        size = struct.calcsize(form)
        return kind, struct.unpack_from(form, self.data, self.take(size))[0]

    def expect(self, kind: str, what: str) -> int:
        found, length = self.token()
        if found != kind:
            raise self.refused(f"{what} is a {found}, not a {kind}")
        return length

    def string(self, what: str) -> str:
        size = self.expect(STRING, what)
        if size > NAME_LIMIT:
            raise self.refused(f"{what} has {size} bytes; a name has up to {NAME_LIMIT}")
        start = self.take(size)
        try:
            return self.data[start : start + size].decode()
        except UnicodeDecodeError as error:
            raise self.refused(f"{what} is not UTF-8") from error

    def leaf(self, size: int) -> Leaf:
        """The array in an extension of `size` bytes, whose type comes next."""
        code = self.data[self.take(1)]
        if code not in (1, 3):
            raise self.refused(f"extension type {code} is not an array")
        start = self.at
        if self.expect(ARRAY, "an array") != 3:
            raise self.refused("an array is not (shape, dtype, bytes)")
        rank = self.expect(ARRAY, "a shape")
        if rank > RANK_LIMIT:
            raise self.refused(f"an array has {rank} dimensions; up to {RANK_LIMIT} are read")
        shape = tuple(self.expect(NUMBER, "a dimension") for _ in range(rank))
        dtype = self.string("a dtype")
        if dtype not in DTYPES:
            raise self.refused(f"an array is stored as {dtype[:40]!r}; weights can be {', '.join(DTYPES)}")
        held = self.expect(BINARY, "an array's bytes")
        offset = self.take(held)
        if self.at - start != size:
            raise self.refused(f"an extension of {size} bytes holds {self.at - start}")
        return Leaf(DTYPES[dtype], shape, offset, held)

    def tree(self, depth: int = 0) -> Any:
        """The next value: a dict, a Leaf or a number."""
        self.nodes += 1
        if self.nodes > MOST or depth > DEPTH_LIMIT:
            raise self.refused(f"more than {MOST} values, or {DEPTH_LIMIT} maps one in another, are not a model")
        kind, length = self.token()
        if kind == EXTENSION:
            return self.leaf(length)
        if kind == NUMBER:
            return length
        if kind != MAP:
            raise self.refused(f"there is a {kind} where an array or a map belongs")
        branch: dict[str, Any] = {}
        for _ in range(length):
            name = self.string("a name")
            if name in branch:
                raise self.refused(f"{name!r} is there twice")
            branch[name] = self.tree(depth + 1)
        return branch


def open_flax(path: Path) -> Renamed:
    """The tensors of a flax_model.msgpack, or of a folder that holds one or its shards, under PyTorch's names.

    Nothing but the names and shapes is read before a tensor is looked at. Raises Error where a file is not a whole Flax
    checkpoint. Mirrors transformers' load_flax_checkpoint_in_pytorch_model.
    """
    places: dict[str, Place] = {}
    files, _ = files_of(path, SINGLE)
    for file in files:
        data = mapped(file)
        reader = Reader(file, data)
        tree = reader.tree()
        if not isinstance(tree, dict):
            raise reader.refused("its first value is not a map")
        if reader.at != len(data):
            raise reader.refused(f"{len(data) - reader.at} bytes follow its end")
        for name, found in _leaves(tree, file, data):
            if name in places:
                raise Error(f"{file} and {places[name].path} both hold {name}")
            places[name] = found
    return renamed(Places(places), files[0] if len(files) == 1 else path)


def _leaves(branch: dict[str, Any], path: Path, data: mmap.mmap, prefix: str = "") -> Iterator[tuple[str, Place]]:
    for key, value in branch.items():
        name = prefix + key
        if len(name) > NAME_LIMIT:
            raise Error(f"{path}: {name[:40]}... is a name of {len(name)} characters; it may have {NAME_LIMIT}")
        if isinstance(value, Leaf):
            yield name, place(path, name, data, value.dtype, value.shape, ((value.offset, value.size),))
        elif isinstance(value, dict):
            yield from [(name, _chunked(value, name, path, data))] if CHUNKED in value else _leaves(value, path, data, f"{name}.")
        else:
            raise Error(f"{path} is not a whole Flax checkpoint: {name} is the number {value}, not an array")


def _chunked(value: dict[str, Any], name: str, path: Path, data: mmap.mmap) -> Place:
    """An array that flax.serialization cut into chunks, {"0": ..., "1": ...}, its shape told alike."""
    shape, chunks = (_listed(value.get(part)) for part in ("shape", "chunks"))
    dtypes = {chunk.dtype for chunk in chunks if isinstance(chunk, Leaf) and chunk.shape == (chunk.size // chunk.dtype.itemsize,)}
    if not all(isinstance(size, int) for size in shape) or len(dtypes) != 1 or not all(isinstance(c, Leaf) for c in chunks):
        raise Error(f"{path}: {name} is not a chunked array: its shape, or its chunks, make no sense")
    return place(path, name, data, dtypes.pop(), tuple(shape), tuple((chunk.offset, chunk.size) for chunk in chunks))


def _listed(numbered: Any) -> list[Any]:
    """{"0": a, "1": b} -> [a, b]."""
    if not isinstance(numbered, dict):
        return []
    return [numbered.get(str(index)) for index in range(len(numbered))]


def renamed(stored: Tensors | Places, where: Path) -> Renamed:
    """A Flax checkpoint's arrays under PyTorch's names: encoder.layer.0.output.dense.kernel is the transposed .weight."""
    own: dict[str, tuple[str, bool]] = {}
    taken: dict[str, str] = {}
    for source in stored:
        *path, leaf = source.split(".")
        name = ".".join([*path, LEAVES.get(leaf, leaf)])
        if name in taken:
            raise Error(f"{where} holds both {taken[name]} and {source}, which are the same weight")
        taken[name] = source
        own[source] = name, leaf == "kernel" and len(stored.shape(source)) == 2
    return Renamed(stored, own, where)
