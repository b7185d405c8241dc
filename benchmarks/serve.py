"""Our server of vectors beside every peer server that installs: texts a second, milliseconds, memory, and ten times the capacity.

    python -m benchmarks.serve [--peers NAME[=PYTHON] ...] [--model FOLDER] [--seconds 4] [--rounds 3] [--exports FOLDER] [--save]
    python -m benchmarks.serve --url http://127.0.0.1:8000 [--pid PID]    # one that runs already and speaks /v1/embeddings, alone

The model is that of benchmarks.embed, of base size, unless a folder is named, and so are the sentences, lengths as ragged as
sentences are. A peer is asked for by the start of its name; PYTHON is where it is installed, if not here. Each server is started
once, with its own defaults but where a row below says otherwise, and all CPUs; its vectors are checked first, each text alone:
ours must have the bits of Embedder.encode, and a peer's may be only so far from those. Then loads are interleaved: for 1, 8 and
64 clients that wait for each answer, rounds in which each server has a few seconds in a drawn order while the others are stopped.
Then each server has ten times what was its best, from clients that do not wait (Poisson), and every answer is checked again.
The load comes from the same machine (benchmarks.load), so it takes its share of the CPUs, and says how late it was.

    pip install sentence-transformers starlette 'uvicorn[standard]'    # sentence-transformers behind benchmarks/peer_server.py
    pip install 'infinity-emb[torch,server,optimum]'                   # infinity, of its engines torch and optimum (ONNX Runtime)
"""

import argparse
import base64
import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tinyroberta

from .cpu import apart, exports, machine, resident, save
from .embed import MOST_BF16, sentences, write_folder
from .load import BROKEN, GIVEN_UP, Answer, Load

CLIENTS = (1, 8, 64)
TEXTS = 200
OVERLOAD = 10
REFUSALS = (429, 503)
START_SECONDS = 180
OURS = "tinyroberta"
PACKAGES = ("sentence-transformers", "infinity-emb", "torch", "transformers", "onnxruntime", "starlette", "uvicorn")
Vectors = np.ndarray[Any, np.dtype[Any]]


class Peer(NamedTuple):
    """A server: its command (Python, the model's folder, a port), the packages it needs, how far its vectors may be from ours."""

    command: Callable[[str, Path, int], list[str]]
    needs: tuple[str, ...] = ()
    most: float = 1e-5
    beside: str = OURS
    export: Callable[[str, Path, Path], None] | None = None  # Python, the model's folder, one for what it reads instead


def ours(*more: str) -> Callable[[str, Path, int], list[str]]:
    """Our own server."""
    return lambda python, model, port: [
        python, "-m", "tinyroberta", "serve", "--model", str(model), "--port", str(port), *more
    ]  # fmt: skip


def sentence_transformers(dtype: str) -> Callable[[str, Path, int], list[str]]:
    """sentence-transformers behind Starlette and uvicorn."""
    script = str(Path(__file__).with_name("peer_server.py"))
    return lambda python, model, port: [python, "-I", script, str(model), "--port", str(port), "--dtype", dtype]


def infinity(engine: str, *more: str) -> Callable[[str, Path, int], list[str]]:
    """infinity in its model's folder, where alone its engine optimum finds its file; batches of 8 pad least and were fastest."""
    start = "from infinity_emb.cli import cli; cli()"
    return lambda python, _, port: [
        python, "-I", "-c", start, "v2", "--model-id", ".", "--served-model-name", "model", "--engine", engine, "--device", "cpu",
        "--batch-size", "8", "--no-compile", "--no-bettertransformer", "--no-model-warmup",
        "--host", "127.0.0.1", "--port", str(port), "--url-prefix", "/v1", *more,
    ]  # fmt: skip


def export_onnx(python: str, model: Path, folder: Path) -> None:
    """The model for ONNX Runtime, by the exporter of the peer's own Python."""
    export = [python, "-I", "-m", "optimum.exporters.onnx", "--task", "feature-extraction", "--library-name", "transformers"]
    subprocess.run([*export, "--model", str(model), str(folder)], check=True)
    shutil.copy(model / "config.json", folder)


