"""The definition of every op, in plain NumPy: float32 or float64.

Shapes: T tokens packed one sequence after another, Tq of them queries and Tk keys; D the model's width, H heads of width d;
I and O the width into and out of a dense layer.
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import ml_dtypes  # noqa: F401  (teaches NumPy bfloat16)
import numpy as np
from numpy.polynomial.chebyshev import cheb2poly

from ..errors import Error
from ..weights.files import release
from . import Activation, Sequences, Settings
from .records import Dense, Norm, Table, mapped

Array = np.ndarray[Any, np.dtype[Any]]


def embed(
    ids: Array, positions: Array | None, token_types: Array, word: Array, position: Array, token_type: Array
) -> Array:  # (T,) x3, (V, D), (P, D), (N, D) -> (T, D)
    """The sum of a token's three embeddings; `ids` may be (T, D) vectors that stand for the words, `positions` None for none."""
    x: Array = (ids if ids.ndim == 2 else word[ids]) + token_type[token_types]
    if positions is not None:
        x = x + position[positions]
    return x


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:  # (T, D), (D,), (D,) -> (T, D)
    """Each row less its mean, over its standard deviation, scaled and shifted (Ba et al. 2016)."""
    x = x - x.mean(-1, keepdims=True)
    variance = np.square(x).mean(-1, keepdims=True)
    return x / np.sqrt(variance + x.dtype.type(eps)) * weight + bias


def linear(
    x: Array, weight: Array, bias: Array, activation: Activation | None = None, residual: Array | None = None
) -> Array:  # (T, I), (O, I), (O,) -> (T, O)
    """activation(x W^T + b) + residual."""
    y = x @ weight.T
    y += bias
    if activation is not None:
        y = _activate(y, activation)
    if residual is not None:
        y += residual
    return y


def in_steps(
    x: Array, weight: Array, bias: Array, activation: Activation | None, residual: Array | None
) -> tuple[Array, Callable[[Array], Array]] | None:
    """x W^T + b, and what makes the result of `linear` of it, to the bit; None where two steps give other bits than one."""
    return linear(x, weight, bias), partial(finish, _activate, activation=activation, residual=residual)


def finish(
    activate: Callable[[Array, Activation], Array], y: Array, activation: Activation | None, residual: Array | None
) -> Array:
    """activation(y) + residual by a backend's function for activations."""
    y = y if activation is None else activate(y, activation)
    return y if residual is None else y + residual


def attention(
    q: Array,
    k: Array,
    v: Array,
    sequences: Sequences,
    heads: int,
    bias: Array | None = None,
    head_mask: Array | None = None,
    probs: bool = False,
) -> tuple[Array, list[Array] | None]:  # (Tq, D), (Tk, D) x2 -> (Tq, D), B x (H, Sq, Sk)
    """softmax(q k^T / sqrt(d) + bias) v, each sequence and head for itself (Vaswani et al. 2017), and the probabilities if asked.

    k and v may also be a cache, (B, H, capacity, d). bias and head_mask broadcast to (B, H, Sq, Sk).
    """
    return attend(np.matmul, softmax, q, k, v, sequences, heads, bias, head_mask, probs)


def keeps_alike() -> bool:
    """Whether attention's means have the same bits where the probabilities are kept."""
    return True


def attend(
    product: Callable[[Array, Array], Array],
    softmax: Callable[[Array], Array],
    q: Array,
    k: Array,
    v: Array,
    sequences: Sequences,
    heads: int,
    bias: Array | None,
    head_mask: Array | None,
    probs: bool,
) -> tuple[Array, list[Array] | None]:
    """Attention by a way to multiply, (H, I, K) by (H, K, J), and a softmax over the last axis."""
    out = np.empty_like(q)
    d = q.shape[1] // heads
    probabilities: list[Array] = []

    def by_head(x: Array) -> Array:  # (S, H d) -> (H, S, d)
        return x.reshape(-1, heads, d).transpose(1, 0, 2)

    starts = zip(sequences.query_start[:-1], sequences.query_start[1:], sequences.key_start, sequences.key_length, strict=True)
    for b, (start, end, key, length) in enumerate(starts):
        queries = by_head(q[start:end] * (1 / math.sqrt(d)))
        keys, values = (by_head(x[key : key + length]) if x.ndim == 2 else x[b, :, key : key + length] for x in (k, v))
        scores = product(queries, keys.transpose(0, 2, 1))
        if bias is not None:
            scores += bias[b if len(bias) > 1 else 0]
        if sequences.causal:
            seen = np.arange(length) <= np.arange(length - (end - start), length)[:, None]
            scores = np.where(seen, scores, -math.inf)
        p = softmax(scores)
        if head_mask is not None:
            p *= head_mask[b if len(head_mask) > 1 else 0]
        out[start:end] = product(p, values).transpose(1, 0, 2).reshape(end - start, heads * d)
        if probs:
            probabilities.append(p)
    return out, probabilities if probs else None


