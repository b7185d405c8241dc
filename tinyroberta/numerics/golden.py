"""Golden files: a checked-in reference of what passes through a model, whole or as a sketch of a few kB a layer.

A folder holds golden.safetensors, a trace as ../traces.py says, with `"golden": "full"` or `"sketch"` in its manifest. In a sketch
an array x of n numbers, read row by row in the trace's rows, is NAME of shape (1, 4 + 32) in float64:

    [mean, root mean square, least, greatest, p_0, ..., p_31],    p_j = sum_i s_ij x_i / sqrt(n)

s_ij is 1 or -1: bit j (of the least worth first) of z_i, 0 for 1, where in 64-bit unsigned integers that wrap around

    z = (i + 1) 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) 0x94D049BB133111EB
    z_i = z ^ (z >> 31)                                           (SplitMix64 with seed 0; Steele, Lea and Flood 2014)

so any language writes the same. The difference of two projections is the projection of the difference d, and the mean of its
squares over j is ||d||^2 / n, to a quarter (Alon, Matias and Szegedy 1996): a sketch tells how far an array is off, not where.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import traces
from ..backends import Array
from ..errors import Error, ieee
from ..traces import Recorded, TraceFile
from . import compare

FILE, KEY = "golden.safetensors", "golden"
KINDS = ("full", "sketch")
STATISTICS, PROJECTIONS = 4, 32
SAFETY = 4.0
LOOSE = 2.0  # of an estimate from so few projections


def make(trace: TraceFile, folder: str | Path, kind: str = "full", update: bool = False) -> Path:
    """Write a trace as a folder's golden file, whole or not at all; returns its path.

    Raises Error on another kind, on a golden file that is there already unless `update`, and where nothing can be written.
    """
    if kind not in KINDS:
        raise Error(f"kind is {kind!r}; a golden file is {' or '.join(KINDS)}")
    path = Path(folder).expanduser() / FILE
    if path.exists() and not update:
        raise Error(f"{path} is there already: give --update to write it anew")
    calls = [
        Recorded(call.part, call.shape, call.places, call.inputs, call.arrays if kind == "full" else sketched(call.arrays))
        for call in trace.calls
    ]
    # without the path of the checkpoint, which is one machine's
    manifest = {name: value for name, value in trace.manifest.items() if name not in ("model", "threads")}
    traces.save(path, TraceFile({**manifest, KEY: kind}, calls, str(path)))
    return path


def read(folder: str | Path) -> TraceFile:
    """A folder's golden file; raises Error where there is none."""
    path = Path(folder).expanduser() / FILE
    if not path.is_file():
        raise Error(f"{folder} holds no {FILE}: write one with tinyroberta golden make MODEL --inputs texts.txt --out {folder}")
    golden = traces.load(path)
    if golden.manifest.get(KEY) not in KINDS:
        raise Error(f"{path} is a trace and no golden file: write one with tinyroberta golden make")
    return golden


def check(golden: TraceFile, candidate: TraceFile, model: Any = None) -> compare.Comparison:
    """How a candidate differs from a golden file. With whole tensors and a model, op by op (compare.py).

    Of a sketch `relative` is an estimate, and an op is held to the error of all before it. Raises Error as compare, and where the
    candidate has no name or other tokens than the golden file.
    """
    if golden.manifest.get(KEY) == "full":
        return compare.compare(golden, candidate, model)
    return _check_sketch(golden, candidate)


@ieee
def _check_sketch(golden: TraceFile, candidate: TraceFile) -> compare.Comparison:
    result = compare.Comparison([], {}, [], {}, None, compare.describe(golden.manifest) + " (sketch)", compare.describe(candidate.manifest))  # fmt: skip
    whole = _emptied(golden), _emptied(candidate)
    if any(call.arrays for call in candidate.calls):
        told = compare.compare(*whole) if False else None
        assert told is None
    for index, (left, right) in enumerate(zip(golden.calls, candidate.calls, strict=False)):
        if left.shape != right.shape:
            result.inputs["input_ids"] = f"{left.shape} of the golden file, {right.shape} of the candidate"
            break
        result.ops += _sketched_ops(index, left, right, golden, candidate)
    return result


def signs(count: int) -> Array:  # -> (count,) uint64
    """z_0 ... of the recipe above."""
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def sketch(x: Array) -> Array:  # -> (1, STATISTICS + PROJECTIONS) float64
    """An array's statistics and projections."""
    flat = np.asarray(x, np.float64).reshape(-1)
    if not flat.size:
        return np.zeros((1, STATISTICS + PROJECTIONS))
    z, found = signs(flat.size), np.empty((1, STATISTICS + PROJECTIONS))
    found[0, :STATISTICS] = flat.mean(), math.sqrt(np.square(flat).mean()), flat.min(), flat.max()
    for j in range(PROJECTIONS):
        negative = (z >> np.uint64(j)) & np.uint64(1)
        found[0, STATISTICS + j] = np.where(negative == 1, -flat, flat).sum() / math.sqrt(flat.size)
    return found


def sketched(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """A sketch of every array."""
    return {name: sketch(x) for name, x in arrays.items()}
