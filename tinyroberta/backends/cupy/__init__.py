"""The GPU: every op as launches of this package's own CUDA kernels, through CuPy, and products by cuBLASLt where it is installed.

backends/numpy.py says what each op means; kernels/*.cu say how. Read launch.py for how a kernel is launched, ops.py and
attention.py for the ops, digits.py for exact products, weights.py for what weights become, sequences.py for which rows are whose,
recording.py for CUDA graphs, device.py for what the GPU has, compiler.py and cublaslt.py for NVIDIA's libraries.

Precision: "highest" is float32 throughout, by one of two routes (device.py). "medium" gives products and attention bf16 operands
and float32 sums, and keeps norms' insides, softmax and the residual stream in float32. "high" does so with f16, which has as many
bits as TF32 at twice its speed, where the weights show that no text leaves its range (half.py); elsewhere products are TF32's, or
float32's without cuBLASLt, and attention float32's. Results are CuPy arrays; nothing waits for the GPU. Kernels named wgmma or
split are Hopper's alone.
"""

from ...errors import Error
from ..numpy import relative  # NumPy's einsum hands CuPy's arrays to CuPy

try:
    import cupy as cp
except ImportError as error:
    raise Error(
        "backend='cupy' needs CuPy, which is not installed: pip install 'tinyroberta[cuda13]' (or [cuda12] with an older driver)"
    ) from error
try:
    _devices = cp.cuda.runtime.getDeviceCount()
except cp.cuda.runtime.CUDARuntimeError as error:
    raise Error(f"backend='cupy' needs an NVIDIA GPU and its driver, and CuPy finds none on this machine ({error})") from error
if not _devices or int(cp.cuda.Device().compute_capability) < 80:
    raise Error("backend='cupy' needs an NVIDIA GPU of compute capability 8.0 (Ampere) or newer, and this machine has none")

from .attention import attention, keeps_alike
from .device import describe
from .ops import activation, asarray, embed, in_steps, layer_norm, linear, sums, to_numpy
from .recording import recorded
from .sequences import running
from .weights import prepare

__all__ = [
    "activation",
    "asarray",
    "attention",
    "describe",
    "embed",
    "in_steps",
    "keeps_alike",
    "layer_norm",
    "linear",
    "prepare",
    "recorded",
    "relative",
    "running",
    "sums",
    "to_numpy",
]
