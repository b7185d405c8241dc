"""The CPU backend beside its peers, those that are installed: every answer checked against float64 first, then timed.

    python -m benchmarks.cpu [--large] [--work 1x16 1x128 ...] [--seconds 20] [--threads 2] [--peers torch openvino ...] [--save]

The model is RoBERTa-PreLayerNorm base (or large), weights drawn with a seed: query weights times 3 so that attention is not
near-uniform, every bias and norm gain random. `ragged` is 32 texts of 8 to 256 tokens; a peer gets them in one padded batch or in
four sorted buckets, whichever is faster for it. Every run is a process of its own with its stack's own defaults; rounds are
interleaved in a drawn order, so that a noisy machine is noisy for all, and the next run starts when the last one's threads have
stopped spinning. A ratio is the median over rounds of run / ours, ours being the row of the same class; above 1 ours is faster.
int8 peers have no class of ours: they are shown beside medium. What takes long to export is kept with --exports FOLDER.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import tinyroberta

from .peers import KINDS, STACKS, Array, Batches, write_model

RESULTS = Path(__file__).with_name("results")
SIZES = {"base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096)}
WORK = ("1x16", "1x128", "1x512", "8x128", "ragged")
BUCKETS = 4
BUSY = 0.7  # load average before anything is timed
PACKAGES = ("numpy", "numba", "torch", "transformers", "onnxruntime", "openvino", "nncf", "ctranslate2")
Times = dict[str, list[float]]


def model_tensors(
    size: str, layers: int | None = None, positions: int = 514
) -> tuple[tinyroberta.RobertaPreLayerNormConfig, dict[str, Array]]:
    """A configuration and weights that hide nothing."""
    width, usual_layers, heads, inner = SIZES[size]
    config = tinyroberta.RobertaPreLayerNormConfig(
        vocab_size=5000,
        hidden_size=width,
        num_hidden_layers=layers or usual_layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=positions,
        type_vocab_size=1,
    )
    random = np.random.default_rng(0)
    tensors = dict(tinyroberta.RobertaPreLayerNormModel(config, seed=0).tensors)
    for name, x in tensors.items():
        gain = name.endswith("weight") and x.ndim == 1
        if gain or name.endswith("bias"):
            tensors[name] = np.float32(gain) + np.float32(0.1) * random.standard_normal(x.shape, np.float32)
        if "query.weight" in name:
            tensors[name] = x * 3
    return config, tensors


def texts(work: str) -> tuple[Array, Array]:
    """ids and mask of "BxS" or "ragged"."""
    random = np.random.default_rng(0)
    if work == "ragged":
        lengths = random.integers(8, 257, 32)
    else:
        batch, length = map(int, work.split("x"))
        lengths = np.full(batch, length)
    ids = random.integers(3, 5000, (len(lengths), lengths.max()))
    return ids, (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)


def bucketed(ids: Array, mask: Array, count: int = BUCKETS) -> tuple[Batches, list[Array]]:
    """Texts sorted by length in batches of one size, each padded to its own longest, and which texts each holds."""
    lengths = mask.sum(1)
    which = np.array_split(np.argsort(lengths, kind="stable"), count)
    cut = [np.s_[rows, : lengths[rows].max()] for rows in which]
    return [(np.ascontiguousarray(ids[c]), np.ascontiguousarray(mask[c])) for c in cut], which


def together(answers: list[Array], which: list[Array], shape: tuple[int, ...]) -> Array:
    """The answers of buckets in the order of the texts, 0 beyond each bucket's longest."""
    whole = np.zeros((*shape, answers[0].shape[-1]), np.float32)
    for answer, rows in zip(answers, which, strict=True):
        whole[rows, : answer.shape[1]] = answer
    return whole


