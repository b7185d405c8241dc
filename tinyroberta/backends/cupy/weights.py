"""What becomes of a checkpoint's weights on the device: each in the dtype, or in the digits, of the product that reads it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cupy as cp
import numpy as np

from ...errors import Error
from .. import Settings, records
from ..bitwise import DEEPEST, shared, shares_of
from .device import chosen_route
from .digits import Cut, cut
from .half import halves
from .launch import BF16, DIGITS, F16, FLOAT
from .recording import Prepared

Array = Any

OPERANDS = {"highest": FLOAT, "high": F16, "medium": BF16}  # of products and attention; high has f16 only where half.py allows it
# What attention and activations read is handed on as they multiply it; relative positions read queries and keys as float32.
HANDED_ON = (records.ATTENTION, records.CROSS_ATTENTION, records.ACTIVATION)


class Matrix(NamedTuple):
    """A dense layer's prepared weight: (O, I) in the dtype of its operands, the products' precision and the result's dtype.

    `bounded`: if the weight is f16, rows that come to it as float32 are within f16's range too, since a norm made them.
    """

    array: Array
    precision: str
    out: Any
    bounded: bool = True


class Sliced(NamedTuple):
    """A dense layer's prepared weight, (O, I) cut, DEEPEST of I at a time, and how many diagonals of products are kept."""

    pieces: list[Cut]
    diagonals: int


class Gains(NamedTuple):
    """A layer norm's prepared weight, (D,), and its result's dtype: that of the product which reads it; int8: cut for it."""

    array: Array
    out: Any


class Segments(NamedTuple):
    """The prepared table of token types, (N, D), and whether a norm follows the embeddings, which then adds them up itself."""

    array: Array
    norm_follows: bool


def prepare(tree: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The weights on the device, a dense layer's parts joined; raises Error on settings that this backend does not have."""
    if settings.dtype != "float32":
        raise Error(f"the cupy backend computes in float32; dtype={settings.dtype!r} is the numpy backend's")
    if settings.reproducible:
        raise Error("reproducible=True is not in the cupy backend: the same bits on every machine are not promised there yet")
    precision = settings.matmul_precision
    sliced = chosen_route() == "sliced" and precision == "highest"
    halved = halves(tree) if precision == "high" else set()
    shares = shares_of(tree) if sliced else {}
    moved: dict[tuple[int, Any], tuple[Any, Array]] = {}  # what was moved is held, so that no other gets its id

    def move(x: Any, dtype: Any) -> Array:  # tied weights, one array in two records, stay one
        key = (id(x), dtype)
        if key not in moved:
            moved[key] = (x, cp.asarray(np.ascontiguousarray(x.astype(dtype, copy=False))))
        return moved[key][1]

    def operand(record: Any) -> Any:
        return OPERANDS[precision] if precision != "high" or record in halved else FLOAT

    def joined(parts: Sequence[Any]) -> Any:
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def dense(layer: records.Dense) -> dict[str, Any]:
        weight, bias = joined(layer.parts), joined(layer.biases)
        if sliced:  # four diagonals, eight products, where numbers have a heavy tail (bitwise.arrange)
            tailed = layer.sublayer in shares or isinstance(layer.reads, records.Activated)
            return {"weight": Sliced(cut(move(weight, FLOAT)), 3 + tailed), "bias": move(bias, FLOAT)}
        out = operand(layer) if layer.feeds in HANDED_ON else FLOAT
        held = Matrix(move(weight, operand(layer)), precision, out, layer.feeds != records.STREAM)
        return {"weight": held, "bias": move(bias, out)}

    def norm(record: records.Norm) -> dict[str, Any]:  # as its products want it, where nothing else reads it
        wanted = DIGITS if sliced and len(record.weight) <= DEEPEST else operand(record)
        out = wanted if record.feeds == records.PRODUCTS else FLOAT
        return {"weight": Gains(move(record.weight, FLOAT), out), "bias": move(record.bias, FLOAT)}

    def prepared(record: Any) -> dict[str, Any]:
        record = shared(record, shares)
        if isinstance(record, records.Dense):
            return dense(record)
        if isinstance(record, records.Norm):
            return norm(record)
        table = move(record.weight, FLOAT)
        return {"weight": Segments(table, record.normed) if record.of == records.SEGMENTS else table}

    return Prepared(records.mapped(tree, prepared))
