"""A server under mixed good and bad requests for minutes: every answer's bits and status checked, its memory watched.

    python tools/soak.py --minutes 30 [--model PATH_OR_REPO] [--rate 20] [--seed N]

The vectors that answers must have, to the bit, are those that `tinyroberta embed` writes for the same texts before the server
starts, both on the cpu backend, whose bits no batch changes. What the command line does not give (every token's states, tokens,
similarities) must be the same whenever it is asked for.
Bad requests of every kind must get their status; any request may get 429 while a burst is on. The server must end on SIGTERM with
exit status 0, with nothing under way, no connection left, and no word on standard error but of HTTP that was none. In a run of 4
minutes or more its memory, as a line fitted to the second half of the samples says, must not grow by more than 16 MiB. Exit
status 1 where anything was off. Linux; needs the extras text and serve.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np

from tinyroberta.tasks.embed import normalized

KEY = "a key of the soak"
TEXTS, LONG = 300, 4  # texts; how many of them are longer than the model reads
SLOTS, BURST = 32, 120  # requests under way at once, and requests of a burst
BODY_SECONDS, HEAD_SECONDS = 3, 10  # the server's limits for slow clients
PATIENCE = 60.0  # seconds for any answer
MOST_GROWTH = 16.0  # MiB in the second half
EXPECTED_ERRORS = {"tinyroberta: Invalid HTTP request received."}
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def drawn_texts(chance: random.Random) -> list[str]:
    """Texts of a natural mix of lengths, the last ones longer than the model reads."""
    words = re.findall("[a-z]+", Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8"))
    lengths = [min(60, 1 + int(chance.lognormvariate(2.6, 0.8))) for _ in range(TEXTS - LONG)] + [3000] * LONG
    return [" ".join(chance.choices(words, k=length)) for length in lengths]


def command_line(texts: list[str], model: list[str]) -> Any:  # (TEXTS, D) float32
    """The vectors that the command line gives."""
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder, "texts.jsonl"), Path(folder, "vectors.npy")
        given.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        command = [sys.executable, "-m", "tinyroberta", "embed", str(given), "--field", "text", "--out", str(out)]
        subprocess.run([*command, "--long", "truncate", *model], check=True, stdout=subprocess.DEVNULL)
        return np.load(out).astype("<f4")


def about(pid: int) -> tuple[float, int, int]:
    """A process's resident memory in MiB, its open file descriptors and its threads."""
    status = Path(f"/proc/{pid}/status").read_text()
    numbers = {name: int(value) for name, value in re.findall(r"(VmRSS|Threads):\s+(\d+)", status)}
    return numbers["VmRSS"] / 1024, len(os.listdir(f"/proc/{pid}/fd")), numbers["Threads"]  # noqa: PTH208 - counted, not read


