"""Cold start: a fresh process imports a stack, loads the base model from the file that it likes best and answers one 1x16 text.

    python -m benchmarks.start [--large] [--times 7] [--threads 2] [--peers onnxruntime ...] [--exports FOLDER] [--save]

Files are in the page cache and compiled code is cached. Seconds count from before the process starts, the interpreter included:
when all was imported, when the model was loaded and when it had answered; medians of interleaved rounds. Memory is the process's
high-water mark, then what that is beyond what importing took, and how many times the weights as the stack holds them. Installed
is what the packages and all that they require take on disk; exporters are not counted. The last lines say how ours stands to
ONNX Runtime and to transformers. This file is what the fresh process runs too, so it imports little at the top.
"""

import sys
import time
from collections.abc import Iterator
from typing import Any

Stages = Iterator[Any]  # what is yielded: nothing when imported, the weights' bytes when loaded, nothing when answered


def tinyroberta(backend: str, precision: str, folder: str, threads: int) -> Stages:
    import importlib

    import numpy as np

    import tinyroberta

    importlib.import_module(f"tinyroberta.backends.{backend}")
    yield
    running = {"backend": backend, "matmul_precision": precision, "threads": threads}
    model = tinyroberta.load(f"{folder}/model", **running)  # type: ignore[arg-type]
    yield held(model.weights)
    yield model(np.arange(3, 19)[None]).last_hidden_state


def held(tree: Any, seen: set[int] | None = None) -> int:
    """The bytes of the arrays in nested dicts, lists and tuples, each once."""
    seen = set() if seen is None else seen
    if id(tree) in seen:
        return 0
    seen.add(id(tree))
    if isinstance(tree, dict | list | tuple):
        return sum(held(x, seen) for x in (tree.values() if isinstance(tree, dict) else tree))
    return int(getattr(tree, "nbytes", 0))


def transformers(kind: str, folder: str, threads: int) -> Stages:
    import torch
    import transformers

    torch.set_num_threads(threads)
    model_class = transformers.RobertaPreLayerNormModel
    yield
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    model = model_class.from_pretrained(f"{folder}/model", dtype=dtype, add_pooling_layer=False).eval()
    yield sum(x.nbytes for x in model.parameters())
    with torch.inference_mode():
        yield model(torch.arange(3, 19)[None]).last_hidden_state.float().numpy()


def onnxruntime(kind: str, folder: str, threads: int) -> Stages:
    import os

    import numpy as np
    import onnxruntime

    yield
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    file = f"{folder}/{kind}.onnx"
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    yield os.path.getsize(file)  # noqa: PTH202
    ids = np.arange(3, 19)[None]
    yield session.run(None, {"ids": ids, "mask": np.ones_like(ids)})[0]


def openvino(kind: str, folder: str, threads: int) -> Stages:
    import os

    import numpy as np
    import openvino

    yield
    file = f"{folder}/{'int8' if kind == 'int8' else 'float32'}"
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "bf16" if kind == "bf16" else "f32"}
    model = openvino.Core().compile_model(f"{file}.xml", "CPU", settings)
    yield os.path.getsize(f"{file}.bin") // (2 if kind == "bf16" else 1)  # noqa: PTH202
    ids = np.arange(3, 19)[None]
    yield model({"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]


def ctranslate2(kind: str, folder: str, threads: int) -> Stages:
    import os

    import ctranslate2
    import numpy as np

    yield
    folder = f"{folder}/ctranslate2-{kind}"
    encoder = ctranslate2.Encoder(folder, compute_type=kind, intra_threads=threads)
    yield os.path.getsize(f"{folder}/model.bin")  # noqa: PTH202
    view = ctranslate2.StorageView.from_array
    ids = np.arange(3, 19, dtype=np.int32)[None]
    yield np.array(encoder.forward_batch(view(ids), view(np.array([16], np.int32)), [[0] * 16]).last_hidden_state)


# name: the function, its first arguments, what must be installed to run it
STARTS = {
    "numba highest": (tinyroberta, ("numba", "highest"), ("tinyroberta[cpu]",)),
    "numba medium": (tinyroberta, ("numba", "medium"), ("tinyroberta[cpu]",)),
    "numpy": (tinyroberta, ("numpy", "highest"), ("tinyroberta",)),
    "torch": (transformers, ("float32",), ("transformers", "torch")),
    "torch bf16": (transformers, ("bf16",), ("transformers", "torch")),
    "onnxruntime": (onnxruntime, ("float32",), ("onnxruntime",)),
    "onnxruntime int8": (onnxruntime, ("int8",), ("onnxruntime",)),
    "openvino": (openvino, ("float32",), ("openvino",)),
    "openvino bf16": (openvino, ("bf16",), ("openvino",)),
    "openvino int8": (openvino, ("int8",), ("openvino",)),
    "ctranslate2": (ctranslate2, ("float32",), ("ctranslate2",)),
    "ctranslate2 int8": (ctranslate2, ("int8",), ("ctranslate2",)),
}


def memory(field: str) -> float:  # -> MiB
    """VmRSS or VmHWM of this process."""
    with open("/proc/self/status") as file:  # noqa: PTH123
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field))