def error(found: Array, exact: Array, mask: Array) -> float:
    """||found - exact|| / ||exact|| over real tokens; infinite where the shapes differ or a number is not finite."""
    real = mask == 1
    if found.shape != exact.shape or not np.isfinite(found[real]).all():
        return float("inf")
    return float(np.linalg.norm(found[real] - exact[real]) / np.linalg.norm(exact[real]))


def most_of(name: str) -> float:
    """How far from float64 a run may be."""
    stack = STACKS[name]
    return stack.most or KINDS[stack.kind].most


def median_ratio(times: Times, name: str, beside: str) -> float:
    """How many times the other's time a run takes: the median over rounds."""
    return float(np.median(np.array(times[name]) / np.array(times[beside])))


def fastest(times: Times, kind: str) -> tuple[str, float] | None:
    """The fastest peer of a class and its ratio to ours; None where ours or every peer is missing."""
    ours = KINDS[kind].ours
    peers = [name for name in times if STACKS[name].kind == kind and not name.startswith("num")]
    if ours not in times or not peers:
        return None
    return min(((name, median_ratio(times, name, ours)) for name in peers), key=lambda pair: pair[1])


# A process to a run


def quiet(seconds: float = 0.005, busy: float = 0.1, longest: float = 1.0) -> None:
    """Wait until this process's threads have stopped spinning."""
    end = time.perf_counter() + longest
    while time.perf_counter() < end:
        used = time.process_time()
        time.sleep(seconds)
        if time.process_time() - used < busy * seconds:
            return