class Soak:
    """The clients, and what they found."""

    def __init__(self, port: int, texts: list[str], vectors: Any, chance: random.Random) -> None:
        self.port, self.texts, self.vectors, self.chance = port, texts, vectors, chance
        self.unit = normalized(vectors)  # as /v1/embeddings gives them
        self.plain = not np.allclose(vectors, self.unit, atol=1e-3)  # /embed has no Normalize to leave out
        self.counts: Counter[str] = Counter()
        self.off: list[str] = []
        self.seen: dict[bytes, bytes] = {}
        self.ids: dict[int, list[int]] = {}
        self.refused: list[float] = []  # seconds to each 429

    # One request

    def head(self, path: str, length: int, method: str = "POST", key: str = KEY, kind: str = "application/json") -> bytes:
        said = {
            "Host": "a",
            "Authorization": f"Bearer {key}",
            "Content-Type": kind,
            "Content-Length": length,
            "Connection": "close",
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in said.items())
        return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode()

    async def connect(self) -> Streams:
        return await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 26)

    async def answer(self, reader: asyncio.StreamReader) -> tuple[int, bytes]:
        """An answer's status, 0 where the connection ends without one, and its body."""
        try:
            whole = await asyncio.wait_for(reader.read(-1), PATIENCE)
        except ConnectionError:
            return 0, b""
        head, _, body = whole.partition(b"\r\n\r\n")
        return (int(head.split()[1]) if head else 0), body

    async def send(self, data: bytes) -> tuple[int, bytes]:
        """The answer to bytes on a connection of their own."""
        streams = await self.connect()
        start = time.perf_counter()
        try:
            streams[1].write(data)
            status, body = await self.answer(streams[0])
        finally:
            streams[1].close()
        if status == 429:
            self.refused.append(time.perf_counter() - start)
        return status, body

    async def post(self, path: str, body: Any, **how: Any) -> tuple[int, bytes]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.send(self.head(path, len(data), **how) + data)

    def tell(self, what: str, status: int, good: bool = True) -> None:
        """Count an answer, and keep what is off about it."""
        self.counts[f"{what}: {status}"] += 1
        if not good:
            self.off.append(f"{what}: status {status}, or other bits than it must have")

    def check(self, what: str, status: int, right: Callable[[], bool]) -> None:
        """A good request's answer: 200 and right, or refused by 429."""
        self.tell(what, status, status == 429 or (status == 200 and right()))

    # Good requests

    def some(self, most: int = 64) -> list[int]:
        return self.chance.sample(range(TEXTS - LONG), min(most, 1 + int(self.chance.expovariate(0.15))))

    def form(self) -> tuple[bool, Any]:
        """Whether to ask for vectors of length 1, and the vectors that must come."""
        normalize = not self.plain or self.chance.random() < 0.5
        return normalize, self.unit if normalize else self.vectors

    async def embed(self) -> None:
        numbers, path, (normalize, vectors) = self.some(), self.chance.choice(("/embed", "/")), self.form()
        status, body = await self.post(path, {"inputs": [self.texts[n] for n in numbers], "normalize": normalize})
        self.check(path, status, lambda: np.array_equal(np.array(json.loads(body), "<f4"), vectors[numbers]))

    async def truncated(self) -> None:
        number, (normalize, vectors) = self.chance.randrange(TEXTS - LONG, TEXTS), self.form()
        status, body = await self.post("/embed", {"inputs": self.texts[number], "normalize": normalize, "truncate": True})
        self.check("truncate", status, lambda: np.array_equal(np.array(json.loads(body)[0], "<f4"), vectors[number]))

    async def by_ids(self) -> None:
        number = self.some()[0]
        if number not in self.ids:
            status, body = await self.post("/tokenize", {"inputs": self.texts[number]})
            self.check("/tokenize", status, lambda: True)
            if status == 200:
                self.ids[number] = [token["id"] for token in json.loads(body)[0]]
            return
        normalize, vectors = self.form()
        status, body = await self.post("/embed", {"inputs": [self.ids[number]], "normalize": normalize})
        self.check("ids", status, lambda: np.array_equal(np.array(json.loads(body)[0], "<f4"), vectors[number]))

    async def openai(self) -> None:
        numbers, form = self.some(), self.chance.choice(("float", "base64"))
        inputs = [self.texts[n] for n in numbers]
        status, body = await self.post("/v1/embeddings", {"model": "any", "input": inputs, "encoding_format": form})

        def right() -> bool:
            rows = [entry["embedding"] for entry in json.loads(body)["data"]]
            found = [np.frombuffer(base64.b64decode(row), "<f4") if form == "base64" else np.array(row, "<f4") for row in rows]
            return np.array_equal(np.stack(found), self.unit[numbers])

        self.check(f"/v1/embeddings {form}", status, right)

    async def same(self) -> None:
        """What the command line does not give: the same answer each time."""
        first, *others = self.chance.choices(range(20), k=3)
        text, more = self.texts[first], [self.texts[n] for n in others]
        path, body = self.chance.choice(
            (
                ("/embed_all", {"inputs": text}),
                ("/tokenize", {"inputs": [text, *more]}),
                ("/similarity", {"inputs": {"source_sentence": text, "sentences": more}}),
                ("/decode", {"ids": [0, 100 + first, 2]}),
            )
        )
        status, found = await self.post(path, body)
        asked = path.encode() + json.dumps(body).encode()
        self.check(path, status, lambda: self.seen.setdefault(asked, found) == found)

    async def gets(self) -> None:
        path = self.chance.choice(("/", "/health", "/info", "/metrics", "/v1/models"))
        status, _ = await self.send(self.head(path, 0, "GET"))
        self.tell(f"GET {path}", status, status == 200)

    # Bad ones

    async def refusals(self) -> None:
        """Every request that has a status of its own."""
        what, path, body, how, wanted = self.chance.choice(
            (
                ("no JSON", "/embed", b"{", {}, 400),
                ("no object", "/embed", [], {}, 422),
                ("an empty text", "/embed", {"inputs": ""}, {}, 400),
                ("half a surrogate", "/embed", b'{"inputs": "\\ud800"}', {}, 422),
                ("a number", "/v1/embeddings", {"input": 3}, {}, 422),
                ("an unknown prompt", "/embed", {"inputs": "a", "prompt_name": "no such"}, {}, 422),
                ("a text too long", "/embed", {"inputs": self.texts[-1]}, {}, 413),
                ("10 MB", "/embed", b'{"inputs": "' + b"a" * 10_000_000 + b'"}', {}, 413),
                ("too many texts", "/embed", {"inputs": ["a"] * 3000}, {}, 413),
                ("no application/json", "/embed", {"inputs": "a"}, {"kind": "text/plain"}, 415),
                ("a wrong key", "/embed", {"inputs": "a"}, {"key": "wrong"}, 401),
                ("no such route", "/nonsense", {"inputs": "a"}, {}, 404),
                ("a wrong method", "/embed", {"inputs": "a"}, {"method": "PUT"}, 405),
                ("no reranker", "/rerank", {"query": "a", "texts": ["b"]}, {}, 424),
                ("no classifier", "/predict", {"inputs": "a"}, {}, 424),
            )
        )
        status, _ = await self.post(path, body, **how)
        self.tell(what, status, status in (wanted, 429))

    async def no_http(self) -> None:
        status, _ = await self.send(b"\x1b[31m nonsense\r\n\r\n")
        self.tell("no HTTP", status, status == 400)

    async def slow(self) -> None:
        """Half a head, or half a body."""
        what, data, wanted = self.chance.choice(
            (("half a head", b"POST /embed HTTP/1.1\r\nHost:", (0,)), ("half a body", self.head("/embed", 99) + b"{", (408, 429)))
        )
        start = time.perf_counter()
        status, _ = await self.send(data)
        self.tell(what, status, status in wanted and time.perf_counter() - start < HEAD_SECONDS + 15)

    async def reads_not(self) -> None:
        """A long answer that nobody reads: the server drops the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 12)
        try:
            data = json.dumps({"inputs": [self.texts[0]] * 64}).encode()
            writer.write(self.head("/embed_all", len(data)) + data)
            await asyncio.sleep(HEAD_SECONDS + 5)
            self.tell("reads nothing", 0)
        finally:
            writer.transport.abort()
            del reader

    async def goes_away(self) -> None:
        """Before an answer, or in the middle of it."""
        reader, writer = await self.connect()
        data = json.dumps({"inputs": [self.texts[n] for n in self.some()]}).encode()
        writer.write((self.head("/embed", len(data)) + data)[: self.chance.choice((None, -5))])
        if self.chance.random() < 0.5:
            with contextlib.suppress(TimeoutError, ConnectionError):
                await asyncio.wait_for(reader.read(100), 5)
        else:
            await asyncio.sleep(self.chance.random() * 0.05)
        writer.transport.abort()
        self.tell("goes away", 0)

    async def burst(self) -> None:
        await asyncio.gather(*(self.embed() for _ in range(BURST)))
        self.counts["bursts"] += 1

    # All of them

    async def run(self, seconds: float, rate: float, sample: Callable[[], None]) -> None:
        """So many requests a second, at their own times, for so long."""
        weights: dict[Callable[[], Coroutine[Any, Any, None]], float] = {
            self.embed: 8, self.truncated: 0.5, self.by_ids: 3, self.openai: 6, self.same: 4, self.gets: 2,
            self.refusals: 6, self.no_http: 0.5, self.slow: 0.5, self.reads_not: 0.2, self.goes_away: 1, self.burst: 0.05,
        }  # fmt: skip
        tasks: set[asyncio.Task[None]] = set()

        async def one(kind: Callable[[], Coroutine[Any, Any, None]]) -> None:
            try:
                await kind()
            except Exception as error:
                self.off.append(f"{kind.__name__}: {type(error).__name__}: {error}")

        start, sampled, at = time.monotonic(), 0.0, 0.0
        while at < seconds:
            await asyncio.sleep(max(0.0, start + at - time.monotonic()))
            kind = self.chance.choices(list(weights), list(weights.values()))[0]
            task = asyncio.create_task(one(kind))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            if at >= sampled:
                sample()
                sampled = at + min(5.0, seconds / 20)
            at += self.chance.expovariate(rate)
        await asyncio.wait_for(asyncio.gather(*tasks), 2 * PATIENCE)
        await one(self.burst)

    async def settled(self) -> bool:
        """Whether nothing is under way any more, within seconds."""
        for _ in range(100):
            _, page = await self.send(self.head("/metrics", 0, "GET"))
            if b"\nte_requests_under_way 0\n" in page and b"\nte_queue_tokens 0\n" in page:
                return True
            await asyncio.sleep(0.1)
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (30)")
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second beside bursts (20)")
    parser.add_argument("--model", help="a checkpoint that gives vectors (the embedded model)")
    parser.add_argument("--seed", type=int, default=None, help="of all that is drawn (drawn, and printed)")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"--seed {seed}", flush=True)
    chance, model = random.Random(seed), ["--backend", "cpu", *(["--model", options.model] if options.model else [])]
    texts = drawn_texts(chance)
    vectors = command_line(texts, model)
    command = [sys.executable, "-m", "tinyroberta", "serve", "--port", "0", *model]
    command += ["--max-concurrent-requests", str(SLOTS), "--body-seconds", str(BODY_SECONDS)]
    environment = os.environ | {"TINYROBERTA_API_KEY": KEY}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as child:
        try:
            assert child.stdout is not None
            assert child.stderr is not None
            said: list[str] = []
            reader = threading.Thread(target=said.extend, args=(child.stderr,), daemon=True)
            reader.start()
            soak = Soak(int(child.stdout.readline().rsplit(":", 1)[1]), texts, vectors, chance)
            samples: list[tuple[float, float, int, int]] = []
            assert asyncio.run(soak.settled())  # so that its loop's own descriptors are there
            time.sleep(0.5)
            start, descriptors = time.monotonic(), about(child.pid)[1]

            def sample() -> None:
                samples.append((time.monotonic() - start, *about(child.pid)))
                if len(samples) % 12 == 1:
                    print("{:7.0f} s {:7.1f} MiB {:5} descriptors {:4} threads".format(*samples[-1]), flush=True)

            asyncio.run(soak.run(60 * options.minutes, options.rate, sample))
            if not asyncio.run(soak.settled()):
                soak.off.append("requests are still under way")
            for _ in range(HEAD_SECONDS + 5):  # what is written to nobody has its time to be read
                if about(child.pid)[1] > descriptors:
                    time.sleep(1)
            if about(child.pid)[1] > descriptors:
                soak.off.append(f"{about(child.pid)[1]} file descriptors are open; {descriptors} were at the start")
            child.send_signal(signal.SIGTERM)
            if child.wait(PATIENCE) != 0:
                soak.off.append(f"the exit status is {child.returncode}")
            reader.join(PATIENCE)
        finally:
            child.kill()
    soak.off += [f"on standard error: {line.rstrip()}" for line in said if line.rstrip() not in EXPECTED_ERRORS]
    for what, count in sorted(soak.counts.items()):
        print(f"{what:32}{count:9}")
    if soak.refused:
        p50, p99, most = (1000 * np.quantile(soak.refused, q) for q in (0.5, 0.99, 1.0))
        print(f"milliseconds to a 429, this client's own among them: p50 {p50:.1f}, p99 {p99:.1f}, most {most:.1f}")
    half = np.array(samples[len(samples) // 2 :])
    if len(half) > 1:
        slope = np.polyfit(half[:, 0], half[:, 1], 1)[0]
        growth = slope * (half[-1, 0] - half[0, 0])
        print(f"memory: {half[-1, 1]:.1f} MiB, {60 * slope:+.2f} MiB a minute over the second half")
        if options.minutes >= 4 and growth > MOST_GROWTH:
            soak.off.append(f"memory grew by {growth:.0f} MiB in the second half")
    for told, count in Counter(soak.off).most_common(20):
        print(f"OFF, {count} times: {told}")
    print("all as it must be" if not soak.off else f"{len(soak.off)} things were off")
    return 1 if soak.off else 0


if __name__ == "__main__":
    sys.exit(main())
