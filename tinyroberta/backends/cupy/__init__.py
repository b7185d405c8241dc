"""The GPU: every op as launches of this package's own CUDA kernels, through CuPy, and products by cuBLASLt where it is installed.

backends/numpy.py says what each op means; kernels/*.cu say how. Precision: "highest" is float32 throughout. "medium" gives
products and attention bf16 operands and float32 sums, and keeps norms' insides, softmax and the residual stream in float32.
"high" does so with f16, which has as many bits as TF32 at twice its speed, where the weights show that no text leaves its range
(half.py); elsewhere products are TF32's, or float32's without cuBLASLt, and attention float32's. Results are CuPy arrays; nothing
waits for the GPU.

For "highest" there are two routes: exact products of 8-bit digits on the integer tensor cores (digits.cuh), and plain float32.
TINYROBERTA_GPU=sliced|float chooses one; `python -m benchmarks.gpu` times both. Kernels named wgmma or split are Hopper's alone.

Shapes: T tokens packed one sequence after another, Tq of them queries and Tk keys; D the model's width, H heads of width d.
"""

import contextlib
import functools
import itertools
import math
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ...errors import Error
from .. import Activation, Sequences, Settings
from ..bitwise import DEEPEST, READERS, fold
from ..numpy import relative  # noqa: F401  (NumPy's einsum hands CuPy's arrays to CuPy)

try:
    import cupy as cp
except ImportError as error:
    raise Error(
        "backend='cupy' needs CuPy, which is not installed: pip install 'tinyroberta[cuda13]' (or [cuda12] with an older driver)"
    ) from error
try:
    _devices = cp.cuda.runtime.getDeviceCount()
except cp.cuda.runtime.CUDARuntimeError as error:
    raise Error(f"backend='cupy' needs an NVIDIA GPU and its driver, and CuPy finds none on this machine ({error})") from error
if not _devices or int(cp.cuda.Device().compute_capability) < 80:
    raise Error("backend='cupy' needs an NVIDIA GPU of compute capability 8.0 (Ampere) or newer, and this machine has none")

from . import compiler, cublaslt
from .half import UNBOUNDED, halves

Array = Any

