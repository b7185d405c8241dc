"""A kernel of attention run over its blocks of work: what it is given, and the cache of what every layer asks for."""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..buffers import address, contiguous, reused
from ..machine import amx
from ..threads import parallel, thread_limit

QUERIES = 32
# What a kernel is given: addresses and shapes; K and V begin at an address with three strides, the masks with four.
TABLE, HEADS, WIDTH, CAUSAL, STARTS, KEYS, LENGTHS, ROOT, SCRATCH, SIZE, Q, Q_ROW = range(12)
K, KEPT, V, OUT, BIAS, HEAD_MASK, CONFIG, GIVEN = 12, 16, 17, 21, 22, 27, 32, 33


def _spread(x):
    """A mask (B or 1, H or 1, Sq or 1, Sk or 1): contiguous, with strides in floats, 0 where it broadcasts."""
    if x is None:
        return [None, 0, 0, 0, 0]
    x = contiguous(x, np.float32)
    return [x, *(0 if size == 1 else stride // 4 for size, stride in zip(x.shape, x.strides, strict=True))]


def _places(x, d):
    """Keys or values, (Tk, H d) or a cache (B, H, capacity, d), with strides of sequence, head and row, in numbers."""
    if x.ndim == 4:
        return [x, *(stride // x.itemsize for stride in x.strides[:3])]
    return [x, 0, d, x.strides[0] // x.itemsize]


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
    """Which sequence, head, first query and query after the last each block of work has."""
    starts = np.frombuffer(starts, np.int64)
    lengths = starts[1:] - starts[:-1]
    blocks = -(-lengths // queries)
    b = np.repeat(np.arange(len(blocks)), blocks * heads)
    within = np.arange(len(b)) - np.repeat(np.cumsum(blocks * heads) - blocks * heads, blocks * heads)
    first = within % blocks[b] * queries
    return np.stack([b, within // blocks[b], first, np.minimum(first + queries, lengths[b])], 1)


def call(kernel, dtype, q, k, v, causal, laid, heads, bias, head_mask, probs, queries, size, out):
    """Run a kernel over blocks of so many queries, with `size` bytes for each thread; the probabilities, if asked."""
    q, k, v = (x if x.dtype == dtype and x.strides[-1] == x.itemsize else contiguous(x, dtype) for x in (q, k, v))
    d, (starts, keys, lengths, _, _) = q.shape[1] // heads, laid
    table, kept, where = _blocks(starts.tobytes(), heads, queries), None, None
    if probs:
        kept = [np.zeros((heads, Sq, Sk), np.float32) for Sq, Sk in zip(np.diff(starts), lengths, strict=True)]
        where = np.array([address(x) for x in kept], np.int64)
    root, scratch = int(np.float32(1 / math.sqrt(d)).view(np.int32)), reused((thread_limit(), size), np.int8)
    values = [table, heads, d, int(causal), starts, keys, lengths, root, scratch, size, q, q.strides[0] // q.itemsize]
    values += [*_places(k, d), where, *_places(v, d), out, *_spread(bias), *_spread(head_mask), amx.CONFIG]
    parallel(kernel, len(table), *values)
    return kept
