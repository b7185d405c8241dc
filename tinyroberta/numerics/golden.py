"""Golden files: a checked-in reference of what passes through a model, whole or as a sketch of a few kB a layer.

A folder holds golden.safetensors, a trace as ../traces.py says, with `"golden": "full"` or `"sketch"` in its manifest. In a
sketch an array x of n numbers, read row by row in the trace's rows, is NAME of shape (1, 4 + 32) in float64:

    [mean, root mean square, least, greatest, p_0, ..., p_31],    p_j = sum_i s_ij x_i / sqrt(n)

s_ij is 1 or -1: bit j (of the least worth first) of z_i, 0 for 1, where in 64-bit unsigned integers that wrap around

    z = (i + 1) 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) 0x94D049BB133111EB
    z_i = z ^ (z >> 31)                                           (SplitMix64 with seed 0; Steele, Lea and Flood 2014)

so any language writes the same. The difference of two projections is the projection of the difference d, and the mean of its
squares over j is ||d||^2 / n, to a quarter (Alon, Matias and Szegedy 1996): a sketch tells how far an array is off, not where.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import tap, traces
from ..backends import Array
from ..errors import Error, ieee
from ..inputs import as_array
from ..traces import Recorded, TraceFile
from . import compare, importers

FILE, KEY = "golden.safetensors", "golden"
KINDS = ("full", "sketch")
STATISTICS, PROJECTIONS = 4, 32
SAFETY = 4.0
LOOSE = 2.0  # of an estimate from so few projections
MOST_LINES = 8


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
    manifest = {name: value for name, value in trace.manifest.items() if name != "model"}  # a path of one machine
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
        # by another program's name, so that what is stored counts, and not what we would compute now
        stored = TraceFile({**golden.manifest, "program": FILE}, golden.calls, golden.where)
        return compare.compare(stored, candidate, model)
    return _check_sketch(golden, candidate)


@ieee
def _check_sketch(golden: TraceFile, candidate: TraceFile) -> compare.Comparison:
    result = compare.begun(golden, candidate)
    if result.first is not None:
        return result
    run = compare.rounding(candidate.manifest, candidate.calls[0].arrays)
    for index, (left, right) in enumerate(zip(golden.calls, candidate.calls, strict=False)):
        covered: list[str] = []
        for depth, (name, wanted) in enumerate(_in_order(left, right), 1):
            found = _rows(right.arrays[name], left, right) if name in right.arrays else None
            if found is None:
                covered.append(name)
                continue
            sums = run.eps_sum * math.sqrt(max(found.shape[-1], 64)) + run.eps
            op = _op(name, np.asarray(wanted)[0], sketch(found)[0], LOOSE * SAFETY * sums * math.sqrt(depth))
            op.call, op.covers, op.rows, covered = index, covered, len(found), []
            result.ops.append(op)
    return compare.ended(result, golden, candidate)


def _in_order(left: Recorded, right: Recorded) -> list[tuple[str, Array]]:
    """The golden file's sketches in the order in which a model's names pass, as the candidate has them."""
    return [
        (name, left.arrays[name]) for name in {**dict.fromkeys(right.arrays), **dict.fromkeys(left.arrays)} if name in left.arrays
    ]


def _rows(x: Array, left: Recorded, right: Recorded) -> Array | None:
    """A candidate's array in the golden file's rows; None where it has not all of them."""
    mine, theirs = left.rows(), right.rows()
    if len(x) != len(theirs) or np.array_equal(mine, theirs):
        return x
    order = np.argsort(theirs, kind="stable")
    at = np.minimum(np.searchsorted(theirs[order], mine), len(order) - 1)
    return x[order[at]] if np.array_equal(theirs[order][at], mine) else None


def _op(name: str, wanted: Array, found: Array, bound: float) -> compare.Op:
    gap = np.abs(found - wanted)
    size, off = float(wanted[1]), float(np.sqrt(np.square(gap[STATISTICS:]).mean()))
    relative = off / size if size else (math.inf if off else 0.0)
    nonfinite = None
    if np.isfinite(wanted).all() != np.isfinite(found).all():
        value = found[1] if np.isfinite(wanted).all() else wanted[1]
        nonfinite = {"value": str(value), "at": [], "count": 1}
    ok = nonfinite is None and (relative <= bound or bool(np.array_equal(found, wanted, equal_nan=True)))
    return compare.Op(name, float(gap[:STATISTICS].max()), relative, None, bound, ok, nonfinite=nonfinite)


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


# In tests.


def trace_of(given: Any, like: TraceFile | None = None) -> TraceFile:
    """What tests have as a trace: a trace of tinyroberta.trace, a file's, its path, or arrays by name, of the calls `like` has.

    Arrays are packed as those are, or (B, S, ...). Raises Error on anything else.
    """
    if isinstance(given, TraceFile):
        return given
    if isinstance(given, tap.Trace):
        return traces.of_model(given.model, given.calls)
    if isinstance(given, str | Path):
        return traces.load(given)
    if not isinstance(given, Mapping) or like is None or not like.calls:
        raise Error(f"a trace is wanted, its file's path or arrays by name, and a {type(given).__name__} was given")
    call = like.calls[0]
    mask = np.ones(call.shape, int) if call.inputs is None else call.inputs.get("attention_mask", np.ones(call.shape, int))
    arrays = {name: importers.packed(as_array(x, name), mask, call.rows(), name) for name, x in given.items()}
    dtype = next((x.dtype.name for x in arrays.values()), "float32")
    return TraceFile({"dtype": dtype}, [Recorded(call.part, call.shape, call.places, None, arrays)], "the candidate")


def assert_trace_close(candidate: Any, reference: Any, model: Any = None) -> None:
    """Raise AssertionError with the first op that is wrong where a candidate differs from a reference, as compare and check do.

    Each is a trace, a TraceFile, a trace's file or a folder of golden make; the candidate may be arrays by name. `model` is what
    ran: with it an op answers for the error that it adds itself.
    """
    __tracebackhide__ = True
    folder = isinstance(reference, str | Path) and Path(reference).is_dir()
    wanted = read(reference) if folder else trace_of(reference)
    found = trace_of(candidate, wanted)
    result = check(wanted, found, model) if KEY in wanted.manifest else compare.compare(wanted, found, model)
    if result.verdict == "differs":
        raise AssertionError("\n".join(told(result)))


def told(result: compare.Comparison) -> list[str]:
    """What differs, in lines."""
    lines = [f"the trace differs, first at {result.first}"]
    lines += [f"  input {name}: {x}" for name, x in result.inputs.items()]
    lines += [f"  config {name}: {a} and {b}" for name, (a, b) in result.config.items()]
    lines += [f"  weight {name}: another hash" for name in result.weights[:MOST_LINES]]
    wrong = [op for op in result.ops if not op.ok]
    for op in wrong[:MOST_LINES]:
        off = op.relative if op.added is None else op.added
        lines.append(f"  {op.name}: {'off by' if op.added is None else 'adds'} {off:.1e}, at most {op.bound:.1e}")
    return lines + ([f"  and {len(wrong) - MOST_LINES} more"] if len(wrong) > MOST_LINES else [])
