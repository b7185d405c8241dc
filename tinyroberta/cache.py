"""Keys and values of tokens already read, so that the next one costs one token's work."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from ml_dtypes import bfloat16

from .errors import Error
from .inputs import as_array

Array = Any


class LayerCache:
    """One layer's keys and values, (B, H, capacity, d), of which the first `length` along capacity are in use.

    Capacity doubles when it is full, so a token's share of the copying does not grow with the length.
    """

    def __init__(self, keys: Array, values: Array) -> None:
        self.keys, self.values = keys, values
        self.length = int(keys.shape[2])

    def stored(self) -> tuple[Array, Array]:
        """The keys and values in use, (B, H, length, d), as views."""
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def extend(self, k: Array, v: Array, heads: int) -> tuple[Array, Array]:
        """Append new tokens' keys and values, (B S, H d) packed; returns all in use, as `stored`.

        Raises Error where the cache was made by a model of other heads.
        """
        old, B, d = self.length, self.keys.shape[0], k.shape[1] // heads
        if old == 0:
            self.keys, self.values = (np.empty_like(x, shape=(B, heads, 0, d)) for x in (k, v))
        elif (self.keys.shape[1], self.keys.shape[3]) != (heads, d):
            held = f"{self.keys.shape[1]} heads of width {self.keys.shape[3]}"
            raise Error(f"past_key_values hold {held}; this model has {heads} of width {d}")
        elif self.keys.dtype != k.dtype:  # of a call at another precision: the GPU's f16 may not hold what this one gives
            dtype = k.dtype if isinstance(self.keys, np.ndarray) else np.float32
            self.keys, self.values = (x.astype(dtype, copy=False) for x in (self.keys, self.values))
        new = k.shape[0] // B
        self.length = old + new
        if self.length > self.keys.shape[2]:
            capacity = max(self.length, 2 * self.keys.shape[2], 16)
            self.keys, self.values = _grown(self.keys, old, capacity), _grown(self.values, old, capacity)
        for buffer, x in zip(self.stored(), (k, v), strict=True):
            buffer[:, :, old:] = x.reshape(B, new, heads, d).transpose(0, 2, 1, 3)
        return self.stored()

    def select(self, rows: Array) -> None:
        """Keep these rows of the batch, in this order, repeated where named twice."""
        self.keys, self.values = self.keys[rows], self.values[rows]


def _grown(x: Array, used: int, capacity: int) -> Array:
    B, H, _, d = x.shape
    larger = np.empty_like(x, shape=(B, H, capacity, d))
    larger[:, :, :used] = x[:, :, :used]
    return larger


class Cache(Sequence[tuple[Array, ...]]):
    """The keys and values of every layer; reads as the tuple of (k, v) or (k, v, cross_k, cross_v) that transformers returns.

    NumPy's bf16, which few libraries know, reads as float32.
    """

    def __init__(self, layers: int, batch: int) -> None:
        empty = np.empty((batch, 0, 0, 0))
        self._layers = [(LayerCache(empty, empty), LayerCache(empty, empty)) for _ in range(layers)]

    @classmethod
    def of(cls, past: Any, layers: int, batch: int, dtype: Any, asarray: Callable[[Any], Array] = np.asarray) -> "Cache":
        """A cache from transformers' tuples, (k, v) or (k, v, cross_k, cross_v) a layer, each (B, H, S, d); a Cache is itself.

        Raises Error where the number of layers, the batch or the shapes do not fit.
        """
        if past is None:
            return cls(layers, batch)
        if not isinstance(past, Sequence) or len(past) != layers:
            held = f"{len(past)} layers" if isinstance(past, Sequence) else f"no layers: it is {type(past).__name__}"
            raise Error(f"past_key_values has {held}; the model has {layers} layers")
        cache = past if isinstance(past, Cache) else cls(layers, batch)
        if not isinstance(past, Cache):
            for index, entry in enumerate(past):
                arrays = (
                    [] if not isinstance(entry, Sequence) else [as_array(x, "past_key_values") for x in entry if x is not None]
                )
                pairs = [arrays[:2], arrays[2:]] if len(arrays) == 4 else [arrays]
                if len(arrays) not in (2, 4) or any(
                    k.ndim != 4 or k.shape != v.shape or k.dtype.kind not in "fV" for k, v in pairs
                ):
                    raise Error("past_key_values must hold (k, v[, cross_k, cross_v]) a layer, floats (batch, heads, length, d)")
                made = [LayerCache(*(asarray(x.astype(dtype, copy=False)) for x in pair)) for pair in pairs]
                cache._layers[index] = (made[0], made[1] if len(made) == 2 else cache._layers[index][1])
        for place in (0, 1):
            shapes = {(pair[place].keys.shape[0], pair[place].length) for pair in cache._layers}
            if len(shapes) > 1 or {B for B, _ in shapes} != {batch}:
                held = ", ".join(f"{B} x {length}" for B, length in sorted(shapes))
                raise Error(
                    f"past_key_values are for texts x tokens of {held}; every layer must hold as many, of a batch of {batch}"
                )
        return cache

    @property
    def batch(self) -> int:
        """B."""
        return int(self._layers[0][0].keys.shape[0])

    @property
    def length(self) -> int:
        """How many tokens a sequence has behind it, pads counted."""
        return self._layers[0][0].length

    @property
    def lengths(self) -> Array:
        """The same for each sequence, (B,) int32."""
        return np.full(self.batch, self.length, np.int32)

    def get_seq_length(self) -> int:
        """`length`, by transformers' name."""
        return self.length

    def layer(self, index: int) -> tuple[LayerCache, LayerCache]:
        """A layer's own cache and its cross-attention's."""
        return self._layers[index]

    def select(self, rows: Array) -> None:
        """Keep these rows of the batch, in this order (beams); transformers' reorder_cache."""
        for pair in self._layers:
            for cache in pair:
                cache.select(rows)

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[tuple[Array, ...]]:
        for own, cross in self._layers:
            stored = own.stored() + (cross.stored() if cross.length else ())
            yield tuple(x.astype(np.float32) if isinstance(x, np.ndarray) and x.dtype == bfloat16 else x for x in stored)

    def __getitem__(self, index: Any) -> Any:
        return tuple(self)[index]