BF16 = np.dtype(ml_dtypes.bfloat16)
F16 = np.dtype(np.float16)
FLOAT = np.dtype(np.float32)
DIGITS = np.dtype(np.int8)
NAMES = {FLOAT: "float", BF16: "bf16", F16: "f16"}
HALVES = ("bf16", "f16")
OPERANDS = {"highest": FLOAT, "high": F16, "medium": BF16}  # of products and attention; of high where f16 holds them
KERNELS = {  # file: its kernels, as C++ names them
    "activation.cu": [
        f"activation<{x}, {y}, {many}>"
        for x, y, many in product(("float", *HALVES), ("float", *HALVES), (4, 1))
        if x == y or "float" in (x, y)
    ],
    "attention.cu": [f"attention<{size}, {spread}>" for size, spread in product((32, 64, 128), ("false", "true"))],
    "attention_mma.cu": [
        f"attention_mma<{x}, {d}, {spread}>" for x, d, spread in product(HALVES, (32, 64, 128), ("false", "true"))
    ],
    "attention_probs.cu": [f"{name}<{x}>" for name, x in product(("probabilities", "values"), ("float", *HALVES))],
    "attention_split.cu": ["attention_split"],
    "attention_wgmma.cu": [f"attention_wgmma<{x}>" for x in HALVES],
    "cut.cu": ["cut_rows<4>", "cut_rows<1>"],
    "embed.cu": [f"{name}<{many}>" for name, many in product(("embed", "embed_layer_norm"), (4, 1))],
    "layer_norm.cu": [
        *(f"layer_norm<{y}, {many}>" for y, many in product(("float", *HALVES), (4, 1))),
        "layer_norm_cut<4>",
        "layer_norm_cut<1>",
    ],
    "linear.cu": ["linear"],
    "linear_mma.cu": [f"linear_mma<{x}, {y}>" for x in HALVES for y in (x, "float")],
    "linear_sliced.cu": ["linear_sliced<3>", "linear_sliced<4>"],
    "split.cu": ["split"],
    "linear_sliced_wgmma.cu": [
        f"linear_sliced_wgmma<{block}>" for block in ("3, 2, 128, 4", "3, 2, 96, 4", "4, 2, 96, 4", "3, 1, 32, 6", "4, 1, 32, 6")
    ],
}
HOPPER = ("attention_split.cu", "attention_wgmma.cu", "linear_sliced_wgmma.cu")  # for compute capability 9.0 alone
SOURCES = {path.name: path.read_text() for path in sorted(Path(__file__).with_name("kernels").glob("*.cu*"))}
ACTIVATIONS = {  # the numbers of kernels/activation.cuh
    "linear": 0, "gelu": 1, "gelu_python": 1, "gelu_new": 2, "gelu_accurate": 2, "gelu_fast": 2, "gelu_python_tanh": 2,
    "gelu_pytorch_tanh": 2, "gelu_10": 3, "quick_gelu": 4, "relu": 5, "relu2": 6, "relu6": 7, "leaky_relu": 8, "sigmoid": 9,
    "silu": 10, "swish": 10, "tanh": 11, "mish": 12, "hardswish": 13, "laplace": 14, "sqrtsoftplus": 15,
}  # fmt: skip
GELU, GELU_TANH = 1, 2
NULL = np.uint64(0)  # an address; CuPy does not say what it makes of None
TILE, WIDE_TILE = 64, 128  # queries that a block of the attention kernels takes, and one of attention_wgmma
WIDEST = 128  # of the heads that the fused kernels take; the others have their probabilities written out
BUSY = 96  # large tiles that occupy a GPU
RECORDED_TOKENS = 16384  # past this the launches cost nothing beside the work
RECORDINGS = 32  # that a model's weights keep, the least recently used leaving first
RECORDED_BYTES = 4 << 30  # of memory that they share: past these all leave before one more is recorded
ROUTES = {"float": "plain float32", "sliced": "exact products of 8-bit digits on the integer tensor cores"}
ROUTE, REASON = "sliced", "the faster one at every size on an H200"  # the default, as `python -m benchmarks.gpu` decides


class Dense(NamedTuple):
    """A dense layer's prepared weight: (O, I) in the dtype of its operands, the products' precision and the result's dtype.

    `normed`: float32 rows that it reads are a norm's, so that where the weight is f16 they can be too.
    """

    array: Array
    precision: str
    out: Any
    normed: bool = True


@dataclass(frozen=True)
class Cut:
    """Rows as digits (T, K / 64 rounded up, 3, 64) int8 and scales (T,): kernels/digits.cuh."""

    digits: Array
    scales: Array

    def __len__(self) -> int:
        return len(self.scales)

    def __getitem__(self, rows: slice) -> "Cut":
        return Cut(self.digits[rows], self.scales[rows])


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
    normed: bool


class Embedded(NamedTuple):
    """What `embed` was given: the norm that follows adds it up on its way, so that the sum is never written."""

    ids: Array | None
    positions: Array | None
    token_types: Array
    word: Array
    position: Array
    token_type: Array


class Places(NamedTuple):
    """Sequences on the device, with the attention kernels' work: a sequence and its first query for every so many of them."""

    tiles: Array  # (N, 2) int32, for every 64
    query_start: Array
    key_start: Array
    key_length: Array
    wide_tiles: Array  # for every 128


class Size(NamedTuple):
    """What a recording is for: up to so many tokens and sequences, and all else that the launches depend on."""

    tokens: int
    batch: int
    causal: bool
    placed: bool  # positions are given
    fixed: tuple[Any, ...]  # by the configuration


class Recording(NamedTuple):
    """An encoder's launches for up to so many tokens and sequences, played again on what `inputs` holds."""

    inputs: Array  # int32: ids, positions, token types, then the Places
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


class _Uploaded(threading.local):
    places: dict[int, tuple[Sequences, Places]] | None = None


_uploaded = _Uploaded()


def chosen_route() -> str:
    """The route for "highest" that TINYROBERTA_GPU names, else the default; raises Error on a name that there is not."""
    route = os.environ.get("TINYROBERTA_GPU") or ROUTE
    if route not in ROUTES:
        raise Error(f"TINYROBERTA_GPU is {route!r}; this version has {', '.join(ROUTES)}")
    return route


