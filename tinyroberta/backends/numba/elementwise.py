"""Activations on float32 numbers, one loop each, which LLVM turns into vectors: the functions of backends/bitwise.py, compiled.

Without fused multiply-adds, so that a number's result is the same in every lane, on every machine and in NumPy. Bounds, over all
float32 arguments (tests/test_bitwise.py):

    exp(x), x <= 88     relative 1.5e-7
    erf(x)              absolute 2.5e-7
    tanh(x)             relative 5e-7
    log1p(x), 0 to 1    relative 2.5e-7
"""

import math
from types import FunctionType

import numpy as np

from .. import bitwise
from .buffers import reused
from .compiled import Kernel, carray, njit
from .llvm import bits_of, float_of, floats, words
from .threads import parallel

BLOCK = 4096  # numbers that a thread takes at a time

KINDS = ("identity", "gelu", "gelu_10", "gelu_new", "gelu_fast", "hardswish", "laplace", "leaky_relu", "mish", "quick_gelu",
         "relu", "relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus", "tanh")  # fmt: skip
CODES = {name: KINDS.index(function.__name__) for name, function in bitwise.ACTIVATIONS.items()}
NONE = CODES["linear"]
GELU, GELU_10, GELU_NEW, GELU_FAST, HARDSWISH, LAPLACE, LEAKY_RELU, MISH, QUICK_GELU = range(1, 10)
RELU, RELU2, RELU6, SIGMOID, SILU, SQRTSOFTPLUS, TANH = range(10, 17)


inline = njit(error_model="numpy")


@inline
def where(condition, a, b):
    return a if condition else b


@inline
def power(shifted):
    return float_of(np.int32((bits_of(shifted) - np.int32(0x4B400000 - 127)) << np.int32(23)))


@inline
def root(x):
    return np.float32(math.sqrt(x))


def compiled(function):
    """A function of backends/bitwise.py that finds here whatever it names."""
    return inline(FunctionType(function.__code__, globals(), function.__name__))


globals().update({name: value for name, value in vars(bitwise).items() if isinstance(value, np.float32 | tuple)})
exp, erf, log1p, clip, softplus, gelu_tanh = (
    compiled(function)
    for function in (bitwise.exp, bitwise.erf, bitwise.log1p, bitwise.clip, bitwise.softplus, bitwise.gelu_tanh)
)
(gelu, gelu_10, gelu_new, gelu_fast, hardswish, laplace, leaky_relu, mish, quick_gelu, relu, relu2, relu6, sigmoid, silu,
 sqrtsoftplus, tanh) = (compiled(getattr(bitwise, name)) for name in KINDS[1:])  # fmt: skip


@njit(error_model="numpy")
def activate(x, kind):  # (n,) float32, in place
    """The activation of a code in CODES; the branches stand outside the loops so that each loop is vectors."""
    n = len(x)
    if kind == GELU:
        for i in range(n):
            x[i] = gelu(x[i])
    elif kind == GELU_10:
        for i in range(n):
            x[i] = gelu_10(x[i])
    elif kind == GELU_NEW:
        for i in range(n):
            x[i] = gelu_new(x[i])
    elif kind == GELU_FAST:
        for i in range(n):
            x[i] = gelu_fast(x[i])
    elif kind == HARDSWISH:
        for i in range(n):
            x[i] = hardswish(x[i])
    elif kind == LAPLACE:
        for i in range(n):
            x[i] = laplace(x[i])
    elif kind == LEAKY_RELU:
        for i in range(n):
            x[i] = leaky_relu(x[i])
    elif kind == MISH:
        for i in range(n):
            x[i] = mish(x[i])
    elif kind == QUICK_GELU:
        for i in range(n):
            x[i] = quick_gelu(x[i])
    elif kind == RELU:
        for i in range(n):
            x[i] = relu(x[i])
    elif kind == RELU2:
        for i in range(n):
            x[i] = relu2(x[i])
    elif kind == RELU6:
        for i in range(n):
            x[i] = relu6(x[i])
    elif kind == SIGMOID:
        for i in range(n):
            x[i] = sigmoid(x[i])
    elif kind == SILU:
        for i in range(n):
            x[i] = silu(x[i])
    elif kind == SQRTSOFTPLUS:
        for i in range(n):
            x[i] = sqrtsoftplus(x[i])
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
    y = reused(x.shape, np.float32)
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
    out = reused((T, D), np.float32)
    table = np.ascontiguousarray(ids, np.float32) if vectors else word
    where = [None if x is None else np.ascontiguousarray(x, np.int64) for x in (None if vectors else ids, positions, token_types)]
    places = None if positions is None else position
    parallel(_embed, -(-T // 16), table, where[0], places, where[1], token_type, where[2], 0, T, D, out)
    return out
