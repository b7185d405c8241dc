"""Activations on float32 numbers, one loop each, which LLVM turns into vectors.

exp, erf and tanh are polynomials evaluated with fused multiply-adds, so that a number's result is the same in whichever lane or
tail of a vector it stands. Bounds, over all float32 arguments (tests/test_numba_backend.py):

    exp(x), x <= 88     relative 1.5e-7: 2^n times a polynomial on [-log(2)/2, log(2)/2] (Cody and Waite 1980); 0 below -87.3
    erf(x)              absolute 2.5e-7: x times a polynomial in x^2, fitted at Chebyshev's points on [0, 3.92]; 1 beyond
    tanh(x)             relative 5e-7: a polynomial below 0.6, 1 - 2 / (exp(2x) + 1) from there on
"""

import math

import numpy as np

from .compiled import Kernel, carray, njit
from .llvm import bits_of, float_of, floats, fma, words
from .threads import parallel

BLOCK = 4096  # numbers that a thread takes at a time

KINDS = ("linear", "gelu", "gelu_10", "gelu_new", "gelu_fast", "hardswish", "laplace", "leaky_relu", "mish", "quick_gelu", "relu",
         "relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus", "tanh")  # fmt: skip
SAME = {
    "gelu_accurate": "gelu_new",
    "gelu_python": "gelu",
    "gelu_python_tanh": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "swish": "silu",
}
CODES = {name: KINDS.index(SAME.get(name, name)) for name in (*KINDS, *SAME)}
NONE = CODES["linear"]
GELU, GELU_10, GELU_NEW, GELU_FAST, HARDSWISH, LAPLACE, LEAKY_RELU, MISH, QUICK_GELU = range(1, 10)
RELU, RELU2, RELU6, SIGMOID, SILU, SQRTSOFTPLUS, TANH = range(10, 17)

f = np.float32
ERF = tuple(map(f, (
    0.36073681712150574, -0.18010856211185455, 0.13408483564853668, -0.10918185114860535, 0.09059221297502518,
    -0.07398989051580429, 0.05842582881450653, -0.04358573257923126, 0.029609212651848793, -0.019617490470409393,
    0.01434350199997425, -0.008170483633875847, 0.001820330391637981, -0.0010452780406922102, 0.0021278581116348505,
    -0.0009392719366587698,
)))  # fmt: skip
EXP = tuple(map(f, (0.50000000134703, 0.16666576967247576, 0.04166646489537075, 0.008363181544678595, 0.0013933652486611196)))
TANH_SMALL = tuple(map(f, (
    -0.33333333177676483, 0.13333304268952814, -0.053959404631147026, 0.021769953443692123, -0.008346961361995787,
    0.002295823452008057,
)))  # fmt: skip

ZERO, HALF, ONE, TWO, THREE, SIX, TEN = f(0), f(0.5), f(1), f(2), f(3), f(6), f(10)
LEAST, LOG2_E, LOG_2_HIGH, LOG_2_LOW = f(-87.3), f(1 / math.log(2)), f(-0.693359375), f(2.12194440e-4)
MAGIC, MAGIC_BITS = f(1.5 * 2**23), 0x4B400000  # adding it rounds to an integer, which is then in the low bits
EDGE, FOLD = f(3.92), f(2 / 3.92**2)
SMALL = f(0.6)
ROOT_HALF, SLOPE, FAST_SLOPE, CUBIC = f(math.sqrt(0.5)), f(math.sqrt(2 / math.pi)), f(0.7978845608), f(0.044715)
QUICK, LEAK, LAPLACE_MEAN, LAPLACE_WIDTH = f(1.702), f(0.01), f(0.707107), f(1 / (0.282095 * math.sqrt(2)))

inline = njit(error_model="numpy")


@inline
def exp(x):  # float32 up to 88
    y = LEAST if x < LEAST else x
    shifted = fma(y, LOG2_E, MAGIC)
    n = shifted - MAGIC
    r = fma(n, LOG_2_LOW, fma(n, LOG_2_HIGH, y))
    p = fma(EXP[4], r, EXP[3])
    p = fma(p, r, EXP[2])
    p = fma(p, r, EXP[1])
    p = fma(p, r, EXP[0])
    p = fma(p * r, r, r) + ONE
    power = float_of(np.int32((bits_of(shifted) - np.int32(MAGIC_BITS) + np.int32(127)) << np.int32(23)))
    return ZERO if x < LEAST else p * power


@inline
def erf(x):
    w = x * x
    u = fma(w, FOLD, -ONE)
    p = fma(ERF[15], u, ERF[14])
    p = fma(p, u, ERF[13])
    p = fma(p, u, ERF[12])
    p = fma(p, u, ERF[11])
    p = fma(p, u, ERF[10])
    p = fma(p, u, ERF[9])
    p = fma(p, u, ERF[8])
    p = fma(p, u, ERF[7])
    p = fma(p, u, ERF[6])
    p = fma(p, u, ERF[5])
    p = fma(p, u, ERF[4])
    p = fma(p, u, ERF[3])
    p = fma(p, u, ERF[2])
    p = fma(p, u, ERF[1])
    p = fma(p, u, ERF[0])
    y = x * p
    y = ONE if x > EDGE else y
    return -ONE if x < -EDGE else y


