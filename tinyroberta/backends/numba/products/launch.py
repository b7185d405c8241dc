"""A product's kernel run over its blocks of work."""

from typing import Any

import numpy as np
from ml_dtypes import bfloat16

from ..activations import CODES, GELU, NONE, ROUGH_GELU, activate_block
from ..buffers import contiguous, reused
from ..machine import amx
from ..operands import PANEL, room
from ..threads import parallel, thread_limit
from .outputs import BLOCKS, FLOATS, HALVES

CHUNK_BYTES = 5 << 18  # of cut rows; the cache holds two panels beside them


def run(
    kernel, x, row_scales, weight, column_scales, bias, residual, shape, steps, chunks, activation, stride=0,
    cut=(0, 0, None), gives=FLOATS,
):  # fmt: skip
    T, O = shape
    result: Any = room(T, O) if gives == BLOCKS else reused(shape, bfloat16 if gives == HALVES else np.float32)
    if not T:
        return result
    out = result.blocks if gives == BLOCKS else result
    residual_stride, kind = 0, CODES[activation or "linear"]
    kind = ROUGH_GELU if kind == GELU and gives != FLOATS else kind
    if residual is not None:
        residual = residual if residual.strides[1] == 4 else contiguous(residual, np.float32)
        residual_stride = residual.strides[0] // 4
    activate_at = activate_block.address if kind != NONE else 0
    panels = -(-O // PANEL)
    parallel(
        kernel, chunks[1] * panels, x, weight, row_scales, column_scales, bias, residual, out, T, O, steps, chunks[0], kind,
        activate_at, amx.CONFIG, thread_limit(), residual_stride, stride, *cut, gives,
    )  # fmt: skip
    return result


def chunks_of(T, row_bytes):
    """How many blocks of 16 rows make a chunk, an even number, and how many chunks there are, of nearly one size."""
    T, most = max(T, 1), max(32, CHUNK_BYTES // row_bytes // 32 * 32)
    each = -(-T // (-(-T // most) * 32))
    return 2 * each, -(-T // (each * 32))