TORCH, INFINITY = ("sentence-transformers", "torch", "starlette", "uvicorn"), ("infinity-emb", "sentence-transformers", "torch")
SERVERS = {
    OURS: Peer(ours()),
    f"{OURS} medium": Peer(ours("--precision", "medium"), most=MOST_BF16),
    "sentence-transformers": Peer(sentence_transformers("float32"), TORCH),
    "sentence-transformers bf16": Peer(sentence_transformers("bfloat16"), TORCH, MOST_BF16, f"{OURS} medium"),
    "infinity": Peer(infinity("torch", "--dtype", "float32"), INFINITY),
    "infinity bf16": Peer(infinity("torch", "--dtype", "bfloat16"), INFINITY, MOST_BF16, f"{OURS} medium"),
    "infinity onnx": Peer(
        infinity("optimum", "--pooling-method", "mean"), ("infinity-emb", "optimum-onnx", "onnxruntime"), export=export_onnx
    ),
}


# A server that runs


class Running:
    """A server's address and process, and what was found: its own vectors of each text alone, and rounds by number of clients."""

    def __init__(self, address: tuple[str, int], texts: list[str], pid: int | str, most: float) -> None:
        self.pid, self.most = pid, most
        self.load = Load(address, [request(address[0], text) for text in texts], lambda: resident(pid))
        self.alone: dict[int, bytes] = {}
        self.rounds: dict[int, list[dict[str, float]]] = {}

    def best(self) -> float:
        """The most texts a second of its closed loops: medians over rounds."""
        return max(median(rounds)["per_second"] for rounds in self.rounds.values())


def request(host: str, text: str) -> bytes:
    """A POST to /v1/embeddings."""
    body = json.dumps({"model": "model", "input": text, "encoding_format": "base64"}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


def vector(answer: Answer) -> bytes:
    """The vector of an answer, as its bytes in float32."""
    return base64.b64decode(json.loads(answer.body)["data"][0]["embedding"])


def free_port() -> int:
    """A port below those that systems give to clients, since a client that asks one of those too early can connect to itself."""
    for port in range(18000, 19000):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise SystemExit("no port from 18000 to 18999 is free")


@contextmanager
def started(name: str, peer: Peer, python: str, model: Path, folder: Path, texts: list[str]) -> Iterator[Running]:
    """A server of its own, which has answered once; raises RuntimeError where it does not."""
    place = model
    if peer.export is not None:
        place = folder / name.replace(" ", "-")
        if not place.exists():
            print(f"  {peer.export.__name__} for {name} ...", flush=True)
            apart(peer.export, python, model, place.with_suffix(".part"), log=folder / f"{place.name}.log")
            place.with_suffix(".part").rename(place)
    port = free_port()
    log = folder / f"{name.replace(' ', '-')}-server.log"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "true"}
    command = peer.command(python, model, port)
    with log.open("w") as told:
        child = subprocess.Popen(command, stdout=told, stderr=told, cwd=place, env=environment, start_new_session=True)
    try:
        running = Running(("127.0.0.1", port), texts, child.pid, peer.most)
        end = time.monotonic() + START_SECONDS
        while running.load.closed(1, 0.0)[0].status != 200:
            if child.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"it does not answer: {log.read_text()[-300:]}")
            time.sleep(0.2)
        yield running
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGCONT)
            os.killpg(child.pid, signal.SIGTERM)
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


@contextmanager
def awake(running: Running) -> Iterator[Load]:
    """A server that is stopped but for now, so that it takes no CPU from another; one that we have not started just runs."""
    if isinstance(running.pid, int):
        os.killpg(running.pid, signal.SIGCONT)
    yield running.load
    if isinstance(running.pid, int):
        os.killpg(running.pid, signal.SIGSTOP)


def missing(python: str, peer: Peer) -> list[str]:
    """The packages that a server needs and that a Python lacks."""
    return [name for name in peer.needs if name not in versions(python, peer.needs)]