def resident(pid: int | str = "self", field: str = "VmRSS") -> float:  # -> MiB
    """What a process holds in memory, files that it has mapped included; NaN where /proc does not say."""
    with contextlib.suppress(OSError, TypeError):
        return int(re.search(rf"{field}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024  # type: ignore[index]
    return float("nan")


def _serve(pipe: Any, name: str, folder: Path, threads: int) -> None:
    """In the run's own process: load, then answer batches, and answer them again as often as asked for the time it takes."""
    batches: Batches = []
    try:
        run = STACKS[name].load(folder, threads)
        pipe.send(None)
        while (message := pipe.recv()) != "end":
            if message == "again":
                start = time.perf_counter()
                run(batches)
                seconds = time.perf_counter() - start
                quiet()
                pipe.send(seconds)
            else:
                batches = message
                pipe.send(run(batches))
    except Exception as problem:
        pipe.send(problem if isinstance(problem, tinyroberta.Error) else RuntimeError(f"{type(problem).__name__}: {problem}"))


class Worker:
    """A run in its own process; raises what goes wrong there."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, name, folder, threads), daemon=True)
        self.process.start()
        other.close()
        try:
            self._reply()
        except Exception:
            self.end()
            raise

    def _reply(self) -> Any:
        try:
            reply = self.pipe.recv()
        except EOFError:
            raise RuntimeError("its process died") from None
        if isinstance(reply, Exception):
            raise reply
        return reply

    def answer(self, batches: Batches) -> list[Array]:
        """The hidden states of each batch."""
        self.pipe.send(batches)
        return list(self._reply())

    def seconds(self) -> float:
        """How long the same batches take once more."""
        self.pipe.send("again")
        return float(self._reply())

    def end(self) -> None:
        self.process.terminate()
        self.process.join()


def _logged(log: Path, function: Callable[..., None], *arguments: Any) -> None:
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        function(*arguments)


def apart(function: Callable[..., None], *arguments: Any, log: Path) -> None:
    """Run a function in its own process, what it prints going to a file; raises RuntimeError where it fails."""
    process = multiprocessing.get_context("spawn").Process(target=_logged, args=(log, function, *arguments))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{function.__name__} failed; {log} says why")


@contextlib.contextmanager
def exports(folder: Path | None, name: str) -> Iterator[Path]:
    """Where a model's exported files are kept: under a given folder, or a temporary one."""
    with tempfile.TemporaryDirectory() if folder is None else contextlib.nullcontext(folder) as above:
        place = Path(above).resolve() / name
        place.mkdir(parents=True, exist_ok=True)
        yield place


def exported(name: str, folder: Path) -> None:
    """Make the files that a stack loads, unless an earlier run has."""
    export = STACKS[name].export
    if export is not None and not (folder / f"{export.__name__}.done").exists():
        print(f"  {export.__name__} ...", flush=True)
        apart(export, folder, log=folder / f"{export.__name__}.log")
        (folder / f"{export.__name__}.done").touch()


def chosen_stacks(wanted: list[str] | None) -> list[str]:
    """Ours and the peers asked for (all: None), less what is not installed, and paths that the machine lacks, with a word."""
    from tinyroberta.backends.numba import paths

    names = []
    for name, stack in STACKS.items():
        ours, path = name.startswith("numba "), name.removeprefix("numba highest ")
        if wanted is not None and not ours and not any(name.startswith(start) for start in wanted):
            continue
        if path in paths.PATHS and (path == paths.chosen_path() or paths.reason_against(path)):
            continue
        if missing := stack.missing():
            print(f"{name}: left out, {', '.join(missing)} not installed")
        else:
            names.append(name)
    return names


def start_workers(names: list[str], folder: Path, threads: int) -> dict[str, Worker]:
    """A worker for each run; those that cannot start are left out with a word."""
    workers = {}
    for name in names:
        try:
            exported(name, folder)
            workers[name] = Worker(name, folder, threads)
        except Exception as problem:
            print(f"{name}: left out, {problem}", flush=True)
    return workers


def checked(workers: dict[str, Worker], work: str, exact: Array | None) -> dict[str, float]:
    """Every run's error; a peer that is off is left out with a word, ours ends the program; a peer settles on its batches."""
    ids, mask = texts(work)
    errors = {}
    for name, worker in list(workers.items()):
        try:
            found, off = worker.answer([(ids, mask)])[0], float("nan")
            if exact is not None:
                off = error(found, exact, mask)
            form = ""
            if not mask.all() and not name.startswith("num"):
                padded = worker.seconds()
                batches, which = bucketed(ids, mask)
                found = together(worker.answer(batches), which, ids.shape)
                off = off if exact is None else max(off, error(found, exact, mask))
                form = f"{len(batches)} buckets"
                if padded < worker.seconds():
                    form = "one padded batch"
                    worker.answer([(ids, mask)])
        except Exception as problem:
            print(f"  {work:8} {name}: left out, {problem}", flush=True)
            worker.end()
            del workers[name]
            continue
        print(f"  {work:8} {name:20} off by {off:.1e}, at most {most_of(name):.0e}  {form}".rstrip(), flush=True)
        if off > most_of(name):
            if name.startswith("num"):
                raise SystemExit(f"{name} is off by {off:.1e}, more than {most_of(name):.0e}: nothing was timed")
            print(f"  {work:8} {name}: left out", flush=True)
            continue
        errors[name] = off
    return errors


def timed(workers: dict[str, Worker], names: list[str], seconds: float, rounds: int = 3) -> Times:
    """Interleaved rounds for so many seconds, and at least so many rounds; checking has warmed every run up."""
    times: Times = {name: [] for name in names}
    random = np.random.default_rng(0)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values()), default=rounds) < rounds:
        for name in random.permutation(names):
            times[name].append(workers[name].seconds())
    return times