def softmax(x: Array) -> Array:  # (..., S) -> same
    """exp(x) / sum exp(x) over the last axis, shifted by the row's largest so that nothing overflows."""
    with np.errstate(over="ignore"):  # a mask above 1 makes a score so large that others less it are -inf: exp gives 0
        x = np.exp(x - x.max(-1, keepdims=True))
    x /= x.sum(-1, keepdims=True)
    return x


def relative(q: Array, k: Array | None, vectors: Array) -> Array:  # (B, H, Sq, d), (B, H, Sk, d), (Sq, Sk, d) -> (B, H, Sq, Sk)
    """Each query, and where given each key, times the vector of their distance."""
    scores: Array = np.einsum("bhld,lrd->bhlr", q, vectors)
    return scores if k is None else scores + np.einsum("bhrd,lrd->bhlr", k, vectors)


def activation(x: Array, name: Activation) -> Array:
    """One of transformers' ACT2FN by name, or any function of an array; raises Error where it changes the shape."""
    return _activate(x, name)


def sums(x: Array, starts: Array, ends: Array) -> Array:  # (T, D), (B,) x2 -> (B, D) float64
    """The sum of each part's rows, start : end, in float64 and row after row; no part is empty."""
    return np.stack([x[start:end].sum(0, dtype=np.float64) for start, end in zip(starts, ends, strict=True)])


def _activate(x: Array, name: Activation) -> Array:
    y = np.asarray(name(x)) if callable(name) else ACTIVATIONS[name](x)
    if y.shape != x.shape:
        raise Error(f"hidden_act gave an array of shape {y.shape} for one of {x.shape}; it must keep the shape")
    return y.astype(x.dtype, copy=False)


def erfc(x: Array) -> Array:
    """The complementary error function, to 1e-15 in float64 and 3e-7 in float32 (relative, where it is not tiny).

    For y = |x| and t = 2 / (2 + y): erfc(y) = t exp(p(t) - y^2), p a Chebyshev series (tools/fit_erfc.py).
    erfc(-y) = 2 - erfc(y).
    """
    y = np.abs(x)
    t = 2 / (2 + y)
    u = 2 * t - 1
    polynomial = ERFC_POLYNOMIAL[x.dtype.itemsize]
    p = np.full_like(u, polynomial[-1])
    for coefficient in polynomial[-2::-1]:
        p *= u
        p += coefficient
    p -= np.square(y)
    tail = t * np.exp(p)
    return np.where(x < 0, 2 - tail, tail)


ERFC_SERIES = [
    -0.6513268598908547, 0.6419697923564902, 0.019476473204185836, -0.009561514786808632, -0.0009465953444820369,
    0.00036683949785276145, 4.252332480690777e-05, -2.0278578112534242e-05, -1.6242900046470256e-06, 1.3036558355805232e-06,
    1.5626441722066142e-08, -8.523809591492654e-08, 6.5290544390988515e-09, 5.059343495551469e-09, -9.91364156493033e-10,
    -2.273651222931836e-10, 9.646791102015527e-11, 2.3940380830391146e-12, -6.886027526497553e-12, 8.944879273090725e-13,
    3.130921399342958e-13, -1.1270822361367252e-13, 3.810905255189232e-16, 7.106097613609237e-15, -1.5230282014571043e-15,
    -9.457494571291233e-17, 1.210237189224279e-16, -2.816663087747177e-17, 5.003005559445902e-20, 2.3281042579529253e-18,
]  # fmt: skip
ERFC_POLYNOMIAL = {4: cheb2poly(ERFC_SERIES[:13]).tolist(), 8: cheb2poly(ERFC_SERIES[:28]).tolist()}


