"""Requests to a server, from one thread that is cheap enough to share the server's CPUs and says how late it was itself.

Closed loop: each client sends a request, reads its answer and sends the next. Open loop: requests come at their own times, as
Poisson has it, and nobody waits for them. An answer's time runs from its sending, connecting included, to the arrival of its last
bytes at the socket, as Linux stamps them; so what waits to be read by a busy client counts against the client (`handled`),
not against the server. Where the system stamps nothing it is the time of reading. Answers are kept as bytes and read afterwards.
"""

import gc
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import NamedTuple

import numpy as np

GIVE_UP = 60.0  # seconds after which nobody waits for an answer any more
BROKEN, GIVEN_UP = 0, -1  # instead of a status
STAMPED = 35 if sys.platform == "linux" else None  # SO_TIMESTAMPNS


class Answer(NamedTuple):
    """What came of a request: its number, when it was sent, arrived and was handled, its status, and the body."""

    number: int
    sent: float
    arrived: float
    handled: float
    status: int
    body: bytes


class Connection:
    """A socket, and the request that is on it."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if STAMPED is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, STAMPED, 1)
        self.socket.connect_ex(address)
        self.number, self.sent, self.unsent, self.received = -1, 0.0, b"", b""

    def read(self) -> float | None:
        """Take what has come; when it came, or None where the connection has ended."""
        try:
            data, stamps, _, _ = self.socket.recvmsg(1 << 16, 64)
        except OSError:
            return None
        if not data:
            return None
        self.received += data
        for _, kind, stamp in stamps:
            if kind == STAMPED:
                seconds, nanoseconds = struct.unpack("ll", stamp)
                return float(seconds + nanoseconds * 1e-9)
        return time.time()

    def answer(self) -> tuple[int, bytes, bool] | None:
        """The status, the body, and whether the connection stays; None while some is missing."""
        end = self.received.find(b"\r\n\r\n") + 4
        if end < 4:
            return None
        head = self.received[:end].lower()
        at = head.find(b"\r\ncontent-length:")
        if at < 0:
            raise SystemExit(f"an answer has no Content-Length: {head!r}")
        stop = end + int(head[at + 17 : head.index(b"\r\n", at + 17)])
        if len(self.received) < stop:
            return None
        return int(head[9:12]), self.received[end:stop], b"\r\nconnection: close" not in head


class Load:
    """Requests to an address; `sample` is called twice a second, and `most` is the greatest number it has given."""

    def __init__(self, address: tuple[str, int], requests: list[bytes], sample: Callable[[], float]) -> None:
        self.address, self.requests, self.sample = address, requests, sample
        self.selector = selectors.DefaultSelector()
        self.free: list[Connection] = []
        self.busy: dict[Connection, None] = {}  # in the order of their sending
        self.most = self.sampled = 0.0
        self.late: list[float] = []  # seconds between when an open loop's request was due and its sending

    def closed(self, clients: int, seconds: float, first: int = 0, requests: int = sys.maxsize) -> list[Answer]:
        """So many clients for so long, or for so many requests."""
        answers: list[Answer] = []
        numbers = count(first)
        with self._running():
            end = time.time() + seconds
            for _ in range(clients):
                self._send(next(numbers))
            while self.busy:
                for answer in self._turn(end + GIVE_UP):
                    answers.append(answer)
                    if time.time() < end and len(answers) + len(self.busy) < requests and answer.status == 200:
                        self._send(next(numbers))
        return answers

    def open(self, rate: float, seconds: float) -> list[Answer]:
        """Requests at so many a second."""
        due = np.cumsum(np.random.default_rng(0).exponential(1 / rate, int(2 * rate * seconds) + 100))
        due = due[due < seconds] + time.time() + 0.1
        answers: list[Answer] = []
        with self._running():
            for number, at in enumerate(due.tolist()):
                while time.time() < at:
                    answers += self._turn(at)
                self.late.append(time.time() - at)
                self._send(number)
                if number % 8 == 7:  # one that is late still reads
                    answers += self._turn(0)
            while self.busy:
                answers += self._turn(time.time() + GIVE_UP)
        return answers

    @contextmanager
    def _running(self) -> Iterator[None]:
        """No pause by Python's collector, and all connections closed at the end."""
        gc.collect()
        gc.disable()
        self.most = self.sampled = 0.0
        self.late.clear()
        try:
            yield
        finally:
            gc.enable()
            self.most = max(self.most, self.sample())
            for connection in [*self.free, *self.busy]:
                self._close(connection)
            self.free.clear()
            self.busy.clear()

    def _send(self, number: int) -> None:
        sent = time.time()
        if self.free:
            connection = self.free.pop()
        else:
            connection = Connection(self.address)
            self.selector.register(connection.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)
        number %= len(self.requests)
        connection.number, connection.sent, connection.received = number, sent, b""
        self.busy[connection] = None
        connection.unsent = self.requests[number]
        self._write(connection)

    def _write(self, connection: Connection) -> None:
        try:
            connection.unsent = connection.unsent[connection.socket.send(connection.unsent) :]
        except BlockingIOError:
            pass
        except OSError:  # it is not connected yet, or broken, which reading tells
            return
        reading = selectors.EVENT_READ
        wanted = reading | selectors.EVENT_WRITE if connection.unsent else reading
        if self.selector.get_key(connection.socket).events != wanted:
            self.selector.modify(connection.socket, wanted, connection)

    def _close(self, connection: Connection) -> None:
        self.selector.unregister(connection.socket)
        connection.socket.close()

    def _turn(self, until: float) -> list[Answer]:
        """Wait for something, and no longer than until then; the answers that have come."""
        answers = []
        now = time.time()
        if now > self.sampled + 0.5:
            self.sampled, self.most = now, max(self.most, self.sample())
        for key, events in self.selector.select(max(0.0, min(until - now, 0.5))):
            connection = key.data
            if events & selectors.EVENT_WRITE:
                self._write(connection)
            if not events & selectors.EVENT_READ:
                continue
            arrived = connection.read()
            if arrived is None:
                self._close(connection)
                if connection in self.busy:
                    del self.busy[connection]
                    now = time.time()
                    answers.append(Answer(connection.number, connection.sent, now, now, BROKEN, b""))
                else:
                    self.free.remove(connection)
            elif connection in self.busy and (found := connection.answer()) is not None:
                status, body, stays = found
                del self.busy[connection]
                answers.append(Answer(connection.number, connection.sent, arrived, time.time(), status, body))
                if stays:
                    self.free.append(connection)
                else:
                    self._close(connection)
        now = time.time()
        while self.busy and now - (oldest := next(iter(self.busy))).sent > GIVE_UP:
            del self.busy[oldest]
            self._close(oldest)
            answers.append(Answer(oldest.number, oldest.sent, now, now, GIVEN_UP, b""))
        return answers
