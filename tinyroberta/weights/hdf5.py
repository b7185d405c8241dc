"""The part of HDF5 that Keras writes: groups of groups of whole, uncompressed arrays, mapped and never copied.

HDF5 File Format Specification 3.0 (support.hdfgroup.org), the earliest layout, which h5py writes unless told otherwise: a
superblock of version 0 or 1, object headers of version 1, symbol-table groups, contiguous data. All else is refused by name:
links to elsewhere, chunks and compression, external and virtual data, data never written. Attributes are passed over. The HDF5
library itself is not used: a damaged file of a few kilobytes makes it hang or crash (2.0 under h5py 3.16), and a file chooses
how much memory it takes.
"""

import itertools
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Error
from .foreign import DTYPES, MOST, NAME_LIMIT, RANK_LIMIT, Place, Shape, mapped, place

SIGNATURE = b"\x89HDF\r\n\x1a\n"
UNDEFINED = 2**64 - 1
DEPTH_LIMIT = 32
STEP_LIMIT = 200_000  # reads of a few bytes: a model of 1,000 tensors takes 30,000

# the messages of an object header
DATASPACE, LINK_INFO, DATATYPE, FILL, LINK, EXTERNAL, LAYOUT, FILTERS = 0x01, 0x02, 0x03, 0x05, 0x06, 0x07, 0x08, 0x0B
CONTINUATION, SYMBOL_TABLE = 0x10, 0x11
REFUSED = {
    LINK_INFO: "a group of HDF5's newer layout",
    LINK: "a link of HDF5's newer layout",
    EXTERNAL: "data in another file",
    FILTERS: "compressed or filtered data",
}


def _ieee(size: int, exponent: int, mantissa: int) -> bytes:
    """A little-endian floating-point datatype message, less its version."""
    bits = bytes([0x20, 8 * size - 1, 0])
    return b"\x01" + bits + struct.pack("<IHHBBBBI", size, 0, 8 * size, mantissa, exponent, 0, mantissa, 2 ** (exponent - 1) - 1)


def _integer(size: int, signed: bool) -> bytes:
    """A little-endian integer datatype message, less its version."""
    return b"\x00" + bytes([8 * signed, 0, 0]) + struct.pack("<IHH", size, 0, 8 * size)


DATATYPES = {
    _ieee(2, 5, 10): DTYPES["float16"],
    _ieee(4, 8, 23): DTYPES["float32"],
    _ieee(8, 11, 52): DTYPES["float64"],
    _integer(4, True): DTYPES["int32"],
    _integer(8, True): DTYPES["int64"],
}


def datasets(path: Path) -> dict[str, Place]:
    """Every array of an HDF5 file by its path in it; raises Error where it is damaged or holds what Keras does not write."""
    return File(path).datasets()


