"""Sentence vectors beside sentence-transformers: texts per second, memory and start, of 2,000 sentences of a natural length mix.

    python -m benchmarks.embed [--texts 2000] [--seconds 60] [--threads 2] [--peers torch onnx ...] [--exports FOLDER] [--save]
    python -m benchmarks.embed --gpu --texts 4000 [--seconds 60] [--save]     # on the GPU; torch in batches of 256

The model is RoBERTa base with weights drawn with a seed, as a sentence-transformers folder: mean pooling, Normalize. The
sentences are drawn with a seed too: words of the embedded model's vocabulary by Zipf's law, as many as a log-normal law says
(median 17, a twentieth above 54), so that they are as ragged as sentences are. Each stack is a process of its own and is given
all the texts at once; sentence-transformers sorts them by length and pads batches of 32, its defaults. Vectors are checked first:
ours against float64 on a sample, every other against ours. Rounds are interleaved in a drawn order; a ratio is the median over
rounds of run / ours, or / medium of what computes in bf16. "bare" is our tokenizer and our forward pass alone, over the same
groups of tokens: what encode adds to it is its cost.

    pip install sentence-transformers optimum-onnx optimum-intel
"""

import argparse
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tinyroberta
from tinyroberta.demo import FOLDER
from tinyroberta.tasks.batches import BUDGET, groups
from tinyroberta.tasks.tokenizer import load_tokenizer

from .cpu import SIZES, add_options, apart, exports, machine, median_ratio, quiet, resident, save

Array = np.ndarray[Any, np.dtype[Any]]
Encode = Callable[[list[str]], Array | None]
OURS, OURS_ON_GPU = "highest", "gpu highest"
SAMPLE = 64
MOST_BF16 = 2e-2


class Stack(NamedTuple):
    """One way to make vectors: how to load it from a folder, the packages it needs, how far its vectors may be from ours."""

    load: Callable[[Path, int], Encode]
    needs: tuple[str, ...] = ()
    export: Callable[[Path], None] | None = None
    most: float = 2e-6
    beside: str = OURS


def sentences(count: int) -> list[str]:
    """So many sentences, drawn with a seed."""
    random = np.random.default_rng(0)
    tokenizer = load_tokenizer(FOLDER)
    words = [
        word[1:]
        for word, _ in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
        if word[:1] == "Ġ" and word[1:].isalpha()
    ]
    lengths = np.clip(random.lognormal(np.log(17), 0.7, count), 3, 250).astype(int)
    chances = 1 / np.arange(1, len(words) + 1)
    drawn = random.choice(len(words), lengths.sum(), p=chances / chances.sum())
    return [" ".join(words[n] for n in part) + "." for part in np.split(drawn, np.cumsum(lengths)[:-1])]


def write_folder(folder: Path) -> None:
    """The sentence-transformers folder that everything else is made from, in folder/model, unless it is there."""
    place = folder / "model"
    if (place / "modules.json").exists():
        return
    width, layers, heads, inner = SIZES["base"]
    tokenizer = load_tokenizer(FOLDER)
    config = tinyroberta.RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=inner, max_position_embeddings=514, type_vocab_size=1,
    )  # fmt: skip
    tinyroberta.RobertaModel(config, seed=0).save_pretrained(place)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (FOLDER / name).exists():
            shutil.copy(FOLDER / name, place / name)
    (place / "1_Pooling").mkdir()
    parts = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": n, "name": str(n), "path": p, "type": f"sentence_transformers.models.{kind}"}
        for n, (p, kind) in enumerate(parts.items())
    ]
    (place / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": width, "pooling_mode_mean_tokens": True})
    )
    (place / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 512, "do_lower_case": False}))
    (place / "2_Normalize").mkdir()
    (place / "modules.json").write_text(json.dumps(modules))


def ours(precision: str, backend: str = "cpu") -> Callable[[Path, int], Encode]:
    def load(folder: Path, threads: int) -> Encode:
        threaded = {} if backend == "cupy" else {"threads": threads}
        model = tinyroberta.Embedder.from_pretrained(folder / "model", backend=backend, matmul_precision=precision, **threaded)
        return lambda texts: model.encode(texts, progress=False)

    return load


def bare(folder: Path, threads: int) -> Encode:
    """The tokenizer, then the model over the groups that encode makes: no vectors."""
    model = tinyroberta.RobertaModel.from_pretrained(folder / "model", threads=threads)
    tokenizer = load_tokenizer(folder / "model")

    def run(texts: list[str]) -> None:
        ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        for part in groups([len(row) for row in ids], BUDGET):
            model.packed(ids[part])

    return run


def theirs(backend: str, **arguments: Any) -> Callable[[Path, int], Encode]:
    def load(folder: Path, threads: int) -> Encode:
        model = sentence_transformer(folder / ("model" if backend == "torch" else backend), backend, threads, **arguments)
        return lambda texts: np.asarray(model.encode(texts, show_progress_bar=False))

    return load


