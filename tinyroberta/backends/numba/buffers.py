"""Arrays that start on a cache line, and those that serve one operation after another.

The system takes a large array's pages back when it is freed and clears them when they are next touched, which costs as much as
some operations. So up to 128 MiB of them are held on to.
"""

import ctypes
import math
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

LEAST, MOST = 1 << 16, 1 << 27  # bytes of the smallest array held (the C library keeps smaller ones), and of all together
_held: list[Array] = []
_taking = threading.Lock()


# The first field of NumPy's array object, by its ABI: asking the array takes six times as long, 0.8 ms of a forward pass.
_word_at = ctypes.c_size_t.from_address


def address(x: Array | None) -> int:
    """Where an array's first number is; 0 for None."""
    return 0 if x is None else int(_word_at(id(x) + object.__basicsize__).value)


def aligned(shape: tuple[int, ...], dtype: Any) -> Array:
    """An uninitialised array that starts on a cache line: tiles that straddle two load at a third of the speed."""
    return _as_array(np.empty(_bytes(shape, dtype) + 64, np.uint8), shape, dtype)


def reused(shape: tuple[int, ...], dtype: Any) -> Array:
    """The same, in memory of an earlier one that nobody refers to any more, where there is such."""
    size = _bytes(shape, dtype) + 64
    if _current.recording is not None:
        return _as_array(_unused(_current.recording.memory, size), shape, dtype)
    if not LEAST <= size <= MOST:
        return aligned(shape, dtype)
    with _taking:
        buffer = _unused(_held, size)
        while sum(buffer.size for buffer in _held) > MOST:
            in_use = (i for i in range(len(_held) - 1) if sys.getrefcount(_held[i]) > UNUSED)
            del _held[next(in_use, 0)]  # a caller may keep that one for long
        return _as_array(buffer, shape, dtype)


def _unused(held: list[Array], size: int) -> Array:
    """One of the arrays held that is large enough, not much too large and in no use, or one more."""
    for i in range(len(held)):
        if size <= held[i].size <= 1.25 * size and sys.getrefcount(held[i]) == UNUSED:
            return held[i]
    held.append(np.empty(size, np.uint8))
    return held[-1]


_some = [object()]
UNUSED = sys.getrefcount(_some[0])  # references to what only a list holds


class Recording:
    """What runs between two moments: the kernels' calls, and what they read and write."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, int]] = []  # a function, its arguments' address, its blocks
        self.memory: list[Array] = []  # of arrays that serve one operation after another
        self.kept: list[Any] = []  # the other arrays, and the arguments
        self.whole = True  # whether all was computed by kernels

    def add(self, function: int, arguments: Array, blocks: int, arrays: Iterable[Array]) -> None:
        own = {id(buffer) for buffer in self.memory}
        self.calls.append((function, address(arguments), blocks))
        self.kept += [arguments, *(x for x in arrays if id(x.base) not in own)]


class _Current(threading.local):
    recording: Recording | None = None


_current = _Current()


@contextmanager
def recorded(recording: Recording) -> Iterator[None]:
    """Record what this Python thread runs meanwhile."""
    _current.recording = recording
    try:
        yield
    finally:
        _current.recording = None


def recording() -> Recording | None:
    """This Python thread's Recording under way, or None."""
    return _current.recording


def by_numpy() -> None:
    """NumPy computes something here, which a recording would miss."""
    if _current.recording is not None:
        _current.recording.whole = False


def contiguous(x: Array, dtype: Any) -> Array:
    """The array, or a copy of it, whose numbers are of this type and stand one after another."""
    y = np.ascontiguousarray(x, dtype)
    if y is not x:
        by_numpy()
    return y


def _bytes(shape: tuple[int, ...], dtype: Any) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _after_fork() -> None:
    """In a forked child, where the lock may be held by a thread that is not there."""
    global _taking
    _taking = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _as_array(buffer: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    start = -address(buffer) % 64
    return buffer[start : start + _bytes(shape, dtype)].view(dtype).reshape(shape)
