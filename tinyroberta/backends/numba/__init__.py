"""The CPU backend: every op of the contract compiled by Numba, products on the CPU's tile unit where it has one.

Read gemm.py and slices.py for the products, attention.py, norm.py and elementwise.py for the rest, threads.py for what runs them.
float32 only: float64 is the NumPy backend's. On the paths amx and fma a text's result has the same bits alone and in any batch,
any order and with any number of threads; on blas that is up to BLAS.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from ...errors import Error
from ...weights.files import release
from .. import Activation, Sequences, Settings
from ..folding import READERS, fold
from . import attention as _attention
from . import elementwise, gemm, norm, slices
from .paths import chosen_path, describe
from .threads import Kernel, limited

__all__ = [
    "activation",
    "asarray",
    "attention",
    "describe",
    "embed",
    "layer_norm",
    "linear",
    "prepare",
    "recorded",
    "running",
    "to_numpy",
    "warmup",
]

Array = np.ndarray[Any, np.dtype[Any]]

# How many slices a weight and its operand are cut into, and how many diagonals of their products are kept: for most weights, and
# for a feed-forward's second, whose operand has the activation's heavy tail. One slice is bf16.
CUTS = {"highest": ((3, 3), (3, 4)), "high": ((2, 2), (2, 3)), "medium": ((1, 1), (1, 1))}


class Weight(NamedTuple):
    """A dense layer's weight (O, K) as a path of gemm.py reads it."""

    path: str
    panels: Array
    scales: Array | None
    cut: tuple[int, int]  # slices and diagonals
    shape: tuple[int, int]


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
    if weight.path == "amx":
        x = x if isinstance(x, norm.Cut) else norm.cut(x, weight.cut[0])
        return gemm.tile_product(x, weight.panels, weight.scales, weight.cut[1], weight.shape[0], bias, name, residual)
    product = gemm.fma_product if weight.path == "fma" else gemm.blas_product
    return product(x, weight.panels, weight.shape[0], bias, name, residual)


def _in_pieces(x: Array, weights: list[Weight], bias: Array, activation: str | None, residual: Array | None) -> Array:
    """A K whose digit products could overflow int32 is summed in pieces."""
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
    """As the NumPy backend's."""
    return _attention.attention(q, k, v, sequences, heads, bias, head_mask, probs)


def activation(x: Array, name: Activation) -> Array:
    """One of transformers' ACT2FN by name; raises Error for a Python function."""
    return elementwise.activation(x, elementwise.CODES[_name(name) or "linear"])


def _name(activation: Activation | None) -> str | None:
    if callable(activation):
        raise Error('hidden_act is a Python function, which backend="numba" cannot compile: name one, or use backend="numpy"')
    return activation


def prepare(tree: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The weights packed for this machine, each layer's query, key and value joined as `qkv`.

    Raises Error on float64 and on reproducible=True.
    """
    if settings.dtype != "float32":
        raise Error(f'backend="numba" computes in float32; dtype="{settings.dtype}" needs backend="numpy"')
    if settings.reproducible:
        raise Error("reproducible=True is not in this version: the same bits on every machine are not promised yet")
    path, cuts = chosen_path(), CUTS[settings.matmul_precision]
    converted: dict[int, Array] = {}

    def single(x: Array) -> Array:
        y = np.ascontiguousarray(x, np.float32)
        if y is not x:
            release(x)
        return y

    def pack(weight: Array, cut: tuple[int, int]) -> Any:
        deepest = slices.DEEPEST
        if path == "amx" and weight.shape[1] > deepest:
            return [pack(weight[:, at : at + deepest], cut) for at in range(0, weight.shape[1], deepest)]
        shape, held = weight.shape, single(weight)
        if path == "amx":
            panels, scales = slices.pack_weights(held, cut[0])
            packed = Weight(path, panels, scales, cut, shape)
        else:
            packed = Weight(path, gemm.pack_panels(held) if path == "fma" else held, None, cut, shape)
        release(weight)
        return packed

    def visit(branch: Any, names: tuple[str, ...], folded: bool = False) -> Any:
        if not isinstance(branch, dict):  # tied weights, one array under two names, stay one
            if id(branch) not in converted:
                converted[id(branch)] = single(branch)
            return converted[id(branch)]
        if names[-1] in READERS and path == "amx" and settings.matmul_precision != "medium":
            branch, folded = fold(branch, names[-1])
        if names[-2:] == ("attention", "self"):
            parts = [branch[part] for part in ("query", "key", "value")]
            weight, bias = (np.concatenate([single(part[leaf]) for part in parts]) for leaf in ("weight", "bias"))
            rest = {key: visit(value, (*names, key)) for key, value in branch.items() if key not in ("query", "key", "value")}
            return {"qkv": {"weight": pack(weight, cuts[folded]), "bias": bias}} | rest
        if set(branch) != {"weight", "bias"}:
            return {key: visit(value, (*names, key), folded) for key, value in branch.items()}
        weight = branch["weight"]
        if weight.ndim == 2:
            second = names[-2:] == ("output", "dense") and "attention" not in names[-3]
            return {"weight": pack(weight, cuts[second or folded]), "bias": single(branch["bias"])}
        fuses = path == "amx" and names[-2:] in READ_BY_PRODUCTS and len(weight) <= slices.DEEPEST
        weight = single(weight)
        return {"weight": Gain(weight, cuts[0][0]) if fuses else weight, "bias": single(branch["bias"])}

    return dict(visit(tree, ("", "", "")))


READ_BY_PRODUCTS = tuple((branch, norm) for branch, (norm, _) in READERS.items())


def asarray(x: Any) -> Array:
    """An array of this backend: NumPy's."""
    return np.asarray(x)


def to_numpy(x: Any) -> Array:
    """A NumPy array; rows that were cut are put together again."""
    return norm.whole(x) if isinstance(x, norm.Cut) else x


def recorded(compute: Callable[..., Array], weights: Any, head_size: int) -> Callable[..., Array]:
    """compute itself: there is nothing to record on a CPU."""
    return compute


@contextmanager
def running(settings: Settings) -> Iterator[None]:
    """Limit this Python thread's operations to the settings' threads while the model runs."""
    with limited(settings.threads):
        yield


def warmup() -> None:
    """Compile every kernel that this machine can run, or read it from the cache."""
    tiles = chosen_path() == "amx"
    for kernel in Kernel.every:
        if tiles or kernel not in gemm.ON_TILES:
            kernel.address  # noqa: B018