def on_gpu(dtype: str, batch: int = 256) -> Callable[[Path, int], Encode]:
    """sentence-transformers on the GPU; float32 products are TF32's."""

    def load(folder: Path, threads: int) -> Encode:  # noqa: ARG001
        import sentence_transformers
        import torch

        torch.set_float32_matmul_precision("high")
        given = {"dtype": getattr(torch, dtype)}
        model = sentence_transformers.SentenceTransformer(str(folder / "model"), device="cuda", model_kwargs=given)
        return lambda texts: np.asarray(model.encode(texts, batch_size=batch, show_progress_bar=False), np.float32)

    return load


def openvino(precision: str) -> Callable[[Path, int], Encode]:
    """OpenVINO in float32, or in bf16, which it takes by itself where the CPU has it."""
    return theirs("openvino", ov_config={"INFERENCE_PRECISION_HINT": precision})


def sentence_transformer(path: Path, backend: str, threads: int, **arguments: Any) -> Any:
    import sentence_transformers
    import torch

    torch.set_num_threads(threads)
    return sentence_transformers.SentenceTransformer(str(path), backend=backend, device="cpu", model_kwargs=arguments or None)


def exporter(backend: str) -> Callable[[Path], None]:
    def export(folder: Path) -> None:
        sentence_transformer(folder / "model", backend, 2, export=True).save_pretrained(str(folder / backend))

    export.__name__ = f"export_{backend}"
    export.__qualname__ = export.__name__
    return export


export_onnx, export_openvino = exporter("onnx"), exporter("openvino")  # by name in this file: another process looks them up
STACKS = {
    OURS: Stack(ours("highest")),
    "medium": Stack(ours("medium"), most=MOST_BF16),
    "bare": Stack(bare),
    "torch": Stack(theirs("torch"), ("sentence_transformers", "torch")),
    "onnx": Stack(theirs("onnx"), ("sentence_transformers", "optimum.onnxruntime", "onnxruntime"), export_onnx),
    "openvino": Stack(openvino("f32"), ("sentence_transformers", "optimum.intel", "openvino"), export_openvino),
    "openvino bf16": Stack(
        openvino("bf16"), ("sentence_transformers", "optimum.intel", "openvino"), export_openvino, MOST_BF16, "medium"
    ),
    OURS_ON_GPU: Stack(ours("highest", "cupy"), beside=OURS_ON_GPU),
    "gpu high": Stack(ours("high", "cupy"), most=2e-3, beside=OURS_ON_GPU),
    "gpu medium": Stack(ours("medium", "cupy"), most=MOST_BF16, beside=OURS_ON_GPU),
    "gpu torch tf32": Stack(on_gpu("float32"), ("sentence_transformers", "torch"), None, 2e-3, "gpu high"),
    "gpu torch f16": Stack(on_gpu("float16"), ("sentence_transformers", "torch"), None, 4e-3, "gpu high"),
    "gpu torch bf16": Stack(on_gpu("bfloat16"), ("sentence_transformers", "torch"), None, MOST_BF16, "gpu medium"),
}
PACKAGES = ("sentence-transformers", "torch", "optimum-onnx", "optimum-intel", "tokenizers", "cupy-cuda13x")


def missing(stack: Stack) -> list[str]:
    """The packages that it needs and that are not installed."""

    def there(name: str) -> bool:
        try:
            return importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:
            return False

    return [name for name in stack.needs if not there(name)]


def _serve(pipe: Any, name: str, folder: Path, threads: int) -> None:
    """In the stack's own process: load, make one vector, then all vectors, and again as often as asked for the time they take."""
    try:
        run = STACKS[name].load(folder, threads)
        run(["A first sentence."])
        pipe.send(None)
        texts = pipe.recv()
        pipe.send(run(texts))
        while pipe.recv() == "again":
            start = time.perf_counter()
            run(texts)
            seconds = time.perf_counter() - start
            quiet()
            pipe.send(seconds)
    except EOFError:
        pass
    except Exception as problem:
        pipe.send(RuntimeError(f"{type(problem).__name__}: {problem}"))


