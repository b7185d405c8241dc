"""backends/numba/buffers.py: memory serves again once nobody refers to it, and never before."""

import threading
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")
from tinyroberta.backends.numba import buffers

LARGE = (600, 700)  # float32: above what the C library keeps


@pytest.fixture(autouse=True)
def _own_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_own", threading.local())


def place(x: Any) -> int:
    return int(x.ctypes.data)


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (5, 7), LARGE])
@pytest.mark.parametrize("make", [buffers.aligned, buffers.reused])
def test_arrays_start_on_a_cache_line(make: Any, shape: tuple[int, ...]) -> None:
    x = make(shape, np.float32)
    assert place(x) % 64 == 0 or x.size == 0
    assert (x.shape, x.dtype) == (shape, np.float32)


def test_memory_serves_again_when_nobody_refers_to_it() -> None:
    x = buffers.reused(LARGE, np.float32)
    where = place(x)
    del x
    assert place(buffers.reused((700, 600), np.int32)) == where


def test_a_view_keeps_its_memory() -> None:
    x = buffers.reused(LARGE, np.float32)
    x[:] = 1
    view = x[3:, ::2].T
    del x
    others = [buffers.reused(LARGE, np.float32) for _ in range(3)]
    for other in others:
        other[:] = 2
    assert (view == 1).all()


def test_another_thread_has_its_own() -> None:
    x = buffers.reused(LARGE, np.float32)
    where, there = place(x), []
    del x
    thread = threading.Thread(target=lambda: there.append(buffers.reused(LARGE, np.float32)))
    thread.start()
    thread.join()
    assert place(there[0]) != where


def test_little_is_held_on_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "MOST", 5 << 20)
    for rows in (*range(300, 900, 40), 3000):
        x = buffers.reused((rows, 1000), np.float32)
        x[:] = rows
    assert 0 < sum(buffer.size for buffer in buffers._own.buffers) <= buffers.MOST
    assert (x == 3000).all()
