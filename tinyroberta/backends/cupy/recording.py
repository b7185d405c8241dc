"""Recordings: an encoder's launches of a size that came before, as one CUDA graph: one by one they cost more than the work."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import cupy as cp
import numpy as np

from .. import Sequences
from . import cublaslt
from .launch import WIDEST
from .sequences import QUERIES, WIDE_QUERIES, from_parts, on_host, remember, split

Array = Any

RECORDED_TOKENS = 16384  # past this the launches cost nothing beside the work
RECORDINGS = 32  # that a model's weights keep, the least recently used leaving first
RECORDED_BYTES = 4 << 30  # of memory that they share: past these all leave before one more is recorded


class Size(NamedTuple):
    """What a recording is for: up to so many tokens and sequences, and all else that the launches depend on."""

    tokens: int
    batch: int
    causal: bool
    placed: bool  # positions are given
    fixed: tuple[Any, ...]  # by the configuration


class Recording(NamedTuple):
    """An encoder's launches for up to so many tokens and sequences, played again on what `inputs` holds."""

    inputs: Array  # int32: ids, positions, token types, then DeviceSequences' parts
    graph: Any
    out: Array


class Prepared(dict[str, Any]):
    """Prepared weights, with the recordings that read them; these take turns at one memory for what lies between launches."""

    def __init__(self, tree: dict[str, Any]) -> None:
        super().__init__(tree)
        self.recordings: OrderedDict[Size, Recording | None] = OrderedDict()
        self.pool = cp.cuda.MemoryPool()
        self.stream = cp.cuda.Stream(non_blocking=True)  # of all recordings: a pool gives a stream what the same stream gave back
        self.done = cp.cuda.Event(disable_timing=True)  # the last that was played, on whatever stream, has its result
        self.lock = threading.Lock()

    def seen(self, size: Size) -> bool:
        """Whether a size has come before; it is the last to leave from now on."""
        known = size in self.recordings
        self.recordings.setdefault(size)
        self.recordings.move_to_end(size)
        if len(self.recordings) > RECORDINGS:
            _, leaving = self.recordings.popitem(last=False)
            if leaving is not None:
                self.done.synchronize()  # it may still be playing
        return known

    def forget(self) -> None:
        """Let go of all recordings and their memory."""
        self.done.synchronize()
        self.recordings.clear()
        self.pool = cp.cuda.MemoryPool()


def recorded(compute: Callable[..., Array], weights: Prepared, head_size: int, fixed: tuple[Any, ...]) -> Callable[..., Array]:
    """The encoder `compute`, recorded as a CUDA graph when a size comes for the second time and from then on played again.

    Up to RECORDED_TOKENS, where the launches would cost more than the work; past them a size that comes again has its products
    timed and chosen. A recording's size is tokens rounded up to 64 and sequences to a power of two; the rows beyond are computed
    from whatever is there and read by nobody, since no op mixes rows but attention, and that within sequences.
    """

    def run(ids: Any, positions: Any | None, token_types: Any, sequences: Sequences) -> Array:
        tokens, batch = len(token_types), len(sequences.key_start)
        if head_size > WIDEST:
            return compute(ids, positions, token_types, sequences)
        large = tokens > RECORDED_TOKENS
        rounded = tokens if large else -(-tokens // 64) * 64
        size = Size(rounded, 1 << (batch - 1).bit_length(), sequences.causal, positions is not None, fixed)
        with weights.lock:
            seen = weights.seen(size)
            if large or not seen:
                with cublaslt.choosing() if seen else contextlib.nullcontext():
                    return compute(ids, positions, token_types, sequences)
            inputs = _inputs(size, ids, positions, token_types, sequences)
            recording = weights.recordings[size]
            if recording is None:
                if weights.pool.total_bytes() > RECORDED_BYTES:
                    weights.forget()
                recording = weights.recordings[size] = _record(compute, size, inputs, weights)
            caller = cp.cuda.get_current_stream()
            caller.wait_event(weights.done)
            recording.inputs.set(inputs)
            recording.graph.launch()
            last = recording.out[:tokens].copy()
            weights.done.record(caller)
            return last

    return run


def _layout(size: Size) -> list[int]:
    """How many numbers of a recording's inputs are ids, positions, types and each part of DeviceSequences."""
    tokens, batch = size.tokens, size.batch
    tiles, wide_tiles = (2 * (tokens // tile + batch) for tile in (QUERIES, WIDE_QUERIES))
    return [tokens, tokens, tokens, tiles, batch + 1, batch, batch, wide_tiles]


def _inputs(size: Size, ids: Any, positions: Any | None, token_types: Any, sequences: Sequences) -> Any:
    inputs = np.zeros(sum(_layout(size)), np.int32)
    room = list(split(inputs, _layout(size)))
    room[3][:] = room[7][:] = -1  # no tile
    for to, given in zip(room, (ids, positions, token_types, *on_host(sequences)), strict=True):
        if given is not None:
            to[: len(given)] = given
    return inputs


def _record(compute: Callable[..., Array], size: Size, inputs: Any, weights: Prepared) -> Recording:
    caller, stream = cp.cuda.get_current_stream(), weights.stream
    stream.wait_event(weights.done)
    stream.wait_event(caller.record())
    with stream, cp.cuda.using_allocator(weights.pool.malloc):
        buffer = cp.empty(len(inputs), np.int32)
        buffer.set(inputs)
        ids, positions, token_types, *parts = split(buffer, _layout(size))
        there = from_parts(iter(parts))
        sequences = Sequences(there.query_start, there.key_start, there.key_length, size.causal)
        remember(sequences, there)
        given = (ids, positions if size.placed else None, token_types, sequences)
        with cublaslt.choosing():
            compute(*given)  # compiles, plans, and leaves in the pool the memory that recording finds there
        stream.begin_capture()
        try:
            out = compute(*given)
        finally:
            graph = stream.end_capture()
    weights.done.record(stream)
    return Recording(buffer, graph, out)
