"""cuBLASLt through ctypes: x W^T + bias, with GELU or a residual, on the current stream.

CuPy's own cuBLAS calls refuse a stream that is being captured; here the stream is an argument, so they go into a graph as they
are. Names and numbers are those of cublasLt.h. M rows of x (M, K), W (N, K), y (M, N).
"""

import ctypes
import functools
import importlib.util
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import cupy as cp

from ...errors import Error

Array = Any

TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}  # cudaDataType
COMPUTE_32F, COMPUTE_32F_FAST_TF32 = 68, 77  # cublasComputeType_t
TRANSA, TRANSB, EPILOGUE, BIAS_POINTER = 3, 4, 7, 8  # cublasLtMatmulDescAttributes_t
EPILOGUE_BIAS, EPILOGUE_GELU_BIAS = 4, 36
MAX_WORKSPACE, MIN_ALIGNMENTS = 1, (5, 6, 7, 8)  # cublasLtMatmulPreferenceAttributes_t
WORKSPACE = 32 << 20  # bytes, what NVIDIA advises for Hopper
ALIGNMENT = 16  # bytes, that every address and row has here
CANDIDATES, ROUNDS, CALLS = 8, 2, 5  # algorithms that are timed where it is worth it, how often, how many calls at a time


class Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


@dataclass(eq=False)
class Plan:
    """A product's description and the algorithms for it, those first that the library thinks fastest.

    The library's part of it is destroyed with the plan, which is when the cache and the last thread have let go of it.
    """

    description: ctypes.c_void_p
    w: ctypes.c_void_p
    x: ctypes.c_void_p
    y: ctypes.c_void_p
    algorithms: list[Heuristic] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)  # the description holds one call's bias at a time


class _Choosing(threading.local):
    now = False


_choosing = _Choosing()


@contextmanager
def choosing() -> Iterator[None]:
    """Within, the fastest algorithm for a product is found by timing: what is computed within is to be computed often."""
    outer, _choosing.now = _choosing.now, True
    try:
        yield
    finally:
        _choosing.now = outer


@functools.cache
def library() -> Any | None:
    """cuBLASLt, from its wheel, the CUDA toolkit or the loader's path; None where it is in none of them."""
    major = cp.cuda.runtime.runtimeGetVersion() // 1000
    name = f"libcublasLt.so.{major}"
    spec = importlib.util.find_spec("nvidia")
    wheels = [] if spec is None else [Path(root) for root in spec.submodule_search_locations or ()]
    found = [root / part / "lib" / name for root in wheels for part in (f"cu{major}", "cublas")]
    if cp.cuda.get_cuda_path():
        found.append(Path(cp.cuda.get_cuda_path()) / "lib64" / name)
    for path in (*(str(path) for path in found if path.exists()), name):
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    return None


def fits(x: Array, weight: Array, out: Any) -> bool:
    """Whether every row of a product starts at a multiple of 16 bytes, as the algorithms that are worth it need."""
    rows = (x.shape[1] * x.itemsize, weight.shape[0] * out.itemsize, x.data.ptr, weight.data.ptr)
    return not any(number % ALIGNMENT for number in rows)


def linear(
    x: Array, weight: Array, bias: Array, out: Any, gelu: bool = False, residual: Array | None = None, tf32: bool = False
) -> Array:  # (M, K), (N, K), (N,) -> (M, N)
    """gelu(x W^T + bias), GELU in its tanh form, or x W^T + bias + residual; sums in float32.

    tf32: float32 operands are rounded to TF32. Raises Error where the library fails.
    """
    lt: Any = library()
    (M, K), N = x.shape, len(weight)
    y = cp.empty((M, N), out)
    device = cp.cuda.Device().id
    plan = _plan(device, M, N, K, x.dtype, out, gelu, tf32)
    added, beta = (y, 0.0) if residual is None else (residual, 1.0)
    operands = (
        ctypes.byref(ctypes.c_float(1)),
        *(ctypes.c_void_p(weight.data.ptr), plan.w, ctypes.c_void_p(x.data.ptr), plan.x),
        ctypes.byref(ctypes.c_float(beta)),
        *(ctypes.c_void_p(added.data.ptr), plan.y, ctypes.c_void_p(y.data.ptr), plan.y),
    )

    def multiply(algorithm: Heuristic) -> None:
        workspace = cp.empty(max(1, algorithm.workspace), "uint8")
        room, stream = ctypes.c_size_t(algorithm.workspace), ctypes.c_void_p(cp.cuda.get_current_stream().ptr)
        at = ctypes.c_void_p(workspace.data.ptr)
        _check(lt.cublasLtMatmul(_handle(device), plan.description, *operands, ctypes.byref(algorithm), at, room, stream))

    bias_pointer = ctypes.byref(ctypes.c_void_p(bias.data.ptr))
    with plan.lock:
        _check(lt.cublasLtMatmulDescSetAttribute(plan.description, BIAS_POINTER, bias_pointer, ctypes.c_size_t(8)))
        if _choosing.now and len(plan.algorithms) > 1:
            plan.algorithms = [_fastest(multiply, plan.algorithms)]
        multiply(plan.algorithms[0])
    return y


