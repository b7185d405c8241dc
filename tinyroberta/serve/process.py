"""The server as a process: uvicorn, with time limits for clients that send or read slowly, and an end that loses no answer."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import Error
from ..terminal import tell
from .app import Server

HEAD_SECONDS = 10.0  # for a request's head, and for a client to take what is written for it
KEPT_SECONDS = 15.0  # a connection without a request
GRACE_SECONDS = 60  # for what is under way at the end
BACKLOG = 2048


class Protocol(H11Protocol):
    """uvicorn's protocol with a time limit for each thing that a client can be slow in; it has one for idle connections alone."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._unwatch()
        elif self._timer is None:
            self._watch()

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
    """uvicorn's warnings and errors as lines on standard error, with nothing that steers a terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line; of an exception its type and message."""
        told = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            told += f": {type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        tell(told)


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
    logger = logging.getLogger("uvicorn.error")
    logger.handlers, logger.propagate = [Telling(logging.WARNING)], False
    logger.setLevel(logging.WARNING)
    config = uvicorn.Config(
        server.app(),
        http=Protocol,
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
