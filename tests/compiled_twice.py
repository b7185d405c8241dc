"""Run in a process of its own: every kernel of the library that came with the package against what Numba makes of it here.

    PYTHONPATH=tests python -m compiled_twice

Models of many settings run; whatever a kernel is given there is given to both, and what they leave in memory must be the same, to
the bit. NUMBA_CPU_NAME and NUMBA_CPU_FEATURES say which library and what Numba compiles for. It prints a line for each kernel.
"""

import os
import sys
from dataclasses import replace
from typing import Any

import numpy as np
from models_for_tests import new_model

import tinyroberta
from tinyroberta.backends import PRECISIONS, load_backend
from tinyroberta.backends.numba import buffers, compiled, paths, recordings, shipped, threads
from tinyroberta.backends.numba.arguments import arrays
from tinyroberta.backends.numba.products.fma import pack_panels

# A worker's whole life, and the measure of its looks: they leave nothing behind but the work of the kernels that they run.
APART = {"work", "look"}
differing: dict[str, int] = {}


def twice() -> None:
    """Have every launch run twice, first in the library's code, then in Numba's."""
    library = shipped.library()
    assert library is not None, shipped.reason_against()
    kernels = [kernel for kernel in compiled.Kernel.every if kernel.missing() is None]
    made = {kernel: compiled._load(compiled._compile(kernel), kernel.count) for kernel in kernels}
    came = {kernel: kernel._load() for kernel in kernels}
    assert all(loaded.engine is library for loaded in came.values())
    other = {came[kernel].address: made[kernel].address for kernel in kernels}
    once = threads.parallel

    def run(of: dict[compiled.Kernel, Any], kernel: compiled.Kernel, blocks: int, given: dict[str, Any]) -> None:
        for each, loaded in of.items():
            each._loaded = loaded
        once(kernel, blocks, **given)

    def swapped(given: dict[str, Any]) -> dict[str, Any]:
        """Where a kernel is given another one's address, the other code's."""
        return {
            name: swapped(x) if isinstance(x, dict) else other.get(x, x) if type(x) is int else x for name, x in given.items()
        }

    def parallel(kernel: compiled.Kernel, blocks: int, /, **given: Any) -> None:
        if buffers.recording() is not None:  # of one code's calls
            once(kernel, blocks, **given)
            return
        held = list(arrays({name: x for name, x in given.items() if name != "scratch"}))  # a worker's own, whichever it is
        before = [x.tobytes() for x in held]
        run(made, kernel, blocks, swapped(given))
        second = [x.tobytes() for x in held]
        for x, content in zip(held, before, strict=True):
            if x.tobytes() != content:
                assert x.flags.c_contiguous
                x.reshape(-1).view(np.uint8)[:] = np.frombuffer(content, np.uint8)
        run(came, kernel, blocks, given)
        same = second == [x.tobytes() for x in held]
        helpers = {"alone", "share"} | ({"activate_block"} if given.get("activate") else set())
        for name in {kernel.name, *helpers}:
            differing[name] = differing.get(name, 0) + (not same)

    for module in [module for name, module in sys.modules.items() if name.startswith("tinyroberta.")]:
        if getattr(module, "parallel", None) is once:
            module.parallel = parallel  # type: ignore[attr-defined]
    played = recordings.Playable.play

    def play(self: recordings.Playable, rows: list[Any]) -> Any:
        calls = np.array([[other[function], *rest] for function, *rest in self.calls.tolist()], np.int64)
        threads._play._loaded = made[threads._play]
        second = played(self._replace(calls=calls), rows)
        threads._play._loaded = came[threads._play]
        first = played(self, rows)
        differing["play"] = differing.get("play", 0) + (first.tobytes() != second.tobytes())
        return first

    recordings.Playable.play = play  # type: ignore[method-assign]


def everything() -> None:
    """All that this backend computes, on every path, in every precision."""
    ids = np.arange(3, 83).reshape(2, 40) % 47
    mask = np.ones_like(ids)
    mask[1, 17:] = 0
    sizes: dict[str, Any] = {"vocab_size": 50, "num_hidden_layers": 1, "max_position_embeddings": 60}
    for path in paths.PATHS:
        if paths.reason_against(path) is not None:
            continue
        os.environ["TINYROBERTA_CPU"] = path
        for act, wide, heads in (("gelu", 64, 2), ("mish", 60, 3), ("relu", 96, 2)):
            config = tinyroberta.RobertaPreLayerNormConfig(
                **sizes,
                hidden_size=wide,
                num_attention_heads=heads,
                intermediate_size=2 * wide + 8,
                hidden_act=act,
                is_decoder=True,
            )
            for settings in (*({"matmul_precision": name} for name in PRECISIONS), {"reproducible": True}):
                model = new_model(tinyroberta.RobertaPreLayerNormForCausalLM, config, threads=1, backend="cpu", **settings)
                model(ids, mask, output_attentions=True)
                model.generate(ids[:1, :5], max_new_tokens=2)
            encoder = new_model(tinyroberta.RobertaPreLayerNormModel, replace(config, is_decoder=False), backend="cpu")
            for _ in range(4):  # recorded and played
                encoder(ids, mask)
        backend = load_backend("cpu")
        for name in ("gelu", "gelu_new", "silu", "tanh", "mish", "sigmoid"):
            backend.activation(np.linspace(-20, 20, 5001, dtype=np.float32), name)
        for kind in (np.float16, np.float32):
            weight = np.random.default_rng(0).standard_normal((70, 33)).astype(kind).astype(np.float32)
            pack_panels([weight, weight])


if __name__ == "__main__":
    twice()
    everything()
    kernels = [kernel for kernel in compiled.Kernel.every if kernel.missing() is None]
    for kernel in kernels:
        if kernel.name not in APART:
            print(kernel.name, {None: "never ran", 0: "same"}.get(differing.get(kernel.name), "differs"))