def versions(python: str, packages: tuple[str, ...]) -> dict[str, str]:
    """Those of the packages that a Python has."""
    code = (
        "import importlib.metadata as m, json, sys\n"
        "here = {d.metadata['Name'].lower().replace('_', '-'): d.version for d in m.distributions()}\n"
        "print(json.dumps({name: here[name] for name in sys.argv[1:] if name in here}))"
    )
    return dict(json.loads(subprocess.run([python, "-I", "-c", code, *packages], check=True, capture_output=True).stdout))


# What came of a load


def median(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Each figure's median over rounds."""
    return {name: float(np.median([each[name] for each in rounds])) for name in rounds[0]}


def milliseconds(seconds: list[float], name: str) -> dict[str, float]:
    """The median, the 99th percentile and the greatest."""
    marks = np.quantile(seconds, (0.5, 0.99, 1.0)) if seconds else np.full(3, np.nan)
    return {f"{name}{mark}": 1e3 * float(x) for mark, x in zip(("p50", "p99", "max"), marks, strict=True)}


def waited(answers: list[Answer]) -> list[float]:
    return [answer.arrived - answer.sent for answer in answers]


def closed_figures(answers: list[Answer], memory: float) -> dict[str, float]:
    """Of a closed loop: it is full from its first sending to its last answer."""
    seconds = max(answer.arrived for answer in answers) - min(answer.sent for answer in answers)
    late = milliseconds([answer.handled - answer.arrived for answer in answers], "client_")
    return {"per_second": len(answers) / seconds, "resident": memory} | milliseconds(waited(answers), "") | late


def wrong(answers: list[Answer], running: Running, expected: Vectors | None) -> tuple[int, int]:
    """How many vectors are not right, and how many have other bits than the text had alone; ours are right in their bits."""
    off = other = 0
    for answer in answers:
        found = vector(answer)
        differs = found != running.alone.setdefault(answer.number, found)
        other += differs
        if running.most and expected is not None:
            right = expected[answer.number]
            given = np.frombuffer(found, "<f4")
            off += not (given.shape == right.shape and np.linalg.norm(given - right) <= running.most * np.linalg.norm(right))
        else:
            off += differs
    return off, other


def alone(running: Running, expected: Vectors | None) -> float:
    """Check each text alone; how far its vectors are from ours, at most. Raises RuntimeError where they are further."""
    with awake(running) as load:
        answers = load.closed(1, float("inf"), requests=len(load.requests))
    statuses = Counter(answer.status for answer in answers)
    if set(statuses) != {200}:
        raise RuntimeError(f"it answered with statuses {dict(statuses)}")
    running.alone = {answer.number: vector(answer) for answer in answers}
    if expected is None:
        return float("nan")
    found = np.array([np.frombuffer(running.alone[number], "<f4") for number in range(len(expected))])
    if found.shape != expected.shape:
        raise RuntimeError(f"its vectors are {found.shape[1]} numbers long, and ours {expected.shape[1]}")
    far = float((np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())
    if not far <= running.most:
        raise RuntimeError(f"its vectors are off by {far:.1e}, more than {running.most:.0e}")
    return far


def closed_round(name: str, running: Running, clients: int, seconds: float, first: int, expected: Vectors | None) -> None:
    """One round of a server, checked."""
    with awake(running) as load:
        answers = load.closed(clients, seconds, first)
    statuses = Counter(answer.status for answer in answers)
    if set(statuses) != {200}:
        raise SystemExit(f"{name} answered {clients} clients with statuses {dict(statuses)}: nothing can be compared")
    off, other = wrong(answers, running, expected)
    if off:
        raise SystemExit(f"{off} of {len(answers)} vectors of {name} are wrong at {clients} clients: nothing can be compared")
    running.rounds.setdefault(clients, []).append(
        closed_figures(answers, load.most) | {"other_bits": other / len(answers)},
    )


def overload(running: Running, seconds: float, expected: Vectors | None) -> dict[str, float]:
    """Ten times what was the server's best, from clients that do not wait."""
    rate = OVERLOAD * running.best()
    with awake(running) as load:
        answers = load.open(rate, seconds)
        late = milliseconds(load.late, "client_sends_late_")
    by_status = Counter(answer.status for answer in answers)
    good = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status in REFUSALS]
    off, other = wrong(good, running, expected)
    took = max((answer.arrived for answer in good), default=float("nan")) - min(answer.sent for answer in answers)
    handled = milliseconds([a.handled - a.arrived for a in answers if a.status > 0], "client_reads_late_")
    return {
        "rate": rate,
        "sent": len(answers),
        "answered": len(good),
        "wrong": off,
        "other_bits": other / len(good) if good else float("nan"),
        "answered_per_second": len(good) / took,
        "refused": len(refused),
        "given_up": by_status[GIVEN_UP],
        "broken": by_status[BROKEN],
        "failed": len(answers) - len(good) - len(refused) - by_status[GIVEN_UP] - by_status[BROKEN],
        "resident": load.most,
        **milliseconds(waited(good), "answer_"),
        **milliseconds(waited(refused), "refusal_"),
        **late,
        **handled,
    }


def ratios(of: list[dict[str, float]], beside: list[dict[str, float]]) -> dict[str, float]:
    """How many times as good the other is: medians over rounds of ratios of throughput, p50 and p99."""
    pairs = list(zip(of, beside, strict=True))
    return {
        "throughput": float(np.median([b["per_second"] / a["per_second"] for a, b in pairs])),
        "p50": float(np.median([a["p50"] / b["p50"] for a, b in pairs])),
        "p99": float(np.median([a["p99"] / b["p99"] for a, b in pairs])),
    }


def row(*cells: Any) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def number(x: float) -> str:
    """A figure of three digits."""
    return "-" if np.isnan(x) else f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def compare(servers: dict[str, Running], seconds: float, rounds: int, expected: Vectors | None) -> dict[str, Any]:
    """Every load; prints two tables and gives what they say."""
    random = np.random.default_rng(0)
    for clients in CLIENTS:
        for turn in range(rounds):
            for name in random.permutation(list(servers)).tolist():
                closed_round(name, servers[name], clients, seconds, turn * 61, expected)
            print(f"  {clients} clients, round {turn + 1} of {rounds}", flush=True)
    found: dict[str, Any] = {name: {} for name in servers}
    print()
    print(row("server", "clients", "texts a second", "p50 ms", "p99 ms", "MiB", "ours is better by: throughput, p50, p99"))
    print(row(*["---"] * 7))
    for name, running in servers.items():
        for clients, each in running.rounds.items():
            entry = found[name][f"{clients} clients"] = dict(median(each), rounds=len(each))
            beside = SERVERS[name].beside if name in SERVERS else name
            told = "-"
            if beside in servers and not name.startswith(OURS):
                entry["ours"] = ratios(each, servers[beside].rounds[clients]) | {"beside": beside}
                told = ", ".join(f"{entry['ours'][what]:.2f}" for what in ("throughput", "p50", "p99"))
            figures = [number(entry[what]) for what in ("per_second", "p50", "p99", "resident")]
            print(row(name, clients, *figures, told), flush=True)
    print(f"\n{OVERLOAD} times the capacity, {seconds:g} s:\n")
    heads = ("server", "sent a second", "answered, right", "a second", "p50, p99 ms", "refused", "p50, p99, max ms")
    print(row(*heads, "given up", "MiB", "client late, p99 ms"))
    print(row(*["---"] * 10))
    for name, running in servers.items():
        entry = found[name]["overload"] = overload(running, seconds, expected)
        marks = {
            what: ", ".join(number(entry[f"{what}_{mark}"]) for mark in some.split())
            for what, some in (("answer", "p50 p99"), ("refusal", "p50 p99 max"))
        }
        told = f"{entry['answered']}, {'all' if not entry['wrong'] else entry['answered'] - entry['wrong']}"
        lost = entry["given_up"] + entry["broken"] + entry["failed"]
        late = f"{number(entry['client_sends_late_p99'])}, {number(entry['client_reads_late_p99'])}"
        print(
            row(
                name, number(entry["rate"]), told, number(entry["answered_per_second"]), marks["answer"],
                entry["refused"], marks["refusal"], lost, number(entry["resident"]), late,
            ),
            flush=True,
        )  # fmt: skip
        if isinstance(running.pid, int):
            os.killpg(running.pid, signal.SIGKILL)  # what still waits there has nobody to wait for it
    return found


def chosen(wanted: list[str] | None) -> dict[str, str]:
    """Servers and the Python of each: ours, and the peers asked for (all that are installed: None)."""
    here = {name: sys.executable for name in SERVERS if name.startswith(OURS)}
    for asked in [""] if wanted is None else wanted:
        start, _, python = asked.partition("=")
        for name, peer in SERVERS.items():
            if name.startswith(start) and not name.startswith(OURS):
                if lacking := missing(python or sys.executable, peer):
                    print(f"{name}: left out, {', '.join(lacking)} not installed")
                else:
                    here[name] = python or sys.executable
    return here


def run(pythons: dict[str, str], model: Path, folder: Path, seconds: float, rounds: int) -> dict[str, Any]:
    """Start and check every server, then compare those that are right."""
    texts = sentences(TEXTS)
    expected = tinyroberta.Embedder.from_pretrained(model).encode(texts, normalize=True)
    with ExitStack() as stack:
        servers: dict[str, Running] = {}
        for name, python in pythons.items():
            try:
                running = stack.enter_context(started(name, SERVERS[name], python, model, folder, texts))
                if name == OURS:
                    running.most = 0.0
                far = alone(running, expected)
            except RuntimeError as problem:
                if name.startswith(OURS):
                    raise SystemExit(f"{name}: {problem}") from None
                print(f"  {name}: left out, {problem}", flush=True)
                continue
            told = "have the bits of Embedder.encode" if name == OURS else f"are off by {far:.1e}, at most {running.most:.0e}"
            print(f"  {name}: {len(texts)} vectors, each text alone, {told}", flush=True)
            servers[name] = running
        return compare(servers, seconds, rounds, expected)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="*", metavar="NAME[=PYTHON]", help="starts of peers' names (all, installed here)")
    parser.add_argument("--model", type=Path, help="a sentence-transformers folder (one of base size, with drawn weights)")
    parser.add_argument("--url", help="a server that runs already, measured alone")
    parser.add_argument("--pid", default="none", help="its process, for its memory")
    parser.add_argument("--seconds", type=float, default=4.0, help="of every server in a round, and of the overload (4)")
    parser.add_argument("--rounds", type=int, default=3, help="for each number of clients (3)")
    parser.add_argument("--exports", type=Path, help="a folder that keeps the model and exported files from run to run")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection for each request under way, here and in the servers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers, stopped as they are, are to end too
    about = machine()
    print(f"{about['cpu']}, {about['cpus']} CPUs", *about["path"], sep="\n  ", flush=True)
    if options.url:
        parts = urllib.parse.urlsplit(options.url)
        running = Running((parts.hostname or "127.0.0.1", parts.port or 80), sentences(TEXTS), options.pid, MOST_BF16)
        alone(running, None)
        found = compare({options.url: running}, options.seconds, options.rounds, None)
    else:
        pythons = chosen(options.peers)
        about["servers"] = {name: versions(python, PACKAGES) for name, python in pythons.items() if not name.startswith(OURS)}
        with exports(options.exports, "serve") as folder:
            if options.model is None:
                write_folder(folder)
            model = (options.model or folder / "model").resolve()
            found = run(pythons, model, folder, options.seconds, options.rounds)
    if options.save:
        settings = {"model": options.model.name if options.model else "base", "seconds": options.seconds, "texts": TEXTS}
        save(about | settings | {"loads": found}, "serve")


if __name__ == "__main__":
    main()
