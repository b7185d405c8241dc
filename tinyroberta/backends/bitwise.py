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

numba compiles the functions from `exp` to `tanh` from here, reading `where`, `power` and `root` in its own way.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..errors import Error, ieee
from ..weights.files import release
from . import Activation, Sequences, Settings
from .numpy import _threadpoolctl, asarray, attend, embed, recorded, running, to_numpy

__all__ = [
    "activation",
    "asarray",
    "attention",
    "embed",
    "layer_norm",
    "linear",
    "prepare",
    "recorded",
    "relative",
    "running",
    "to_numpy",
]

Array = np.ndarray[Any, np.dtype[Any]]

# How many slices a weight and its operand are cut into, and how many diagonals of their products are kept: for most weights, and
# for those whose operand or themselves have outliers: a feed-forward's second (the activation's heavy tail), what took in a gain.
CUTS = {"highest": ((3, 3), (3, 4)), "high": ((2, 2), (2, 3)), "medium": ((2, 2), (2, 3))}
DEEPEST = 32768  # K up to which three products of digits add up in int32

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

    gain = min(top / max|row|, 2^126), or 1 for a row of zeros; N = rint(row gain); scale = 256^(slices - 1) / gain. A row that is
    not finite is zeros with the scale NaN.
    """
    top = sum(127 * 256**i for i in range(slices)) - 1
    largest = np.abs(x).max(1, initial=0)
    finite = np.isfinite(largest)
    gain = np.where(finite & (largest > 0), np.minimum(f(top) / largest, f(2.0**126)), ONE)
    n = np.rint(np.where(finite[:, None], x, ZERO) * gain[:, None]).astype(np.int32)
    digits = np.empty((slices, *x.shape), np.int8)
    for i in range(slices - 1, 0, -1):
        digits[i] = n.astype(np.int8)  # mod 256, in -128..127
        n = (n + 128) >> 8
    digits[0] = n
    return digits, np.where(finite, f(256.0 ** (slices - 1)) / gain, f(math.nan))


COARSE = 448  # mean square of a row's first digits, below which its largest number is some 6 times the root mean square
EXACT = 1024  # products of digits whose sum float32 holds: 1024 x 128^2 = 2^24


def sliced_product(a: Array, row_scales: Array, b: Array, column_scales: Array, kept: int) -> Array:
    """(slices, T, K) and (slices, O, K) digits -> (T, O): products of digits i and j add up in one integer for each i + j < kept.

    (c0 + (c1 2^-8 + c2 2^-16)) (row_scale column_scale), in that order. The sums are exact in any order, so BLAS may do them. A
    row of `a` with outliers, whose other numbers have fewer digits, is given one more of these diagonals, while that says more.
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


# Weights.


