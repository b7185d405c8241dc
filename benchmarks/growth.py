"""How cost grows with the length of a text, with how many texts, and with layers: ours and a few peers, checked, interleaved.

    python -m benchmarks.growth [--longest 8192] [--seconds 3] [--threads 2] [--peers torch ...] [--exports FOLDER] [--save]

Base model with 8192 positions; one text of 1 to 8192 tokens, 1 to 64 texts of 128, one text of 128 through 1 to 24 layers.
Answers are checked against float64 up to 1024 tokens in all. torch.compile, which compiles for every shape, is left out.
"""

import argparse
from pathlib import Path
from typing import Any

import tinyroberta

from . import cpu

LONGEST = 8192
LAYERS = (1, 2, 4, 8, 12, 24)
CHECKED = 1024  # tokens


def reference(config: Any, tensors: Any) -> Any:
    """work -> the answer in float64, None for what is too much of it."""
    exact = tinyroberta.RobertaPreLayerNormModel(config, tensors, backend="numpy", dtype="float64")

    def answer(work: str) -> Any:
        ids, mask = cpu.texts(work)
        return exact(ids, mask).last_hidden_state if ids.size <= CHECKED else None

    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description="How cost grows with tokens, texts and layers.")
    parser.add_argument("--longest", type=int, default=LONGEST)
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS)
    cpu.add_options(parser, 3)
    chosen = parser.parse_args()
    about = cpu.machine()
    threads = chosen.threads or about["cpus"]
    print(f"{about['cpu']}, {threads} threads", *about["path"], sep="\n  ", flush=True)
    asked = ["torch", "openvino"] if chosen.peers is None else chosen.peers
    ours = {kind.ours for kind in cpu.KINDS.values()}
    here = cpu.chosen_stacks(asked)
    names = [name for name in here if name in ours or not ("numba" in name or "compile" in name or "int8" in name)]
    powers = [1 << i for i in range(chosen.longest.bit_length())]

    def measure(folder: Path, works: list[str], layers: int | None = None) -> Any:
        config, tensors = cpu.model_tensors("base", layers, LONGEST + 2)
        cpu.write_model(config, tensors, folder)
        return cpu.measure(names, works, folder, threads, chosen.seconds, reference(config, tensors))

    with cpu.exports(chosen.exports, "growth") as folder:
        lines = measure(folder, [f"1x{n}" for n in powers] + [f"{n // 128}x128" for n in powers if n > 128])
    tokens = {int(work[2:]): rows for work, rows in lines.items() if work.startswith("1x")}
    batch = {int(work.split("x")[0]): rows for work, rows in lines.items() if work.endswith("x128")}
    by_layers = {}
    for layers in chosen.layers:
        print(f"{layers} layers", flush=True)
        with cpu.exports(chosen.exports, f"growth-{layers}-layers") as folder:
            by_layers[layers] = measure(folder, ["1x128"], layers)["1x128"]
    if chosen.save:
        cpu.save(about | {"threads": threads, "tokens": tokens, "batch": batch, "layers": by_layers}, "growth")


if __name__ == "__main__":
    main()
