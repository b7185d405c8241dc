"""The definition of every op to the last bit, in plain NumPy: what `reproducible=True` computes, on every machine and path.

backends/numpy.py says what an op means; this says in which order. All is float32 and made of operations that IEEE 754 rounds in
one way only, one at a time: + - * / sqrt, rounding to an integer (ties to even), comparisons, integers; never a fused
multiply-add, never a library's exp or sum. A fast path is tested equal to this, not close. (Which NaN comes out is left open, and
so is what a NaN or infinity in a key's row does to causal attention before it.)

The orders of summing:

    rows (norms)      number j goes to lane j mod 64; lanes add up from the front; halves add until one lane is left
    attention         256 products to a part, each part from front to back starting at 0; parts add up from 0 on
    relative scores   from front to back, starting at 0
    dense layers      none: digits of 8 bits are multiplied and summed in integers, exactly (the Ozaki scheme; sliced_product)

numba compiles the functions from `exp` to `sqrtsoftplus` from here, with `where`, `power` and `root` as its own instructions.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..errors import Error, ieee
from ..weights.files import release
from . import Activation, Sequences, Settings
from .numpy import _threadpoolctl, asarray, attend, embed, finish, keeps_alike, recorded, running, sums, to_numpy
from .records import PRODUCTS, WORDS, Activated, Dense, Norm, Normed, Table, each, mapped

__all__ = [
    "activation",
    "asarray",
    "attention",
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

Array = np.ndarray[Any, np.dtype[Any]]

# How many slices a weight and the rows that it multiplies are cut into, and how many diagonals of their products are kept: first
# for most weights, then for those where either has outliers: a feed-forward's second weight, which reads what an activation
# leaves (a heavy tail), and the weights of a sublayer whose norm's gains are shared (`shared`).
CUTS = {"highest": ((3, 3), (3, 4)), "high": ((2, 2), (2, 3)), "medium": ((2, 2), (2, 3))}
DEEPEST = 32768  # K up to which a diagonal of three products fits into int32: 3 x 32768 x 128^2 < 2^31

f = np.float32
ZERO, HALF, ONE, TWO, THREE, SIX, TEN = f(0), f(0.5), f(1), f(2), f(3), f(6), f(10)


# Elementwise: Horner's rule throughout, multiply then add.


def where(condition: Any, a: Any, b: Any) -> Any:
    """a where the condition holds, else b."""
    return np.where(condition, a, b)


def power(shifted: Any) -> Any:
    """2^n, n from -126 to 127, given n + 1.5 2^23, in whose low bits n stands."""
    return ((shifted.view(np.int32) - np.int32(0x4B400000 - 127)) << np.int32(23)).view(f)


def root(x: Any) -> Any:
    """The square root."""
    return np.sqrt(x)


EXP_POLYNOMIAL = tuple(map(f, (
    0.0013933652486611196, 0.008363181544678595, 0.04166646489537075, 0.16666576967247576, 0.50000000134703,
)))  # fmt: skip
LEAST, LOG2_E, LOG_2_HIGH, LOG_2_LOW, SHIFT = f(-87.3), f(1 / math.log(2)), f(0.693359375), f(-2.12194440e-4), f(1.5 * 2**23)


def exp(x: Any) -> Any:
    """e^x up to 88, 0 below -87.3: 2^n times a polynomial on [-log(2)/2, log(2)/2] (Cody and Waite 1980)."""
    y = where(x < LEAST, LEAST, x)
    shifted = y * LOG2_E + SHIFT  # rounds to an integer
    n = shifted - SHIFT
    r = (y - n * LOG_2_HIGH) - n * LOG_2_LOW
    p = EXP_POLYNOMIAL[0]
    for c in EXP_POLYNOMIAL[1:]:
        p = p * r + c
    p = (p * r * r + r) + ONE
    return where(x < LEAST, ZERO, p * power(shifted))


ERF_POLYNOMIAL = tuple(map(f, (
    -0.0004665773058589205, 0.0011270831715730666, -0.0008275732144867603, 0.0016195631060102558, -0.0055613150922445165,
    0.010328920308571275, -0.015964376668820023, 0.025532788948082905, -0.03895915412190462, 0.05464646266479845,
    -0.0720395484985084, 0.09078535021275486, -0.11150537340645769, 0.13835263735417105, -0.18659054379926845,
    0.3740718923606868,
)))  # fmt: skip
EDGE, FOLD = f(3.78), f(2 / 3.78**2)


def erf(x: Any) -> Any:
    """The error function: x times a polynomial in x^2, fitted at Chebyshev's points on [0, 3.78]; 1 beyond."""
    u = x * x * FOLD - ONE
    p = ERF_POLYNOMIAL[0]
    for c in ERF_POLYNOMIAL[1:]:
        p = p * u + c
    y = where(x > EDGE, ONE, x * p)
    return where(x < -EDGE, -ONE, y)


