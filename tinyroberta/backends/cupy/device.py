"""The GPU: what the current one has, and which route matmul_precision="highest" takes.

The two routes are exact products of 8-bit digits on the integer tensor cores (digits.py), and plain float32.
TINYROBERTA_GPU=sliced|float chooses one; `python -m benchmarks.gpu` times both.
"""

import functools
import os

import cupy as cp

from ...errors import Error
from . import cublaslt

ROUTES = {"float": "plain float32", "sliced": "exact products of 8-bit digits on the integer tensor cores"}
ROUTE, REASON = "sliced", "the faster one at every size on an H200"  # the default, as `python -m benchmarks.gpu` decides


@functools.cache
def _hopper(device: int) -> bool:
    return int(cp.cuda.Device(device).compute_capability) == 90


@functools.cache
def _multiprocessors(device: int) -> int:
    return int(cp.cuda.Device(device).attributes["MultiProcessorCount"])


def hopper() -> bool:
    """Whether the current device has Hopper's matrix instructions."""
    return _hopper(cp.cuda.Device().id)


def multiprocessors() -> int:
    """How many the current device has."""
    return _multiprocessors(cp.cuda.Device().id)


def chosen_route() -> str:
    """The route for "highest" that TINYROBERTA_GPU names, else the default; raises Error on a name that there is not."""
    route = os.environ.get("TINYROBERTA_GPU") or ROUTE
    if route not in ROUTES:
        raise Error(f"TINYROBERTA_GPU is {route!r}; this version has {', '.join(ROUTES)}")
    return route


def describe() -> list[str]:
    """What runs on this machine and why, a line each."""
    route, asked = chosen_route(), os.environ.get("TINYROBERTA_GPU")
    why = f"as TINYROBERTA_GPU={asked} asks" if asked else f"the default; {REASON}"
    return [
        f"GPU: {cp.cuda.runtime.getDeviceProperties(cp.cuda.Device().id)['name'].decode()}",
        f"matrix products: {'own kernels' if cublaslt.library() is None else 'cuBLASLt where it fits, else own kernels'}",
        f"in highest precision: {route}, {ROUTES[route]} ({why})",
    ]
