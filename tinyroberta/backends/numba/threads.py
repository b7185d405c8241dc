"""Threads for the kernels: a few Python threads that run compiled code without the interpreter's lock.

A call cuts its work into blocks; every thread claims the next block from one atomic counter until none is left, so a thread that
comes late costs at most a block. Which thread computes a block never changes its result. A worker that runs out of work spins for
some 100 microseconds, since the next operation follows soon, and then sleeps, reading a file: it never comes back to Python,
where it would wait for the interpreter's lock, up to 5 ms each time that its owner computes.

Numba's own layers do not serve here: its default aborts when two Python threads call at once, OpenMP's dies after fork. Here a
second caller simply works alone while the first one has the pool, and a forked child starts with a pool of its own.
"""

import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import buffers
from .arguments import arrays
from .buffers import aligned
from .compiled import Kernel, carray, njit
from .machine.atomics import add_word, load_word, pause, store_word, swap_word
from .machine.memory import allocate, free, words
from .machine.system import allow_cpus, allowed_cpus, call_kernel, read_word, this_cpu, write_word

Array = np.ndarray[Any, np.dtype[Any]]

# Where each word of a pool's shared state stands, in bytes; a cache line to each that several threads write. Beside a worker's
# SLEEPING is the file that it reads while it sleeps, the one to write to, and its number for the system.
REMAINING, DONE, FUNCTION, ARGUMENTS, TOTAL, SLEEPING = 0, 64, 128, 136, 144, 192
READS, WRITES, NUMBER = SLEEPING + 8, SLEEPING + 16, SLEEPING + 24
ALLOWED = 40  # REMAINING holds the blocks not yet claimed, and from this bit on how many threads may claim them
SPIN = 100e-6  # seconds
CLOSED = 1 << 20  # times that reading a file fails
MOVES = sys.platform == "linux"
MASK = 64  # words of bits, a CPU each


@njit(error_model="numpy")
def claim(state, worker, spins):
    """Claim and run blocks of work until `spins` looks in a row have found none."""
    looks = 0
    while looks <= spins:
        remaining = load_word(state + REMAINING)
        count = remaining & ((1 << ALLOWED) - 1)
        if count > 0 and worker < remaining >> ALLOWED:
            if swap_word(state + REMAINING, remaining, remaining - 1):
                # the other words are read only now: they stand until the block that is ours is done
                block = load_word(state + TOTAL) - count
                call_kernel(load_word(state + FUNCTION), load_word(state + ARGUMENTS), block, worker)
                add_word(state + DONE, 1)
            looks = 0
        else:
            looks += 1
            if spins > 0:
                pause()


@Kernel
def _work(state, worker, spins):
    """Work, spin and sleep for ever, or until its file cannot be read: a signal now and then is no matter."""
    own = state + 64 * worker
    fails = 0
    while fails < CLOSED:
        claim(state, worker, spins)
        store_word(own + SLEEPING, 1)
        claim(state, worker, 0)
        fails = 0
        while fails < CLOSED and not read_word(load_word(own + READS)):
            fails += 1


@Kernel
def _look(state, worker, spins):
    claim(state, worker, spins)


