"""python -m cuda_on_cpu.sanitize undefined|address|none [planted]: every kernel, on small shapes, under a sanitizer of g++.

Prints "clean" where the sanitizer had nothing to say. `planted` puts a bug into a kernel first; `none` runs on a real GPU, for
compute-sanitizer.
"""

import os
import sys
from typing import Any

import ml_dtypes
import numpy as np

from tinyroberta import RobertaPreLayerNormConfig, RobertaPreLayerNormForMaskedLM
from tinyroberta.backends import Sequences, load_backend

from . import stand_in

PLANTED = {
    "undefined": ("linear.cu", "rows[k][r] = ", "rows[k + 1][r] = "),
    "address": ("linear.cu", "if (m >= M || n >= N) continue;", ""),
}


def every_kernel(ops: Any) -> None:
    """Launch all the kernels that there are."""
    random = np.random.default_rng(0)
    for width in (33, 40):
        config = RobertaPreLayerNormConfig(
            vocab_size=20, hidden_size=width, num_hidden_layers=1, num_attention_heads=1, intermediate_size=width + 1
        )
        ids = random.integers(2, 20, (2, 9))
        mask = np.ones_like(ids)
        mask[1, 4:] = 0
        for precision, route in (("highest", "float"), ("highest", "sliced"), ("high", "float"), ("medium", "float")):
            os.environ["TINYROBERTA_GPU"] = route
            model = RobertaPreLayerNormForMaskedLM(config, backend="cupy", matmul_precision=precision)
            for given in ({}, {"output_attentions": True}, {"padding": "compute"}):
                model(ids, attention_mask=mask, **given)
    starts, length = np.array([0, 70], np.int32), np.array([70], np.int32)
    wgmma = ops.device.hopper
    for d, hopper in ((20, wgmma), (64, wgmma), (64, lambda: False), (100, wgmma)):
        ops.device.hopper = hopper
        for dtype in (np.float32, ml_dtypes.bfloat16, np.float16):
            qkv = ops.cp.asarray(random.standard_normal((70, 3 * d)).astype(dtype))
            q, k, v = (qkv[:, i * d : (i + 1) * d] for i in range(3))
            for bias in (None, np.zeros((1, 1, 1, 70))):
                ops.attention(q, k, v, Sequences(starts, starts[:1], length, True), 1, bias)
    ops.device.hopper = wgmma
    for width in (33, 40):
        x, w = (ops.asarray(random.standard_normal(shape)) for shape in ((5, width), (6, width)))
        for out in (ops.launch.FLOAT, ops.launch.BF16, ops.launch.F16):
            ops.activation(w.astype(out), "relu")
            ops.ops.converted(w.astype(out), ops.launch.FLOAT)
            ops.layer_norm(x, ops.weights.Gains(w[0], out), w[1], 1e-5)
            for operand in (ops.launch.FLOAT, ops.launch.BF16, ops.launch.F16) if out == ops.launch.FLOAT else (out,):
                dense = ops.weights.Matrix(w.astype(operand), "medium", out)
                for name in ("gelu", "relu"):
                    ops.linear(x, dense, w[:, 0].copy().astype(out), name)
        ops.layer_norm(x, ops.weights.Gains(w[0], ops.launch.DIGITS), w[1], 1e-5)
        block = ops.digits._block
        for diagonals, *sizes in ((3, 2, 128, 4), (3, 2, 96, 4), (4, 2, 96, 4), (3, 1, 32, 6), (4, 1, 32, 6)):
            ops.digits._block = lambda *_, sizes=tuple(sizes): sizes
            for ops.device.hopper in (wgmma, lambda: False):
                for name in ("gelu", "relu"):
                    ops.linear(x, ops.weights.Sliced(ops.digits.cut(w), diagonals), w[:, 0].copy(), name)
        ops.digits._block = block
        ops.device.hopper = wgmma
        ids = ops.asarray(np.arange(5))
        ops.embed(ids, ids, ids, w, w, ops.weights.Segments(w, False))
        ops.sums(x, np.array([0, 3]), np.array([3, 5]))


def main(sanitizer: str, planted: bool) -> None:
    """Run; the sanitizer ends the process where it finds something."""
    if sanitizer == "none":
        real: Any = load_backend("cupy")
        real.cublaslt.library = lambda: None  # initcheck does not see what the library writes
        every_kernel(real)
        print("clean")
        return
    stand_in.sanitizer, stand_in.GUARD = sanitizer, 0
    with stand_in.installed():
        ops: Any = load_backend("cupy")
        nvrtc = stand_in.NVRTC()
        ops.cublaslt.library, ops.compiler.library = lambda: None, lambda: nvrtc
        if planted:
            file, right, wrong = PLANTED[sanitizer]
            assert right in ops.launch.SOURCES[file]
            ops.launch.SOURCES[file] = ops.launch.SOURCES[file].replace(right, wrong, 1)
        every_kernel(ops)
        known = {name for names in ops.launch.KERNELS.values() for name in names}
        assert known <= set(stand_in.launched), known - set(stand_in.launched)
    print("clean")


if __name__ == "__main__":
    main(sys.argv[1], "planted" in sys.argv)
