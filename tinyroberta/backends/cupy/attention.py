"""Attention: which kernel takes it, and what each is given.

Shapes: Tq queries and Tk keys of all sequences packed; H heads of width d, D = H d.
"""

import math
from collections.abc import Iterator
from typing import Any

import cupy as cp
import numpy as np

from .. import Sequences
from . import device
from .launch import BF16, CPP_NAMES, F16, FLOAT, HEAD_WIDTHS, MOST_BLOCKS, WARP, WARPS, WIDEST, launch
from .ops import asarray
from .sequences import QUERIES, on_device

Array = Any

FLOAT_THREADS, FLOAT_KEYS = 256, 32  # of a block of kernels/attention.cu, keys that it holds at a time
MMA_THREADS, MMA_KEYS, MMA_STAGES = 128, 64, 2  # of attention_mma.cu, which fetches the next keys while it multiplies these
HOPPER_THREADS, HOPPER_KEYS, HOPPER_STAGES = 256, 64, 3  # of attention_wgmma.cu and attention_split.cu
HOPPER_WIDTH = 64  # of the heads that these two take
HOPPER_SHARED = HOPPER_STAGES * 2 * HOPPER_KEYS * HOPPER_WIDTH * 2  # bytes: stages of keys and values, of 16 bits
SPLIT_THREADS, SPLIT_NUMBERS = 256, 1024  # of a block of split.cu
AXES = {prefix: {f"{prefix}_{axis}": 0 for axis in ("batch", "head", "row", "key")} for prefix in ("bias", "mask")}
READ_BY_VALUES = ("tiles", "query_start", "key_start", "key_length", "key_batch", "key_head", "key_row", "size")


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
    """softmax(q k^T / sqrt(d) + bias) v, each sequence and head for itself, and the probabilities if asked."""
    d = q.shape[1] // heads
    scaled = head_mask is not None and q.dtype == F16  # perhaps out of its range
    if scaled or not q.dtype == k.dtype == v.dtype:  # a cache of another precision
        q, k, v = (x.astype(FLOAT, copy=False) for x in (q, k, v))
    if k.strides != v.strides or k.strides[-1] != k.itemsize:
        k, v = cp.ascontiguousarray(k), cp.ascontiguousarray(v)
    steps = [step // k.itemsize for step in k.strides]
    key_batch, key_head, key_row = (0, d, steps[0]) if k.ndim == 2 else steps[:3]
    query_row = q.strides[0] // q.itemsize
    uploaded = on_device(sequences)
    plain = bias is None and head_mask is None
    given = {
        "tiles": uploaded.tiles, "query_start": uploaded.query_start,
        "key_start": uploaded.key_start, "key_length": uploaded.key_length, "causal": sequences.causal,
        "query_row": query_row, "key_batch": key_batch, "key_head": key_head, "key_row": key_row,
        **_spread("bias", "bias", bias), **_spread("head_mask", "mask", head_mask),
        "size": d, "scale": 1 / math.sqrt(d),
    }  # fmt: skip
    out = cp.empty(q.shape, q.dtype)
    grid = (len(uploaded.tiles), heads)
    if probs or d > WIDEST:
        probabilities = _with_probabilities(q, k, v, out, sequences, heads, grid, given)
        return out, probabilities if probs else None
    kind = CPP_NAMES[q.dtype]
    steps_fit = not any(step % 8 for step in (query_row, key_batch, key_head, key_row))
    aligned = steps_fit and not any(x.data.ptr % 16 for x in (q, k, v))
    if plain and d == HOPPER_WIDTH and aligned and device.hopper() and (q.dtype != FLOAT or _joined(q, k, v)):
        wide, given["tiles"] = (len(uploaded.wide_tiles), heads), uploaded.wide_tiles
        if q.dtype == FLOAT:
            part = len(q) * 3 * q.shape[1]
            q, k, v = _parts_of(q)
            launch("attention_split", wide, (HOPPER_THREADS,), shared=3 * HOPPER_SHARED, q=q, k=k, v=v, part=part, y=out, **given)
        else:
            launch(f"attention_wgmma<{kind}>", wide, (HOPPER_THREADS,), shared=HOPPER_SHARED, q=q, k=k, v=v, y=out, **given)
        return out, None
    width = next(width for width in HEAD_WIDTHS if width >= d)
    template = f"{width}, {str(not plain).lower()}"
    if q.dtype == FLOAT:
        shared = 4 * ((QUERIES + 2 * FLOAT_KEYS) * (width + 1) + QUERIES * (FLOAT_KEYS + 1))  # q, k, v, and the weights of v
        launch(f"attention<{template}>", grid, (FLOAT_THREADS,), shared=shared, q=q, k=k, v=v, y=out, **given)
    else:
        shared = 2 * MMA_STAGES * 2 * MMA_KEYS * (width + 8)  # keys and values of 16 bits
        launch(f"attention_mma<{kind}, {template}>", grid, (MMA_THREADS,), shared=shared, q=q, k=k, v=v, y=out, **given)
    return out, None


def keeps_alike() -> bool:
    """As the NumPy backend's: kernels of their own keep the probabilities."""
    return False


def _joined(q: Array, k: Array, v: Array) -> bool:
    """Whether the three are the thirds of one array."""
    width = q.shape[1] * q.itemsize
    together = q.strides == k.strides == v.strides == (3 * width, q.itemsize)
    return together and k.data.ptr - q.data.ptr == v.data.ptr - k.data.ptr == width


def _parts_of(q: Array) -> Iterator[Array]:
    """The first parts of queries, keys and values, (T, D) x3 of bf16, whose first third `q` is; the others follow (split.cu)."""
    T, D = q.shape
    parts = cp.empty((3, T, 3 * D), BF16)
    n = 3 * T * D
    launch("split", (min(-(-n // SPLIT_NUMBERS), MOST_BLOCKS),), (SPLIT_THREADS,), x=q, y=parts, n=n)
    return (parts[0, :, start : start + D] for start in (0, D, 2 * D))


def _with_probabilities(
    q: Array, k: Array, v: Array, out: Array, sequences: Sequences, heads: int, grid: tuple[int, int], given: dict[str, Any]
) -> list[Array]:
    queries = np.diff(sequences.query_start).tolist()
    shapes = [(heads, Sq, Sk) for Sq, Sk in zip(queries, np.asarray(sequences.key_length).tolist(), strict=True)]
    starts = np.cumsum([0, *(math.prod(shape) for shape in shapes)])
    p, begin = cp.empty(int(starts[-1]), FLOAT), cp.asarray(starts[:-1].astype(np.int64))
    kind, block = CPP_NAMES[q.dtype], (WARP, WARPS)
    launch(f"probabilities<{kind}>", grid, block, q=q, k=k, p=p, starts=begin, **given)
    launch(f"values<{kind}>", grid, block, p=p, v=v, y=out, starts=begin, **{name: given[name] for name in READ_BY_VALUES})
    return [p[int(start) : int(start) + math.prod(shape)].reshape(shape) for start, shape in zip(starts, shapes, strict=False)]


def _spread(name: str, prefix: str, x: Array | None) -> dict[str, Any]:
    """An array that broadcasts to (B, H, Sq, Sk) and its four strides in numbers, as the kernels name them (attention.cuh)."""
    axes = AXES[prefix]
    if x is None:
        return {name: None, **axes}
    x = cp.ascontiguousarray(asarray(x).astype(FLOAT, copy=False))
    steps = (0 if size == 1 else step // x.itemsize for size, step in zip(x.shape, x.strides, strict=True))
    return {name: x, **dict(zip(axes, steps, strict=True))}
