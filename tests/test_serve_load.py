"""serve/ under load and bad clients: the real process on loopback, each test with its own end in time."""

import asyncio
import contextlib
import http.client
import json
import logging
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyroberta.tasks.embed import Embedder

pytest.importorskip("tokenizers")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("httptools")

import uvicorn
from planted_server import DELAY, FAILURE
from server_process import TIMEOUT, Process, planted, serving
from uvicorn.server import ServerState

from tinyroberta.serve.app import Server, Settings
from tinyroberta.serve.explore import Explorer
from tinyroberta.serve.kinds import open_served
from tinyroberta.serve.process import Protocol, Telling

REFUSED_WITHIN = 0.1  # seconds


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    pytest.importorskip("threadpoolctl")
    return Embedder.from_pretrained(backend="numpy", threads=1, batch_tokens=1)  # as the server's process computes


def head(length: int | str, path: str = "/embed") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n".encode()


def request(body: Any, path: str = "/embed") -> bytes:
    data = json.dumps(body).encode()
    return head(len(data), path) + data


@contextlib.contextmanager
def connected(server: Process) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT) as client:
        yield client


def status_of(client: socket.socket) -> int:
    answer = http.client.HTTPResponse(client)
    answer.begin()
    answer.read()
    return answer.status


def takes_connections(server: Process) -> bool:
    with contextlib.suppress(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port)).close()
        return True
    return False


def under_way(server: Process, count: int) -> None:
    server.wait_for("te_requests_under_way", count)


def test_past_its_capacity_some_are_refused_at_once_and_the_others_answered_rightly(embedder: Embedder) -> None:
    texts = [f"text number {n}" for n in range(60)]
    expected = embedder.encode(texts, normalize=True)
    with planted(slow=0.03, max_concurrent_requests=4) as server, ThreadPoolExecutor(60) as clients:
        found = list(clients.map(lambda text: server.ask("/embed", {"inputs": text}), texts))
        statuses = [status for status, _, _ in found]
        assert set(statuses) == {200, 429}
        for (status, headers, answer), vector in zip(found, expected, strict=True):
            if status == 200:
                assert np.array_equal(np.array(answer[0], np.float32), vector)
            else:
                assert answer == {"error": "Model is overloaded", "error_type": "Overloaded"}
                assert 1 <= int(headers["retry-after"]) <= 60
        held = [clients.submit(server.ask, "/embed", {"inputs": f"{DELAY} {n}"}) for n in range(4)]
        under_way(server, 4)
        times = []
        for _ in range(9):
            start = time.perf_counter()
            assert server.ask("/embed", {"inputs": "one more"})[0] == 429
            times.append(time.perf_counter() - start)
        with connected(server) as client:
            client.sendall(head(1000))  # and no body
            assert status_of(client) == 429
        assert statistics.median(times) < REFUSED_WITHIN, times
        assert server.ask("/health")[0] == 200
        assert [future.result()[0] for future in held] == [200] * 4
        assert server.ask("/embed", {"inputs": "and now"})[0] == 200