@inline
def tanh(x):
    a = -x if x < ZERO else x
    w = a * a
    p = fma(TANH_SMALL[5], w, TANH_SMALL[4])
    p = fma(p, w, TANH_SMALL[3])
    p = fma(p, w, TANH_SMALL[2])
    p = fma(p, w, TANH_SMALL[1])
    p = fma(p, w, TANH_SMALL[0])
    small = fma(p * w, a, a)
    most = TEN if a > TEN else a
    large = ONE - TWO / (exp(most + most) + ONE)
    y = small if a < SMALL else large
    return -y if x < ZERO else y


@inline
def gelu(x):
    half = HALF * x
    return fma(half, erf(x * ROOT_HALF), half)


@inline
def gelu_tanh(x, slope):
    half = HALF * x
    return fma(half, tanh(slope * fma(CUBIC * x * x, x, x)), half)


@inline
def sigmoid(x):
    e = exp(-x if x > ZERO else x)
    return (e if x < ZERO else ONE) / (ONE + e)


@inline
def softplus(x):
    e = exp(-x if x > ZERO else x)
    return f(math.log1p(e)) + (x if x > ZERO else ZERO)


@inline
def clip(x, low, high):
    x = low if x < low else x
    return high if x > high else x


@njit(error_model="numpy")
def activate(x, kind):  # (n,) float32, in place
    """The activation of a code in CODES; the branches stand outside the loops so that each loop is vectors."""
    n = len(x)
    if kind == GELU:
        for i in range(n):
            x[i] = gelu(x[i])
    elif kind == GELU_10:
        for i in range(n):
            x[i] = clip(gelu(x[i]), -TEN, TEN)
    elif kind == GELU_NEW:
        for i in range(n):
            x[i] = gelu_tanh(x[i], SLOPE)
    elif kind == GELU_FAST:
        for i in range(n):
            x[i] = gelu_tanh(x[i], FAST_SLOPE)
    elif kind == HARDSWISH:
        for i in range(n):
            x[i] = x[i] * clip(x[i] + THREE, ZERO, SIX) / SIX
    elif kind == LAPLACE:
        for i in range(n):
            x[i] = fma(HALF, erf((x[i] - LAPLACE_MEAN) * LAPLACE_WIDTH), HALF)
    elif kind == LEAKY_RELU:
        for i in range(n):
            x[i] = LEAK * x[i] if x[i] < ZERO else x[i]
    elif kind == MISH:
        for i in range(n):
            x[i] = x[i] * tanh(softplus(x[i]))
    elif kind == QUICK_GELU:
        for i in range(n):
            x[i] = x[i] * sigmoid(QUICK * x[i])
    elif kind == RELU:
        for i in range(n):
            x[i] = ZERO if x[i] < ZERO else x[i]
    elif kind == RELU2:
        for i in range(n):
            y = ZERO if x[i] < ZERO else x[i]
            x[i] = y * y
    elif kind == RELU6:
        for i in range(n):
            x[i] = clip(x[i], ZERO, SIX)
    elif kind == SIGMOID:
        for i in range(n):
            x[i] = sigmoid(x[i])
    elif kind == SILU:
        for i in range(n):
            x[i] = x[i] * sigmoid(x[i])
    elif kind == SQRTSOFTPLUS:
        for i in range(n):
            x[i] = f(math.sqrt(softplus(x[i])))
    elif kind == TANH:
        for i in range(n):
            x[i] = tanh(x[i])


@Kernel
def _activation(arguments, block, worker):
    given = carray(words(arguments), 4)
    n, kind = given[2], given[3]
    start = block * BLOCK
    stop = min(start + BLOCK, n)
    x, y = carray(floats(given[0]), n)[start:stop], carray(floats(given[1]), n)[start:stop]
    for i in range(stop - start):
        y[i] = x[i]
    activate(y, kind)


def activation(x, kind):  # float32, any shape -> the same
    x = np.ascontiguousarray(x, np.float32)
    y = np.empty_like(x)
    parallel(_activation, -(-x.size // BLOCK), x, y, x.size, kind)
    return y


@Kernel
def _embed(arguments, block, worker):
    """A block is 16 rows: the word's row (or the vector given for it), plus the segment's, plus the position's."""
    given = carray(words(arguments), 10)
    T, D = given[7], given[8]
    word_of, position_of, type_of = carray(words(given[1]), T), carray(words(given[3]), T), carray(words(given[5]), T)
    out = carray(floats(given[9]), (T, D))
    for t in range(block * 16, min(block * 16 + 16, T)):
        w = carray(floats(given[0] + 4 * D * (word_of[t] if given[1] else t)), D)
        s = carray(floats(given[4] + 4 * D * type_of[t]), D)
        row = out[t]
        for j in range(D):
            row[j] = w[j] + s[j]
        if given[2]:
            p = carray(floats(given[2] + 4 * D * position_of[t]), D)
            for j in range(D):
                row[j] += p[j]


def embed(ids, positions, token_types, word, position, token_type):
    if ids.ndim == 1 and word.dtype != np.float32:
        ids = word[ids]
    vectors = ids.ndim == 2
    T, D = len(ids), token_type.shape[1]
    out = np.empty((T, D), np.float32)
    table = np.ascontiguousarray(ids, np.float32) if vectors else word
    where = [None if x is None else np.ascontiguousarray(x, np.int64) for x in (None if vectors else ids, positions, token_types)]
    places = None if positions is None else position
    parallel(_embed, -(-T // 16), table, where[0], places, where[1], token_type, where[2], 0, T, D, out)
    return out