class File:
    """A mapped HDF5 file."""

    def __init__(self, path: Path) -> None:
        self.path, self.data = path, mapped(path)
        self.seen: set[int] = set()  # the addresses of headers, nodes and continued blocks: each is read once
        self.steps = 0
        self.found: dict[str, Place] = {}

    def refused(self, reason: str) -> Error:
        return Error(f"{self.path} is not an HDF5 file as Keras writes it, whole: {reason}")

    def fields(self, form: str, address: int) -> tuple[Any, ...]:
        size = struct.calcsize(form)
        self.steps += 1
        if self.steps > STEP_LIMIT:
            raise self.refused(f"more than {STEP_LIMIT} steps do not reach its end")
        if address < 0 or address + size > len(self.data):
            raise self.refused(f"it points to byte {address} of {len(self.data)}")
        return struct.unpack_from(form, self.data, address)

    def once(self, address: int, what: str) -> None:
        if len(self.seen) > 4 * MOST:
            raise self.refused(f"more than {MOST} objects are not a model")
        if address in self.seen:
            raise self.refused(f"{what} at byte {address} is reached twice")
        self.seen.add(address)

    def datasets(self) -> dict[str, Place]:
        """Every array by its path."""
        signature, version, widths = *self.fields("<8sB", 0), self.fields("<BB", 13)
        if signature != SIGNATURE:
            raise self.refused("it does not begin as one")
        if version > 1:
            raise self.refused(f"its superblock has version {version}; version 0 and 1 are read, h5py's default")
        start = 24 if version == 0 else 28
        base, _, end, _, _, root = self.fields("<6Q", start)
        if widths != (8, 8) or base:
            raise self.refused("its addresses are not of 8 bytes, from its first byte on")
        if end > len(self.data):
            raise self.refused(f"it should have {end} bytes and has {len(self.data)}")
        self.visit(root, "", 0)
        taken = sorted(found.pieces[0] for found in self.found.values())
        for (offset, size), (following, _) in itertools.pairwise(taken):
            if offset + size > following:
                raise self.refused(f"two arrays share byte {following}")
        return self.found

    def messages(self, address: int) -> dict[int, tuple[int, int]]:
        """An object header's messages, {type: (where its data begin, how many bytes)}."""
        self.once(address, "an object")
        version, count, size = self.fields("<BxHxxxxI", address)
        if version != 1:
            raise self.refused(f"an object header has version {version}; version 1 is read")
        found: dict[int, tuple[int, int]] = {}
        blocks = [(address + 16, size)]
        while blocks:
            at, size = blocks.pop(0)
            end = at + size
            while count and at + 8 <= end:
                kind, length, flags = self.fields("<HHB", at)
                at, count = at + 8, count - 1
                if at + length > end:
                    raise self.refused(f"a message at byte {at} is longer than its header")
                if kind in REFUSED:
                    raise self.refused(f"it holds {REFUSED[kind]}")
                if kind == CONTINUATION:
                    block, size = self.fields("<QQ", at)
                    self.once(block, "an object header's rest")
                    blocks.append((block, size))
                elif kind in (DATASPACE, DATATYPE, LAYOUT, SYMBOL_TABLE):
                    if flags & 2 or kind in found:
                        raise self.refused(f"a message at byte {at} is shared or there twice")
                    found[kind] = at, length
                at += length
        return found

    def visit(self, address: int, name: str, depth: int) -> None:
        """Collect the arrays at and below an object."""
        if depth > DEPTH_LIMIT or len(name) > NAME_LIMIT:
            raise self.refused(f"more than {DEPTH_LIMIT} groups lie one in another, or a path is longer than {NAME_LIMIT}")
        messages = self.messages(address)
        if SYMBOL_TABLE in messages:
            tree, heap = self.fields("<QQ", messages[SYMBOL_TABLE][0])
            for child, entry in self.entries(tree, self.heap(heap), 256):
                self.visit(entry, f"{name}/{child}" if name else child, depth + 1)
        elif DATASPACE in messages and DATATYPE in messages and LAYOUT in messages:
            shape, dtype = self.shape(messages[DATASPACE][0]), self.dtype(*messages[DATATYPE], name)
            if name in self.found:
                raise self.refused(f"{name} is there twice")
            self.found[name] = place(self.path, name, self.data, dtype, shape, (self.contiguous(messages[LAYOUT][0], name),))
        else:
            raise self.refused(f"{name or 'its root'} is neither a group nor an array")

    def heap(self, address: int) -> tuple[int, int]:
        """A local heap's names: where they begin, how many bytes."""
        signature, version, size, _, start = self.fields("<4sBxxxQQQ", address)
        if signature != b"HEAP" or version or start + size > len(self.data):
            raise self.refused(f"there is no whole heap of names at byte {address}")
        return start, size

    def entries(self, address: int, heap: tuple[int, int], above: int) -> Iterator[tuple[str, int]]:
        """A group's members, (name, address of the object header), from a node of its B-tree below one of level `above`."""
        self.once(address, "a B-tree's node")
        signature, kind, level, used = self.fields("<4sBBH", address)
        if signature != b"TREE" or kind or level >= above:
            raise self.refused(f"there is no node of a group's B-tree at byte {address}")
        for index in range(used):
            (child,) = self.fields("<Q", address + 32 + 16 * index)
            if level:
                yield from self.entries(child, heap, level)
                continue
            self.once(child, "a symbol table")
            signature, version, count = self.fields("<4sBxH", child)
            if signature != b"SNOD" or version != 1:
                raise self.refused(f"there is no symbol table at byte {child}")
            for entry in range(count):
                offset, header, cached = self.fields("<QQI", child + 8 + 40 * entry)
                if cached > 1:
                    raise self.refused("it holds a link to another place")
                yield self.name(offset, heap), header

    def name(self, offset: int, heap: tuple[int, int]) -> str:
        start, size = heap
        if offset >= size:
            raise self.refused("a name lies outside its heap")
        text, ended, _ = self.data[start + offset : start + min(size, offset + NAME_LIMIT + 1)].partition(b"\0")
        if not text or not ended or not text.isascii() or b"/" in text:
            raise self.refused(f"{text[:40]!r} is not a name")
        return text.decode("ascii")

    def shape(self, at: int) -> Shape:
        version, rank, _, fourth = self.fields("<4B", at)
        if version not in (1, 2) or rank > RANK_LIMIT or (version == 2 and fourth > 1):
            raise self.refused(f"a shape of version {version} and {rank} dimensions is not read")
        sizes = self.fields(f"<{rank}Q", at + (8 if version == 1 else 4))
        return tuple(sizes)

    def dtype(self, at: int, length: int, name: str) -> np.dtype[Any]:
        message = self.data[at : at + length]
        for datatype, dtype in DATATYPES.items():
            if message and bytes([message[0] & 0x0F]) + message[1 : len(datatype)] == datatype:
                return dtype
        raise self.refused(
            f"{name} is of a datatype that is none of {', '.join(d.name for d in DATATYPES.values())}, little-endian"
        )

    def contiguous(self, at: int, name: str) -> tuple[int, int]:
        """Where a dataset's bytes lie: (address, size)."""
        version, kind, address, size = self.fields("<BBQQ", at)
        if version not in (3, 4) or kind != 1:
            raise self.refused(f"{name} is not stored whole in one place (it may be chunked, compact or virtual)")
        if address == UNDEFINED:
            raise self.refused(f"the numbers of {name} were never written")
        return address, size
