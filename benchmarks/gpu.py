"""python -m benchmarks.gpu [medium] [high] [highest]: the GPU backend, checked first, then timed beside PyTorch on the same GPU.

The encoder alone, without a head. Every case at each precision, or at those named: ours; PyTorch's with its fused attention,
eager and under torch.compile, in bf16, TF32 and float32, padded to the longest text as it needs; and the floor in the last
column: the sum over a layer's kernels of what takes longer, their work or their bytes, at an H200's measured 790 TFLOP/s in bf16
and 4.3 TB/s, half that rate for TF32, and the 67 TFLOP/s in float32 of its data sheet. On another GPU the floor is still the
H200's. Where torch or its CUDA is missing, its columns say so. The result goes to benchmarks/results.
"""

import datetime
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
PRECISIONS = {  # what we call it: how far from float64 it may be, the operands' bytes, the products' rate
    "medium": (1e-2, 2, 790e12),
    "high": (1e-3, 4, 395e12),
    "highest": (2e-6, 4, 67e12),
}
BANDWIDTH = 4.3e12  # bytes a second


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


def floor(config: RobertaPreLayerNormConfig, lengths: Sequence[int], precision: str) -> float:  # -> seconds
    """The sum over the seven kernels of a layer of the longer of work and bytes, each input read and each output written once."""
    _, size, rate = PRECISIONS[precision]
    T, D, F = sum(lengths), config.hidden_size, config.intermediate_size

    def product(into: int, out: int, residual: bool = False) -> float:
        moved = size * (T * into + T * out * (2 if residual else 1) + into * out)
        return max(2 * T * into * out / rate, moved / BANDWIDTH)

    norm = 2 * size * T * D / BANDWIDTH
    attention = max(sum(4 * n * n * D for n in lengths) / rate, 4 * size * T * D / BANDWIDTH)
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


def check(config: RobertaPreLayerNormConfig) -> None:
    """Every precision against float64, and a replayed graph against the launches it holds; ends the run on a miss."""
    inputs = texts(config, (1, 31, 64, 65))
    like = encoder_of(config, backend="numpy", dtype="float64")
    exact = like(**inputs).last_hidden_state
    for precision, (budget, *_) in PRECISIONS.items():
        model = encoder_of(config, like, backend="cupy", matmul_precision=precision)
        eager, recorded, replayed = (model(**inputs).last_hidden_state.get() for _ in range(3))
        error = np.linalg.norm(eager - exact) / np.linalg.norm(exact)
        same = np.linalg.norm(replayed - eager) / np.linalg.norm(exact)
        print(f"checks: {precision}: {error:.1e} from float64 (at most {budget:.0e}), replay to eager {same:.1e}", flush=True)
        # the library may choose another algorithm for the rounded size of a graph, so the same bits are not asked for
        if not (error < budget and same < budget and (recorded == replayed).all()):
            sys.exit(f"{precision} is wrong on this machine: nothing was timed")


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


def torch_times(model: Any, inputs: dict[str, Any], precision: str, torch: Any, repeats: int) -> list[float]:
    """PyTorch's milliseconds on the same texts, eager and compiled."""
    from tinyroberta.inputs import position_ids_of

    torch.set_float32_matmul_precision("highest" if precision == "highest" else "high")
    dtype = torch.bfloat16 if precision == "medium" else torch.float32
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    positions = position_ids_of(None, ids, ids.shape, 0, model.config)
    given = [torch.tensor(np.ascontiguousarray(x)).cuda() for x in (ids, positions)]
    allowed = None if mask.all() else torch.tensor(mask.astype(bool)).cuda()[:, None, None]

    class Events(NamedTuple):
        Event: Any = staticmethod(lambda: torch.cuda.Event(enable_timing=True))
        get_elapsed_time: Any = staticmethod(lambda start, end: start.elapsed_time(end))

    with torch.inference_mode():
        encode = torch_encoder(model.config, model.tensors, torch, dtype)
        ours, theirs = model(**inputs).last_hidden_state.get(), encode(*given, allowed).float().cpu().numpy()
        apart = np.linalg.norm((ours - theirs)[mask == 1]) / np.linalg.norm(theirs[mask == 1])
        if not apart < 2 * PRECISIONS[precision][0]:
            sys.exit(f"PyTorch's encoder and ours are {apart:.1e} apart at {precision}: one of them is wrong")
        compiled = torch.compile(encode, mode="default" if ids.size > 2048 else "reduce-overhead", dynamic=False)
        return [milliseconds(lambda run=run: run(*given, allowed), Events(), repeats) for run in (encode, compiled)]


def main(
    cases: Sequence[Case] = CASES,
    sizes: Mapping[str, RobertaPreLayerNormConfig] = SIZES,
    results: Path = RESULTS,
    repeats: int = 20,
    precisions: Sequence[str] = (),
) -> Path:
    """Check, time, print and write; returns the file written."""
    load_backend("cupy")
    import cupy as cp

    if unknown := set(precisions) - set(PRECISIONS):
        raise Error(f"there is no precision {', '.join(sorted(unknown))}; there are {', '.join(PRECISIONS)}")
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
        "the plain float32 route: the sliced one on integer tensor cores is not in this version, so nothing was chosen.",
        "",
        "| case | tokens | precision | ours | tokens/s | torch eager | torch.compile | floor on an H200 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    like: dict[str, Any] = {}
    for case in cases:
        config = sizes[case.size]
        inputs = texts(config, case.lengths)
        tokens = int(inputs["attention_mask"].sum())
        for precision in precisions or PRECISIONS:
            like[case.size] = model = encoder_of(config, like.get(case.size), backend="cupy", matmul_precision=precision)
            ours = milliseconds(lambda model=model, inputs=inputs: model(**inputs), cp.cuda, repeats)
            theirs = (
                [f"{t:.2f}" for t in torch_times(model, inputs, precision, torch, repeats)] if torch else ["not measured"] * 2
            )
            row = [case.name, str(tokens), precision, f"{ours:.2f}", f"{tokens / ours * 1e3:.3g}", *theirs]
            lines.append(f"| {' | '.join(row)} | {floor(config, case.lengths, precision) * 1e3:.3g} |")
            print(lines[-1], flush=True)
    results.mkdir(parents=True, exist_ok=True)
    named = "-".join(["gpu", re.sub("[^a-z0-9]+", "-", machine.lower()).strip("-"), today, *precisions])
    path = results / f"{named}.md"
    path.write_text("\n".join(lines) + "\n")
    print(f"written to {path}")
    return path


if __name__ == "__main__":
    try:
        main(precisions=sys.argv[1:])
    except Error as error:
        sys.exit(str(error))
