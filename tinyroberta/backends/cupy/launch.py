"""How a kernel is launched: which kernels there are, what each takes, and its machine code for the current device.

A kernel declares its parameters once, in its own file. `launch` reads their names and types there and is given the arguments by
name, so that an argument that is missing, unknown or of another kind is a TypeError and not a wild address.
"""

import functools
import operator
import re
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import cupy as cp
import ml_dtypes
import numpy as np

from . import compiler

Array = Any

FLOAT = np.dtype(np.float32)
BF16 = np.dtype(ml_dtypes.bfloat16)
F16 = np.dtype(np.float16)
DIGITS = np.dtype(np.int8)
CPP_NAMES = {FLOAT: "float", BF16: "bf16", F16: "f16"}
SIXTEEN_BITS = ("bf16", "f16")
HEAD_WIDTHS = (32, 64, 128)  # that attention's fused kernels are compiled for: a narrower head takes the next
WIDEST = HEAD_WIDTHS[-1]  # a wider head has its probabilities written out
KERNELS = {  # file: its kernels, as C++ names them
    "activation.cu": [
        f"activation<{x}, {y}, {many}>"
        for x, y, many in product(("float", *SIXTEEN_BITS), ("float", *SIXTEEN_BITS), (4, 1))
        if x == y or "float" in (x, y)
    ],
    "attention.cu": [f"attention<{size}, {spread}>" for size, spread in product(HEAD_WIDTHS, ("false", "true"))],
    "attention_mma.cu": [
        f"attention_mma<{x}, {d}, {spread}>" for x, d, spread in product(SIXTEEN_BITS, HEAD_WIDTHS, ("false", "true"))
    ],
    "attention_probs.cu": [f"{name}<{x}>" for name, x in product(("probabilities", "values"), ("float", *SIXTEEN_BITS))],
    "attention_split.cu": ["attention_split"],
    "attention_wgmma.cu": [f"attention_wgmma<{x}>" for x in SIXTEEN_BITS],
    "cut.cu": ["cut_rows<4>", "cut_rows<1>"],
    "embed.cu": [f"{name}<{many}>" for name, many in product(("embed", "embed_layer_norm"), (4, 1))],
    "layer_norm.cu": [
        *(f"layer_norm<{y}, {many}>" for y, many in product(("float", *SIXTEEN_BITS), (4, 1))),
        "layer_norm_cut<4>",
        "layer_norm_cut<1>",
    ],
    "linear.cu": ["linear"],
    "linear_mma.cu": [f"linear_mma<{x}, {y}>" for x in SIXTEEN_BITS for y in (x, "float")],
    "linear_sliced.cu": ["linear_sliced<3>", "linear_sliced<4>"],
    "split.cu": ["split"],
    "sums.cu": ["sums"],
    "linear_sliced_wgmma.cu": [
        f"linear_sliced_wgmma<{block}>" for block in ("3, 2, 128, 4", "3, 2, 96, 4", "4, 2, 96, 4", "3, 1, 32, 6", "4, 1, 32, 6")
    ],
}
HOPPER = ("attention_split.cu", "attention_wgmma.cu", "linear_sliced_wgmma.cu")  # for compute capability 9.0 alone
SOURCES = {path.name: path.read_text() for path in sorted(Path(__file__).with_name("kernels").glob("*.cu*"))}

WARP = 32
WARPS = 4  # of a block that gives each of its warps a row
MOST_BLOCKS = 8192  # of a kernel whose threads go on in steps of the grid: enough to fill any GPU
DEFAULT_SHARED = 48 << 10  # bytes of shared memory that a kernel has without asking
NULL = np.uint64(0)  # an address; CuPy does not say what it makes of None
DECLARATION = re.compile(r"__global__ void __launch_bounds__\([^()]*\)\s+(\w+)\(([^()]*)\)")


class Tile(NamedTuple):
    """What a block of a kernel for products computes, and what it takes: threads, and bytes of dynamic shared memory."""

    rows: int
    columns: int
    threads: int
    shared: int = 0


class Kernel(NamedTuple):
    """A kernel on one device, and its parameters as `parameters` gives them."""

    function: Any
    declared: Mapping[str, Callable[[Any], Any] | None]