def _fastest(multiply: Callable[[Heuristic], None], algorithms: list[Heuristic]) -> Heuristic:
    times = [float("inf")] * len(algorithms)
    for _ in range(ROUNDS):
        for i, algorithm in enumerate(algorithms):
            start, end = cp.cuda.Event(), cp.cuda.Event()
            start.record()
            for _ in range(CALLS):
                multiply(algorithm)
            end.record()
            end.synchronize()
            times[i] = min(times[i], cp.cuda.get_elapsed_time(start, end))
    return algorithms[times.index(min(times))]


def _check(status: int) -> None:
    if status:
        raise Error(f"cuBLASLt failed with status {status}; this is not a fault of the input: report it with the GPU's name")


@functools.cache
def _handle(device: int) -> ctypes.c_void_p:  # noqa: ARG001
    handle, lt = ctypes.c_void_p(), cast(Any, library())
    _check(lt.cublasLtCreate(ctypes.byref(handle)))
    return handle


@functools.lru_cache(maxsize=4096)
def _plan(device: int, M: int, N: int, K: int, of: Any, out: Any, gelu: bool, tf32: bool) -> Plan:
    """The library is column-major: y (M, N) by rows is Y (N, M) by columns, and Y = W^T X with W (K, N) and X (K, M)."""
    lt: Any = library()
    description, w, x, y, preference = (ctypes.c_void_p() for _ in range(5))
    plan = Plan(description, w, x, y)
    weakref.finalize(plan, _destroy, lt, description, (w, x, y)).atexit = False  # a process that ends gives everything back
    compute = COMPUTE_32F_FAST_TF32 if tf32 else COMPUTE_32F
    _check(lt.cublasLtMatmulDescCreate(ctypes.byref(description), compute, TYPES["float32"]))
    epilogue = EPILOGUE_GELU_BIAS if gelu else EPILOGUE_BIAS
    for attribute, value in ((TRANSA, 1), (TRANSB, 0), (EPILOGUE, epilogue)):
        given = ctypes.byref(ctypes.c_int(value))
        _check(lt.cublasLtMatmulDescSetAttribute(description, attribute, given, ctypes.c_size_t(4)))
    for layout, dtype, rows, columns in ((w, of, K, N), (x, of, K, M), (y, out, N, M)):
        sizes = (ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(rows))
        _check(lt.cublasLtMatrixLayoutCreate(ctypes.byref(layout), TYPES[dtype.name], *sizes))
    _check(lt.cublasLtMatmulPreferenceCreate(ctypes.byref(preference)))
    room = ctypes.byref(ctypes.c_uint64(WORKSPACE))
    _check(lt.cublasLtMatmulPreferenceSetAttribute(preference, MAX_WORKSPACE, room, ctypes.c_size_t(8)))
    for attribute in MIN_ALIGNMENTS:
        bytes_ = ctypes.byref(ctypes.c_uint32(ALIGNMENT))
        _check(lt.cublasLtMatmulPreferenceSetAttribute(preference, attribute, bytes_, ctypes.c_size_t(4)))
    algorithms, found = (Heuristic * CANDIDATES)(), ctypes.c_int()
    status = lt.cublasLtMatmulAlgoGetHeuristic(
        _handle(device), description, w, x, y, y, preference, CANDIDATES, algorithms, ctypes.byref(found)
    )
    _check(lt.cublasLtMatmulPreferenceDestroy(preference))
    _check(status)
    plan.algorithms = [algorithm for algorithm in algorithms[: found.value] if not algorithm.state]
    if not plan.algorithms:
        raise Error(f"cuBLASLt has no algorithm for ({M}, {K}) by ({K}, {N}) in {of}: report it with the GPU's name")
    return plan


def _destroy(lt: Any, description: ctypes.c_void_p, layouts: Sequence[ctypes.c_void_p]) -> None:
    """Give a plan's part in the library back; null, which a plan that failed half-way holds, is nothing to give back."""
    if description:
        lt.cublasLtMatmulDescDestroy(description)
    for layout in filter(None, layouts):
        lt.cublasLtMatrixLayoutDestroy(layout)
