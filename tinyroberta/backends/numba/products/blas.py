"""Products by NumPy's BLAS, of float32 or of digits, and what a kernel does with them afterwards."""

from functools import partial

import numpy as np

from ... import bitwise
from ..activations import CODES, NONE, activate_block
from ..arguments import Fields
from ..buffers import by_numpy
from ..compiled import Kernel, carray
from ..machine.memory import floats
from ..machine.system import call_kernel
from ..sizes import TILE_ROWS
from ..threads import parallel


def blas_product(x, weight, O, bias, activation, residual):
    """(T, K), (O, K) float32 -> (T, O), by NumPy's BLAS."""
    return _finished(np.matmul(x, weight.T, dtype=np.float32), bias, activation, residual)


def digit_product(x, weight, scales, diagonals, O, bias, activation, residual):
    """As cut_product, its digits multiplied by NumPy's BLAS: exact too, so equal to the bit, and slow."""
    (T, K), slices = x.shape, x.operand.slices
    rows = x.blocks.transpose(2, 0, 3, 1, 4).reshape(slices, len(x.scales), -1)
    columns = weight.reshape(*weight.shape[:3], 2, 16, 16, 4).transpose(2, 0, 3, 5, 1, 4, 6).reshape(slices, len(scales), -1)
    y = bitwise.sliced_product(rows[:, :T, :K], x.scales[:T], columns[:, :O, :K], scales[:O], diagonals)
    return _finished(y, bias, activation, residual)


def _finished(y, bias, activation, residual):
    """Bias, activation and residual, in place."""
    by_numpy()
    code, stride = CODES[activation or "linear"], 0
    if residual is not None:
        residual = residual if residual.strides[1] == 4 else np.ascontiguousarray(residual)
        stride = residual.strides[0] // 4
    activate_at = activate_block.address if code != NONE else 0
    given = {"T": len(y), "O": y.shape[1], "bias": bias, "residual": residual, "residual_row": stride}
    parallel(_finish, -(-len(y) // TILE_ROWS), y=y, activation=code, activate=activate_at, **given)
    return y


@partial(Kernel, fields=Fields("y", "T", "O", "bias", "activation", "activate", "residual", "residual_row"))
def _finish(given, block, worker):
    """16 rows of a product that BLAS has done, in place."""
    T, O = given.T, given.O
    for t in range(block * TILE_ROWS, min((block + 1) * TILE_ROWS, T)):
        y = carray(floats(given.y + t * O * 4), O)
        bias = carray(floats(given.bias), O)
        for c in range(O):
            y[c] += bias[c]
        if given.activation:
            call_kernel(given.activate, given.y + t * O * 4, O, given.activation)
        if given.residual:
            residual = carray(floats(given.residual + t * given.residual_row * 4), O)
            for c in range(O):
                y[c] += residual[c]
