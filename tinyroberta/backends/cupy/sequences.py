"""Which rows are whose, on the device: what the attention kernels look up, and the tiles that they share out among blocks."""

import functools
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import cupy as cp
import numpy as np

from .. import Sequences, Settings

Array = Any

QUERIES, WIDE_QUERIES = 64, 128  # that a block of the attention kernels takes, and one of Hopper's own


class DeviceSequences(NamedTuple):
    """Sequences on the device, with the attention kernels' tiles: a block takes one, a sequence and its first query there."""

    tiles: Array  # (N, 2) int32, one for every QUERIES of a sequence
    query_start: Array
    key_start: Array
    key_length: Array
    wide_tiles: Array  # one for every WIDE_QUERIES


class _Uploaded(threading.local):
    known: dict[int, tuple[Sequences, DeviceSequences]] | None = None  # by identity, while a model runs


_uploaded = _Uploaded()


@contextmanager
def running(settings: Settings) -> Iterator[None]:  # noqa: ARG001
    """While a model runs, which rows are whose is brought to the device once; everything goes to the caller's current stream."""
    outer, _uploaded.known = _uploaded.known, {}
    try:
        yield
    finally:
        _uploaded.known = outer


def on_device(sequences: Sequences) -> DeviceSequences:
    """Sequences on the device; within `running` they travel once and not once a layer."""
    known = _uploaded.known
    if known is not None and id(sequences) in known:
        return known[id(sequences)][1]
    parts = on_host(sequences)
    uploaded = from_parts(split(cp.asarray(np.concatenate(parts).astype(np.int32)), [x.size for x in parts]))
    if known is not None:
        known[id(sequences)] = (sequences, uploaded)
    return uploaded


def remember(sequences: Sequences, uploaded: DeviceSequences) -> None:
    """Let `on_device` find sequences that are on the device already, within `running`."""
    assert _uploaded.known is not None
    _uploaded.known[id(sequences)] = (sequences, uploaded)


def on_host(sequences: Sequences) -> tuple[Any, ...]:
    """What DeviceSequences holds, in its order, each flat and still on the host."""
    starts = (sequences.query_start, sequences.key_start, sequences.key_length)
    return _laid_out(*(np.asarray(x, np.int32).tobytes() for x in starts))


@functools.lru_cache(maxsize=256)
def _laid_out(*given: bytes) -> tuple[Any, ...]:
    query_start, key_start, key_length = (np.frombuffer(x, np.int32) for x in given)
    sequences = Sequences(query_start, key_start, key_length, causal=False)  # which tiles do not depend on
    return tiles_of(sequences).ravel(), query_start, key_start, key_length, tiles_of(sequences, WIDE_QUERIES).ravel()


def tiles_of(sequences: Sequences, queries: int = QUERIES) -> Any:  # -> (N, 2) int32
    """A sequence and its first query, for every so many queries; those with most keys are first, so that the last are short."""
    order = np.argsort(-np.asarray(sequences.key_length), kind="stable")
    counts = -(-np.diff(sequences.query_start) // queries)[order]
    firsts = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([np.repeat(order, counts), queries * firsts], 1).astype(np.int32)


def from_parts(parts: Iterator[Array]) -> DeviceSequences:
    """DeviceSequences from the parts of one array, as `on_host` orders them."""
    tiles, query_start, key_start, key_length, wide_tiles = parts
    return DeviceSequences(tiles.reshape(-1, 2), query_start, key_start, key_length, wide_tiles.reshape(-1, 2))


def split(x: Array, sizes: list[int]) -> Iterator[Array]:
    """Parts of an array, of these sizes, one after another."""
    ends = itertools.accumulate(sizes)
    return (x[end - size : end] for size, end in zip(sizes, ends, strict=True))