def gelu(x: Array) -> Array:
    """x Phi(x), Phi the normal distribution function (Hendrycks and Gimpel 2016): the exact form, by erfc."""
    y: Array = 0.5 * x * erfc(x * -math.sqrt(0.5))
    return y


def gelu_tanh(x: Array, slope: float = math.sqrt(2 / math.pi)) -> Array:
    """The tanh approximation of GELU."""
    y: Array = 0.5 * x * (1 + np.tanh(slope * (x + 0.044715 * (x * x * x))))
    return y


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), by exp of what is negative only."""
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


def softplus(x: Array) -> Array:
    """log(1 + exp(x))."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_10": lambda x: np.clip(gelu(x), -10, 10),
    "gelu_accurate": gelu_tanh,
    "gelu_fast": lambda x: gelu_tanh(x, 0.7978845608),
    "gelu_new": gelu_tanh,
    "gelu_python": gelu,
    "gelu_python_tanh": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "laplace": lambda x: 0.5 * erfc((0.707107 - x) / (0.282095 * math.sqrt(2))),
    "leaky_relu": lambda x: np.where(x < 0, 0.01 * x, x),
    "linear": lambda x: x,
    "mish": lambda x: x * np.tanh(softplus(x)),
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.square(np.maximum(x, 0)),
    "relu6": lambda x: np.clip(x, 0, 6),
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "sqrtsoftplus": lambda x: np.sqrt(softplus(x)),
    "swish": lambda x: x * sigmoid(x),
    "tanh": np.tanh,
}


def prepare(tree: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The weights in the settings' dtype, a dense layer's parts joined; arrays that fit are not copied.

    What is copied lets go of the file it was mapped from, so that no more than one copy is in memory.
    """
    if settings.threads is not None:
        _threadpoolctl()
    dtype = np.dtype(settings.dtype)
    converted: dict[int, Array] = {}

    def fit(x: Array) -> Array:  # tied weights, one array in two records, stay one
        if id(x) not in converted:
            converted[id(x)] = x.astype(dtype, copy=not x.flags.aligned)
            if converted[id(x)] is not x:
                release(x)
        return converted[id(x)]

    def joined(parts: Sequence[Array]) -> Array:
        if len(parts) == 1:
            return fit(parts[0])[...]  # an object of its own, by which tap.py knows the layer
        whole = np.concatenate(parts).astype(dtype, copy=False)
        for part in parts:
            release(part)
        return whole

    def prepared(record: Dense | Norm | Table) -> dict[str, Array]:
        if isinstance(record, Dense):
            return {"weight": joined(record.parts), "bias": joined(record.biases)}
        return (
            {"weight": fit(record.weight)}
            if isinstance(record, Table)
            else {"weight": fit(record.weight)[...], "bias": fit(record.bias)}
        )

    return mapped(tree, prepared)


def asarray(x: Any) -> Array:
    """An array of this backend."""
    return np.asarray(x)


def to_numpy(x: Array) -> Array:
    """A NumPy array."""
    return x


def recorded(
    compute: Callable[..., Array],
    weights: Any,  # noqa: ARG001
    head_size: int,  # noqa: ARG001
    fixed: tuple[Any, ...],  # noqa: ARG001
) -> Callable[..., Array]:
    """compute(ids, positions, token_types, sequences), which a backend may record once and play again; here it is itself.

    `fixed` is all else that it reads, of the configuration and of the call: what was recorded under another is not played.
    """
    return compute


@contextmanager
def running(settings: Settings) -> Iterator[None]:
    """Limit BLAS to the settings' threads while the model runs; raises Error where threadpoolctl is missing."""
    if settings.threads is None:
        yield
        return
    with LIMITS.lock:
        if not LIMITS.users:
            LIMITS.set = _threadpoolctl().threadpool_limits(settings.threads, "blas")
        LIMITS.users += 1
    try:
        yield
    finally:
        with LIMITS.lock:
            LIMITS.users -= 1
            if not LIMITS.users:
                LIMITS.set.restore_original_limits()


class LIMITS:
    """BLAS has one limit for the whole process: the first call that runs sets it, the last one lifts it."""

    lock = threading.Lock()
    users = 0
    set: Any = None


def _threadpoolctl() -> Any:
    try:
        import threadpoolctl
    except ImportError as error:
        raise Error("threads= on the NumPy backend needs threadpoolctl: pip install 'tinyroberta[threads]'") from error
    return threadpoolctl
