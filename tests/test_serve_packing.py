"""serve/packing.py: what goes through the model together, whose turn it is, and who pays for a failure."""

import threading
import time
from typing import Any

import pytest

from tinyroberta.serve.metrics import Metrics
from tinyroberta.serve.packing import Full, Job, Worker


class Held:
    """A model of which each pass waits until it is let go; it answers a window with itself."""

    def __init__(self, budget: int = 10, queue: int = 100) -> None:
        self.passes: list[list[Any]] = []
        self.go = threading.Semaphore(0)
        self.metrics = Metrics()
        self.worker = Worker(self.forward, budget, queue, self.metrics)

    def forward(self, windows: list[Any]) -> list[Any]:
        self.passes.append(windows)
        assert self.go.acquire(timeout=10)
        if any("bad" in window for window in windows):
            raise ValueError("a bad window")
        return windows

    def begin(self) -> Job:
        """A job that is in a pass, so that those that come now wait."""
        job = self.worker.submit(Job(["first"]))
        end = time.monotonic() + 10
        while not self.passes and time.monotonic() < end:
            time.sleep(0.001)
        return job

    def end(self) -> None:
        self.go.release(100)
        self.worker.close()


def test_what_waits_goes_together_up_to_the_budget() -> None:
    held = Held()
    held.begin()
    jobs = [held.worker.submit(Job([letter * 4])) for letter in "abc"]
    held.end()
    assert held.passes == [["first"], ["aaaa", "bbbb"], ["cccc"]]
    assert [job.future.result(0) for job in jobs] == [["aaaa"], ["bbbb"], ["cccc"]]


def test_a_window_above_the_budget_goes_alone() -> None:
    held = Held()
    held.begin()
    held.worker.submit(Job(["x" * 11, "y"]))
    held.end()
    assert held.passes == [["first"], ["x" * 11], ["y"]]


def test_many_windows_do_not_hold_up_one() -> None:
    held = Held()
    held.begin()
    many = held.worker.submit(Job(["aaaaaaaa"] * 5))
    one = held.worker.submit(Job(["bb"]))
    held.end()
    assert held.passes[1:3] == [["aaaaaaaa", "bb"], ["aaaaaaaa"]]
    held = Held()
    held.begin()
    many = held.worker.submit(Job(["aaaaaaaaaa"] * 5))
    one = held.worker.submit(Job(["bb"]))
    held.end()
    assert held.passes[1:3] == [["aaaaaaaaaa"], ["bb"]]
    assert one.future.result(0) == ["bb"]
    assert many.future.result(0) == ["aaaaaaaaaa"] * 5


def test_the_others_in_a_pass_do_not_pay_for_a_failure() -> None:
    held = Held()
    held.begin()
    good, bad, other = (held.worker.submit(Job([text])) for text in ("aa", "bad", "cc"))
    odd = held.worker.submit(Job(["d"], reduce=lambda *_: 1 / 0))
    last = held.worker.submit(Job(["e"], finish=lambda *_: 1 / 0))
    held.end()
    assert good.future.result(0) == ["aa"]
    assert other.future.result(0) == ["cc"]
    with pytest.raises(ValueError, match="a bad window"):
        bad.future.result(0)
    for job in (odd, last):
        with pytest.raises(ZeroDivisionError):
            job.future.result(0)


def test_what_nobody_waits_for_is_not_computed() -> None:
    held = Held()
    held.begin()
    gone, there = held.worker.submit(Job(["gone"])), held.worker.submit(Job(["there"]))
    half = held.worker.submit(Job(["half a job"] * 3))
    gone.abandoned = True
    held.go.release(2)
    there.future.result(10)
    half.abandoned = True
    held.end()
    assert gone.future.cancelled()
    assert half.future.cancelled()
    assert "gone" not in [window for windows in held.passes for window in windows]
    assert sum(windows.count("half a job") for windows in held.passes) < 3
    assert held.worker.waiting == 0


def test_no_more_tokens_wait_than_may() -> None:
    held = Held(queue=8)
    held.begin()
    held.worker.submit(Job(["a" * 20]))  # where nothing waits any job may
    with pytest.raises(Full) as told:
        held.worker.submit(Job(["b"]))
    assert told.value.seconds >= 1
    held.end()
    with pytest.raises(Full):
        held.worker.submit(Job(["c"]))


def test_a_job_without_windows_is_a_call() -> None:
    held = Held()
    job = held.worker.submit(Job(finish=lambda *_: threading.current_thread().name))
    assert job.future.result(10) == "model"
    held.end()
