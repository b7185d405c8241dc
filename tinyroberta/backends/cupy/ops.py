"""Every op but attention, each as launches of kernels on rows; and arrays on their way to the device and back.

Shapes: T tokens packed one sequence after another; D the model's width, I and O a dense layer's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import cupy as cp
import numpy as np

from ...errors import Error
from .. import Activation
from . import cublaslt
from .digits import Cut, cut, digit_product, empty_cut, whole
from .half import UNBOUNDED
from .launch import BF16, CPP_NAMES, DIGITS, F16, FLOAT, MOST_BLOCKS, Tile, at_once, launch, launch_rows, launch_tiles
from .weights import Gains, Matrix, Segments, Sliced

Array = Any

ACTIVATIONS = {  # as kernels/activation.cuh numbers them
    "linear": 0, "gelu": 1, "gelu_python": 1, "gelu_new": 2, "gelu_accurate": 2, "gelu_fast": 2, "gelu_python_tanh": 2,
    "gelu_pytorch_tanh": 2, "gelu_10": 3, "quick_gelu": 4, "relu": 5, "relu2": 6, "relu6": 7, "leaky_relu": 8, "sigmoid": 9,
    "silu": 10, "swish": 10, "tanh": 11, "mish": 12, "hardswish": 13, "laplace": 14, "sqrtsoftplus": 15,
}  # fmt: skip
IDENTITY, GELU, GELU_TANH = 0, 1, 2
OF_FLOAT = Tile(rows=64, columns=64, threads=256)
OF_SIXTEEN_BITS = Tile(rows=128, columns=128, threads=256, shared=3 * (128 + 128) * (32 + 8) * 2)  # three stages of 40 numbers
THREADS = 256  # of a block that works number by number
COLUMNS = 128  # of a block that adds rows up


class Embedded(NamedTuple):
    """What `embed` was given: the norm that follows adds it up on its way, so that the sum is never written."""

    ids: Array | None
    positions: Array | None
    token_types: Array
    word: Array
    position: Array
    token_type: Array


def embed(
    ids: Array, positions: Array | None, token_types: Array, word: Array, position: Array, token_type: Segments
) -> Array:  # (T,) x3 -> (T, D), not added up yet where a norm follows
    """The sum of a token's three embeddings."""
    if ids.ndim == 2:  # the words' vectors themselves, a row for each token
        ids, word = None, ids
    x = Embedded(ids, positions, token_types, word, position, token_type.array)
    return x if token_type.norm_follows else _added(x)


def _added(x: Embedded) -> Array:
    rows, width = len(x.token_types), x.word.shape[1]
    y = cp.empty((rows, width), FLOAT)
    launch_rows(f"embed<{at_once(width, *x)}>", rows, **x._asdict(), x=y, width=width)
    return y


def layer_norm(x: Array, weight: Gains, bias: Array, eps: float) -> Array:  # (T, D), (D,), (D,) -> (T, D)
    """Each row less its mean, over its standard deviation, scaled and shifted."""
    rows, width = len(x.token_types if isinstance(x, Embedded) else x), len(bias)
    norm = {"weight": weight.array, "bias": bias, "width": width, "eps": eps}
    if weight.out == DIGITS:
        x, y = cp.ascontiguousarray(x), empty_cut(rows, width)
        if rows:
            launch_rows(f"layer_norm_cut<{at_once(width, x)}>", rows, x=x, digits=y.digits, scales=y.scales, **norm)
        return y
    y = cp.empty((rows, width), weight.out)
    if not rows:
        return y
    if isinstance(x, Embedded):
        launch_rows(f"embed_layer_norm<{at_once(width, *x)}>", rows, **x._asdict(), y=y, **norm)
        return y
    x = cp.ascontiguousarray(x)
    launch_rows(f"layer_norm<{CPP_NAMES[y.dtype]}, {at_once(width, x)}>", rows, x=x, y=y, **norm)
    return y


def linear(
    x: Array | Cut, weight: Matrix | Sliced, bias: Array, activation: Activation | None = None, residual: Array | None = None
) -> Array:  # (T, I), (O, I), (O,) -> (T, O)
    """activation(x W^T + b) + residual."""
    if callable(activation):
        y = linear(x, weight, bias)
        y = _applied(converted(y, FLOAT) if y.dtype == F16 else y, activation)
        return y if residual is None else elementwise(y, IDENTITY, residual)
    which = IDENTITY if activation is None else ACTIVATIONS[activation]
    if isinstance(weight, Sliced):
        return _sliced_linear(x, weight, bias, which, residual)
    w, out = weight.array, weight.out
    x = cp.ascontiguousarray(x)
    if w.dtype == F16 and x.dtype == FLOAT and not weight.bounded:  # nothing keeps these rows within f16
        w = converted(w, FLOAT)
    x = x if x.dtype == w.dtype else converted(x, w.dtype)
    if not len(x):
        return cp.empty((0, len(w)), out)
    by_library = cublaslt.library() is not None and cublaslt.fits(x, w, out)
    # the library's GELU is the tanh form: at most 4.7e-4 from the exact one, below the rounding of bf16 alone
    gelu = which == GELU_TANH or (which == GELU and weight.precision == "medium") if by_library else which == GELU
    later = which if not gelu else IDENTITY  # the activation that the product does not take along
    alone = later or (by_library and (gelu or residual is None or residual.dtype != out))
    added = None if alone else residual
    if by_library:
        y = cublaslt.linear(x, w, bias, out, gelu, added, tf32=weight.precision == "high" and w.dtype == FLOAT)
    else:
        y = _own_linear(x, w, bias, out, gelu, added)
    if later or (residual is not None and added is None):
        y = elementwise(y, later, residual, cp.empty(y.shape, FLOAT) if out == F16 and activation == UNBOUNDED else y)
    return y


