"""Requests that wait go through the model together: what windows come next, up to a budget of tokens, packed without padding.

One thread owns the model. Requests take turns: one that has more windows than fit goes behind those that wait, so a thousand
texts do not hold up one. A window's rows have the bits that they have alone, so who else is in a pass changes only the time.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from .metrics import Metrics

Forward = Callable[[list[Any]], Sequence[Any]]


class Full(Exception):
    """There is no room for a job now; `seconds` is when to ask again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Job:
    """A request's windows; `reduce` makes of a window and its rows what is kept, `finish` the answer of all that was kept.

    Both run in the model's thread; a job without windows is a call of finish([]).
    """

    def __init__(
        self,
        windows: Sequence[Any] = (),
        reduce: Callable[[Any, Any], Any] = lambda _, rows: rows,
        finish: Callable[[list[Any]], Any] = lambda kept: kept,
    ) -> None:
        self.windows, self.reduce, self.finish = windows, reduce, finish
        self.future: Future[Any] = Future()
        self.abandoned = False  # nobody waits for the answer any more
        self.tokens = sum(map(len, windows))
        self.begun = 0  # windows that went into a pass
        self.kept: list[Any] = []
        self.arrived = self.started = time.perf_counter()


class Worker:
    """The thread that owns a model, and the jobs that wait for it."""

    def __init__(self, forward: Forward, batch_tokens: int, queue_tokens: int, metrics: Metrics) -> None:
        """A worker that runs `forward`, windows -> rows of each, on up to batch_tokens tokens while at most queue_tokens wait."""
        self.forward, self.batch_tokens, self.queue_tokens, self.metrics = forward, batch_tokens, queue_tokens, metrics
        self.jobs: deque[Job] = deque()
        self.waiting = 0  # tokens of the jobs
        self.speed = 0.0  # tokens a second, of late
        self._changed = threading.Condition()
        self._closed = False
        self.thread = threading.Thread(target=self._run, name="model", daemon=True)
        self.thread.start()

    def submit(self, job: Job) -> Job:
        """Put a job at the end of the queue; raises Full where too much waits, unless nothing does."""
        with self._changed:
            if self._closed or (self.jobs and self.waiting + job.tokens > self.queue_tokens):
                raise Full(self.seconds())
            self.jobs.append(job)
            self.waiting += job.tokens
            self._changed.notify()
        return job

    def seconds(self) -> int:
        """When what waits will be done, in whole seconds from now, at least 1 and at most 60."""
        return min(60, max(1, math.ceil(self.waiting / self.speed))) if self.speed else 1

    def close(self) -> None:
        """Take no more jobs, and end the thread when those that wait are done."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self.thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self.jobs and not self._closed:
                    self._changed.wait()
                if not self.jobs:
                    return
                parts = self._next()
            try:
                self._compute(parts)
            except BaseException as error:  # whatever it is, the thread lives on and somebody is told
                for job, _ in parts:
                    self._fail(job, error)

    def _next(self) -> list[tuple[Job, list[Any]]]:
        """The windows of the next pass, of each job; what is left of a job goes behind the others."""
        parts: list[tuple[Job, list[Any]]] = []
        tokens = 0
        left = []
        while self.jobs:
            job = self.jobs[0]
            stop = job.begun
            if job.abandoned:
                stop = len(job.windows)
            else:
                while stop < len(job.windows) and (not tokens or tokens + len(job.windows[stop]) <= self.batch_tokens):
                    tokens += len(job.windows[stop])
                    stop += 1
                if stop == job.begun and job.windows:
                    break
                parts.append((job, list(job.windows[job.begun : stop])))
            self.waiting -= sum(map(len, job.windows[job.begun : stop]))
            job.begun = stop
            self.jobs.popleft()
            if stop < len(job.windows):
                left.append(job)
            elif job.abandoned:
                job.future.cancel()
        self.jobs.extend(left)
        return parts

    def _compute(self, parts: list[tuple[Job, list[Any]]]) -> None:
        windows = [window for _, part in parts for window in part]
        start = time.perf_counter()
        try:
            rows = list(self.forward(windows)) if windows else []
        except Exception as error:
            if len(parts) == 1:
                return self._fail(parts[0][0], error)
            for each in parts:  # one of them may be what cannot be computed: the others are not to pay for it
                self._compute([each])
            return None
        if windows:
            self._tell(start, windows)
        at = 0
        for job, part in parts:
            if not job.kept:
                job.started = start
            own, at = rows[at : at + len(part)], at + len(part)
            try:
                job.kept += map(job.reduce, part, own)
                if len(job.kept) == len(job.windows) and not job.future.done():
                    job.future.set_result(job.finish(job.kept))
                    self.metrics.observe("te_request_queue_duration", job.started - job.arrived)
                    self.metrics.observe("te_request_inference_duration", time.perf_counter() - job.started)
            except Exception as error:
                self._fail(job, error)
        return None

    def _tell(self, start: float, windows: list[Any]) -> None:
        tokens = sum(map(len, windows))
        speed = tokens / max(time.perf_counter() - start, 1e-6)
        self.speed = 0.8 * self.speed + 0.2 * speed if self.speed else speed
        self.metrics.observe("te_batch_next_size", len(windows))
        self.metrics.observe("te_batch_next_tokens", tokens)

    def _fail(self, job: Job, error: BaseException) -> None:
        job.abandoned = True
        if not job.future.done():
            job.future.set_exception(error)
