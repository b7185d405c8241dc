"""The CPU backend: every op of the contract compiled by Numba, products on the CPU's tile unit where it has one.

Read gemm.py and slices.py for the products, attention.py, norm.py and elementwise.py for the rest, threads.py for what runs them,
compiled.py for what keeps them. float32 only: float64 is the NumPy backend's. On the paths amx, vnni and fma a text's result has
the same bits alone and in any batch, any order and with any number of threads; on blas that is up to BLAS. reproducible.py: the
same bits on every path.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from ml_dtypes import bfloat16

from ...errors import Error
from ...progress import progress
from .. import Activation, Sequences, Settings, bitwise
from ..bitwise import single
from ..numpy import relative
from ..records import ACTIVATION, ATTENTION, Dense, each
from . import attention as _attention
from . import attention_bf16, buffers, elementwise, gemm, norm, slices, threads
from .buffers import by_numpy
from .compiled import keep_promises, warmup
from .paths import chosen_path, describe, unit_of
from .threads import limited

__all__ = [
    "activation",
    "apart",
    "asarray",
    "attention",
    "describe",
    "embed",
    "layer_norm",
    "linear",
    "prepare",
    "recorded",
    "relative",
    "running",
    "to_numpy",
    "warmup",
]

Array = np.ndarray[Any, np.dtype[Any]]


class Weight(NamedTuple):
    """A dense layer's weight (O, K) as a unit of gemm.py reads it."""

    unit: str
    panels: Array
    scales: Array | None
    cut: tuple[int, int]  # slices and diagonals
    shape: tuple[int, int]
    gives: int = gemm.FLOATS


CUTS = bitwise.CUTS | {"medium": ((1, 1), (1, 1))}  # one slice is bf16


class Gain(NamedTuple):
    """A norm's weight (D,), and into how many slices the product that reads the norm wants its rows cut."""

    weight: Array
    slices: int


def embed(
    ids: Array, positions: Array | None, token_types: Array, word: Array, position: Array, token_type: Array
) -> Array:  # (T,) x3, (V, D), (P, D), (N, D) -> (T, D)
    """As the NumPy backend's."""
    return elementwise.embed(ids, positions, token_types, word, position, token_type)


def layer_norm(x: Array, weight: Array | Gain, bias: Array, eps: float) -> Any:  # (T, D), (D,), (D,) -> (T, D)
    """As the NumPy backend's; with a Gain, cut for the product that follows."""
    if isinstance(weight, Gain):
        return norm.cut(x, weight.slices, weight.weight, bias, eps)
    return norm.layer_norm(x, weight, bias, eps)


def linear(
    x: Any, weight: Weight | list[Weight], bias: Array, activation: Activation | None = None, residual: Array | None = None
) -> Array:  # (T, I), (O, I), (O,) -> (T, O)
    """activation(x W^T + b) + residual; raises Error for an activation that is a Python function."""
    name = _name(activation)
    if isinstance(weight, list):
        return _in_pieces(x, weight, bias, name, residual)
    if weight.unit in SLICED:
        x = x if isinstance(x, norm.Cut) else norm.cut(x, weight.cut[0])
        gives = {"gives": weight.gives} if weight.gives else {}
        return SLICED[weight.unit](x, weight.panels, weight.scales, weight.cut[1], weight.shape[0], bias, name, residual, **gives)
    product = gemm.fma_product if weight.unit == "fma" else gemm.blas_product
    return product(x, weight.panels, weight.shape[0], bias, name, residual)


def apart(weight: Weight | list[Weight]) -> bool:
    """As the NumPy backend's: what is handed on as bf16 takes its activation before it is rounded, and a rougher one."""
    return isinstance(weight, list) or weight.gives == gemm.FLOATS


# Products of cut rows by a weight's panels, equal to the bit.
SLICED = {unit: partial(gemm.cut_product, unit) for unit in gemm.CUT_PRODUCTS} | {"digits": gemm.digit_product}


def _in_pieces(x: Array, weights: list[Weight], bias: Array, activation: str | None, residual: Array | None) -> Array:
    """A K whose digit products could overflow int32 is summed in pieces."""
    by_numpy()
    y, start = None, 0
    for weight in weights:
        stop = start + weight.shape[1]
        y = linear(x[:, start:stop], weight, bias if start == 0 else np.zeros_like(bias), residual=y)
        start = stop
    y = elementwise.activation(y, elementwise.CODES[activation or "linear"])
    return y if residual is None else y + residual


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
    """As the NumPy backend's; of bf16, in heads a multiple of 16 wide, so are its products, and what comes out is cut."""
    given, tiles = (q, k, v, sequences, heads, bias, head_mask, probs), chosen_path() == "amx"
    if q.shape[1] // heads % 16 == 0 and (tiles or q.dtype == bfloat16):
        return attention_bf16.attention(tiles, *given)
    return _attention.attention(*given)


def activation(x: Array, name: Activation) -> Array:
    """One of transformers' ACT2FN by name; raises Error for a Python function."""
    return elementwise.activation(x, elementwise.CODES[_name(name) or "linear"])


def _name(activation: Activation | None) -> str | None:
    if callable(activation):
        raise Error('hidden_act is a Python function, which backend="numba" cannot compile: name one, or use backend="numpy"')
    return activation


