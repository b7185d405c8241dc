"""A product's kernel run over its blocks of work."""

from typing import Any

import numpy as np
from ml_dtypes import bfloat16

from ..activations import CODES, GELU, NONE, ROUGH_GELU, activate_block
from ..buffers import contiguous, reused
from ..operands import room
from ..sizes import PANEL, TILE_ROWS
from ..threads import parallel, thread_limit
from .outputs import GIVES_BF16, GIVES_BLOCKS, GIVES_FLOAT32

CHUNK_BYTES = 5 << 18  # of cut rows; the cache holds two panels beside them


def run(kernel, x, weight, shape, chunks, bias, activation, residual, gives=GIVES_FLOAT32, **given):
    """activation(x W^T + b) + residual by a kernel, with what else it reads in `given`: rows (T, O), or a Cut of GIVES_BLOCKS."""
    T, O = shape
    result: Any = room(T, O) if gives == GIVES_BLOCKS else reused(shape, bfloat16 if gives == GIVES_BF16 else np.float32)
    if not T:
        return result
    residual_row, code = 0, CODES[activation or "linear"]
    code = ROUGH_GELU if code == GELU and gives != GIVES_FLOAT32 else code
    if residual is not None:
        residual = residual if residual.strides[1] == 4 else contiguous(residual, np.float32)
        residual_row = residual.strides[0] // 4
    given |= {"x": x, "weight": weight, "chunk": chunks[0], "threads": thread_limit(), "T": T, "O": O, "bias": bias}
    given |= {"out": result.blocks if gives == GIVES_BLOCKS else result, "gives": gives}
    given |= {"activation": code, "activate": activate_block.address if code != NONE else 0}
    given |= {"residual": residual, "residual_row": residual_row}
    parallel(kernel, chunks[1] * -(-O // PANEL), **given)
    return result


def chunks_of(T, row_bytes):
    """How many blocks of 16 rows make a chunk, an even number, and how many chunks there are, of nearly one size."""
    both = 2 * TILE_ROWS
    T, most = max(T, 1), max(both, CHUNK_BYTES // row_bytes // both * both)
    each = -(-T // (-(-T // most) * both))
    return 2 * each, -(-T // (each * both))
