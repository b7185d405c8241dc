"""The op contract, and the modules that fulfil it.

A backend is a module of these functions, chosen once by name and passed down. `T` tokens of all sequences stand packed,
one after another; attention and `relative`, which makes a bias for it, know that a batch exists, and every other op works row
by row.
"""

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, cast

from ..errors import Error

Array = Any
Activation = str | Callable[[Any], Any]

BACKENDS = ("numpy", "cpu", "cupy")
MODULES = {"cpu": "numba"}  # where it is another than the name
REPRODUCIBLE = {"numpy": "bitwise", "cpu": "numba.reproducible"}  # the same bits on every machine; cupy refuses by itself
FORMERLY = {"numba": "cpu"}
DTYPES = ("float32", "float64")
PRECISIONS = ("highest", "high", "medium")


class Settings(NamedTuple):
    """How a model runs: dtype of parameters and results, precision of products, threads, reproducibility."""

    dtype: str = "float32"
    matmul_precision: str = "highest"
    threads: int | None = None
    reproducible: bool = False


class Sequences(NamedTuple):
    """Which rows are whose: queries query_start[b] : query_start[b + 1], keys key_start[b] : key_start[b] + key_length[b].

    Both count rows of (T, D), but keys in a cache are counted within sequence b's own part of it, and so begin at 0. A query need
    not be a key: a text's position 0 that is padding is none (inputs.py), and in cross-attention no query is. Under `causal` the
    last query sees every key, the one before it one key fewer, and so on.
    """

    query_start: Array  # (B + 1,) int32
    key_start: Array  # (B,) int32
    key_length: Array  # (B,) int32
    causal: bool


class Backend(Protocol):
    """The op contract; backends/numpy.py says what each op means, backends/bitwise.py in which order it is rounded."""

    __name__: str

    def embed(
        self, ids: Array, positions: Array | None, token_types: Array, word: Array, position: Array, token_type: Array
    ) -> Array: ...
    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array: ...
    def linear(
        self, x: Array, weight: Array, bias: Array, activation: Activation | None = None, residual: Array | None = None
    ) -> Array: ...
    def in_steps(
        self, x: Array, weight: Array, bias: Array, activation: Activation | None, residual: Array | None
    ) -> tuple[Array, Callable[[Array], Array]] | None: ...
    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        sequences: Sequences,
        heads: int,
        bias: Array | None = None,
        head_mask: Array | None = None,
        probs: bool = False,
    ) -> tuple[Array, list[Array] | None]: ...
    def keeps_alike(self) -> bool: ...
    def relative(self, q: Array, k: Array | None, vectors: Array) -> Array: ...
    def activation(self, x: Array, name: Activation) -> Array: ...
    def sums(self, x: Array, starts: Any, ends: Any) -> Array: ...
    def prepare(self, tree: dict[str, Any], settings: Settings) -> dict[str, Any]: ...
    def asarray(self, x: Any) -> Array: ...
    def to_numpy(self, x: Array) -> Any: ...
    def running(self, settings: Settings) -> AbstractContextManager[None]: ...
    def recorded(
        self, compute: Callable[..., Array], weights: Any, head_size: int, fixed: tuple[Any, ...]
    ) -> Callable[..., Array]: ...


def default_backend() -> str:
    """cpu, or numpy where neither compiled kernels for this machine came with the package nor Numba is there to compile them."""
    try:
        load_backend("cpu")
    except Error:
        return "numpy"
    return "cpu"


def backend_name(name: str) -> str:
    """A backend's name, of it or of one that it had before; raises Error on another."""
    name = FORMERLY.get(name, name)
    if name not in BACKENDS:
        raise Error(f"there is no backend {name!r}; this version has {', '.join(BACKENDS)}")
    return name


def load_backend(name: str | None = None, reproducible: bool = False) -> Backend:
    """The backend of a name, or the default one; raises Error on an unknown name and where what it needs is not there."""
    name = backend_name(name or default_backend())
    module = (REPRODUCIBLE if reproducible else MODULES).get(name, name)
    try:
        return cast(Backend, importlib.import_module(f"{__name__}.{module}"))
    except ImportError as error:
        if name != "cpu":
            raise
        raise Error(f"backend {name!r} needs Numba here: pip install 'tinyroberta[cpu]' ({error})") from error
