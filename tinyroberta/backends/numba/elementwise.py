"""Activations on float32 numbers, 16 at a time: the functions of backends/bitwise.py, run on registers (llvm.Lanes).

Without fused multiply-adds, so that a number's result is the same in every lane, on every machine and in NumPy. Bounds, over all
float32 arguments (tests/test_bitwise.py):

    exp(x), x <= 88     relative 1.5e-7
    erf(x)              absolute 2.5e-7
    tanh(x)             relative 5e-7
    log1p(x), 0 to 1    relative 2.5e-7
"""

from types import FunctionType
from typing import Any

import numpy as np

from .. import bitwise
from .buffers import by_numpy, contiguous, reused
from .compiled import Kernel, carray, njit
from .llvm import Lanes, allocate, floats, free, lanes_of, words
from .threads import parallel

BLOCK = 4096  # numbers that a thread takes at a time

KINDS = ("identity", "gelu", "gelu_10", "gelu_new", "gelu_fast", "hardswish", "laplace", "leaky_relu", "mish", "quick_gelu",
         "relu", "relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus", "tanh")  # fmt: skip
CODES = {name: KINDS.index(function.__name__) for name, function in bitwise.ACTIVATIONS.items()}
NONE = CODES["linear"]


# Functions of bitwise.py of 16 numbers at a time: they find whatever they name here.
OF_LANES: dict[str, Any] = {name: value for name, value in vars(bitwise).items() if isinstance(value, np.float32 | tuple)}
OF_LANES |= {
    "where": lambda condition, a, b: (a if isinstance(a, Lanes) else b).where(condition, a, b),
    "power": Lanes.power,
    "root": Lanes.root,
    "fused": Lanes.fused,
}


def of_lanes(function):
    """A function of backends/bitwise.py, or one that is written like those, on Lanes."""
    OF_LANES[function.__name__] = FunctionType(function.__code__, OF_LANES, function.__name__)
    return OF_LANES[function.__name__]


for _name in ("exp", "erf", "log1p", "clip", "sigmoid", "softplus", "gelu_tanh", *KINDS):
    of_lanes(getattr(bitwise, _name))

PHI_POLYNOMIAL = tuple(map(np.float32, (
    0.0027057330737802615, -0.0061959747169267835, 0.007317668680711202, -0.01314275269766987, 0.025363911897125356,
    -0.0391609631666828, 0.05576637338519794, -0.08146339403812533, 0.16785701663020908,
)))  # fmt: skip
SIDE, PHI_FOLD = np.float32(4.2), np.float32(2 / 4.2**2)


def rough_gelu(x):
    """gelu for what is then rounded to bf16: Phi is a polynomial up to 4.2, and off by at most what lies beyond, 1.4e-5."""
    y = OF_LANES["clip"](x, -SIDE, SIDE)
    u = (y * y).fused(PHI_FOLD, -bitwise.ONE)
    p = u.fused(PHI_POLYNOMIAL[0], PHI_POLYNOMIAL[1])
    for c in PHI_POLYNOMIAL[2:]:
        p = p.fused(u, c)
    return x * y.fused(p, bitwise.HALF)


activate_all = lanes_of([*(OF_LANES[name] for name in KINDS), rough_gelu])
GELU, ROUGH_GELU = KINDS.index("gelu"), len(KINDS)


@njit(error_model="numpy")
def activate(x, n, kind):
    """The activation of a code in CODES, or ROUGH_GELU, on any number n of float32 at an address, in place."""
    whole = n // 16 * 16
    activate_all(x, whole, kind)
    if whole < n:
        memory = allocate(64)
        some, rest = carray(floats(memory), 16), carray(floats(x + whole * 4), n - whole)
        for i in range(16):
            some[i] = rest[i] if i < n - whole else np.float32(0)
        activate_all(memory, 16, kind)
        for i in range(n - whole):
            rest[i] = some[i]
        free(memory)


@Kernel
def _activation(arguments, block, worker):
    given = carray(words(arguments), 4)
    n, kind = given[2], given[3]
    start = block * BLOCK
    stop = min(start + BLOCK, n)
    x, y = carray(floats(given[0]), n)[start:stop], carray(floats(given[1]), n)[start:stop]
    for i in range(stop - start):
        y[i] = x[i]
    activate(given[1] + start * 4, stop - start, kind)


def activation(x, kind):  # float32, any shape -> the same
    x = contiguous(x, np.float32)
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
        by_numpy()
        ids = word[ids]
    vectors = ids.ndim == 2
    T, D = len(ids), token_type.shape[1]
    out = reused((T, D), np.float32)
    table = contiguous(ids, np.float32) if vectors else word
    where = [None if x is None else contiguous(x, np.int64) for x in (None if vectors else ids, positions, token_types)]
    places = None if positions is None else position
    parallel(_embed, -(-T // 16), table, where[0], places, where[1], token_type, where[2], 0, T, D, out)
    return out
