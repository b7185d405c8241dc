"""The CPU backend: the ops of the contract compiled by Numba (`relative` and `sums` are NumPy's), with products on
tiles where the CPU has them.

It computes in float32 only; float64 is the NumPy backend's. On the paths amx, vnni and fma a text's result has the same bits
alone and in any batch, in any order and with any number of threads; on blas that is up to BLAS. reproducible.py gives the same
bits on every path.

Words that the files here use:

    digit     a signed 8-bit number, -128 to 127; a float32 number is written as two or three of them, in base 256
    slice     the first digits of all numbers of an operand, or the second, or the third: a matrix as large as the operand
    cut       to write an operand as slices, or as bf16; a Cut (operands.py) is rows that have been cut
    diagonal  the products of slice i of the rows and slice j of the weight that have the same i + j, and so the same size: they
              are summed together, exactly, in int32; diagonals beyond the last one kept are too small to matter
    coarse    said of a row in which one number is so much larger than the rest that their digits are few: its results have one
              diagonal more, if no more diagonals than slices are kept
    step      the columns of an operand that fill a tile's row of 64 bytes, 64 digits or 32 bf16; a product goes step by step
    block     16 rows, which a tile holds; a kernel's `block` is another thing: what a thread computes before it claims more work
    panel     32 outputs of a weight, laid together in memory, so that one stream of bytes feeds a whole block of sums
    gain      the number that a norm multiplies a channel by; a Gain also says how the product that reads the norm wants its rows
    part      one of the bf16 numbers whose sum is a float32 number: three hold all of it (attention/bf16.py); the parts of a
              dense layer are the weights that stand side by side in it (records.py)
    piece     at most 32768 columns of a weight that has more of them, so that no sum passes int32: pieces' products are added up
    unit      what multiplies: tiles, dots, digits, fma or blas (a Weight's); an Operand's is the numbers of a step

Read operands.py first, which says what a product reads, then products/, attention/ and norm.py, which compute. machine/ has the
CPU's instructions. arguments.py names what a kernel is given, threads.py runs it, compiled.py and shipped.py have its code,
buffers.py its memory, and recordings.py plays again what a size of input has run.
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
from ..numpy import finish, keeps_alike, relative, sums
from ..records import ACTIVATION, ATTENTION, Dense, each
from . import activations, cutting, embeddings, norm, threads
from .attention import bf16, float32
from .buffers import by_numpy
from .compiled import keep_promises, warmup
from .operands import BF16, ROUNDED, Cut, Operand, whole_rows
from .paths import chosen_path, describe
from .products import blas, fma, levels, outputs
from .recordings import Prepared, recorded
from .threads import limited

__all__ = [
    "activation",
    "asarray",
    "attention",
    "describe",
    "embed",
    "in_steps",
    "keeps_alike",
    "layer_norm",
    "linear",
    "prepare",
    "recorded",
    "relative",
    "running",
    "sums",
    "to_numpy",
    "warmup",
]

Array = np.ndarray[Any, np.dtype[Any]]


class Weight(NamedTuple):
    """A dense layer's weight (O, K) as a unit of products/ reads it."""

    unit: str
    panels: Array
    scales: Array | None
    cut: tuple[Operand, int]  # what it and the rows that it multiplies are cut into, and how many diagonals are kept
    shape: tuple[int, int]
    gives: int = outputs.GIVES_FLOAT32


class Gain(NamedTuple):
    """A norm's weight (D,), and what the product that reads the norm wants its rows cut into."""

    weight: Array
    operand: Operand


def embed(
    ids: Array, positions: Array | None, token_types: Array, word: Array, position: Array, token_type: Array
) -> Array:  # (T,) x3, (V, D), (P, D), (N, D) -> (T, D)
    """As the NumPy backend's."""
    return embeddings.embed(ids, positions, token_types, word, position, token_type)


def layer_norm(x: Array, weight: Array | Gain, bias: Array, eps: float) -> Any:  # (T, D), (D,), (D,) -> (T, D)
    """As the NumPy backend's; with a Gain, cut for the product that follows."""
    if isinstance(weight, Gain):
        return norm.cut(x, weight.operand, weight.weight, bias, eps)
    return norm.layer_norm(x, weight, bias, eps)


def linear(
    x: Any, weight: Weight | list[Weight], bias: Array, activation: Activation | None = None, residual: Array | None = None
) -> Array:  # (T, I), (O, I), (O,) -> (T, O)
    """activation(x W^T + b) + residual; raises Error for an activation that is a Python function."""
    name = _name(activation)
    if isinstance(weight, list):
        return _in_pieces(x, weight, bias, name, residual)
    if weight.unit in SLICED:
        x = x if isinstance(x, Cut) else norm.cut(x, weight.cut[0])
        gives = {"gives": weight.gives} if weight.gives else {}
        return SLICED[weight.unit](x, weight.panels, weight.scales, weight.cut[1], weight.shape[0], bias, name, residual, **gives)
    product = fma.fma_product if weight.unit == "fma" else blas.blas_product
    return product(x, weight.panels, weight.shape[0], bias, name, residual)