def describe() -> list[str]:
    """What runs on this machine and why, a line each."""
    route, asked = chosen_route(), os.environ.get("TINYROBERTA_GPU")
    why = f"as TINYROBERTA_GPU={asked} asks" if asked else f"the default; {REASON}"
    return [
        f"GPU: {cp.cuda.runtime.getDeviceProperties(cp.cuda.Device().id)['name'].decode()}",
        f"matrix products: {'own kernels' if cublaslt.library() is None else 'cuBLASLt where it fits, else own kernels'}",
        f"in highest precision: {route}, {ROUTES[route]} ({why})",
    ]


def source(file: str) -> str:
    """A kernel file with its includes in place, which is what compilers are given."""
    return re.sub(r'#include "(.*)"', lambda match: source(match[1]), SOURCES[file].replace("#pragma once\n", ""))


@functools.cache
def _module(file: str, device: int) -> tuple[Any, dict[str, str]]:
    architecture = compiler.target(int(cp.cuda.Device(device).compute_capability))
    path, symbols = compiler.kept(source(file), architecture, KERNELS[file])
    return cp.RawModule(path=str(path)), symbols


@functools.cache
def _kernel(name: str, shared: int, device: int) -> Any:
    module, symbols = _module(next(file for file, names in KERNELS.items() if name in names), device)
    function = module.get_function(symbols[name])
    if shared > 48 << 10:
        function.max_dynamic_shared_size_bytes = shared
    return function


@functools.cache
def _hopper(device: int) -> bool:
    return int(cp.cuda.Device(device).compute_capability) == 90


@functools.cache
def _multiprocessors(device: int) -> int:
    return int(cp.cuda.Device(device).attributes["MultiProcessorCount"])


def multiprocessors() -> int:
    """How many the current device has."""
    return _multiprocessors(cp.cuda.Device().id)


def hopper() -> bool:
    """Whether the current device has Hopper's matrix instructions."""
    return _hopper(cp.cuda.Device().id)


def launch(name: str, grid: tuple[int, ...], block: tuple[int, ...], *args: Any, shared: int = 0) -> None:
    """Put a kernel on the current stream: arrays, NumPy scalars of the parameters' own types, None for no array."""
    given = tuple(NULL if arg is None else arg for arg in args)
    _kernel(name, shared, cp.cuda.Device().id)(grid, block, given, shared_mem=shared)


def embed(
    ids: Array, positions: Array | None, token_types: Array, word: Array, position: Array, token_type: Segments
) -> Array:  # (T,) x3 -> (T, D), not added up yet where a norm follows
    """The sum of a token's three embeddings."""
    numbers, words = (None, ids) if ids.ndim == 2 else (ids, word)
    x = Embedded(numbers, positions, token_types, words, position, token_type.array)
    return x if token_type.normed else _added(x)


def layer_norm(x: Array, weight: Norm, bias: Array, eps: float) -> Array:  # (T, D), (D,), (D,) -> (T, D)
    """Each row less its mean, over its standard deviation, scaled and shifted."""
    rows, width = len(x.token_types if isinstance(x, Embedded) else x), len(bias)
    sizes = (np.int32(rows), np.int32(width), np.float32(eps))
    if weight.out == DIGITS:
        x, y = cp.ascontiguousarray(x), _empty_cut(rows, width)
        if rows:
            together = _together(width, x)
            _rowwise(f"layer_norm_cut<{together}>", rows, x, weight.array, bias, y.digits, y.scales, *sizes)
        return y
    y = cp.empty((rows, width), weight.out)
    if not rows:
        return y
    if isinstance(x, Embedded):
        _rowwise(f"embed_layer_norm<{_together(width, *x)}>", rows, *x, weight.array, bias, y, *sizes)
        return y
    x = cp.ascontiguousarray(x)
    _rowwise(f"layer_norm<{NAMES[y.dtype]}, {_together(width, x)}>", rows, x, weight.array, bias, y, *sizes)
    return y


