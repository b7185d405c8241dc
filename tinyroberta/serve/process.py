"""The server as a process: uvicorn, with time limits for clients that send or read slowly, and an end that loses no answer."""

import asyncio
import contextlib
import functools
import logging
import signal
import socket
import sys
import time
from types import SimpleNamespace
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..errors import Error
from ..terminal import tell
from .app import Server

HEAD_SECONDS = 10.0  # for a request's head, and for a client to take what is written for it
KEPT_SECONDS = 15.0  # a connection without a request
GRACE_SECONDS = 60  # for what is under way at the end
BACKLOG = 2048
HEAD_BYTES = 1 << 16
REFUSED: Any = SimpleNamespace(response_complete=True, message_event=asyncio.Event())  # uvicorn's state of what is answered


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, which refuses at the head of a request what there is no room for, before anything is made of it.

    It has a time limit for each thing that a client can be slow in, where uvicorn's has one for idle connections alone, and a
    limit of a head's size.
    """

    def __init__(self, server: Server, **given: Any) -> None:
        super().__init__(**given)
        self._server = server
        self._timer: asyncio.TimerHandle | None = None
        self._headed = False  # what came last ended a head
        self._unread = 0  # bytes that came and are no body, of a head that has not ended

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self._server.most_connections:
            transport.abort()
        self._watch()

    def data_received(self, data: bytes) -> None:
        self._headed = False
        self._unread += len(data)
        super().data_received(data)
        if self._unread > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The request's head is too long.")
        if self._headed or (self.cycle is not None and not self.cycle.response_complete):
            self._unwatch()
        elif self._timer is None:
            self._watch()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._headed = False

    def on_headers_complete(self) -> None:
        self._headed, self._unread = True, 0
        path = self.url.partition(b"?")[0].decode("ascii", "replace")
        first = self.cycle is None or self.cycle.response_complete  # answers come in the order of the requests
        if not (first and self.parser.get_method() == b"POST" and path in self._server.posts and self._server.full()):
            return super().on_headers_complete()
        refused = self._server.turned_away(path)
        headers = {**refused.headers, "connection": "keep-alive" if self.parser.should_keep_alive() else "close"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.cycle = REFUSED
        self.transport.write(f"HTTP/1.1 {refused.status_code} Too Many Requests\r\n{lines}\r\n".encode() + refused.body)
        return self.on_response_complete()

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unread = 0
        super().on_message_complete()
        if self.cycle is REFUSED and not self.parser.should_keep_alive():  # before its end the sender would lose the answer
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unwatch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():  # what is written has its time to be read
            self._watch()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        self._unwatch()
        self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Telling(logging.Handler):
    """uvicorn's and asyncio's warnings and errors as lines on standard error, with nothing that steers a terminal.

    What is said again within a second, as asyncio does of each connection for which there is no file descriptor, is said once.
    """

    said: tuple[str, float] = ("", 0.0)

    def emit(self, record: logging.LogRecord) -> None:
        """One line; of an exception its type and message."""
        told = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            told += f": {type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        now = time.monotonic()
        if told != self.said[0] or now - self.said[1] > 1.0:
            tell(told)
            self.said = told, now


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; raises Error where it cannot."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
        if sys.platform != "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except (OSError, UnicodeError) as error:
        raise Error(f"cannot listen on {host}, port {port}: {getattr(error, 'strerror', None) or error}") from error
    listener.setblocking(False)
    return listener


def run(server: Server, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C: then take no more, answer what was accepted, and return."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection each
        if most != resource.RLIM_INFINITY:
            server.most_connections = max(most // 2, most - BACKLOG - 256)  # so many are accepted before one can be dropped
    for name in ("uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [Telling(logging.WARNING)], False
        logger.setLevel(logging.WARNING)
    config = uvicorn.Config(
        server.app(),
        http=functools.partial(Protocol, server),  # type: ignore[arg-type] # called as the class is
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(KEPT_SECONDS),
        timeout_graceful_shutdown=GRACE_SECONDS,
        backlog=BACKLOG,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn raises them once more when it has ended
    uvicorn.Server(config).run(sockets=[listener])
