"""backends/numba/buffers.py: memory serves again once nobody refers to it, and never before."""

import threading
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tinyroberta.backends.numba")
from tinyroberta.backends.numba import buffers

LARGE = (600, 700)  # float32: above what the C library keeps


@pytest.fixture(autouse=True)
def _own_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_held", [])


def place(x: Any) -> int:
    return int(x.ctypes.data)


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (5, 7), LARGE])
@pytest.mark.parametrize("make", [buffers.aligned, buffers.reused])
def test_arrays_start_on_a_cache_line(make: Any, shape: tuple[int, ...]) -> None:
    x = make(shape, np.float32)
    assert place(x) % 64 == 0 or x.size == 0
    assert (x.shape, x.dtype) == (shape, np.float32)


def test_memory_serves_again_when_nobody_refers_to_it() -> None:
    for shape, dtype in ((LARGE, np.float32), ((700, 600), np.int32), ((650, 600), np.float32)):
        x = buffers.reused(shape, dtype)
        del x
        assert len(buffers._held) == 1
    x = buffers.reused((600, 500), np.float32)  # too small for so large a place
    assert len(buffers._held) == 2
    y = buffers.reused((600, 500), np.float32)
    assert len(buffers._held) == 3
    assert place(x) != place(y)


def test_a_view_keeps_its_memory() -> None:
    x = buffers.reused(LARGE, np.float32)
    x[:] = 1
    view = x[3:, ::2].T
    del x
    others = [buffers.reused(LARGE, np.float32) for _ in range(3)]
    for other in others:
        other[:] = 2
    assert (view == 1).all()


def test_threads_never_have_the_same_memory() -> None:
    wrong, start = [], threading.Barrier(4)

    def work(number: int) -> None:
        start.wait()
        for turn in range(200):
            x = buffers.reused((512 + turn % 7, 512), np.float32)
            x[:] = number
            wrong.append((x != number).any())

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(wrong) == 800
    assert not any(wrong)


def test_no_more_than_so_much_is_held_on_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "MOST", 5 << 20)
    kept = buffers.reused((300, 1000), np.float32)
    kept[:] = 1
    for rows in range(300, 900, 40):
        x = buffers.reused((rows, 1000), np.float32)
        x[:] = 2
    assert sum(buffer.size for buffer in buffers._held) <= buffers.MOST
    assert len(buffers._held) > 0
    assert (kept == 1).all()
    large = buffers.reused((3000, 1000), np.float32)
    assert all(buffer.size < large.nbytes for buffer in buffers._held)