def _rowwise(name: str, rows: int, *args: Any) -> None:
    launch(name, (-(-rows // 4),), (32, 4), *args)


def _together(width: int, *arrays: Array | None) -> int:
    """How many numbers an access takes: 4 where every row begins at a multiple of 16 bytes."""
    return 1 if width % 4 or any(x is not None and x.ndim == 2 and x.data.ptr % 16 for x in arrays) else 4


def linear(
    x: Array | Cut, weight: Dense | Sliced, bias: Array, activation: Activation | None = None, residual: Array | None = None
) -> Array:  # (T, I), (O, I), (O,) -> (T, O)
    """activation(x W^T + b) + residual."""
    if callable(activation):
        y = linear(x, weight, bias)
        y = _called(_converted(y, FLOAT) if y.dtype == F16 else y, activation)
        return y if residual is None else _elementwise(y, 0, residual)
    name = 0 if activation is None else ACTIVATIONS[activation]
    if isinstance(weight, Sliced):
        return _sliced_linear(x, weight, bias, name, residual)
    w, out = weight.array, weight.out
    x = cp.ascontiguousarray(x)
    if w.dtype == F16 and x.dtype == FLOAT and not weight.normed:  # nothing keeps these rows within f16
        w = _converted(w, FLOAT)
    x = x if x.dtype == w.dtype else _converted(x, w.dtype)
    if not len(x):
        return cp.empty((0, len(w)), out)
    by_library = cublaslt.library() is not None and cublaslt.fits(x, w, out)
    # the library's GELU is the tanh form: at most 4.7e-4 from the exact one, below the rounding of bf16 alone
    fused = name == GELU_TANH or (name == GELU and weight.precision == "medium") if by_library else name == GELU
    later = name if not fused else 0
    alone = later or (by_library and (fused or residual is None or residual.dtype != out))
    added = None if alone else residual
    if by_library:
        y = cublaslt.linear(x, w, bias, out, fused, added, tf32=weight.precision == "high" and w.dtype == FLOAT)
    else:
        y = _own_linear(x, w, bias, out, fused, added)
    if later or (residual is not None and added is None):
        y = _elementwise(y, later, residual, cp.empty(y.shape, FLOAT) if out == F16 and activation == UNBOUNDED else y)
    return y


def _own_linear(x: Array, w: Array, bias: Array, out: Any, gelu: bool, residual: Array | None) -> Array:
    (M, K), N = x.shape, len(w)
    y = cp.empty((M, N), out)
    args = (x, w, bias, residual, y, np.int32(M), np.int32(N), np.int32(K), np.int32(gelu))
    if w.dtype == FLOAT:
        launch("linear", (-(-N // 64), -(-M // 64)), (256,), *args)
    else:
        name = f"linear_mma<{NAMES[w.dtype]}, {NAMES[y.dtype]}>"
        launch(name, (-(-N // 128), -(-M // 128)), (256,), *args, shared=61440)
    return y


def cut(x: Array) -> list[Cut]:  # (T, K) -> DEEPEST of K at a time
    """Rows as products of digits read them."""
    x = x.astype(FLOAT, copy=False)
    x = x if x.strides[1] == x.itemsize else cp.ascontiguousarray(x)
    (T, K), row, cuts = x.shape, x.strides[0] // x.itemsize, []
    for start in range(0, K, DEEPEST):
        part = x[:, start : start + DEEPEST]
        width = part.shape[1]
        y = _empty_cut(T, width)
        if T:
            name = f"cut_rows<{_together(width | row, part)}>"
            _rowwise(name, T, part, y.digits, y.scales, np.int32(T), np.int32(width), np.int64(row))
        cuts.append(y)
    return cuts


def _empty_cut(rows: int, width: int) -> Cut:
    return Cut(cp.empty((rows, -(-width // 64), 3, 64), DIGITS), cp.empty(rows, FLOAT))


def _sliced_linear(x: Array | Cut, weight: Sliced, bias: Array, name: int, residual: Array | None) -> Array:
    """Each piece's product is added to those before; the only one takes the activation and the residual along if it can."""
    parts = [x] if isinstance(x, Cut) else cut(x)
    fused = len(parts) == 1 and name in (0, GELU)
    y = residual if fused else None
    for i, (part, w) in enumerate(zip(parts, weight.pieces, strict=True)):
        y = _digit_product(part, w, weight.diagonals, None if i else bias, fused and name == GELU, y)
    return y if fused else _elementwise(y, name, residual, y)


def _digit_product(x: Cut, w: Cut, diagonals: int, bias: Array | None, gelu: bool, residual: Array | None) -> Array:
    M, N, steps = len(x), len(w), w.digits.shape[1]
    y = cp.empty((M, N), FLOAT)
    if M:
        sizes = (np.int32(M), np.int32(N), np.int32(steps), np.int32(gelu))
        args = (x.digits, x.scales, w.digits, w.scales, bias, residual, y, *sizes)
        if hopper():
            groups, columns, stages = _block(M, N, diagonals)
            name = f"linear_sliced_wgmma<{diagonals}, {groups}, {columns}, {stages}>"
            shared = 192 * stages * (64 * groups + columns) + 8 * columns
            launch(name, (-(-N // columns), -(-M // (64 * groups))), (128 * groups,), *args, shared=shared)
        else:
            launch(f"linear_sliced<{diagonals}>", (-(-N // 64), -(-M // 128)), (256,), *args, shared=79872)
    return y


def _block(M: int, N: int, diagonals: int) -> tuple[int, int, int]:
    """Warpgroups, columns and stages of linear_sliced_wgmma's block: a large one, unless it would leave multiprocessors idle."""
    tiles = {columns: -(-M // 128) * -(-N // columns) for columns in ((128, 96) if diagonals == 3 else (96,))}
    if max(tiles.values()) < BUSY:
        return 1, 32, 6
    return 2, min(tiles, key=lambda columns: -(-tiles[columns] // multiprocessors()) * columns), 4


def _elementwise(x: Array, name: int, residual: Array | None = None, y: Array | None = None) -> Array:
    y = cp.empty(x.shape, x.dtype) if y is None else y
    if x.size:
        many = 1 if x.size % 4 or any(a is not None and a.data.ptr % 16 for a in (x, residual, y)) else 4
        kernel = f"activation<{NAMES[x.dtype]}, {NAMES[y.dtype]}, {many}>"
        blocks = min(-(-x.size // (256 * many)), 8192)
        launch(kernel, (blocks,), (256,), x, residual, y, np.int64(x.size), np.int32(name))
    return y


def _converted(x: Array, dtype: Any) -> Array:
    return _elementwise(x, 0, y=cp.empty(x.shape, dtype))


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
    """softmax(q k^T / sqrt(d) + bias) v, each sequence and head for itself, and the probabilities if asked."""
    d = q.shape[1] // heads
    scaled = head_mask is not None and q.dtype == F16  # perhaps out of its range
    if scaled or not q.dtype == k.dtype == v.dtype:  # a cache of another precision
        q, k, v = (x.astype(FLOAT, copy=False) for x in (q, k, v))
    if k.strides != v.strides or k.strides[-1] != k.itemsize:
        k, v = cp.ascontiguousarray(k), cp.ascontiguousarray(v)
    steps = [step // k.itemsize for step in k.strides]
    key_steps = (0, d, steps[0]) if k.ndim == 2 else tuple(steps[:3])
    places = _placed(sequences)
    plain = bias is None and head_mask is None
    spread = (*_spread(bias), *_spread(head_mask))
    strides = tuple(np.int64(step) for step in (q.strides[0] // q.itemsize, *key_steps))
    rest = (*places[1:4], np.int32(sequences.causal), *strides, *spread, np.int32(d), np.float32(1 / math.sqrt(d)))
    work = (places.tiles, *rest)
    out = cp.empty(q.shape, q.dtype)
    grid = (len(places.tiles), heads)
    if probs or d > WIDEST:
        probabilities = _with_probabilities(q, k, v, out, sequences, heads, grid, work)
        return out, probabilities if probs else None
    size = next(size for size in (32, 64, 128) if size >= d)
    spreads, kind = str(not plain).lower(), NAMES[q.dtype]
    aligned = not any(step % 8 for step in strides) and not any(x.data.ptr % 16 for x in (q, k, v))
    wide = (len(places.wide_tiles), heads)
    if plain and d == 64 and aligned and hopper() and (q.dtype != FLOAT or _joined(q, k, v)):
        if q.dtype == FLOAT:
            q, k, v = _parts_of(q)
            part = np.int64(len(q) * 3 * q.shape[1])
            launch("attention_split", wide, (256,), q, k, v, part, out, places.wide_tiles, *rest, shared=147456)
        else:
            launch(f"attention_wgmma<{kind}>", wide, (256,), q, k, v, out, places.wide_tiles, *rest, shared=49152)
    elif q.dtype == FLOAT:
        shared = 4 * (128 * (size + 1) + 64 * 33)
        launch(f"attention<{size}, {spreads}>", grid, (256,), q, k, v, out, *work, shared=shared)
    else:
        launch(f"attention_mma<{kind}, {size}, {spreads}>", grid, (128,), q, k, v, out, *work, shared=512 * (size + 8))
    return out, None


def _joined(q: Array, k: Array, v: Array) -> bool:
    """Whether the three are the thirds of one array."""
    width = q.shape[1] * q.itemsize
    together = q.strides == k.strides == v.strides == (3 * width, q.itemsize)
    return together and k.data.ptr - q.data.ptr == v.data.ptr - k.data.ptr == width


def _parts_of(q: Array) -> Iterator[Array]:
    """The first parts of queries, keys and values, (T, D) x3 of bf16, whose first third `q` is; the others follow (split.cu)."""
    T, D = q.shape
    parts = cp.empty((3, T, 3 * D), BF16)
    launch("split", (min(-(-3 * T * D // 1024), 8192),), (256,), q, parts, np.int64(3 * T * D))
    return (parts[0, :, start : start + D] for start in (0, D, 2 * D))


def _with_probabilities(
    q: Array, k: Array, v: Array, out: Array, sequences: Sequences, heads: int, grid: tuple[int, int], work: tuple[Any, ...]
) -> list[Array]:
    queries = np.diff(sequences.query_start).tolist()
    shapes = [(heads, Sq, Sk) for Sq, Sk in zip(queries, np.asarray(sequences.key_length).tolist(), strict=True)]
    starts = np.cumsum([0, *(math.prod(shape) for shape in shapes)])
    p, begin = cp.empty(int(starts[-1]), FLOAT), cp.asarray(starts[:-1].astype(np.int64))
    places, key_steps, size = work[:4], work[6:9], work[-2]
    kind = NAMES[q.dtype]
    launch(f"probabilities<{kind}>", grid, (32, 4), q, k, p, begin, *work)
    launch(f"values<{kind}>", grid, (32, 4), p, v, out, begin, *places, *key_steps, size)
    return [p[int(start) : int(start) + math.prod(shape)].reshape(shape) for start, shape in zip(starts, shapes, strict=False)]


def _spread(x: Array | None) -> tuple[Any, ...]:
    """An array that broadcasts to (B, H, Sq, Sk), with its four strides in numbers."""
    if x is None:
        return (None, *[np.int64(0)] * 4)
    x = cp.ascontiguousarray(asarray(x).astype(FLOAT, copy=False))
    steps = (0 if size == 1 else step // x.itemsize for size, step in zip(x.shape, x.strides, strict=True))
    return (x, *(np.int64(step) for step in steps))


def tiles_of(sequences: Sequences, tile: int = TILE) -> Any:  # -> (N, 2) int32
    """A sequence and its first query for every `tile` queries, those with most keys first, so that the last to run are short."""
    order = np.argsort(-np.asarray(sequences.key_length), kind="stable")
    counts = -(-np.diff(sequences.query_start) // tile)[order]
    firsts = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([np.repeat(order, counts), tile * firsts], 1).astype(np.int32)


def _whereabouts(sequences: Sequences) -> tuple[Any, ...]:
    """The Places on the host, in their order."""
    starts = (sequences.query_start, sequences.key_start, sequences.key_length)
    return _laid_out(*(np.asarray(x, np.int32).tobytes() for x in starts))


@functools.lru_cache(maxsize=256)
def _laid_out(*given: bytes) -> tuple[Any, ...]:
    query_start, key_start, key_length = (np.frombuffer(x, np.int32) for x in given)
    sequences = Sequences(query_start, key_start, key_length, causal=False)  # which tiles do not depend on
    return tiles_of(sequences).ravel(), query_start, key_start, key_length, tiles_of(sequences, WIDE_TILE).ravel()


def _places(parts: Iterator[Array]) -> Places:
    tiles, query_start, key_start, key_length, wide_tiles = parts
    return Places(tiles.reshape(-1, 2), query_start, key_start, key_length, wide_tiles.reshape(-1, 2))


def _placed(sequences: Sequences) -> Places:
    """Sequences on the device; within `running` they travel once and not once a layer."""
    known = _uploaded.places
    if known is not None and id(sequences) in known:
        return known[id(sequences)][1]
    parts = _whereabouts(sequences)
    places = _places(_split(cp.asarray(np.concatenate(parts).astype(np.int32)), [x.size for x in parts]))
    if known is not None:
        known[id(sequences)] = (sequences, places)
    return places


def _split(x: Array, sizes: list[int]) -> Iterator[Array]:
    ends = itertools.accumulate(sizes)
    return (x[end - size : end] for size, end in zip(sizes, ends, strict=True))


def activation(x: Array, name: Activation) -> Array:
    """One of transformers' ACT2FN by name, or any function of an array; raises Error where it changes the shape."""
    return _called(x, name) if callable(name) else _elementwise(cp.ascontiguousarray(x), ACTIVATIONS[name])


def _called(x: Array, function: Callable[[Any], Any]) -> Array:
    y = function(x)
    if y.shape != x.shape:
        raise Error(f"hidden_act gave an array of shape {y.shape} for one of {x.shape}; it must keep the shape")
    return cp.ascontiguousarray(y.astype(x.dtype, copy=False))


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


def asarray(x: Any) -> Array:
    """An array of this backend: integers as int32, the kernels' index, other numbers as float32."""
    if isinstance(x, cp.ndarray):
        return x
    x = np.asarray(x)
    return cp.asarray(np.ascontiguousarray(x.astype(np.int32 if x.dtype.kind in "iu" else np.float32, copy=False)))


def to_numpy(x: Array) -> Any:
    """A NumPy array, float32 also where the GPU keeps fewer bits."""
    if isinstance(x, Embedded):
        x = _added(x)
    x = x.get() if isinstance(x, cp.ndarray) else x
    return x.astype(FLOAT) if x.dtype in (BF16, F16) else x


def _added(x: Embedded) -> Array:
    rows, width = len(x.token_types), x.word.shape[1]
    y = cp.empty((rows, width), FLOAT)
    _rowwise(f"embed<{_together(width, *x)}>", rows, *x, y, np.int32(rows), np.int32(width))
    return y


@contextmanager
def running(settings: Settings) -> Iterator[None]:  # noqa: ARG001
    """While a model runs, which rows are whose is brought to the device once; everything goes to the caller's current stream."""
    outer, _uploaded.places = _uploaded.places, {}
    try:
        yield
    finally:
        _uploaded.places = outer


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
    """How many numbers of a recording's inputs are ids, positions, types and each of the Places."""
    tokens, batch = size.tokens, size.batch
    tiles, wide_tiles = (2 * (tokens // tile + batch) for tile in (TILE, WIDE_TILE))
    return [tokens, tokens, tokens, tiles, batch + 1, batch, batch, wide_tiles]


def _inputs(size: Size, ids: Any, positions: Any | None, token_types: Any, sequences: Sequences) -> Any:
    inputs = np.zeros(sum(_layout(size)), np.int32)
    room = list(_split(inputs, _layout(size)))
    room[3][:] = room[7][:] = -1  # no tile
    for to, given in zip(room, (ids, positions, token_types, *_whereabouts(sequences)), strict=True):
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
        ids, positions, token_types, *parts = _split(buffer, _layout(size))
        places = _places(iter(parts))
        sequences = Sequences(places.query_start, places.key_start, places.key_length, size.causal)
        assert _uploaded.places is not None
        _uploaded.places[id(sequences)] = (sequences, places)
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