def in_steps(
    x: Any, weight: Weight | list[Weight], bias: Array, activation: Activation | None, residual: Array | None
) -> tuple[Any, Callable[[Any], Any]] | None:
    """As the NumPy backend's; what is handed on as bf16 is rounded after the activation, and that is a rougher one."""
    if isinstance(weight, list) or weight.gives == outputs.GIVES_FLOAT32:
        return linear(x, weight, bias), partial(finish, _activate, activation=activation, residual=residual)
    code, blocks = activations.CODES[_name(activation) or "linear"], weight.gives == outputs.GIVES_BLOCKS
    code = activations.ROUGH_GELU if code == activations.GELU else code

    def rounded(y: Array) -> Any:
        y = activations.activation(y, code)
        return norm.cut(y, ROUNDED) if blocks else y.astype(bfloat16)

    return linear(x, weight._replace(gives=outputs.GIVES_FLOAT32), bias), rounded


# By unit, what multiplies cut rows by a weight's panels; products of digits are equal to the bit on all three.
SLICED = {unit: partial(levels.cut_product, unit) for unit in levels.UNITS} | {"digits": blas.digit_product}


def _in_pieces(x: Array, weights: list[Weight], bias: Array, activation: str | None, residual: Array | None) -> Array:
    """A product with so large a K that sums of digits' products could pass int32: those of its pieces, added up."""
    by_numpy()
    y, start = None, 0
    for weight in weights:
        stop = start + weight.shape[1]
        y = linear(x[:, start:stop], weight, bias if start == 0 else np.zeros_like(bias), residual=y)
        start = stop
    y = activations.activation(y, activations.CODES[activation or "linear"])
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
    """As the NumPy backend's, by products of bf16 where there are tiles or q is bf16, if heads fit (16, 32, ... wide).

    A q of bf16 gives a Cut.
    """
    given, tiles = (q, k, v, sequences, heads, bias, head_mask, probs), chosen_path() == "amx"
    if q.shape[1] // heads % 16 == 0 and (tiles or q.dtype == bfloat16):
        return bf16.attention(tiles, *given)
    return float32.attention(*given)


def activation(x: Array, name: Activation) -> Array:
    """One of transformers' ACT2FN by name; raises Error for a Python function."""
    return _activate(x, name)


def _activate(x: Array, name: Activation) -> Array:
    return activations.activation(x, activations.CODES[_name(name) or "linear"])


def _name(activation: Activation | None) -> str | None:
    if callable(activation):
        raise Error('hidden_act is a Python function, which backend="cpu" cannot compile: name one, or use backend="numpy"')
    return activation


def prepare(tree: dict[str, Any], settings: Settings) -> "Prepared":
    """The weights packed for this machine, a dense layer's parts joined; raises Error on float64."""
    exact = settings.reproducible
    if exact:
        bitwise.check(settings)
    elif settings.dtype != "float32":
        raise Error(f'backend="cpu" computes in float32; dtype="{settings.dtype}" needs backend="numpy"')
    unit, precision = levels.unit_of(chosen_path(), settings.matmul_precision, exact)
    cuts = levels.cuts_of(precision, exact)

    def sliced(parts: list[Array], cut: Any) -> Any:
        (rows, into), deepest = parts[0].shape, bitwise.DEEPEST
        if into > deepest:
            return [sliced([single(part[:, at : at + deepest]) for part in parts], cut) for at in range(0, into, deepest)]
        panels, scales = cutting.pack_weights(parts, cut[0])
        return Weight(unit, panels, scales, cut, (rows * len(parts), into))

    def whole(parts: list[Array], cut: Any) -> Weight:
        weight = fma.pack_panels(parts) if unit == "fma" else np.concatenate(parts) if len(parts) > 1 else parts[0]
        return Weight(unit, weight, None, cut, (len(parts) * len(parts[0]), parts[0].shape[1]))

    def gain(weight: Array) -> Any:
        return Gain(weight, cuts[0][0]) if len(weight) <= bitwise.DEEPEST else weight

    halves = unit in SLICED and cuts[0][0].kind == BF16
    count = sum(4 * part.size for record in each(tree) if isinstance(record, Dense) for part in record.parts)
    with progress(count, "packing weights", after=1.0) as told:

        def pack(layer: Dense, parts: list[Array], cut: Any) -> Any:
            held = sliced(parts, cut) if unit in SLICED else whole(parts, cut)
            told(4 * sum(part.size for part in parts))
            return held._replace(gives=given_on(layer)) if halves and isinstance(held, Weight) else held

        if unit in SLICED:
            return Prepared(bitwise.arrange(tree, cuts, pack, gain, shares=not halves))
        return Prepared(bitwise.arrange(tree, cuts, pack, shares=False))


def given_on(layer: Dense) -> int:
    """In which form a level of bf16 hands on a result: as bf16 to attention and to a second product, which read only that."""
    form = {ATTENTION: outputs.GIVES_BF16, ACTIVATION: outputs.GIVES_BLOCKS}.get(layer.feeds, outputs.GIVES_FLOAT32)
    within = all(len(part) <= bitwise.DEEPEST for part in layer.parts)  # what reads it must not want it in pieces
    return form if within else outputs.GIVES_FLOAT32


def asarray(x: Any) -> Array:
    """An array of this backend: NumPy's."""
    return np.asarray(x)


def to_numpy(x: Any) -> Array:
    """A NumPy array; rows that were cut are put together again; of a norm's weight its gains."""
    return whole_rows(x) if isinstance(x, Cut) else x.weight if isinstance(x, Gain) else x


@contextmanager
def running(settings: Settings) -> Iterator[None]:
    """Limit this Python thread's operations to the settings' threads while the model runs."""
    with limited(settings.threads):
        yield


if not threads.kept():  # it will be needed: if it does not work here, that shows before a model is loaded
    keep_promises()