def prepare(tree: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The weights in digits, each layer's query, key and value joined as `qkv`; raises Error on float64."""
    check(settings)
    if settings.threads is not None:
        _threadpoolctl()

    def pack(parts: list[Array], kind: tuple[int, int]) -> list[Weight]:
        weight, (slices, kept) = np.concatenate(parts) if len(parts) > 1 else parts[0], kind
        pieces = [weight[:, start : start + DEEPEST] for start in range(0, weight.shape[1], DEEPEST)]
        return [Weight(*cut(piece, slices), kept) for piece in pieces]

    return arrange(tree, CUTS[settings.matmul_precision], pack)


def check(settings: Settings) -> None:
    """Raises Error on float64, which 8-bit digits do not reach."""
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
    pack: Callable[[list[Array], tuple[int, int]], Any],
    gain: Callable[[Array], Any] = lambda weight: weight,
    folds: bool = True,
) -> dict[str, Any]:
    """The tree in float32, its dense layers' weights as pack([query, key, value] or [weight], (slices, diagonals)).

    A norm's weight is gain(weight) where products alone read the norm, and may be shared with theirs where `folds` is true.
    """
    converted: dict[int, Array] = {}

    def packed(parts: list[Array], cut: tuple[int, int]) -> Any:
        held = pack([single(part) for part in parts], cut)
        for part in parts:
            if getattr(held, "panels", None) is not part:
                release(part)
        return held

    def visit(branch: Any, names: tuple[str, ...], folded: bool = False) -> Any:
        if not isinstance(branch, dict) and names[-2] == "word_embeddings" and branch.dtype.itemsize == 2:
            return branch  # mapped; only the rows that are asked for are widened
        if not isinstance(branch, dict):  # tied weights, one array under two names, stay one
            if id(branch) not in converted:
                converted[id(branch)] = single(branch)
            return converted[id(branch)]
        if names[-1] in READERS and folds:
            branch, folded = fold(branch, names[-1])
        if names[-2:] == ("attention", "self"):
            parts = [branch[part] for part in ("query", "key", "value")]
            bias = np.concatenate([single(part["bias"]) for part in parts])
            rest = {key: visit(value, (*names, key)) for key, value in branch.items() if key not in ("query", "key", "value")}
            return {"qkv": {"weight": packed([part["weight"] for part in parts], cuts[folded]), "bias": bias}} | rest
        if set(branch) != {"weight", "bias"}:
            return {key: visit(value, (*names, key), folded) for key, value in branch.items()}
        weight = branch["weight"]
        if weight.ndim == 2:
            second = names[-2:] == ("output", "dense") and "attention" not in names[-3]
            return {"weight": packed([weight], cuts[second or folded]), "bias": single(branch["bias"])}
        weight = single(weight)
        return {"weight": gain(weight) if names[-2:] in READ_BY_PRODUCTS else weight, "bias": single(branch["bias"])}

    return dict(visit(tree, ("", "", "")))


# Which weights read the norm of a branch, and nothing else.
READERS = {
    "attention": ("LayerNorm", ("self.query", "self.key", "self.value")),
    "crossattention": ("LayerNorm", ("self.query",)),
    "intermediate": ("LayerNorm", ("dense",)),
    "lm_head": ("layer_norm", ("decoder",)),
}
READ_BY_PRODUCTS = tuple((branch, norm) for branch, (norm, _) in READERS.items())
FOLD_ABOVE = 4.0  # times the root mean square
LEAST_SHARED = -8  # as a power of two: of a channel that is all but switched off


def fold(branch: dict[str, Any], name: str) -> tuple[dict[str, Any], bool]:
    """Share a norm's outlying gains with the weights that read it: rows and weights then have outliers of their square roots.

    W (g x + b) + c = (W s) (g/s x + b/s) + c, exactly, where s is a power of two for each channel, near the square root of its
    size over the root mean square. A row's digits are steps of its largest number, so a channel that is 60 times larger
    would take six bits from all others, in the rows or in the weights; shared, it takes three from each.
    """
    norm_name, readers = READERS[name]
    if norm_name not in branch:
        return branch, False
    gain, shift = (np.asarray(branch[norm_name][leaf], np.float64) for leaf in ("weight", "bias"))
    sizes = np.square(gain) + np.square(shift)
    mean = total(sizes)[0] / len(sizes)
    if not np.isfinite(sizes).all() or sizes.max() <= FOLD_ABOVE**2 * mean:
        return branch, False
    s = 2.0 ** np.maximum((np.frexp(sizes / mean)[1] + 1) // 4, LEAST_SHARED)  # log2 would be rounded, not alike everywhere
    branch = {key: dict(value) if isinstance(value, dict) else value for key, value in branch.items()}
    branch[norm_name] = {"weight": (gain / s).astype(f), "bias": (shift / s).astype(f)}
    for reader in readers:
        *above, last = reader.split(".")
        parent = branch[above[0]] if above else branch
        parent[last] = parent[last] | {"weight": (np.asarray(parent[last]["weight"], np.float64) * s).astype(f)}
    return branch, True