class Written(asyncio.Transport):
    """A connection's other end: what is written to it, and whether it was closed or dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.data, self.closed, self.dropped = b"", False, False

    def write(self, data: Any) -> None:
        self.data += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.dropped = True

    def is_closing(self) -> bool:
        return self.closed or self.dropped

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def spoken(*parts: bytes, full: bool, connections: int = 0, **settings: Any) -> tuple[Written, int, Any]:
    """What a connection writes to its client as parts come, before anything else runs; how many tasks it made; the server."""
    served = open_served(None, backend="numpy")

    async def speak() -> tuple[Written, int, Any]:
        server, written, state = Server(served, Settings(**settings), Explorer()), Written(), ServerState()
        server.under_way = server.settings.max_concurrent_requests * full
        server.most_connections = 3
        state.connections.update(object() for _ in range(connections))  # type: ignore[misc]
        protocol = Protocol(server, config=uvicorn.Config(server.app(), log_config=None), server_state=state, app_state={})
        protocol.connection_made(written)
        for part in parts:
            protocol.data_received(part)
        made = len(state.tasks)
        for task in state.tasks:
            task.cancel()
        protocol.connection_lost(ConnectionResetError())
        await asyncio.gather(*state.tasks, return_exceptions=True)
        server.worker.close()
        return written, made, server

    return asyncio.run(speak())


def test_a_request_without_room_is_refused_at_its_head_before_anything_is_made_of_it() -> None:
    one = request({"inputs": "a"})
    written, made, server = spoken(one, one[:-3], one[-3:] + one, head(1000), full=True)
    answers = written.data.split(b"HTTP/1.1 ")
    assert made == 0
    assert not written.closed
    assert [answer[:21] for answer in answers] == [b"", *[b"429 Too Many Requests"] * 4]
    assert all(b"\r\nretry-after: 1\r\n" in answer and b"keep-alive" in answer for answer in answers[1:])
    assert all(answer.endswith(b'{"error":"Model is overloaded","error_type":"Overloaded"}') for answer in answers[1:])
    assert 'te_request_failure{err="Overloaded"} 4\n' in server.metrics.text({})
    assert 'te_request_count{method="/embed"} 4\n' in server.metrics.text({})
    last, made, _ = spoken(one.replace(b"Host", b"Connection: close\r\nHost"), full=True)
    assert (made, last.closed, b"connection: close" in last.data) == (0, True, True)
    closing = head(4).replace(b"Host", b"Connection: close\r\nHost")
    assert [spoken(closing, b"a" * sent, full=True)[0].closed for sent in (3, 4)] == [False, True]
    for other in (one.replace(b"POST", b"GET"), request({}, "/no-such-route"), request({}, "/%ff")):
        assert spoken(other, full=True)[1] == 1
    assert spoken(one, full=False)[1] == 1


def test_a_long_body_without_room_loses_its_sender_no_answer() -> None:
    with planted(max_concurrent_requests=1) as server, connected(server) as waiting:
        waiting.sendall(request({"inputs": DELAY}))
        under_way(server, 1)
        for length in (1_000_000, 10_000_000):
            with connected(server) as client:
                client.sendall(head(length).replace(b"Host", b"Connection: close\r\nHost") + b"a" * length)
                assert status_of(client) == 429
        assert status_of(waiting) == 200


def test_refusals_keep_the_order_of_requests_and_the_error_of_their_route() -> None:
    with planted(max_concurrent_requests=1) as server, connected(server) as client:
        client.sendall(request({"inputs": DELAY}))
        under_way(server, 1)
        client.sendall(request({"inputs": "behind it"}))
        assert server.ask("/v1/embeddings", {"input": "a"})[2]["error"]["code"] == 429
        assert [status_of(client), status_of(client)] == [200, 200]


def test_a_head_without_end_is_refused_and_connections_are_bounded() -> None:
    pieces = [b"POST /embed HTTP/1.1\r\nHost: a\r\nX: ", *[b"a" * 8192] * 9]
    written, made, _ = spoken(*pieces, full=False)
    assert (written.data[:12], written.closed, made) == (b"HTTP/1.1 400", True, 0)
    chunked = head("1").replace(b"Content-Length: 1", b"Transfer-Encoding: chunked")
    written, made, _ = spoken(chunked + b"1\r\na\r\n0\r\nX: ", *pieces[1:], full=True)
    assert written.data.count(b"HTTP/1.1 400") == 1
    assert written.closed
    assert not spoken(full=False, connections=2)[0].dropped
    assert spoken(full=False, connections=3)[0].dropped


def test_empty_lines_keep_no_connection() -> None:
    with planted(head_seconds=0.5) as server, connected(server) as client:
        client.sendall(request({"inputs": "a"}))
        assert status_of(client) == 200
        end = time.monotonic() + 10
        with contextlib.suppress(ConnectionError):
            while True:
                client.sendall(b"\r\n")
                time.sleep(0.05)
                assert time.monotonic() < end


def test_what_is_said_again_and_again_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    handler = Telling()
    for told in ("too many", "too many", "another"):
        handler.emit(logging.makeLogRecord({"msg": told}))
    assert capsys.readouterr().err == "tinyroberta: too many\ntinyroberta: another\n"


def test_tokens_that_wait_are_bounded_and_so_is_the_time() -> None:
    with planted(max_queue_tokens=34, request_seconds=0.2) as server, ThreadPoolExecutor(4) as clients:
        late = clients.submit(server.ask, "/embed", {"inputs": DELAY})
        under_way(server, 1)
        behind = clients.submit(server.ask, "/embed", {"inputs": "sea " * 30})
        under_way(server, 2)
        assert server.ask("/embed", {"inputs": "one more"})[0] == 429
        status, _, answer = server.ask("/embed", {"inputs": ["sea"] * 30})
        assert (status, answer["error_type"]) == (413, "Validation")
        for future in (late, behind):
            status, headers, answer = future.result()
            assert (status, answer["error_type"]) == (503, "Overloaded")
            assert "retry-after" in headers


def test_a_client_that_goes_away_is_not_computed_for() -> None:
    with planted() as server, ThreadPoolExecutor(1) as clients:
        first = clients.submit(server.ask, "/embed", {"inputs": DELAY})
        under_way(server, 1)
        with connected(server) as client:
            client.sendall(request({"inputs": [DELAY] * 20}))
            under_way(server, 2)
        under_way(server, 1)
        assert first.result()[0] == 200
        assert server.ask("/embed", {"inputs": "next"})[0] == 200
        assert server.metric("te_batch_next_size_sum") == 2
        assert server.metric('te_request_failure{err="Gone"}') == 1


def test_slow_clients_are_not_waited_for() -> None:
    with planted(head_seconds=0.5, body_seconds=1.0) as server, contextlib.ExitStack() as stack:
        silent, half, body, again = (stack.enter_context(connected(server)) for _ in range(4))
        half.sendall(b"POST /embed HTTP/1.1\r\nHost:")
        body.sendall(head(100) + b'{"inputs')
        again.sendall(request({"inputs": "a"}))
        assert status_of(again) == 200
        again.sendall(b"POST /em")
        start = time.monotonic()
        assert server.ask("/embed", {"inputs": "meanwhile"})[0] == 200
        assert silent.recv(10) == half.recv(10) == again.recv(10) == b""
        assert status_of(body) == 408
        assert time.monotonic() - start < 10


def test_a_client_that_does_not_read_is_dropped() -> None:
    with planted(head_seconds=0.5) as server, connected(server) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        client.sendall(request({"inputs": ["sea " * 250] * 8}, "/embed_all"))  # 8 * 252 * 256 numbers
        server.wait_for('te_request_success{method="/embed_all"}', 1)
        assert server.ask("/embed", {"inputs": "meanwhile"})[0] == 200
        time.sleep(1.5)
        received = 0
        with contextlib.suppress(ConnectionError):
            while part := client.recv(1 << 20):
                received += len(part)
        assert received < 8 * 252 * 256 * 8


def test_long_bodies_are_refused_and_not_kept() -> None:
    long = b'{"inputs": "' + b"a" * 10_000_000 + b'"}'
    with planted() as server:
        status, headers, answer = server.ask("/embed", long)
        assert (status, answer["error_type"], headers["connection"]) == (413, "Validation", "close")
        with connected(server) as client:
            client.sendall(head(10**15))
            assert status_of(client) == 413
        with connected(server) as client:
            client.sendall(head("1").replace(b"Content-Length: 1", b"Transfer-Encoding: chunked"))
            with contextlib.suppress(ConnectionError):
                for _ in range(40):
                    client.sendall(b"10000\r\n" + b"a" * 65536 + b"\r\n")
            assert status_of(client) == 413
        assert server.ask("/embed", {"inputs": "a"})[0] == 200
        assert server.errors == []


def test_a_thousand_connections_at_once(embedder: Embedder) -> None:
    resource = pytest.importorskip("resource")
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < 2200:
        pytest.skip("a process may not open a thousand connections here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2200), most))
    expected = embedder.encode("a", normalize=True).tolist()

    async def ask(start: asyncio.Event, connected: asyncio.Semaphore) -> tuple[int, Any]:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        connected.release()
        await start.wait()
        writer.write(request({"inputs": "a"}).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
        answer = await reader.read()
        writer.close()
        lines, _, body = answer.partition(b"\r\n\r\n")
        return int(lines.split()[1]), json.loads(body)

    async def ask_all() -> list[tuple[int, Any]]:
        start, connected = asyncio.Event(), asyncio.Semaphore(0)
        async with asyncio.timeout(60):
            clients = [asyncio.create_task(ask(start, connected)) for _ in range(1000)]
            for _ in clients:
                await connected.acquire()
            start.set()
            return await asyncio.gather(*clients)

    with planted(max_concurrent_requests=64) as server:
        found = asyncio.run(ask_all())
        assert len(found) == 1000
        assert {status for status, _ in found} <= {200, 429}
        assert sum(status == 200 for status, _ in found) >= 64
        assert all(answer == [expected] for status, answer in found if status == 200)
        assert server.ask("/health")[0] == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_accepted_is_answered_after_a_signal(number: signal.Signals) -> None:
    with planted() as server, ThreadPoolExecutor(4) as clients, connected(server) as idle:
        held = [clients.submit(server.ask, "/embed", {"inputs": f"{DELAY} {n}"}) for n in range(2)]
        under_way(server, 2)
        server.child.send_signal(number)
        assert idle.recv(10) == b""
        end = time.monotonic() + 5
        while takes_connections(server):
            assert time.monotonic() < end
            time.sleep(0.01)
        assert [future.result()[0] for future in held] == [200, 200]
        assert server.child.wait(TIMEOUT) == 0
        assert server.errors == []


def test_a_failure_is_one_request_s_and_steers_no_terminal() -> None:
    with planted(max_batch_tokens=1000) as server, ThreadPoolExecutor(4) as clients:
        first = clients.submit(server.ask, "/embed", {"inputs": DELAY})
        under_way(server, 1)
        bad = clients.submit(server.ask, "/embed", {"inputs": FAILURE})
        good = clients.submit(server.ask, "/embed", {"inputs": "good"})
        assert first.result()[0] == good.result()[0] == 200
        status, _, answer = bad.result()
        assert (status, answer) == (500, {"error": "Inference failed", "error_type": "Backend"})
        assert server.ask("/embed", {"inputs": "and now"})[0] == 200
        with connected(server) as client:
            client.sendall(b"\x1b[31m nonsense\r\n\r\n")
            assert status_of(client) == 400
        with connected(server) as client:
            client.sendall(b"GET /%1b[31m%0a HTTP/1.1\r\nHost: a\r\nUpgrade: \x1b\r\nConnection: upgrade\r\n\r\n")
            assert status_of(client) in (400, 404)
    assert [line for line in server.errors if "planted" in line] == [
        "tinyroberta: /embed failed: RuntimeError: planted \\x1b[31m\\nin red\n"
    ]
    assert all(line[:-1].isprintable() for line in server.errors)


def test_an_api_key() -> None:
    with planted(api_key="a key") as server:
        for headers in ({}, {"Authorization": "a key"}, {"Authorization": "Bearer another"}, {"Authorization": "Bearer ä"}):
            status, told, answer = server.ask("/embed", {"inputs": "a"}, **headers)
            assert (status, told["www-authenticate"]) == (401, "Bearer")
            assert "API key" in answer["error"]
        assert server.ask("/info")[0] == server.ask("/metrics")[0] == 401
        assert server.ask("/health")[0] == 200
        assert server.ask("/embed", {"inputs": "a"}, Authorization="Bearer a key")[0] == 200


def test_the_command_says_what_is_wrong() -> None:
    def told(*arguments: str) -> str:
        command = [sys.executable, "-m", "tinyroberta", "serve", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        return done.stderr

    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(taken.getsockname()[1])
        assert told("--port", number) == f"tinyroberta: cannot listen on 127.0.0.1, port {number}: Address already in use\n"
    assert "cannot listen on" in told("--host", "no such host", "--port", "0")
    assert "API key" in told("--port", "0", "--api-key", "")


def test_it_listens_on_loopback_alone_unless_told() -> None:
    with serving("-m", "tinyroberta", "serve", "--port", "0", "--backend", "numpy", TINYROBERTA_API_KEY="secret") as server:
        assert server.ask("/info")[0] == 401
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", server.port), timeout=5)


def test_a_short_soak() -> None:
    embedder = Embedder.from_pretrained()
    if sys.platform != "linux" or embedder.model.backend != "cpu":
        pytest.skip("the soak reads /proc and compares the cpu backend's bits")
    command = [sys.executable, str(Path(__file__).parents[1] / "tools" / "soak.py"), "--minutes", "0.08"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all as it must be" in done.stdout