class Worker:
    """A stack in its own process; `start` is the seconds until its first vector. Raises what goes wrong there."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        start = time.perf_counter()
        self.process = context.Process(target=_serve, args=(other, name, folder, threads), daemon=True)
        self.process.start()
        other.close()
        self.reply()
        self.start = time.perf_counter() - start

    def ask(self, message: Any) -> Any:
        self.pipe.send(message)
        return self.reply()

    def reply(self) -> Any:
        try:
            reply = self.pipe.recv()
        except EOFError:
            raise RuntimeError("its process died") from None
        if isinstance(reply, Exception):
            raise reply
        return reply

    def seconds(self) -> float:
        """How long all vectors take once more."""
        return float(self.ask("again"))

    def peak(self) -> float:
        """The most memory that it has held, MiB."""
        return resident(self.process.pid or 0, "VmHWM")

    def end(self) -> None:
        self.process.terminate()
        self.process.join()


def far(found: Array, exact: Array) -> float:
    """||found - exact|| / ||exact||."""
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact)) if found.shape == exact.shape else float("inf")


def checked(names: list[str], folder: Path, threads: int, texts: list[str]) -> tuple[dict[str, Worker], dict[str, float]]:
    """A worker for each stack, and how far its vectors are; one that is off, or does not start, is left out with a word."""
    exact = tinyroberta.Embedder.from_pretrained(folder / "model", backend="numpy", dtype="float64")
    sample = texts[:: max(1, len(texts) // SAMPLE)]
    expected = exact.encode(sample)
    workers: dict[str, Worker] = {}
    errors: dict[str, float] = {}
    wanted: Array | None = None
    for name in names:
        try:
            stack = STACKS[name]
            done = folder / f"{getattr(stack.export, '__name__', '')}.done"
            if stack.export is not None and not done.exists():
                print(f"  {done.stem} ...", flush=True)
                apart(stack.export, folder, log=done.with_suffix(".log"))
                done.touch()
            worker = workers[name] = Worker(name, folder, threads)
            vectors = worker.ask(texts)
            if vectors is None:
                errors[name] = float("nan")
                continue
            if name in (OURS, OURS_ON_GPU):
                wanted = vectors
                errors[name] = far(vectors[:: max(1, len(texts) // SAMPLE)], expected)
            else:
                errors[name] = far(vectors, wanted)  # type: ignore[arg-type]
            print(f"  {name:14} off by {errors[name]:.1e}, at most {stack.most:.0e}", flush=True)
            if not errors[name] <= stack.most:
                raise RuntimeError(f"its vectors are off by {errors[name]:.1e}")
        except Exception as problem:
            if name in (OURS, OURS_ON_GPU):
                raise
            print(f"  {name}: left out, {problem}", flush=True)
            if name in workers:
                workers.pop(name).end()
            errors.pop(name, None)
    return workers, errors


def main() -> None:
    parser = argparse.ArgumentParser(description="Sentence vectors beside sentence-transformers.")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--gpu", action="store_true", help="ours and PyTorch's on the GPU, in place of the CPU's")
    add_options(parser, 120)
    chosen = parser.parse_args()
    about = machine()
    for package in PACKAGES:
        if importlib.util.find_spec(package.replace("-", "_").removesuffix("_onnx").removesuffix("_intel")):
            try:
                about["versions"][package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
    if chosen.gpu:
        import cupy

        about["gpu"] = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    threads = chosen.threads or about["cpus"]
    texts = sentences(chosen.texts)
    tokens = np.array([len(encoding) for encoding in load_tokenizer(FOLDER).encode_batch(texts)])
    mix = f"{len(texts)} sentences of {tokens.min()} to {tokens.max()} tokens, median {np.median(tokens):.0f}, {tokens.sum()} all"
    print(f"{about.get('gpu', about['cpu'])}, {threads} threads; {mix}", *about["path"], sep="\n  ", flush=True)
    names = [
        name
        for name, stack in STACKS.items()
        if name.startswith("gpu") == chosen.gpu
        and (not stack.needs or chosen.peers is None or name.removeprefix("gpu ").startswith(tuple(chosen.peers)))
    ]
    for name in list(names):
        if lacking := missing(STACKS[name]):
            print(f"{name}: left out, {', '.join(lacking)} not installed")
            names.remove(name)
    with exports(chosen.exports, "embed") as folder:
        write_folder(folder)
        workers, errors = checked(names, folder, threads, texts)
        times: dict[str, list[float]] = {name: [] for name in workers}
        random = np.random.default_rng(0)
        end = time.perf_counter() + chosen.seconds
        while time.perf_counter() < end or len(times[names[0]]) < 3:
            for name in random.permutation(list(workers)):
                times[name].append(workers[name].seconds())
        print("  texts/s (best, median), times ours, error, MiB at most, seconds to the first vector", flush=True)
        rows = {}
        for name, each in times.items():
            row = rows[name] = {
                "texts_per_second": len(texts) / float(np.median(each)),
                "best_texts_per_second": len(texts) / min(each),
                "ratio": median_ratio(times, name, STACKS[name].beside),
                "beside": STACKS[name].beside,
                "error": errors[name],
                "peak_mib": workers[name].peak(),
                "start_seconds": workers[name].start,
                "rounds": len(each),
            }
            print(
                f"  {name:14} {row['best_texts_per_second']:8.1f} {row['texts_per_second']:8.1f}   "
                f"x {row['ratio']:5.2f} {row['beside']:7} {row['error']:.1e} {row['peak_mib']:7.0f} {row['start_seconds']:6.2f}",
                flush=True,
            )
            workers[name].end()
        if "bare" in rows:
            print(f"  encode takes {1 / rows['bare']['ratio']:.3f} times the tokenizer and the forward pass alone", flush=True)
    if chosen.save:
        save(about | {"threads": threads, "texts": mix, "stacks": rows}, "embed")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    main()