def source(file: str) -> str:
    """A kernel file with its includes in place, which is what compilers are given."""
    return re.sub(r'#include "(.*)"', lambda match: source(match[1]), SOURCES[file].replace("#pragma once\n", ""))


def parameters(file: str) -> dict[str, dict[str, Callable[[Any], Any] | None]]:
    """What each kernel of a file declares, in order: by a parameter's name what makes its type of a number, None for an array."""
    code = re.sub("//.*", "", source(file)).replace("\\\n", " ")
    macros = dict(re.findall(r"#define (\w+) +(.*)", code))  # parameters that several kernels have are a macro
    declared = {}
    for kernel, given in DECLARATION.findall(code):
        parts = ",".join(macros.get(part.strip(), part) for part in given.split(",")).split(",")
        declared[kernel] = dict(_parameter(*part.strip().replace("*", "* ").rsplit(None, 1)) for part in parts)
    return declared


def _parameter(kind: str, name: str) -> tuple[str, Callable[[Any], Any] | None]:
    return name, None if "*" in kind else NUMBERS[kind]


@functools.lru_cache(4096, typed=True)  # a launch has tens of numbers, and a layer those of the layer before
def _int32(x: Any) -> Any:
    return np.int32(operator.index(x))


@functools.lru_cache(4096, typed=True)
def _int64(x: Any) -> Any:
    return np.int64(operator.index(x))


NUMBERS: dict[str, Callable[[Any], Any]] = {"int": _int32, "i64": _int64, "float": np.float32}  # by the types that C++ has


@functools.cache
def _module(file: str, device: int) -> tuple[Any, dict[str, str]]:
    architecture = compiler.target(int(cp.cuda.Device(device).compute_capability))
    path, symbols = compiler.kept(source(file), architecture, KERNELS[file])
    return cp.RawModule(path=str(path)), symbols


@functools.cache
def _kernel(name: str, shared: int, device: int) -> Kernel:
    file = next(file for file, names in KERNELS.items() if name in names)
    module, symbols = _module(file, device)
    function = module.get_function(symbols[name])
    if shared > DEFAULT_SHARED:
        function.max_dynamic_shared_size_bytes = shared
    return Kernel(function, parameters(file)[name.split("<")[0]])


def launch(kernel: str, grid: tuple[int, ...], block: tuple[int, ...], /, *, shared: int = 0, **given: Any) -> None:
    """Put a kernel on the current stream; its arguments are given by its parameters' names, None for no array.

    Raises TypeError on an argument that is missing or unknown, or that is no array or number as the parameter is declared.
    """
    function, declared = _kernel(kernel, shared, cp.cuda.Device().id)
    args = []
    try:
        for name, number in declared.items():
            x = given[name]
            if number:
                x = number(x)
            elif x is None:
                x = NULL
            elif not isinstance(x, cp.ndarray):
                raise TypeError(f"an array of the device or None is needed, not {type(x).__name__}")
            args.append(x)
    except (TypeError, OverflowError) as error:
        raise TypeError(f"{kernel}: {name}: {error}") from error
    except KeyError:
        pass
    if not len(args) == len(declared) == len(given):
        missing, unknown = sorted(declared.keys() - given.keys()), sorted(given.keys() - declared.keys())
        raise TypeError(f"{kernel} takes {', '.join(declared)}: missing are {missing}, unknown are {unknown}")
    function(grid, block, tuple(args), shared_mem=shared)


def launch_rows(kernel: str, rows: int, /, **given: Any) -> None:
    """Launch a kernel that gives each row to a warp."""
    launch(kernel, (-(-rows // WARPS),), (WARP, WARPS), rows=rows, **given)


def launch_tiles(kernel: str, tile: Tile, M: int, N: int, /, **given: Any) -> None:
    """Launch a kernel that gives each tile of an (M, N) product to a block."""
    grid = (-(-N // tile.columns), -(-M // tile.rows))
    launch(kernel, grid, (tile.threads,), shared=tile.shared, M=M, N=N, **given)


def at_once(width: int, *arrays: Array | None) -> int:
    """How many numbers a thread reads or writes at once: 4 where every row begins at a multiple of 16 bytes, else 1."""
    return 1 if width % 4 or any(x is not None and x.ndim == 2 and x.data.ptr % 16 for x in arrays) else 4