def _own_linear(x: Array, w: Array, bias: Array, out: Any, gelu: bool, residual: Array | None) -> Array:
    (M, K), N = x.shape, len(w)
    y = cp.empty((M, N), out)
    name, tile = "linear", OF_FLOAT
    if w.dtype != FLOAT:
        name, tile = f"linear_mma<{CPP_NAMES[w.dtype]}, {CPP_NAMES[y.dtype]}>", OF_SIXTEEN_BITS
    launch_tiles(name, tile, M, N, x=x, w=w, bias=bias, residual=residual, y=y, K=K, gelu=gelu)
    return y


def _sliced_linear(x: Array | Cut, weight: Sliced, bias: Array, which: int, residual: Array | None) -> Array:
    """Each piece's product is added to those before; the only one takes the activation and the residual along if it can."""
    parts = [x] if isinstance(x, Cut) else cut(x)
    fused = len(parts) == 1 and which in (IDENTITY, GELU)
    y = residual if fused else None
    for i, (part, w) in enumerate(zip(parts, weight.pieces, strict=True)):
        y = digit_product(part, w, weight.diagonals, None if i else bias, fused and which == GELU, y)
    return y if fused else elementwise(y, which, residual, y)


def in_steps(
    x: Array,  # noqa: ARG001
    weight: Matrix | Sliced,  # noqa: ARG001
    bias: Array,  # noqa: ARG001
    activation: Activation | None,  # noqa: ARG001
    residual: Array | None,  # noqa: ARG001
) -> tuple[Array, Callable[[Array], Array]] | None:
    """As the NumPy backend's: none, since in one call kernels and the library round less often, each at places of its own."""
    return None


def activation(x: Array, name: Activation) -> Array:
    """One of transformers' ACT2FN by name, or any function of an array; raises Error where it changes the shape."""
    return _applied(x, name) if callable(name) else elementwise(cp.ascontiguousarray(x), ACTIVATIONS[name])


def _applied(x: Array, function: Callable[[Any], Any]) -> Array:
    y = function(x)
    if y.shape != x.shape:
        raise Error(f"hidden_act gave an array of shape {y.shape} for one of {x.shape}; it must keep the shape")
    return cp.ascontiguousarray(y.astype(x.dtype, copy=False))


def elementwise(x: Array, which: int, residual: Array | None = None, y: Array | None = None) -> Array:
    """The activation that is number `which` in ACTIVATIONS, of every number of x, plus `residual`; y may be of another type."""
    y = cp.empty(x.shape, x.dtype) if y is None else y
    if x.size:
        many = 1 if x.size % 4 or any(a is not None and a.data.ptr % 16 for a in (x, residual, y)) else 4
        blocks = min(-(-x.size // (THREADS * many)), MOST_BLOCKS)
        kernel = f"activation<{CPP_NAMES[x.dtype]}, {CPP_NAMES[y.dtype]}, {many}>"
        launch(kernel, (blocks,), (THREADS,), x=x, residual=residual, y=y, n=x.size, which=which)
    return y


def converted(x: Array, dtype: Any) -> Array:
    """An array's numbers as another type."""
    return elementwise(x, IDENTITY, y=cp.empty(x.shape, dtype))


def sums(x: Array, starts: Any, ends: Any) -> Array:  # (T, D), (B,) x2 -> (B, D) float64
    """The sum of each part's rows, start : end, in float64 and row after row, with the bits of the NumPy backend's."""
    x = cp.ascontiguousarray(x if x.dtype == FLOAT else converted(x, FLOAT))
    y = cp.empty((len(starts), x.shape[1]), np.float64)
    grid = (len(starts), -(-x.shape[1] // COLUMNS))
    launch("sums", grid, (COLUMNS,), x=x, starts=asarray(starts), ends=asarray(ends), y=y, width=x.shape[1])
    return y


def asarray(x: Any) -> Array:
    """An array of this backend: integers as int32, the kernels' index, other numbers as float32."""
    if isinstance(x, cp.ndarray):
        return x
    x = np.asarray(x)
    return cp.asarray(np.ascontiguousarray(x.astype(np.int32 if x.dtype.kind in "iu" else np.float32, copy=False)))


def to_numpy(x: Array) -> Any:
    """A NumPy array, float32 also where the GPU keeps fewer bits; of a norm's weight its gains.

    Digits are put together again, with zeros behind a row that does not fill them.
    """
    if isinstance(x, Cut):
        return whole(x)
    if isinstance(x, Embedded):
        x = _added(x)
    x = x.array if isinstance(x, Gains) else x
    x = x.get() if isinstance(x, cp.ndarray) else x
    return x.astype(FLOAT) if x.dtype in (BF16, F16) else x