@njit(error_model="numpy")
def move_away(thread):
    """Let a thread that is to wake use this thread's CPUs but the one it is on, where Linux may wake it to wait for it."""
    memory = allocate(8 * MASK)
    bits, here, others = carray(words(memory), MASK), this_cpu(), 0
    if allowed_cpus(8 * MASK, memory) and 0 <= here < 64 * MASK:
        bits[here // 64] &= ~(1 << (here % 64))
        for i in range(MASK):
            others |= bits[i]
        if others:
            allow_cpus(thread, 8 * MASK, memory)
    free(memory)


@njit(error_model="numpy")
def share(state, function, arguments, total, threads):
    """Offer the blocks to the workers, wake those that sleep, work too and return when all are done."""
    store_word(state + DONE, 0)
    store_word(state + FUNCTION, function)
    store_word(state + ARGUMENTS, arguments)
    store_word(state + TOTAL, total)
    store_word(state + REMAINING, total | (threads << ALLOWED))
    for worker in range(1, threads):
        own = state + 64 * worker
        if load_word(own + SLEEPING) and swap_word(own + SLEEPING, 1, 0):
            if MOVES:
                move_away(load_word(own + NUMBER))
            write_word(load_word(own + WRITES))
    claim(state, 0, 0)
    while load_word(state + DONE) < total:
        pause()


@njit(error_model="numpy")
def alone(function, arguments, total):
    """Run all blocks in this thread."""
    for block in range(total):
        call_kernel(function, arguments, block, 0)


@partial(Kernel, count=5)
def _share(state, function, arguments, total, threads):
    share(state, function, arguments, total, threads)


@Kernel
def _alone(function, arguments, total):
    alone(function, arguments, total)


@partial(Kernel, count=4)
def _play(state, calls, count, threads):
    """So many calls, each a function, its arguments and its blocks, one after another."""
    given = carray(words(calls), 3 * count)
    for i in range(0, 3 * count, 3):
        many = min(threads, given[i + 2])
        if many > 1:
            share(state, given[i], given[i + 1], given[i + 2], many)
        else:
            alone(given[i], given[i + 1], given[i + 2])


def kept() -> bool:
    """Whether the code that every call needs is in a file already."""
    return _share.kept


class Pool:
    """The workers of a process and the words that they share."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.limit = allowed_threads()
        self.state = aligned((8 * (self.limit + 4),), np.int64)
        self.state[:] = 0
        self.workers = 0
        self.spins = 0

    def ready(self, threads: int) -> int:
        """Start the workers that are missing; how many threads there are then, fewer where the system gives no more files."""
        if not self.spins:
            self.spins = int(SPIN / min(_seconds_of_looks(self.state.ctypes.data) for _ in range(3)) * LOOKS)
        while self.workers < threads - 1:
            worker, _ = self.workers + 1, _work.address  # compiled, if it must be, by who can wait for it
            try:
                self.state[(READS + 64 * worker) // 8], self.state[(WRITES + 64 * worker) // 8] = _sleeping_place()
                threading.Thread(target=_live, args=(self, worker), name=f"tinyroberta-{worker}", daemon=True).start()
            except (OSError, RuntimeError):
                break
            self.workers = worker
        return min(threads, self.workers + 1)


def _live(pool: Pool, worker: int) -> None:
    """A worker's life, which holds on to the words that it reads."""
    pool.state[(NUMBER + 64 * worker) // 8] = threading.get_native_id()
    _work(pool.state.ctypes.data, worker, pool.spins)


def _sleeping_place() -> tuple[int, int]:
    """Files to read and to write. Linux wakes a pipe's reader on the writer's CPU, which is busy; an eventfd's on another."""
    if hasattr(os, "eventfd"):
        return (os.eventfd(0),) * 2
    return os.pipe()


LOOKS = 500


def _seconds_of_looks(state: int) -> float:
    """How long so many looks for work take where there is none: a pause is 40 cycles on one CPU and 140 on another."""
    start = time.perf_counter()
    _look(state, 0, LOOKS)
    return time.perf_counter() - start


def parallel(kernel: Kernel, blocks: int, /, **given: Any) -> None:
    """Run kernel(given, block, worker) for every block, each worker below `thread_limit()`; raises TypeError as Fields.words."""
    if kernel.fields is None:
        raise TypeError(f"{kernel.name} has no fields")
    arguments = np.array(kernel.fields.words(given), np.int64)
    count = min(thread_limit(), blocks)
    if (recording := buffers.recording()) is not None:
        recording.add(kernel.address, arguments, blocks, arrays(given))
    pool = _pool()
    if count > 1 and pool.lock.acquire(blocking=False):
        try:
            _share(pool.state.ctypes.data, kernel.address, arguments.ctypes.data, blocks, pool.ready(count))
        finally:
            pool.lock.release()
    else:
        _alone(kernel.address, arguments.ctypes.data, blocks)


def play(calls: Array) -> None:
    """Run calls, (n, 3) words as _play reads them, without coming back to Python in between."""
    pool, count = _pool(), thread_limit()
    if count > 1 and pool.lock.acquire(blocking=False):
        try:
            _play(pool.state.ctypes.data, calls.ctypes.data, len(calls), pool.ready(count))
        finally:
            pool.lock.release()
    else:
        _play(0, calls.ctypes.data, len(calls), 1)


_current = threading.local()
_shared: Pool | None = None
_starting = threading.Lock()


def _pool() -> Pool:
    global _shared
    if _shared is None:
        with _starting:
            _shared = _shared or Pool()
    return _shared


def _forget() -> None:
    """In a forked child: the parent's workers are not there, and its locks may be held by threads that are not there."""
    global _shared, _starting
    _shared, _starting = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def thread_limit() -> int:
    """How many threads an operation may use here and now."""
    most = _pool().limit
    wanted = getattr(_current, "threads", None)
    return most if wanted is None else min(wanted, most)


@contextmanager
def limited(threads: int | None) -> Iterator[None]:
    """Operations of this Python thread use at most so many threads."""
    before = getattr(_current, "threads", None)
    _current.threads = threads
    try:
        yield
    finally:
        _current.threads = before


def allowed_threads() -> int:
    """The CPUs this process may run on, less where a cgroup's quota or NUMBA_NUM_THREADS says so."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("NUMBA_NUM_THREADS", "")
    if given.isdecimal() and int(given) > 0:
        count = min(count, int(given))
    return max(1, math.ceil(min(count, cgroup_quota())))


def cgroup_quota(root: str = "/sys/fs/cgroup") -> float:
    """The CPUs that a cgroup (version 2 or 1) grants, infinite where there is no limit."""
    try:
        quota, period = (Path(root) / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((Path(root) / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return math.inf
    try:
        return float(quota) / float(period) if float(quota) > 0 else math.inf
    except ValueError:  # "max"
        return math.inf
