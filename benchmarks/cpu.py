"""The CPU backend beside NumPy and, where they are installed, transformers' PyTorch models: answers checked first, then times.

    python -m benchmarks.cpu [--large] [--work 1x16 1x128 ...] [--seconds 20] [--threads 2] [--compile]

The model is RoBERTa-PreLayerNorm base (or large), weights drawn with a seed: query weights times 3 so that attention is not
near-uniform, every bias and norm gain random. `ragged` is 32 texts of 8 to 256 tokens; the peers get them as one padded batch.
Runs are interleaved, so that a noisy machine is noisy for all; the ratio is the median of the ratios of one round, peer / ours.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import tinyroberta

Array = np.ndarray[Any, np.dtype[Any]]
Run = Callable[[Array, Array], Array]
SIZES = {"base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096)}
OURS = {f"numba {precision}": {"backend": "numba", "matmul_precision": precision} for precision in ("highest", "high", "medium")}
MOST = {"numba highest": 6e-7, "numba fma": 6e-7, "numba high": 2e-4, "numba medium": 5e-3}  # relative Frobenius error


def model_tensors(size: str) -> tuple[tinyroberta.RobertaPreLayerNormConfig, dict[str, Array]]:
    """A configuration and weights that hide nothing."""
    width, layers, heads, inner = SIZES[size]
    config = tinyroberta.RobertaPreLayerNormConfig(
        vocab_size=5000,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=514,
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


def our_runs(config: Any, tensors: dict[str, Array], threads: int | None) -> dict[str, Run]:
    def run(**running: Any) -> Run:
        model = tinyroberta.RobertaPreLayerNormModel(config, tensors, **running)
        return lambda ids, mask: np.asarray(model(ids, mask).last_hidden_state)

    runs = {name: run(**running, threads=threads) for name, running in OURS.items()}
    os.environ["TINYROBERTA_CPU"] = "fma"
    runs["numba fma"] = run(backend="numba", threads=threads)
    del os.environ["TINYROBERTA_CPU"]
    runs["numpy"] = run(backend="numpy", threads=threads)
    return runs


def torch_runs(config: Any, tensors: dict[str, Array], threads: int | None, compiled: bool) -> dict[str, Run]:
    try:
        import torch
        import transformers
    except ImportError:
        return {}
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
             "max_position_embeddings", "type_vocab_size")  # fmt: skip
    settings = transformers.RobertaPreLayerNormConfig(**{name: getattr(config, name) for name in names})

    def run(dtype: Any, compiled: bool) -> Run:
        model = transformers.RobertaPreLayerNormModel(settings).eval()
        model.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in tensors.items()}, strict=False)
        model = model.to(dtype)
        call = torch.compile(model) if compiled else model

        def of(ids: Array, mask: Array) -> Array:
            with torch.inference_mode():
                given = {} if mask.all() else {"attention_mask": torch.from_numpy(mask)}
                return np.asarray(call(torch.from_numpy(ids), **given).last_hidden_state.float())

        return of

    runs = {"torch": run(torch.float32, False), "torch bf16": run(torch.bfloat16, False)}
    if compiled:
        import torch._inductor.config

        torch._inductor.config.freezing = True
        runs |= {"torch compiled": run(torch.float32, True), "torch compiled bf16": run(torch.bfloat16, True)}
    return runs


def error(found: Array, exact: Array, mask: Array) -> float:
    """||found - exact|| / ||exact|| over real tokens."""
    real = mask == 1
    return float(np.linalg.norm(found[real] - exact[real]) / np.linalg.norm(exact[real]))


def main() -> None:
    parser = argparse.ArgumentParser(description="The CPU backend beside its peers.")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--work", nargs="+", default=["1x16", "1x128", "1x512", "8x128", "ragged"])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--compile", action="store_true", help="torch.compile with freezing, too")
    chosen = parser.parse_args()
    config, tensors = model_tensors("large" if chosen.large else "base")
    runs = our_runs(config, tensors, chosen.threads) | torch_runs(config, tensors, chosen.threads, chosen.compile)

    ids, mask = texts("1x128")
    exact = tinyroberta.RobertaPreLayerNormModel(config, tensors, dtype="float64")(ids, mask).last_hidden_state
    print("relative error against float64, 1x128:")
    for name, run in runs.items():
        off = error(run(ids, mask), exact, mask)
        print(f"  {name:20} {off:.1e}", flush=True)
        if off > MOST.get(name, 1):
            raise SystemExit(f"{name} is off by {off:.1e}, more than {MOST[name]}")

    print("milliseconds (least, median), and how many times numba highest that is:")
    for work in chosen.work:
        ids, mask = texts(work)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for run in runs.values():
            run(ids, mask)
        end = time.perf_counter() + chosen.seconds
        while time.perf_counter() < end:
            for name, run in runs.items():
                start = time.perf_counter()
                run(ids, mask)
                seconds[name].append(time.perf_counter() - start)
        ours = np.array(seconds["numba highest"])
        for name, times in seconds.items():
            ratio = np.median(np.array(times) / ours)
            print(f"  {work:8} {name:20} {1e3 * min(times):8.1f} {1e3 * np.median(times):8.1f}   x {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