def prepare(tree: dict[str, Any], settings: Settings) -> "Prepared":
    """The weights packed for this machine, each layer's query, key and value joined as `qkv`; raises Error on float64."""
    exact = settings.reproducible
    if exact:
        bitwise.check(settings)
    elif settings.dtype != "float32":
        raise Error(f'backend="numba" computes in float32; dtype="{settings.dtype}" needs backend="numpy"')
    unit, precision = unit_of(chosen_path(), settings.matmul_precision, exact)
    cuts = (bitwise.CUTS if exact else CUTS)[precision]

    def sliced(parts: list[Array], cut: tuple[int, int]) -> Any:
        (rows, into), deepest = parts[0].shape, bitwise.DEEPEST
        if into > deepest:
            return [sliced([single(part[:, at : at + deepest]) for part in parts], cut) for at in range(0, into, deepest)]
        panels, scales = slices.pack_weights(parts, cut[0])
        return Weight(unit, panels, scales, cut, (rows * len(parts), into))

    def whole(parts: list[Array], cut: tuple[int, int]) -> Weight:
        weight = gemm.pack_panels(parts) if unit == "fma" else np.concatenate(parts) if len(parts) > 1 else parts[0]
        return Weight(unit, weight, None, cut, (len(parts) * len(parts[0]), parts[0].shape[1]))

    def gain(weight: Array) -> Any:
        return Gain(weight, cuts[0][0]) if len(weight) <= bitwise.DEEPEST else weight

    halves = unit in SLICED and precision == "medium" and not exact
    count = sum(4 * part.size for record in each(tree) if isinstance(record, Dense) for part in record.parts)
    with progress(count, "packing weights", after=1.0) as told:

        def pack(layer: Dense, parts: list[Array], cut: tuple[int, int]) -> Any:
            held = sliced(parts, cut) if unit in SLICED else whole(parts, cut)
            told(4 * sum(part.size for part in parts))
            return held._replace(gives=given_on(layer)) if halves and isinstance(held, Weight) else held

        if unit in SLICED:
            return Prepared(bitwise.arrange(tree, cuts, pack, gain, shares=not halves))
        return Prepared(bitwise.arrange(tree, cuts, pack, shares=False))


def given_on(layer: Dense) -> int:
    """In which form medium hands on a layer's result: as bf16 to attention and to a second product, which read only that."""
    form = {ATTENTION: gemm.HALVES, ACTIVATION: gemm.BLOCKS}.get(layer.feeds, gemm.FLOATS)
    within = all(len(part) <= bitwise.DEEPEST for part in layer.parts)  # what reads it must not want it in pieces
    return form if within else gemm.FLOATS


def asarray(x: Any) -> Array:
    """An array of this backend: NumPy's."""
    return np.asarray(x)


def to_numpy(x: Any) -> Array:
    """A NumPy array; rows that were cut are put together again; of a norm's weight its gains."""
    return norm.whole(x) if isinstance(x, norm.Cut) else x.weight if isinstance(x, Gain) else x


class Playable(NamedTuple):
    """A recording, its calls in one array, the inputs that they read, and the output."""

    calls: Array
    inputs: list[Array | None]
    out: Array
    recording: buffers.Recording

    def play(self, rows: list[Array | None]) -> Array:
        for x, new in zip(self.inputs, rows, strict=True):
            if x is not None:
                x[:] = new
        threads.play(self.calls)
        return self.out.copy()


NEW, SEEN, NEVER = "new", "seen", "never"


class Prepared(dict[str, Any]):
    """Weights, with what the last sizes of input ran on them: Playable, or SEEN after one run, or NEVER."""

    def __init__(self, tree: dict[str, Any]) -> None:
        super().__init__(tree)
        self.recordings: dict[tuple[Any, ...], Any] = {}

    def __reduce__(self) -> Any:
        return Prepared, (dict(self),)  # addresses are this process's


RECORDED_TOKENS = 1024  # of all sizes that are held


def recorded(compute: Callable[..., Array], weights: Prepared, head_size: int, fixed: tuple[Any, ...]) -> Callable[..., Array]:
    """The encoder `compute`; what a size of input has run is played the third time it comes, without Python in between.

    Of one short text's time Python would take a third, of 1024 tokens' a thirtieth. A size is the lengths of all sequences, and
    what is `fixed`.
    """

    def run(*given: Any) -> Array:
        *rows, sequences = given
        if len(rows[2]) > RECORDED_TOKENS:
            return compute(*given)
        lengths = (np.asarray(x).tobytes() for x in sequences[:3])
        size = (len(rows[2]), *lengths, sequences.causal, rows[1] is None, threads.thread_limit(), chosen_path(), fixed)
        known = weights.recordings
        held = known.pop(size, NEW)  # meanwhile another Python thread does not find it
        if held == SEEN:
            held = _record(compute, rows, sequences)
            last = held.out.copy() if isinstance(held, Playable) else held
            held = held if isinstance(held, Playable) else NEVER
        elif isinstance(held, Playable):
            last = held.play(rows)
        else:
            last, held = compute(*given), SEEN if held == NEW else held
        known[size] = held
        for oldest in list(known):
            if sum(tokens for tokens, *_ in list(known)) <= RECORDED_TOKENS:
                break
            known.pop(oldest, None)
        return last

    return run


def _record(compute: Callable[..., Array], rows: list[Any], sequences: Sequences) -> "Playable | Array":
    """What can be played again, with the output of these rows; or the output alone, where not all was kernels."""
    recording = buffers.Recording()
    inputs = [None if x is None else np.array(x, np.int64) for x in rows]
    with buffers.recorded(recording):
        out = compute(*inputs, sequences)
    return Playable(np.array(recording.calls, np.int64), inputs, out, recording) if recording.whole else out


@contextmanager
def running(settings: Settings) -> Iterator[None]:
    """Limit this Python thread's operations to the settings' threads while the model runs."""
    with limited(settings.threads):
        yield


if not threads.kept():  # it will be needed: if it does not work here, that shows before a model is loaded
    keep_promises()