TANH_POLYNOMIAL = tuple(map(f, (
    0.002295823452008057, -0.008346961361995787, 0.021769953443692123, -0.053959404631147026, 0.13333304268952814,
    -0.33333333177676483,
)))  # fmt: skip
SMALL = f(0.6)


def tanh(x: Any) -> Any:
    """A polynomial below 0.6, 1 - 2 / (exp(2x) + 1) from there on."""
    a = where(x < ZERO, -x, x)
    w = a * a
    p = TANH_POLYNOMIAL[0]
    for c in TANH_POLYNOMIAL[1:]:
        p = p * w + c
    most = where(a > TEN, TEN, a)
    y = where(a < SMALL, p * w * a + a, ONE - TWO / (exp(most + most) + ONE))
    return where(x < ZERO, -y, y)


LOG1P_POLYNOMIAL = tuple(map(f, (
    0.11619525266782349, 0.10851657504426951, 0.14296291707206296, 0.19999850678147407, 0.33333333668806814,
)))  # fmt: skip


def log1p(x: Any) -> Any:
    """log(1 + x) for x from 0 to 1: twice the inverse tanh of x / (2 + x)."""
    s = x / (TWO + x)
    w = s * s
    p = LOG1P_POLYNOMIAL[0]
    for c in LOG1P_POLYNOMIAL[1:]:
        p = p * w + c
    return p * w * (s + s) + (s + s)


def clip(x: Any, low: Any, high: Any) -> Any:
    x = where(x < low, low, x)
    return where(x > high, high, x)


def sigmoid(x: Any) -> Any:
    e = exp(where(x > ZERO, -x, x))
    return where(x < ZERO, e, ONE) / (ONE + e)


def softplus(x: Any) -> Any:
    return log1p(exp(where(x > ZERO, -x, x))) + where(x > ZERO, x, ZERO)


ROOT_HALF, SLOPE, FAST_SLOPE, CUBIC = f(math.sqrt(0.5)), f(math.sqrt(2 / math.pi)), f(0.7978845608), f(0.044715)
QUICK, LEAK, LAPLACE_MEAN, LAPLACE_WIDTH = f(1.702), f(0.01), f(0.707107), f(1 / (0.282095 * math.sqrt(2)))


def gelu(x: Any) -> Any:
    return HALF * x * (ONE + erf(x * ROOT_HALF))


def gelu_10(x: Any) -> Any:
    return clip(gelu(x), -TEN, TEN)


def gelu_tanh(x: Any, slope: Any) -> Any:
    return HALF * x * (ONE + tanh(slope * (x + CUBIC * x * x * x)))


def gelu_new(x: Any) -> Any:
    return gelu_tanh(x, SLOPE)


def gelu_fast(x: Any) -> Any:
    return gelu_tanh(x, FAST_SLOPE)


def hardswish(x: Any) -> Any:
    return x * clip(x + THREE, ZERO, SIX) / SIX


def laplace(x: Any) -> Any:
    return HALF * (ONE + erf((x - LAPLACE_MEAN) * LAPLACE_WIDTH))


def leaky_relu(x: Any) -> Any:
    return where(x < ZERO, LEAK * x, x)


def identity(x: Any) -> Any:
    return x


def mish(x: Any) -> Any:
    return x * tanh(softplus(x))


def quick_gelu(x: Any) -> Any:
    return x * sigmoid(QUICK * x)


def relu(x: Any) -> Any:
    return where(x < ZERO, ZERO, x)


def relu2(x: Any) -> Any:
    return relu(x) * relu(x)


def relu6(x: Any) -> Any:
    return clip(x, ZERO, SIX)


def silu(x: Any) -> Any:
    return x * sigmoid(x)


