"""What becomes of a checkpoint's weights on the device: each in the dtype, or in the digits, of the product that reads it."""

from typing import Any, NamedTuple

import cupy as cp
import numpy as np

from ...errors import Error
from .. import Settings
from ..bitwise import DEEPEST, READERS, fold
from .device import chosen_route
from .digits import Cut, cut
from .half import halves
from .launch import BF16, DIGITS, F16, FLOAT
from .recording import Prepared

Array = Any

OPERANDS = {"highest": FLOAT, "high": F16, "medium": BF16}  # of products and attention; of high where f16 holds them


class Dense(NamedTuple):
    """A dense layer's prepared weight: (O, I) in the dtype of its operands, the products' precision and the result's dtype.

    `bounded`: the float32 rows that it reads are within f16 where the weight is, since a norm made them.
    """

    array: Array
    precision: str
    out: Any
    bounded: bool = True


class Sliced(NamedTuple):
    """A dense layer's prepared weight, (O, I) cut, DEEPEST of I at a time, and how many diagonals of products are kept."""

    pieces: list[Cut]
    diagonals: int


class Norm(NamedTuple):
    """A layer norm's prepared weight, (D,), and its result's dtype: that of the product which reads it; int8: cut for it."""

    array: Array
    out: Any


class Segments(NamedTuple):
    """The prepared table of token types, (N, D), and whether a norm follows the embeddings, which then adds them up itself."""

    array: Array
    norm_follows: bool


def prepare(tree: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The weights on the device, each layer's query, key and value joined as `qkv`.

    Raises Error on settings that this backend does not have.
    """
    if settings.dtype != "float32":
        raise Error(f"the cupy backend computes in float32; dtype={settings.dtype!r} is the numpy backend's")
    if settings.reproducible:
        raise Error("reproducible=True is not in the cupy backend: the same bits on every machine are not promised there yet")
    precision = settings.matmul_precision
    sliced = chosen_route() == "sliced" and precision == "highest"
    halved = halves(tree) if precision == "high" else set()
    moved: dict[tuple[int, Any], tuple[Any, Array]] = {}  # what was moved is held, so that no other gets its id

    def move(x: Any, dtype: Any) -> Array:  # tied weights, one array under two names, stay one
        key = (id(x), dtype)
        if key not in moved:
            moved[key] = (x, cp.asarray(np.ascontiguousarray(x.astype(dtype, copy=False))))
        return moved[key][1]

    def operand(path: tuple[str, ...]) -> Any:
        return OPERANDS[precision] if precision != "high" or path in halved else FLOAT

    def visit(branch: dict[str, Any], path: tuple[str, ...], folded: bool = False) -> dict[str, Any]:
        if sliced and path and path[-1] in READERS:
            branch, folded = fold(branch, path[-1])
        if path[-1:] == ("self",) and path[-2:-1] == ("attention",):
            parts = [branch[part] for part in ("query", "key", "value")]
            joined = {leaf: np.concatenate([part[leaf] for part in parts]) for leaf in ("weight", "bias")}
            out = FLOAT if "distance_embedding" in branch else operand(path)
            rest = {key: visit(value, (*path, key)) for key, value in branch.items() if key not in ("query", "key", "value")}
            return {"qkv": dense(joined, path, out, folded)} | rest
        if isinstance(branch.get("weight"), dict) or "weight" not in branch:
            return {key: visit(value, (*path, key), folded) for key, value in branch.items()}
        if path[-1].endswith(("_embeddings", "_embedding")):
            table = move(branch["weight"], FLOAT)
            return {"weight": Segments(table, "LayerNorm" in tree["embeddings"]) if path[-1].startswith("token_type") else table}
        if branch["weight"].ndim == 1:  # a norm: as its product wants it where nothing else reads it: pre-norm, the head
            wanted = DIGITS if sliced and len(branch["weight"]) <= DEEPEST else operand(path)
            out = wanted if path[-1] == "layer_norm" or ("layer" in path and path[-2] != "output") else FLOAT
            return {"weight": Norm(move(branch["weight"], FLOAT), out), "bias": move(branch["bias"], FLOAT)}
        inner = path[-2:] == ("intermediate", "dense") or path[-1] in ("query", "key", "value")
        second = path[-2:] == ("output", "dense") and not any("attention" in name for name in path)
        return dense(branch, path, operand(path) if inner else FLOAT, folded or second)

    def dense(branch: dict[str, Any], path: tuple[str, ...], out: Any, heavy: bool) -> dict[str, Any]:
        if sliced:  # eight products for a heavy tail: of folded weights, and of what comes out of an activation
            return {"weight": Sliced(cut(move(branch["weight"], FLOAT)), 3 + heavy), "bias": move(branch["bias"], FLOAT)}
        weight = Dense(move(branch["weight"], operand(path)), precision, out, path[-2:] != ("output", "dense"))
        return {"weight": weight, "bias": move(branch["bias"], out)}

    return Prepared(visit(tree, ()))
