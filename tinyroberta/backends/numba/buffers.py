"""Arrays that start on a cache line, and those that serve one operation after another.

The system takes a large array's pages back when it is freed and clears them when they are next touched, which costs as much as
some operations. So those of up to 64 MiB in all are held on to, by each Python thread its own.
"""

import math
import sys
import threading
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

LEAST, MOST = 1 << 20, 1 << 26  # bytes: the C library keeps smaller ones itself; all that are held
_own = threading.local()


def aligned(shape: tuple[int, ...], dtype: Any) -> Array:
    """An uninitialised array that starts on a cache line: tiles that straddle two load at a third of the speed."""
    return _as_array(np.empty(_bytes(shape, dtype) + 64, np.uint8), shape, dtype)


def reused(shape: tuple[int, ...], dtype: Any) -> Array:
    """The same, in memory of an earlier one that nobody refers to any more, where there is such."""
    size = _bytes(shape, dtype) + 64
    if not LEAST <= size <= MOST:
        return aligned(shape, dtype)
    held = _own.__dict__.setdefault("buffers", [])
    for i in range(len(held)):
        if size <= held[i].size <= 2 * size and sys.getrefcount(held[i]) == UNUSED:
            return _as_array(held[i], shape, dtype)
    held.append(np.empty(size, np.uint8))
    while sum(buffer.size for buffer in held) > MOST:
        del held[0]
    return _as_array(held[-1], shape, dtype)


_some = [object()]
UNUSED = sys.getrefcount(_some[0])  # of what only a list refers to


def _bytes(shape: tuple[int, ...], dtype: Any) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _as_array(buffer: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    start = -int(buffer.__array_interface__["data"][0]) % 64
    return buffer[start : start + _bytes(shape, dtype)].view(dtype).reshape(shape)