def sqrtsoftplus(x: Any) -> Any:
    return root(softplus(x))


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": gelu,
    "gelu_10": gelu_10,
    "gelu_accurate": gelu_new,
    "gelu_fast": gelu_fast,
    "gelu_new": gelu_new,
    "gelu_python": gelu,
    "gelu_python_tanh": gelu_new,
    "gelu_pytorch_tanh": gelu_new,
    "hardswish": hardswish,
    "laplace": laplace,
    "leaky_relu": leaky_relu,
    "linear": identity,
    "mish": mish,
    "quick_gelu": quick_gelu,
    "relu": relu,
    "relu2": relu2,
    "relu6": relu6,
    "sigmoid": sigmoid,
    "silu": silu,
    "sqrtsoftplus": sqrtsoftplus,
    "swish": silu,
    "tanh": tanh,
}


def activation(x: Array, name: Activation) -> Array:
    """One of transformers' ACT2FN by name; raises Error for a Python function."""
    return _activate(x, name)


@ieee
def _activate(x: Array, name: Activation) -> Array:
    if callable(name):
        raise Error("hidden_act is a Python function, whose bits reproducible=True cannot promise: name one")
    return np.asarray(ACTIVATIONS[name](x))


# Rows.

LANES = 64


def total(x: Array) -> Array:  # (..., n) -> (..., 1)
    """Sums over the last axis: number j goes to lane j mod 64, lanes add up from the front, halves add until one lane is left."""
    steps = -(-x.shape[-1] // LANES)
    padded = np.zeros((*x.shape[:-1], steps * LANES), x.dtype)
    padded[..., : x.shape[-1]] = x
    sums = np.zeros((*x.shape[:-1], LANES), x.dtype)
    for step in range(steps):
        sums = sums + padded[..., step * LANES : (step + 1) * LANES]
    while sums.shape[-1] > 1:
        half = sums.shape[-1] // 2
        sums = sums[..., :half] + sums[..., half:]
    return sums


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:  # (T, D), (D,), (D,) -> (T, D)
    """As the NumPy backend's; a row is multiplied by 1 / deviation."""
    x = x - total(x) / f(x.shape[-1])
    variance = total(x * x) / f(x.shape[-1])
    y: Array = x * (ONE / np.sqrt(variance + f(eps))) * weight + bias
    return y


# Attention.

PART = 256


def product(a: Array, b: Array) -> Array:  # (H, I, K), (H, K, J) -> (H, I, J)
    """Sums over K of single products, 256 to a part, each part from front to back; parts add up."""
    y = np.zeros((*a.shape[:2], b.shape[2]), f)
    for start in range(0, a.shape[2], PART):
        part = np.zeros_like(y)
        for k in range(start, min(start + PART, a.shape[2])):
            part += a[:, :, k, None] * b[:, k, None, :]
        y += part
    return y


@ieee
def softmax(x: Array) -> Array:  # (H, Sq, Sk) -> same
    """exp(x - max) (1 / sum), summed as products with 1."""
    e = exp(x - x.max(-1, keepdims=True))
    sums = product(e, np.ones((len(e), e.shape[2], 1), f))
    y: Array = e * (ONE / sums)
    return y


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
    """As the NumPy backend's: q times 1 / sqrt(d) first, then products with k, softmax, products with v."""
    return attend(product, softmax, q, k, v, sequences, heads, bias, head_mask, probs)


def relative(q: Array, k: Array | None, vectors: Array) -> Array:  # (B, H, Sq, d), (B, H, Sk, d), (Sq, Sk, d) -> (B, H, Sq, Sk)
    """As the NumPy backend's, each sum from front to back."""
    vectors = np.ascontiguousarray(np.moveaxis(vectors, -1, 0))
    scores = np.zeros((*q.shape[:3], vectors.shape[2]), f)
    for c, vector in enumerate(vectors):
        scores += q[..., c, None] * vector
    if k is not None:
        others = np.zeros_like(scores)
        for c, vector in enumerate(vectors):
            others += k[:, :, None, :, c] * vector
        scores += others
    return scores


# Dense layers.


class Weight(NamedTuple):
    """A dense layer's weight, or some of its columns, in digits."""

    digits: Array  # (slices, O, K) int8
    scales: Array  # (O,)
    kept: int  # diagonals


@ieee
def cut(x: Array, slices: int) -> tuple[Array, Array]:  # (T, K) -> (slices, T, K) int8, (T,)
    """Rows as whole numbers of `slices` signed digits in base 256, highest first, with the scales that make them rows again.

    factor = min(top / max|row|, 2^126), or 1 for a row of zeros; N = rint(row factor); scale = 256^(slices - 1) / factor. A row
    that is not finite is zeros with the scale NaN. `top` is what digits of 127 make, less 1, by which rounding may pass it.
    """
    top = sum(127 * 256**i for i in range(slices)) - 1
    largest = np.abs(x).max(1, initial=0)
    finite = np.isfinite(largest)
    factor = np.where(finite & (largest > 0), np.minimum(f(top) / largest, f(2.0**126)), ONE)
    n = np.rint(np.where(finite[:, None], x, ZERO) * factor[:, None]).astype(np.int32)
    digits = np.empty((slices, *x.shape), np.int8)
    for i in range(slices - 1, 0, -1):
        digits[i] = n.astype(np.int8)  # mod 256, in -128..127
        n = (n + 128) >> 8
    digits[0] = n
    return digits, np.where(finite, f(256.0 ** (slices - 1)) / factor, f(math.nan))


COARSE = 448  # mean square of a row's first digits, below which its largest number is some 6 times the root mean square
EXACT = 1024  # products of digits whose sum float32 holds: 1024 x 128^2 = 2^24


def sliced_product(a: Array, row_scales: Array, b: Array, column_scales: Array, kept: int) -> Array:
    """(slices, T, K) and (slices, O, K) digits -> (T, O): products of digits i and j add up in one integer for each i + j < kept.

    (c0 + (c1 2^-8 + (c2 2^-16 + ...))) (row_scale column_scale), in that order. The sums are exact in any order, so BLAS may do
    them. A row of `a` with outliers, whose other numbers are left with fewer digits, is given one diagonal more than `kept`, if
    `kept` is at most the number of slices.
    """
    slices, T, K = a.shape
    coarse = kept <= slices and np.square(a[0], dtype=np.int64).sum(1) < COARSE * K
    kept += bool(np.any(coarse))
    sums = np.zeros((kept, T, b.shape[1]), np.int32)
    for start in range(0, K, EXACT):
        left = a[:, :, start : start + EXACT].astype(f)
        for j in range(slices):
            right = b[j, :, start : start + EXACT].astype(f).T
            for i in range(min(slices, kept - j)):
                sums[i + j] += (left[i] @ right).astype(np.int32)
    if np.any(coarse):
        sums[-1][~coarse] = 0
    y = sums[-1].astype(f)
    for diagonal in sums[-2::-1]:
        y = diagonal.astype(f) + y * f(2.0**-8)
    return y * (row_scales[:, None] * column_scales)


def linear(
    x: Array, weight: list[Weight], bias: Array, activation: Activation | None = None, residual: Array | None = None
) -> Array:  # (T, I), (O, I), (O,) -> (T, O)
    """activation(x W^T + b) + residual; a W of more than 32768 columns in pieces, whose products add up."""
    y, start = np.zeros(0, f), 0
    for piece in weight:
        slices, _, K = piece.digits.shape
        digits, scales = cut(x[:, start : start + K], slices)
        part = sliced_product(digits, scales, piece.digits, piece.scales, piece.kept) + (ZERO if start else bias)
        y, start = part + y if start else part, start + K
    if activation is not None:
        y = _activate(y, activation)
    return y if residual is None else y + residual


def in_steps(
    x: Array, weight: list[Weight], bias: Array, activation: Activation | None, residual: Array | None
) -> tuple[Array, Callable[[Array], Array]] | None:
    """As the NumPy backend's."""
    return linear(x, weight, bias), partial(finish, _activate, activation=activation, residual=residual)


# Weights.


def prepare(tree: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The weights in digits, a dense layer's parts joined; raises Error on float64."""
    check(settings)
    if settings.threads is not None:
        _threadpoolctl()

    def pack(layer: Dense, parts: list[Array], kind: tuple[int, int]) -> list[Weight]:  # noqa: ARG001
        weight, (slices, kept) = np.concatenate(parts) if len(parts) > 1 else parts[0], kind
        pieces = [weight[:, start : start + DEEPEST] for start in range(0, weight.shape[1], DEEPEST)]
        return [Weight(*cut(piece, slices), kept) for piece in pieces]

    return arrange(tree, CUTS[settings.matmul_precision], pack)


def check(settings: Settings) -> None:
    """Raises Error on float64, whose accuracy 8-bit digits do not reach."""
    if settings.dtype != "float32":
        raise Error(f'reproducible=True computes in float32, in sliced products; dtype="{settings.dtype}" has none')


def single(x: Array) -> Array:
    """x as contiguous float32; what is copied lets go of its file."""
    y = np.ascontiguousarray(x, f)
    if y is not x:
        release(x)
    return y


def arrange(
    tree: dict[str, Any],
    cuts: tuple[tuple[int, int], tuple[int, int]],
    pack: Callable[[Dense, list[Array], tuple[int, int]], Any],
    gain: Callable[[Array], Any] = lambda weight: weight,
    shares: bool = True,
) -> dict[str, Any]:
    """The tree in float32, a dense layer's weight as pack(layer, its parts, one of `cuts`).

    `cuts` say what to cut into (here a number of slices) and how many diagonals to keep. The second is for numbers with a heavy
    tail: after an activation, and in a sublayer whose norm's gains are shared. A norm's weight is gain(weight) where products
    alone read it.
    """
    sublayers = shares_of(tree) if shares else {}
    converted: dict[int, Array] = {}

    def kept(x: Array) -> Array:  # tied weights, one array in two records, stay one
        if id(x) not in converted:
            converted[id(x)] = single(x)
        return converted[id(x)]

    def dense(layer: Dense) -> dict[str, Any]:
        tailed = layer.sublayer in sublayers or isinstance(layer.reads, Activated)
        held = pack(layer, [single(part) for part in layer.parts], cuts[tailed])
        for part in layer.parts:
            if getattr(held, "panels", None) is not part:
                release(part)
        bias = kept(layer.biases[0]) if len(layer.biases) == 1 else np.concatenate([single(bias) for bias in layer.biases])
        return {"weight": held, "bias": bias}

    def prepared(record: Dense | Norm | Table) -> dict[str, Any]:
        record = shared(record, sublayers)
        if isinstance(record, Dense):
            return dense(record)
        if isinstance(record, Norm):
            weight = kept(record.weight)[...]  # an object of its own, by which tap.py knows the norm
            return {"weight": gain(weight) if record.feeds == PRODUCTS else weight, "bias": kept(record.bias)}
        if record.of == WORDS and record.weight.dtype.itemsize == 2:
            return {"weight": record.weight}  # mapped; only the rows that are asked for are widened
        return {"weight": kept(record.weight)}

    return mapped(tree, prepared)


SHARE_ABOVE = 4.0  # times the root mean square
LEAST_SHARED = -8  # the least exponent of a share, which is a power of two: that of a channel that is all but switched off


def shares_of(tree: dict[str, Any]) -> dict[int, Array]:
    """The sublayers whose norm has outlying gains, by number, and what of each channel their weights are to take."""
    norms = (record for record in each(tree) if isinstance(record, Norm) and record.feeds == PRODUCTS)
    return {norm.sublayer: s for norm in norms if (s := _share(norm)) is not None}


def shared(record: Any, shares: dict[int, Array]) -> Any:
    """A record, its norm's outlying gains shared with the weights that read it.

    W (g x + b) + c = (W s) (g/s x + b/s) + c, exactly, where s is a power of two for each channel, near the square root of its
    size over the root mean square. A row's digits are steps of its largest number, so a channel that is 60 times larger would
    take six bits from all others, in the rows or in the weights; shared, it takes three from each.
    """
    s = shares.get(getattr(record, "sublayer", -1))
    if s is None:
        return record
    if isinstance(record, Norm) and record.feeds == PRODUCTS:
        weight, bias = (np.asarray(x, np.float64) / s for x in (record.weight, record.bias))
        return replace(record, weight=weight.astype(f), bias=bias.astype(f))
    if isinstance(record, Dense) and isinstance(record.reads, Normed) and _own(record.reads, record.sublayer):
        return replace(record, parts=tuple((np.asarray(part, np.float64) * s).astype(f) for part in record.parts))
    return record


def _own(rows: Normed, sublayer: int) -> bool:
    """Whether rows come out of a sublayer's own norm."""
    return [(norm.feeds, norm.sublayer) for norm in rows.norms] == [(PRODUCTS, sublayer)]


def _share(norm: Norm) -> Array | None:
    """How much of each gain the weights get; None where no gain is far above the others, or one is not finite."""
    gain, shift = (np.asarray(x, np.float64) for x in (norm.weight, norm.bias))
    sizes = np.square(gain) + np.square(shift)
    mean = total(sizes)[0] / len(sizes)
    if not np.isfinite(sizes).all() or sizes.max() <= SHARE_ABOVE**2 * mean:
        return None
    s: Array = 2.0 ** np.maximum(
        (np.frexp(sizes / mean)[1] + 1) // 4, LEAST_SHARED
    )  # log2 would be rounded, not alike everywhere
    return s
