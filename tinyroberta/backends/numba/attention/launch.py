"""A kernel of attention run over its blocks of work: what it is given, and the cache of what every layer asks for."""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..arguments import Fields
from ..buffers import address, contiguous, reused
from ..machine import amx
from ..sizes import PANEL
from ..threads import parallel, thread_limit

QUERIES = PANEL  # that are computed together: the columns of the scores, as many as a panel has
# The address where keys or values, or a mask, begin, and how many numbers lie between one sequence, head, ... and the next.
KEYS_OR_VALUES = Fields("at", "sequence", "head", "row")
MASK = Fields("at", "sequence", "head", "query", "key")
ATTENTION = Fields(
    "table", "starts", "first_keys", "lengths",  # _blocks and Layout
    "heads", "width", "causal", "q", "q_row", "out", "kept",
    "scratch", "size",  # memory for each thread, so many bytes
    "config",  # the tiles'
    root=np.float32, k=KEYS_OR_VALUES, v=KEYS_OR_VALUES, bias=MASK, head_mask=MASK,
)  # fmt: skip


def _mask_strides(x):
    """The MASK fields of a mask (B or 1, H or 1, Sq or 1, Sk or 1); its stride is 0 where it broadcasts."""
    if x is None:
        return dict.fromkeys(MASK.kinds, 0)
    x = contiguous(x, np.float32)
    strides = (0 if size == 1 else stride // 4 for size, stride in zip(x.shape, x.strides, strict=True))
    return dict(zip(MASK.kinds, (x, *strides), strict=True))


def _row_strides(x, d):
    """The fields of keys or values, which are (Tk, H d) or a cache (B, H, capacity, d)."""
    strides = [stride // x.itemsize for stride in x.strides]
    sequence, head, row = strides[:3] if x.ndim == 4 else (0, d, strides[0])
    return {"at": x, "sequence": sequence, "head": head, "row": row}


class Layout(NamedTuple):
    """What a kernel reads of Sequences."""

    starts: Any  # (B + 1,) int64
    keys: Any  # (B,)
    lengths: Any  # (B,)
    longest: int  # of the keys
    groups: Any  # (B,), of 32 queries


@lru_cache(8)  # every layer of a model asks for the same
def _layout(*sequences):  # the bytes of int32
    starts, keys, lengths = (np.frombuffer(x, np.int32).astype(np.int64) for x in sequences)
    return Layout(starts, keys, lengths, int(lengths.max()), -(-np.diff(starts) // QUERIES))


def layout(sequences):
    """The Layout of Sequences."""
    return _layout(*(np.ascontiguousarray(x, np.int32).tobytes() for x in sequences[:3]))


@lru_cache(8)
def _blocks(starts, heads, queries):  # the bytes of (B + 1,) int64 -> (blocks, 4)
    """What each block of work has: its sequence, head, first query, and the query after its last."""
    starts = np.frombuffer(starts, np.int64)
    lengths = starts[1:] - starts[:-1]
    blocks = -(-lengths // queries)
    b = np.repeat(np.arange(len(blocks)), blocks * heads)
    within = np.arange(len(b)) - np.repeat(np.cumsum(blocks * heads) - blocks * heads, blocks * heads)
    first = within % blocks[b] * queries
    return np.stack([b, within // blocks[b], first, np.minimum(first + queries, lengths[b])], 1)


def run(kernel, dtype, q, k, v, causal, laid, heads, bias, head_mask, probs, queries, size, out):
    """Run a kernel over blocks of so many queries, with `size` bytes for each thread; returns the probabilities, or None."""
    q, k, v = (x if x.dtype == dtype and x.strides[-1] == x.itemsize else contiguous(x, dtype) for x in (q, k, v))
    d, (starts, keys, lengths, _, _) = q.shape[1] // heads, laid
    table, kept, where = _blocks(starts.tobytes(), heads, queries), None, None
    if probs:
        kept = [np.zeros((heads, Sq, Sk), np.float32) for Sq, Sk in zip(np.diff(starts), lengths, strict=True)]
        where = np.array([address(x) for x in kept], np.int64)
    given = {"table": table, "starts": starts, "first_keys": keys, "lengths": lengths}
    given |= {"heads": heads, "width": d, "causal": int(causal), "root": 1 / math.sqrt(d), "out": out, "kept": where}
    given |= {"q": q, "q_row": q.strides[0] // q.itemsize, "k": _row_strides(k, d), "v": _row_strides(v, d)}
    given |= {"bias": _mask_strides(bias), "head_mask": _mask_strides(head_mask)}
    given |= {"scratch": reused((thread_limit(), size), np.int8), "size": size, "config": amx.CONFIG}
    parallel(kernel, len(table), **given)
    return kept
