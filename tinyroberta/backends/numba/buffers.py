"""Arrays that start on a cache line, and those that serve one operation after another.

The system takes a large array's pages back when it is freed and clears them when they are next touched, which costs as much as
some operations. So up to 128 MiB of them are held on to.
"""

import ctypes
import math
import os
import sys
import threading
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

LEAST, MOST = 1 << 16, 1 << 27  # bytes: the C library keeps smaller ones itself; all that are held
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
    if not LEAST <= size <= MOST:
        return aligned(shape, dtype)
    with _taking:
        for i in range(len(_held)):
            if size <= _held[i].size <= 1.25 * size and sys.getrefcount(_held[i]) == UNUSED:
                return _as_array(_held[i], shape, dtype)
        _held.append(np.empty(size, np.uint8))
        while sum(buffer.size for buffer in _held) > MOST:
            in_use = (i for i in range(len(_held) - 1) if sys.getrefcount(_held[i]) > UNUSED)
            del _held[next(in_use, 0)]  # a caller may keep that one for long
        return _as_array(_held[-1], shape, dtype)


_some = [object()]
UNUSED = sys.getrefcount(_some[0])  # of what only a list refers to


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
