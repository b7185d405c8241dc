"""Activations on float32 numbers, 16 at a time: the functions of backends/bitwise.py, run on registers (machine/lanes.py).

They use no fused multiply-add, so that a number's result is the same in every lane, on every machine and in NumPy. Their bounds,
over all float32 arguments (tests/test_bitwise.py):

    exp(x), x <= 88     relative 1.5e-7
    erf(x)              absolute 2.5e-7
    tanh(x)             relative 5e-7
    log1p(x), 0 to 1    relative 2.5e-7
"""

from functools import partial

import numpy as np

from .. import bitwise
from .arguments import Fields
from .buffers import contiguous, reused
from .compiled import Kernel, carray, njit
from .machine.lanes import lanes_of
from .machine.memory import allocate, floats, free
from .threads import parallel

BLOCK = 4096  # numbers that a thread takes at a time
FUNCTIONS = list(dict.fromkeys([bitwise.identity, *bitwise.ACTIVATIONS.values()]))  # several names have one function
CODES = {name: FUNCTIONS.index(function) for name, function in bitwise.ACTIVATIONS.items()}
NONE = CODES["linear"]
PHI_POLYNOMIAL = tuple(map(np.float32, (
    0.0027057330737802615, -0.0061959747169267835, 0.007317668680711202, -0.01314275269766987, 0.025363911897125356,
    -0.0391609631666828, 0.05576637338519794, -0.08146339403812533, 0.16785701663020908,
)))  # fmt: skip
SIDE, PHI_FOLD = np.float32(4.2), np.float32(2 / 4.2**2)


def rough_gelu(x):
    """gelu for results that are then rounded to bf16: Phi is a polynomial up to 4.2, off by at most what lies beyond, 1.4e-5."""
    y = bitwise.clip(x, -SIDE, SIDE)
    u = (y * y).fused(PHI_FOLD, -bitwise.ONE)
    p = u.fused(PHI_POLYNOMIAL[0], PHI_POLYNOMIAL[1])
    for c in PHI_POLYNOMIAL[2:]:
        p = p.fused(u, c)
    return x * y.fused(p, bitwise.HALF)


activate_all = lanes_of([*FUNCTIONS, rough_gelu])
GELU, ROUGH_GELU = CODES["gelu"], len(FUNCTIONS)


@njit(error_model="numpy")
def activate(x, n, code):
    """The activation of a code in CODES, or ROUGH_GELU, on any number n of float32 at an address, in place."""
    whole = n // 16 * 16
    activate_all(x, whole, code)
    if whole < n:
        memory = allocate(64)
        some, rest = carray(floats(memory), 16), carray(floats(x + whole * 4), n - whole)
        for i in range(16):
            some[i] = rest[i] if i < n - whole else np.float32(0)
        activate_all(memory, 16, code)
        for i in range(n - whole):
            rest[i] = some[i]
        free(memory)


@partial(Kernel, fields=Fields("x", "y", "n", "code"))
def _activation(given, block, worker):
    start = block * BLOCK
    stop = min(start + BLOCK, given.n)
    x, y = carray(floats(given.x), given.n)[start:stop], carray(floats(given.y), given.n)[start:stop]
    for i in range(stop - start):
        y[i] = x[i]
    activate(given.y + start * 4, stop - start, given.code)


def activation(x, code):  # float32, any shape -> the same
    """The activation of a code, of every number."""
    x = contiguous(x, np.float32)
    y = reused(x.shape, np.float32)
    parallel(_activation, -(-x.size // BLOCK), x=x, y=y, n=x.size, code=code)
    return y


@Kernel
def activate_block(x, n, code):
    """The activation of n float32 at an address, which products call, so that activations are compiled once and not into each."""
    activate(x, n, code)