def rows_of(work: str, times: Times, errors: dict[str, float], workers: dict[str, Worker]) -> dict[str, dict[str, Any]]:
    """What is printed and saved of a line of work."""
    rows = {}
    for name, each in times.items():
        kind = STACKS[name].kind
        ours = KINDS[kind].ours if kind in KINDS else "numba highest"
        rows[name] = {
            "class": kind,
            "error": errors[name],
            "least_ms": 1e3 * min(each),
            "median_ms": 1e3 * float(np.median(each)),
            "ratio": median_ratio(times, name, ours) if ours in times else float("nan"),
            "beside": ours,
            "rounds": len(each),
            "resident_mib": resident(workers[name].process.pid or 0),
        }
        row = rows[name]
        print(
            f"  {work:8} {name:20} {row['least_ms']:9.1f} {row['median_ms']:9.1f}   x {row['ratio']:5.2f} {ours:14} "
            f"{row['error']:.1e} {row['resident_mib']:7.0f}",
            flush=True,
        )
    for kind in KINDS:
        if (best := fastest(times, kind)) is not None:
            print(f"  {work:8} fastest {kind} peer: {best[0]}, ratio {best[1]:.2f} to {KINDS[kind].ours}", flush=True)
    return rows


def processor() -> str:
    """The machine's CPU by name."""
    with contextlib.suppress(OSError, TypeError):
        return re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]  # type: ignore[index]
    import platform

    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """What a result was measured on and with."""
    from tinyroberta.backends.numba import describe

    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    about = {"cpu": processor(), "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    if load > BUSY:  # threads that spin while they wait for one another lose far more than their share then
        print(f"the machine is busy (load {load:.1f}): the ratios will mean little", flush=True)
    return about | {"date": datetime.date.today().isoformat(), "path": describe(), "versions": versions, "load": load}


def save(result: dict[str, Any], what: str) -> Path:
    """Write a result as JSON in benchmarks/results, named for the machine and the day."""
    RESULTS.mkdir(exist_ok=True)
    machine = result.get("gpu") or f"{result['cpu']} {result['cpus']} cpus"
    name = re.sub("[^a-z0-9]+", "-", machine.lower()).strip("-")
    path = RESULTS / f"{what}-{name}-{result['date']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {path.relative_to(RESULTS.parent.parent)}", flush=True)
    return path


def measure(
    names: list[str], works: list[str], folder: Path, threads: int, seconds: float, reference: Callable[[str], Array | None]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Check, time and print; {work: {run: what was measured}}."""
    workers = start_workers(names, folder, threads)
    try:
        results = {}
        for work in works:
            print(f"{work}: relative error against float64", flush=True)
            errors = checked(workers, work, reference(work))
            print("  milliseconds (least, median), times ours of the same class, error, MiB resident", flush=True)
            results[work] = rows_of(work, timed(workers, list(errors), seconds), errors, workers)
        return results
    finally:
        for worker in workers.values():
            worker.end()


def add_options(parser: argparse.ArgumentParser, seconds: float) -> None:
    """The options that the benchmarks beside peers share."""
    parser.add_argument("--seconds", type=float, default=seconds, help="for each line of work; at least three rounds")
    parser.add_argument("--threads", type=int, help="for every run; default: all that the process may use")
    parser.add_argument("--peers", nargs="*", help="starts of peers' names: numpy torch torch.compile onnxruntime ...")
    parser.add_argument("--exports", type=Path, help="a folder that keeps exported files from run to run")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/*.json")


def main() -> None:
    parser = argparse.ArgumentParser(description="The CPU backend beside its peers.")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--work", nargs="+", default=WORK)
    add_options(parser, 20)
    chosen = parser.parse_args()
    about, size = machine(), "large" if chosen.large else "base"
    threads = chosen.threads or about["cpus"]
    print(f"{about['cpu']}, {threads} threads, {size}", *about["path"], sep="\n  ", flush=True)
    names = chosen_stacks(chosen.peers)
    config, tensors = model_tensors(size)
    exact = tinyroberta.RobertaPreLayerNormModel(config, tensors, backend="numpy", dtype="float64")
    with exports(chosen.exports, size) as folder:
        write_model(config, tensors, folder)
        works = measure(names, chosen.work, folder, threads, chosen.seconds, lambda work: exact(*texts(work)).last_hidden_state)
    if chosen.save:
        save(about | {"size": size, "threads": threads, "works": works}, "cpu" if size == "base" else "cpu-large")


if __name__ == "__main__":
    main()