def fresh(name: str, folder: str, threads: int, began: float) -> None:
    """In the fresh process: run the stages; prints seconds and MiB after each, then the weights' bytes and the answer's sum."""
    function, first, _ = STARTS[name]
    marks, weights, answer = [], 0, None
    for stage, value in enumerate(function(*first, folder, threads)):  # type: ignore[operator]
        marks += [time.monotonic() - began, memory("VmHWM")]
        weights, answer = (value, None) if stage == 1 else (weights, value)
    print(*marks, weights, float(answer.sum()))  # type: ignore[attr-defined]


def installed(requirements: tuple[str, ...]) -> int:  # -> bytes
    """What packages and everything that they require here take on disk, by the lists of files that pip keeps."""
    import importlib.metadata
    from pathlib import Path

    from packaging.requirements import Requirement

    sizes: dict[str, int] = {}
    waiting = [Requirement(text) for text in requirements]
    done = set()
    while waiting:
        wanted = waiting.pop()
        if str(wanted) in done:
            continue
        done.add(str(wanted))
        try:
            package = importlib.metadata.distribution(wanted.name)
        except importlib.metadata.PackageNotFoundError:  # another way to the same module may be installed
            continue
        files = [Path(str(package.locate_file(file))) for file in package.files or ()]
        if wanted.name == "tinyroberta":  # perhaps an editable install, whose list is empty
            files = list(Path(__file__).parent.with_name("tinyroberta").rglob("*"))
        sizes[wanted.name.lower()] = sum(f.stat().st_size for f in files if f.is_file() and f.suffix != ".pyc")
        for text in package.requires or ():
            further = Requirement(text)
            extras = wanted.extras or {""}
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(further)
    return sum(sizes.values())


def once(name: str, folder: Any, threads: int) -> list[float]:
    """The numbers that one fresh process prints."""
    import os
    import subprocess

    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}  # installed packages are compiled, ours too
    command = [sys.executable, "-m", "benchmarks.start", "fresh", name, str(folder), str(threads), str(time.monotonic())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=kept)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it died"])[-1])
    return [float(x) for x in done.stdout.split()]


def main() -> None:
    import argparse
    from pathlib import Path

    import numpy as np

    from . import cpu

    parser = argparse.ArgumentParser(description="Cold start, memory and installed size beside the peers.")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--times", type=int, default=7, help="fresh processes for each stack")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--peers", nargs="*")
    parser.add_argument("--exports", type=Path)
    parser.add_argument("--save", action="store_true")
    chosen = parser.parse_args()
    about, size = cpu.machine(), "large" if chosen.large else "base"
    threads = chosen.threads or about["cpus"]
    print(f"{about['cpu']}, {threads} threads, {size}", *about["path"], sep="\n  ", flush=True)
    config, tensors = cpu.model_tensors(size)
    rows: dict[str, dict[str, Any]] = {}
    with cpu.exports(chosen.exports, size) as folder:
        cpu.write_model(config, tensors, folder)
        marks: dict[str, list[list[float]]] = {}
        for name in cpu.chosen_stacks(chosen.peers):
            if name in STARTS:
                try:
                    cpu.exported(name, folder)
                    once(name, folder, threads)  # so that files are in the page cache, and compiled code in its own
                    marks[name] = []
                except RuntimeError as problem:
                    print(f"{name}: left out, {problem}")
        for _ in range(chosen.times):
            for name, each in marks.items():
                each.append(once(name, folder, threads))
        print("                     imported   loaded answered  (least) | peak MiB   beyond importing, x weights | installed MB")
        for name, each in marks.items():
            middle, least = np.median(each, 0), np.min(each, 0)
            beyond, weights = float(np.median([x[5] - x[1] for x in each])), middle[6] / 2**20
            rows[name] = {
                "imported_s": middle[0],
                "loaded_s": middle[2],
                "answered_s": middle[4],
                "least_s": least[4],
                "peak_mib": middle[5],
                "beyond_importing_mib": beyond,
                "weights_mib": weights,
                "times_weights": beyond / weights,
                "installed_mb": installed(STARTS[name][2]) / 1e6,
            }
            row = rows[name]
            print(
                f"  {name:18} {row['imported_s']:8.2f} {row['loaded_s']:8.2f} {row['answered_s']:8.2f} {row['least_s']:8.2f}  |"
                f" {row['peak_mib']:8.0f} {beyond:10.0f}        {row['times_weights']:8.2f}  | {row['installed_mb']:8.0f}",
                flush=True,
            )
    for peer in ("onnxruntime", "torch"):
        if peer in rows and "numba highest" in rows:
            ratio = np.median([a[4] / b[4] for a, b in zip(marks["numba highest"], marks[peer], strict=True)])
            print(f"  numba highest takes {ratio:.2f} times as long as {peer}")
    if chosen.save:
        result = about | {"size": size, "threads": threads, "rows": rows}
        cpu.save(result, "start" if size == "base" else "start-large")


if __name__ == "__main__":
    if sys.argv[1:2] == ["fresh"]:
        fresh(sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5]))
    else:
        main()
