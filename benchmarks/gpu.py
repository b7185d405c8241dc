"""python -m benchmarks.gpu [medium] [high] [highest] [sliced]: the GPU backend, checked first, then timed beside PyTorch there.

The encoder alone, without a head. Every case in each way, or in those named: ours; PyTorch's with its fused attention, eager and
under torch.compile, in bf16, TF32 and float32, padded to the longest text as it needs; and the floor in the last column:
the sum over a layer's kernels of what takes longer, their work or their bytes, at an H200's measured 790 TFLOP/s in bf16
and float16 and 4.3 TB/s, and the 67 TFLOP/s in float32 of its data sheet. On another GPU the floor is still the
H200's. Where torch or its CUDA is missing, its columns say so. The result goes to benchmarks/results.

`highest` and `sliced` are the two routes of matmul_precision="highest": plain float32, and exact products of 8-bit digits, at
least six where float32 has one, at twice bf16's rate. The last line says which is faster, and so what the default is to be.
"""

import datetime
import os
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinyroberta import Error, RobertaPreLayerNormConfig, RobertaPreLayerNormModel
from tinyroberta.backends import load_backend

RESULTS = Path(__file__).with_name("results")
BASE = RobertaPreLayerNormConfig()
LARGE = RobertaPreLayerNormConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
SIZES = {"base": BASE, "large": LARGE}
BANDWIDTH = 4.3e12  # bytes a second


class Way(NamedTuple):
    """A setting, its route, how far from float64 it may be, a number's bytes, and the rates of products and of attention."""

    precision: str
    route: str
    error: float
    size: int
    rate: float
    attention: float


WAYS = {
    "medium": Way("medium", "float", 1e-2, 2, 790e12, 790e12),
    "high": Way("high", "float", 1e-3, 2, 790e12, 790e12),
    "highest": Way("highest", "float", 2e-6, 4, 67e12, 67e12),
    "sliced": Way("highest", "sliced", 2e-6, 4, 2 * 790e12 / 6, 67e12),
}


class Case(NamedTuple):
    """Texts of these lengths, for the model of this size."""

    size: str
    lengths: tuple[int, ...]

    @property
    def name(self) -> str:
        count, least, most = len(self.lengths), min(self.lengths), max(self.lengths)
        return f"{self.size} {count} x {most}" if least == most else f"{self.size} {count} x {least} to {most}"


RAGGED = tuple(np.random.default_rng(0).integers(8, 513, 256).tolist())
CASES = (
    Case("base", (128,)),
    Case("base", (128,) * 32),
    Case("base", (512,) * 256),
    Case("large", (512,) * 64),
    Case("base", RAGGED),
)


def floor(config: RobertaPreLayerNormConfig, lengths: Sequence[int], way: Way) -> float:  # -> seconds
    """The sum over the seven kernels of a layer of the longer of work and bytes, each input read and each output written once."""
    size, rate = way.size, way.rate
    T, D, F = sum(lengths), config.hidden_size, config.intermediate_size

    def product(into: int, out: int, residual: bool = False) -> float:
        moved = size * (T * into + T * out * (2 if residual else 1) + into * out)
        return max(2 * T * into * out / rate, moved / BANDWIDTH)

    norm = 2 * size * T * D / BANDWIDTH
    attention = max(sum(4 * n * n * D for n in lengths) / way.attention, 4 * size * T * D / BANDWIDTH)
    layer = 2 * norm + product(D, 3 * D) + attention + product(D, D, True) + product(D, F) + product(F, D, True)
    return config.num_hidden_layers * layer


def texts(config: RobertaPreLayerNormConfig, lengths: Sequence[int]) -> dict[str, Any]:
    """Random ids of these lengths, padded, and their mask."""
    lengths = np.minimum(lengths, config.usable_length)
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    ids = np.where(mask == 1, np.random.default_rng().integers(3, config.vocab_size, mask.shape), config.pad_token_id or 0)
    return {"input_ids": ids, "attention_mask": mask}


def encoder_of(config: RobertaPreLayerNormConfig, like: Any = None, **running: Any) -> Any:
    """A model of a configuration, of new weights or of another's."""
    return RobertaPreLayerNormModel(config, None if like is None else like.tensors, **running)


def on_gpu(config: RobertaPreLayerNormConfig, like: Any, way: Way) -> Any:
    """A model on the GPU, the way asked for; a model takes its route when it is made."""
    os.environ["TINYROBERTA_GPU"] = way.route
    model = encoder_of(config, like, backend="cupy", matmul_precision=way.precision)
    del os.environ["TINYROBERTA_GPU"]
    return model


