"""A server's process for tests, and requests to it."""

import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TIMEOUT = 30.0


class Process:
    """A server that runs, with what it writes on standard error."""

    def __init__(self, *command: str, **environment: str) -> None:
        self.child = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"} | environment,
        )
        self.errors: list[str] = []
        assert self.child.stdout is not None
        assert self.child.stderr is not None
        self.reader = threading.Thread(target=self.errors.extend, args=(self.child.stderr,), daemon=True)
        self.reader.start()
        said = self.child.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", said)
        assert found, (said, "".join(self.errors))
        self.port = int(found[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON (or text) of a request on a connection of its own; a body of bytes goes as it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        with contextlib.closing(connection):
            given = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            method, kind = ("GET", {}) if body is None else ("POST", {"Content-Type": "application/json"})
            connection.request(
                method, path, given, {**kind, **{name.replace("_", "-"): value for name, value in headers.items()}}
            )
            answer = connection.getresponse()
            text = answer.read().decode()
            named = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, named, json.loads(text) if named.get("content-type") == "application/json" else text

    def metric(self, name: str) -> float:
        """A number of /metrics, 0 where it is not there yet."""
        lines = [line for line in self.ask("/metrics")[2].splitlines() if line.startswith(f"{name} ")]
        return float(lines[0].split()[-1]) if lines else 0.0

    def wait_for(self, name: str, value: float) -> None:
        """Wait until a metric has a value."""
        end = time.monotonic() + TIMEOUT
        while self.metric(name) != value:
            assert time.monotonic() < end, f"{name} is {self.metric(name)}, not {value}"
            time.sleep(0.01)


@contextlib.contextmanager
def serving(*command: str, **environment: str) -> Iterator[Process]:
    """A server that ends with the block, by itself and without a word, if it has not ended before."""
    process = Process(*command, **environment)
    try:
        yield process
        process.child.terminate()
        assert process.child.wait(TIMEOUT) == 0
    finally:
        process.child.kill()
        process.child.wait()
        process.reader.join(TIMEOUT)
        for stream in (process.child.stdout, process.child.stderr):
            assert stream is not None
            stream.close()


def planted(**settings: Any) -> Any:
    """tests/planted_server.py with settings."""
    return serving(str(Path(__file__).parent / "planted_server.py"), json.dumps(settings))
