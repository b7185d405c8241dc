"""A server of vectors under load: texts a second, milliseconds and memory at 1, 8 and 64 clients, and at ten times the capacity.

    python -m benchmarks.serve [--model FOLDER] [--seconds 10] [--save]     # our own server, on loopback
    python -m benchmarks.serve --url http://127.0.0.1:8000 [--pid PID]          # any that speaks /v1/embeddings, as it runs

The model is that of benchmarks.embed, of base size, unless a folder is named. The sentences are its too: lengths as ragged as
sentences are. Closed loop: each client sends a text, reads its vector and sends the next. Open loop: requests come at their own
times (Poisson), ten times as many as the closed loop reached, and nobody waits for them. Vectors are checked first and all along:
every answer to a text must have the bits of the first one, which for our own server are those of Embedder.encode. The load comes
from the same machine, so it takes its share of the CPUs. To compare two servers, start both with as many threads and run this
with each --url in turn.
"""

import argparse
import asyncio
import base64
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import tinyroberta

from .cpu import machine, resident, save
from .embed import sentences, write_folder

CLIENTS = (1, 8, 64)
TEXTS = 500
OVERLOAD = 10


class Load:
    """Requests to a server, their times in seconds by status, and whether every text's vector is always the same."""

    def __init__(self, url: str, texts: list[str]) -> None:
        parts = urllib.parse.urlsplit(url)
        self.host, self.port, self.texts = parts.hostname or "127.0.0.1", parts.port or 80, texts
        self.vectors: dict[int, bytes] = {}
        self.times: dict[int, list[float]] = {}

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.host, self.port)

    async def ask(self, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], number: int) -> None:
        """One text on a connection."""
        reader, writer = streams
        body = json.dumps({"model": "any", "input": self.texts[number], "encoding_format": "base64"}).encode()
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\n"
        start = time.perf_counter()
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        status, length = int(answer.split()[1]), re.search(r"content-length: (\d+)", answer)
        assert length, "the answer has no Content-Length"
        content = await reader.readexactly(int(length[1]))
        self.times.setdefault(status, []).append(time.perf_counter() - start)
        if status == 200:
            vector = base64.b64decode(json.loads(content)["data"][0]["embedding"])
            assert self.vectors.setdefault(number, vector) == vector, f"text {number} has other bits than before"

    async def closed(self, clients: int, seconds: float) -> None:
        """Clients that wait for each answer."""
        end = time.perf_counter() + seconds

        async def client(first: int) -> None:
            streams = await self.connect()
            number = first
            while time.perf_counter() < end:
                await self.ask(streams, number % len(self.texts))
                number += clients
            streams[1].close()

        await asyncio.gather(*map(client, range(clients)))

    async def open(self, rate: float, seconds: float) -> None:
        """Requests at so many a second, each on a connection that is free."""
        random, free, tasks = np.random.default_rng(0), [], []

        async def one(number: int) -> None:
            streams = free.pop() if free else await self.connect()
            await self.ask(streams, number)
            free.append(streams)

        start, at = time.perf_counter(), 0.0
        while at < seconds:
            await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
            tasks.append(asyncio.create_task(one(len(tasks) % len(self.texts))))
            at += random.exponential(1 / rate)
        await asyncio.gather(*tasks)
        for _, writer in free:
            writer.close()


def figures(times: list[float], seconds: float) -> dict[str, float]:
    """How many a second, and milliseconds: the median and the 99th percentile."""
    p50, p99 = (1000 * np.quantile(times, q) for q in (0.5, 0.99)) if times else (float("nan"),) * 2
    return {"per_second": len(times) / seconds, "p50": float(p50), "p99": float(p99)}


@contextmanager
def our_server(model: str) -> Any:
    """Our own server on a free port: (its URL, its process's number)."""
    command = [sys.executable, "-m", "tinyroberta", "serve", "--port", "0", "--model", model]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            yield child.stdout.readline().split()[-1], child.pid
        finally:
            child.terminate()


def measure(url: str, pid: int | str, seconds: float, expected: Any = None) -> dict[str, Any]:
    """Every load in turn; prints and gives what was measured."""
    load, found = Load(url, sentences(TEXTS)), {}
    asyncio.run(load.closed(4, 2.0))
    if expected is not None:
        wrong = sum(expected[number].astype("<f4").tobytes() != vector for number, vector in load.vectors.items())
        assert not wrong, f"{wrong} of {len(load.vectors)} vectors have other bits than Embedder.encode's"
        print(f"{len(load.vectors)} vectors have the bits of Embedder.encode", flush=True)
    print("                          a second     p50 ms     p99 ms  MiB resident")
    for clients in CLIENTS:
        load.times.clear()
        asyncio.run(load.closed(clients, seconds))
        assert set(load.times) == {200}, {status: len(times) for status, times in load.times.items()}
        row = found[f"{clients} clients"] = figures(load.times[200], seconds) | {"resident": resident(pid)}
        print(
            f"{clients:3} clients           {row['per_second']:11.1f}{row['p50']:11.1f}{row['p99']:11.1f}{row['resident']:14.0f}"
        )
    rate = OVERLOAD * max(row["per_second"] for row in found.values())
    load.times.clear()
    asyncio.run(load.open(rate, seconds))
    for status in sorted(load.times):
        row = found[f"overload, {status}"] = figures(load.times[status], seconds) | {"resident": resident(pid)}
        name = f"{rate:.0f} a second: {status}"
        print(f"{name:22}{row['per_second']:11.1f}{row['p50']:11.1f}{row['p99']:11.1f}{row['resident']:14.0f}", flush=True)
    print(f"statuses at {OVERLOAD} times the capacity: {dict(Counter({s: len(t) for s, t in load.times.items()}))}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder or repository for our own server (one of base size, with drawn weights)")
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--pid", default="none", help="its process, for its memory")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load (10)")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results")
    options = parser.parse_args()
    about = machine()
    if options.url:
        found = measure(options.url, options.pid, options.seconds)
    else:
        with tempfile.TemporaryDirectory() as made:
            if not options.model:
                write_folder(Path(made))
            model = options.model or f"{made}/model"
            expected = tinyroberta.Embedder.from_pretrained(model).encode(sentences(TEXTS), normalize=True)
            with our_server(model) as (url, pid):
                found = measure(url, pid, options.seconds, expected)
    if options.save:
        save(about | {"model": Path(options.model).name if options.model else "base", "loads": found}, "serve")


if __name__ == "__main__":
    main()