def check(config: RobertaPreLayerNormConfig) -> None:
    """Every way against float64, and a replayed graph against the launches it holds; ends the run on a miss."""
    inputs = texts(config, (1, 31, 64, 65))
    like = encoder_of(config, backend="numpy", dtype="float64")
    exact = like(**inputs).last_hidden_state
    for name, way in WAYS.items():
        model, budget = on_gpu(config, like, way), way.error
        eager, recorded, replayed = (model(**inputs).last_hidden_state.get() for _ in range(3))
        error = np.linalg.norm(eager - exact) / np.linalg.norm(exact)
        same = np.linalg.norm(replayed - eager) / np.linalg.norm(exact)
        print(f"checks: {name}: {error:.1e} from float64 (at most {budget:.0e}), replay to eager {same:.1e}", flush=True)
        # the library may choose another algorithm for the rounded size of a graph, so the same bits are not asked for
        if not (error < budget and same < budget and (recorded == replayed).all()):
            sys.exit(f"{name} is wrong on this machine: nothing was timed")


def milliseconds(call: Callable[[], object], events: Any, repeats: int) -> float:
    """The median time of a call, from its start on the host to its end on the GPU, after three to warm up."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        start, end = events.Event(), events.Event()
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(events.get_elapsed_time(start, end))
    return statistics.median(times)


def torch_encoder(
    config: RobertaPreLayerNormConfig, tensors: Mapping[str, Any], torch: Any, dtype: Any, device: str = "cuda"
) -> Callable[..., Any]:
    """The same encoder in PyTorch, from the same tensors: (ids, positions, mask or None) -> hidden states."""
    F = torch.nn.functional
    heads, eps = config.num_attention_heads, config.layer_norm_eps
    w = {name: torch.tensor(np.asarray(value, np.float32)).to(device, dtype) for name, value in tensors.items()}
    word, position, types = (w[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type"))

    def norm(x: Any, name: str) -> Any:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)

    joined = [
        [torch.cat([w[f"encoder.layer.{i}.attention.self.{part}.{leaf}"] for part in ("query", "key", "value")])
         for leaf in ("weight", "bias")] for i in range(config.num_hidden_layers)
    ]  # fmt: skip

    def encode(ids: Any, positions: Any, mask: Any) -> Any:
        x = norm(word[ids] + position[positions] + types[0], "embeddings.LayerNorm")
        for i, qkv in enumerate(joined):
            name = f"encoder.layer.{i}"
            parts = F.linear(norm(x, f"{name}.attention.LayerNorm"), *qkv).unflatten(-1, (3, heads, -1)).transpose(1, 3).unbind(2)
            context = F.scaled_dot_product_attention(*parts, attn_mask=mask).transpose(1, 2).flatten(2)
            x = x + F.linear(context, *(w[f"{name}.attention.output.dense.{leaf}"] for leaf in ("weight", "bias")))
            h = norm(x, f"{name}.intermediate.LayerNorm")
            h = F.gelu(F.linear(h, *(w[f"{name}.intermediate.dense.{leaf}"] for leaf in ("weight", "bias"))))
            x = x + F.linear(h, *(w[f"{name}.output.dense.{leaf}"] for leaf in ("weight", "bias")))
        return norm(x, "LayerNorm")

    return encode


def torch_times(model: Any, inputs: dict[str, Any], way: Way, torch: Any, repeats: int) -> list[float]:
    """PyTorch's milliseconds on the same texts, eager and compiled."""
    from tinyroberta.inputs import position_ids_of

    torch.set_float32_matmul_precision("highest" if way.precision == "highest" else "high")
    dtype = torch.bfloat16 if way.precision == "medium" else torch.float32
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    positions = position_ids_of(None, ids, ids.shape, 0, model.config)
    given = [torch.tensor(np.ascontiguousarray(x)).cuda() for x in (ids, positions)]
    allowed = None if mask.all() else torch.tensor(mask.astype(bool)).cuda()[:, None, None]

    class Events(NamedTuple):
        Event: Any = staticmethod(lambda: torch.cuda.Event(enable_timing=True))
        get_elapsed_time: Any = staticmethod(lambda start, end: start.elapsed_time(end))

    torch._dynamo.reset()  # else it gives up compiling after some sizes and dtypes
    with torch.inference_mode():
        encode = torch_encoder(model.config, model.tensors, torch, dtype)
        ours, theirs = model(**inputs).last_hidden_state.get(), encode(*given, allowed).float().cpu().numpy()
        apart = np.linalg.norm((ours - theirs)[mask == 1]) / np.linalg.norm(theirs[mask == 1])
        if not apart < 2 * way.error:
            sys.exit(f"PyTorch's encoder and ours are {apart:.1e} apart at {way.precision}: one of them is wrong")
        compiled = torch.compile(encode, mode="default" if ids.size > 2048 else "reduce-overhead", dynamic=False)
        return [milliseconds(lambda run=run: run(*given, allowed), Events(), repeats) for run in (encode, compiled)]


def verdict(plain: Sequence[float], sliced: Sequence[float]) -> str:
    """Which route of "highest" is faster over all cases, and by how much."""
    ratios = sorted(s / p for p, s in zip(plain, sliced, strict=True))
    mean = statistics.geometric_mean(ratios)
    route = "sliced" if mean < 1 else "float"
    return (
        f"The sliced route takes {mean:.2f} of plain float32's time (geometric mean; {ratios[0]:.2f} to {ratios[-1]:.2f}): "
        f'on this GPU the default in tinyroberta/backends/cupy/device.py should be ROUTE = "{route}".'
    )


def main(
    cases: Sequence[Case] = CASES,
    sizes: Mapping[str, RobertaPreLayerNormConfig] = SIZES,
    results: Path = RESULTS,
    repeats: int = 20,
    ways: Sequence[str] = (),
) -> Path:
    """Check, time, print and write; returns the file written."""
    load_backend("cupy")
    import cupy as cp

    if unknown := set(ways) - set(WAYS):
        raise Error(f"there is no way {', '.join(sorted(unknown))}; there are {', '.join(WAYS)}")
    machine = cp.cuda.runtime.getDeviceProperties(0)["name"].decode()
    today = datetime.date.today().isoformat()
    print(f"{machine}, CuPy {cp.__version__}", flush=True)
    check(sizes[cases[0].size])
    try:
        import torch

        peer = f"PyTorch {torch.__version__}" if torch.cuda.is_available() else "PyTorch has no CUDA here"
        torch = torch if torch.cuda.is_available() else None
    except ImportError:
        peer, torch = "PyTorch is not installed here", None
    from tinyroberta.backends.cupy import cublaslt

    library = "cuBLASLt" if cublaslt.library() is not None else "own kernels: cuBLASLt is not installed"
    lines = [
        f"# The encoder on {machine}, {today}",
        "",
        f"Milliseconds a batch, median of {repeats}; CuPy {cp.__version__}; products by {library}; {peer}. `highest` is",
        "plain float32, `sliced` as accurate by exact products of 8-bit digits.",
        "",
        "| case | tokens | way | ours | tokens/s | torch eager | torch.compile | floor on an H200 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    like: dict[str, Any] = {}
    times: dict[str, list[float]] = {name: [] for name in ways or WAYS}
    for case in cases:
        config = sizes[case.size]
        inputs = texts(config, case.lengths)
        tokens = int(inputs["attention_mask"].sum())
        for name, took in times.items():
            way = WAYS[name]
            like[case.size] = model = on_gpu(config, like.get(case.size), way)
            ours = milliseconds(lambda model=model, inputs=inputs: model(**inputs), cp.cuda, repeats)
            theirs = [f"{t:.2f}" for t in torch_times(model, inputs, way, torch, repeats)] if torch else ["not measured"] * 2
            took.append(ours)
            row = [case.name, str(tokens), name, f"{ours:.2f}", f"{tokens / ours * 1e3:.3g}", *theirs]
            lines.append(f"| {' | '.join(row)} | {floor(config, case.lengths, way) * 1e3:.3g} |")
            print(lines[-1], flush=True)
    if {"highest", "sliced"} <= set(times):
        lines += ["", verdict(times["highest"], times["sliced"])]
        print(lines[-1])
    results.mkdir(parents=True, exist_ok=True)
    named = "-".join(["gpu", re.sub("[^a-z0-9]+", "-", machine.lower()).strip("-"), today, *ways])
    path = results / f"{named}.md"
    path.write_text("\n".join(lines) + "\n")
    print(f"written to {path}")
    return path


if __name__ == "__main__":
    try:
        main(ways=sys.argv[1:])
    except Error as error:
        sys.exit(str(error))
