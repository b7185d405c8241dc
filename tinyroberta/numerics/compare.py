"""Where two traces of a model part: inputs first, then weights, then what passed; and of each op the error that it adds itself.

An error grows from op to op, so the first that is past a tolerance is seldom the one that is wrong. Here an op answers for what
it adds: our float64 ops are run on the candidate's own inputs (transplant.py), and added = ||theirs - ours|| / ||ours||, in the
row where that is largest beside its bound. Where the reference is not our float64 run, what its op adds by the same measure is
taken off first. The bound of a row is

    (SAFETY (moved + eps ||ours||) + eps_sum sqrt(K) ||ours||) / ||ours||

eps is what the candidate's numbers are rounded to, eps_sum what its sums are, K the op's reduction length. `moved` is how far
the float64 result goes, root mean square, when everything that passes is moved at random by eps (Monte Carlo arithmetic, Parker
1997), attention's scores by what is kept of them too: it is large where terms cancel or an exponential follows, and so is the
error of any arithmetic of that many bits.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ..backends import Array
from ..errors import Error, ieee
from ..traces import INPUTS, Recorded, TraceFile, hashed, weight_hashes
from . import transplant

SAFETY = 4.0
DRAWS = 3
NAMED = ("input_ids", "attention_mask")  # without which nothing can be compared
NUMERIC = ("hidden_act", "layer_norm_eps", "position_embedding_type", "num_attention_heads", "hidden_size", "num_hidden_layers",
           "intermediate_size", "vocab_size", "type_vocab_size", "pad_token_id", "tie_word_embeddings", "is_decoder",
           "model_type")  # fmt: skip
ULPS = (0, 1, 2, 4, 16, 256, 65536)  # where the steps of the histogram begin


class Rounding(NamedTuple):
    """How a run rounds numbers that are multiplied, of themselves or of their row's largest; its sums; what it keeps."""

    eps: float
    by_row: bool
    eps_sum: float
    eps_kept: float


@dataclass
class Op:
    """How one op's result differs. What is not finite in a number is None in JSON."""

    name: str
    max_abs: float
    relative: float  # Frobenius norms
    added: float | None  # None where nothing can be run again
    bound: float
    ok: bool
    call: int = 0
    cosine: float = 1.0  # of the row where it is least
    argmax_flips: int = 0
    rows: int = 0
    ulps: dict[str, int] = field(default_factory=dict)  # how many numbers are at least so many units of the last place off
    nonfinite: dict[str, Any] | None = None  # the first that only one of both has: {"value", "at": [row, ...]}
    covers: list[str] = field(default_factory=list)  # ops before it that the candidate did not record: the error may be theirs
    row: list[int] | None = None  # [text, position] of the row that is worst


@dataclass
class Comparison:
    """All that is found."""

    ops: list[Op]
    inputs: dict[str, str]  # what differs, in words
    weights: list[str]  # that differ
    config: dict[str, list[Any]]  # fields that differ, of both
    first: str | None
    reference: str
    candidate: str
    notes: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        return "same" if self.first is None else "differs"

    def as_json(self) -> dict[str, Any]:
        """{"verdict", "first", "ops": [{"name", "max_abs", "relative", "added", "bound", "ok", ...}], ...}, all JSON can say."""
        content = {"verdict": self.verdict, "first": self.first, "ops": [vars(op) for op in self.ops]}
        more = ("reference", "candidate", "inputs", "weights", "config", "notes")
        finite: dict[str, Any] = _finite(content | {name: getattr(self, name) for name in more})
        return finite


def _finite(x: Any) -> Any:
    if isinstance(x, dict):
        return {name: _finite(value) for name, value in x.items()}
    if isinstance(x, list):
        return [_finite(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def rounding(manifest: Mapping[str, Any], arrays: Mapping[str, Array]) -> Rounding:
    """How a run rounds, by its manifest, or by the type of its arrays where that is silent."""
    dtype, precision = manifest.get("dtype"), manifest.get("precision") or "highest"
    if dtype not in ("float64", "float32", "float16", "bfloat16"):
        dtype = next((x.dtype.name for x in arrays.values()), "float32")
    if dtype == "float64":
        return Rounding(2.0**-53, False, 2.0**-53, 2.0**-53)
    eps = {"float16": 2.0**-11, "bfloat16": 2.0**-9}.get(dtype, 2.0**-24)
    digits = manifest.get("backend") in ("cpu", "cupy") or bool(manifest.get("reproducible"))
    if precision == "highest" or eps > 2.0**-24:
        return Rounding(eps, digits and eps == 2.0**-24, 2.0**-24, eps)
    if precision == "high" or bool(manifest.get("reproducible")):  # digits in cpu, TF32 and f16 elsewhere
        return Rounding(2.0**-13 if digits and manifest.get("backend") != "cupy" else 2.0**-11, False, 2.0**-24, eps)
    return Rounding(2.0**-9, False, 2.0**-24, eps)


def _both(candidate: Rounding, reference: Rounding) -> Rounding:
    """The rounding of a difference; that of float64 is none."""
    if reference.eps == 2.0**-53:
        return candidate
    larger = (max(pair) for pair in zip(candidate[2:], reference[2:], strict=True))
    return Rounding(math.hypot(candidate.eps, reference.eps), candidate.by_row or reference.by_row, *larger)


def describe(manifest: Mapping[str, Any]) -> str:
    """A run in a few words."""
    told = [manifest.get("backend") or manifest.get("program") or "unknown", manifest.get("dtype")]
    told += [manifest.get("precision")] if manifest.get("precision") not in (None, "highest") else []
    return " ".join(str(x) for x in [*told, *(["reproducible"] if manifest.get("reproducible") else [])] if x)


@ieee
def compare(reference: TraceFile, candidate: TraceFile, model: Any = None) -> Comparison:
    """How a candidate's trace differs from a reference's; `model`, in any dtype, is what both ran.

    Without a model nothing can be run again, and an op is held to the error of all before it. Raises Error where the traces have
    no call or no name in common.
    """
    if not reference.calls or not candidate.calls:
        empty = candidate if reference.calls else reference
        raise Error(f"{empty.where} holds no call: call the model inside the trace before it is saved")
    result = Comparison([], {}, [], {}, None, describe(reference.manifest), describe(candidate.manifest))
    if len(reference.calls) != len(candidate.calls):
        told = f"the reference has {len(reference.calls)} calls, the candidate {len(candidate.calls)}"
        result.inputs["calls"] = f"{told}: those that both have are compared"
    pairs = list(zip(reference.calls, candidate.calls, strict=False))
    for index, (left, right) in enumerate(pairs):
        result.inputs |= {name + (f" of call {index}" if index else ""): told for name, told in _inputs(left, right).items()}
    result.config = _config(reference, candidate)
    result.weights = _weights(reference, candidate, model)
    if any(name.startswith(NAMED) for name in result.inputs):
        result.first = next(name for name in result.inputs if name.startswith(NAMED))
        result.notes.append("The inputs differ, so what passed was not compared.")
        return result
    exact = None if model is None else transplant.exact_of(model)
    for index, (left, right) in enumerate(pairs):
        result.ops += _call(index, left, right, reference, candidate, exact, result.notes)
    unfit = [note for note in result.notes if "shapes are" in note]
    if not result.ops and unfit:
        raise Error(f"{candidate.where} is of another model than {reference.where}: {unfit[0]}")
    if not result.ops:
        names = sorted(set(candidate.calls[0].arrays))[:4]
        raise Error(f"{candidate.where} and {reference.where} have no name in common, the candidate {', '.join(names) or 'none'}")
    result.first = _first(result)
    return result


def _first(result: Comparison) -> str | None:
    """An input that differs, else the first op that is wrong by itself or whose weights differ."""
    if told := [name for name in result.inputs if name != "calls"]:
        return told[0]
    for op in result.ops:
        if not op.ok or any(_owner(weight, [op.name, *op.covers]) for weight in result.weights):
            return op.name
    return next(iter([*result.weights, *result.inputs]), None)


def _owner(weight: str, names: Iterable[str]) -> bool:
    module = weight.rpartition(".")[0]
    module = "embeddings" if module.endswith("_embeddings") else module
    return any(name in (module, f"{module}.LayerNorm") for name in names)


# Inputs, configuration and weights.


def _inputs(left: Recorded, right: Recorded) -> dict[str, str]:
    """What of two calls' inputs differs where both say it, at attended positions."""
    found: dict[str, str] = {}
    if left.part != right.part:
        found["attention_mask"] = f"the reference's call is of {left.part or 'a model'}, the candidate's of {right.part or 'one'}"
    if left.inputs is None or right.inputs is None:
        if left.shape != right.shape:
            found["input_ids"] = f"{left.shape} of the reference, {right.shape} of the candidate"
        return found
    for name in INPUTS:
        if name not in left.inputs or name not in right.inputs:
            continue
        a, b = left.inputs[name], right.inputs[name]
        if a.shape != b.shape:
            found[name] = f"shape {a.shape} of the reference, {b.shape} of the candidate"
            break
        seen = np.ones(a.shape, bool)
        if name != "attention_mask":
            for each in (left, right):
                seen &= each.inputs.get("attention_mask", seen) == 1  # type: ignore[union-attr]
        wrong = np.argwhere((a != b) & seen)
        if len(wrong):
            b_, s = wrong[0]
            told = f"{a[b_, s]} of the reference, {b[b_, s]} of the candidate"
            found[name] = f"{len(wrong)} places differ, first text {b_}, position {s}: {told}"
    return found


def _config(reference: TraceFile, candidate: TraceFile) -> dict[str, list[Any]]:
    a, b = (each.manifest.get("config") or {} for each in (reference, candidate))
    return {name: [a[name], b[name]] for name in NUMERIC if name in a and name in b and a[name] != b[name]}


def _weights(reference: TraceFile, candidate: TraceFile, model: Any) -> list[str]:
    """The weights whose hashes differ; not those that the candidate's own number type rounded."""
    a, b = (each.manifest.get("weights") or {} for each in (reference, candidate))
    differ = [name for name in a if name in b and a[name] != b[name]]
    half = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}.get(str(candidate.manifest.get("dtype")))
    if differ and half is not None and model is not None and hasattr(model, "tensors"):
        rounded = dict(
            zip(weight_hashes(model), (hashed(np.asarray(x).astype(half)) for x in model.tensors.values()), strict=True)
        )
        differ = [name for name in differ if rounded.get(name) != b[name]]
    return differ


# What passed.


def _call(
    index: int, left: Recorded, right: Recorded, reference: TraceFile, candidate: TraceFile, exact: Any, notes: list[str]
) -> list[Op]:
    """The ops of one call."""
    names = [name for name in _order(left, right, exact) if name in left.arrays and name in right.arrays]
    shared, (a_rows, b_rows) = _shared_rows(left, right)
    run = rounding(candidate.manifest, right.arrays)
    run = _both(run, rounding(reference.manifest, left.arrays))
    again = right if right.inputs is not None else left
    transplanted = None
    if exact is not None and again.inputs is not None:
        transplanted = _transplanted(exact, left, right, again, reference, run)
    elif exact is None:
        told = "No model was given, so nothing was run again: an op is held to the error of all before it."
        notes += [told] if told not in notes else []
    else:
        notes.append(f"Call {index} was given more than ids and a mask of 0 and 1, so its ops were not run again.")
    ops: list[Op] = []
    covered: list[str] = []
    alone: list[str] = []  # of another shape than ours
    depth = 0
    for name in _order(left, right, exact):
        if name not in names:
            covered += [name] if exact is not None else []
            continue
        pair = _aligned(left.arrays[name], right.arrays[name], left, right, a_rows, b_rows)
        if pair is None:
            shapes = " and ".join(str(x[name].shape) for x in (left.arrays, right.arrays))
            notes.append(f"{name} was not compared: its shapes are {shapes}.")
            covered.append(name)
            continue
        depth += 1
        op = Op(name, **_statistics(*pair), added=None, bound=0.0, ok=True, call=index, covers=covered)
        covered = []
        K = _reduction(name, exact, pair[0])
        own = None if transplanted is None else transplanted.of(name, pair, right, b_rows)
        if own is not None:
            added, moved, size, alike = own
            bounds = SAFETY * (moved + run.eps * size) + run.eps_sum * math.sqrt(K) * size
            worst = _worst(added, bounds)
            op.added, op.bound = (float(x[worst] / size[worst]) if size[worst] else float(x[worst]) for x in (added, bounds))
            places = shared if len(size) == len(shared) else None
            op.row = None if places is None else [int(n) for n in divmod(places[worst], right.shape[1])]
            op.ok = (alike or op.nonfinite is None) and bool(added[worst] <= bounds[worst])
        else:
            alone += [name] if transplanted is not None else []
            op.bound = SAFETY * (run.eps_sum * math.sqrt(K) + run.eps) * math.sqrt(depth)
            op.ok = op.relative <= op.bound and op.nonfinite is None
        ops.append(op)
    if alone:
        notes.append(f"Not run again, since the model's results have other shapes: {', '.join(alone)}.")
    return ops


def _order(left: Recorded, right: Recorded, exact: Any) -> list[str]:
    """The names of a call in the order in which they pass."""
    if exact is not None:
        return [name for name in exact.tap_names() if name.startswith(left.part)]
    return list(left.arrays) if len(left.arrays) >= len(right.arrays) else list(right.arrays)


def _shared_rows(left: Recorded, right: Recorded) -> tuple[Array, tuple[Array, Array]]:
    """The places of rows that both have and that are attended, and which rows of each they are."""
    a, b = left.rows(), right.rows()
    mine, theirs = (each.rows()[each.attended()] for each in (left, right))
    both = np.intersect1d(mine, theirs)
    found = []
    for rows in (a, b):
        order = np.argsort(rows, kind="stable")
        found.append(order[np.searchsorted(rows[order], both)])
    return both, (found[0], found[1])


def _aligned(a: Array, b: Array, left: Recorded, right: Recorded, a_rows: Array, b_rows: Array) -> tuple[Array, Array] | None:
    """Two arrays with the rows that both have, in float64 but for b's own type; None where their shapes do not allow it."""
    if len(a) == len(left.rows()) and len(b) == len(right.rows()) and a.shape[1:] == b.shape[1:]:
        return a[a_rows], b[b_rows]
    return (a, b) if a.shape == b.shape else None


def _reduction(name: str, exact: Any, x: Array) -> int:
    """How many terms an op's longest sum has."""
    tensors: Mapping[str, Any] = {}
    if exact is not None:
        tensors = getattr(exact, "tensors", {}) or {**exact.encoder.tensors, **exact.decoder.tensors}
    weight = tensors.get(f"{name}.weight", tensors.get(f"{name}.dense.weight"))
    return int(weight.shape[-1] if weight is not None and np.ndim(weight) == 2 else max(x.shape[-1], 64))


def _statistics(a: Array, b: Array) -> dict[str, Any]:
    """How far b is from a, by many measures, over what is finite in both."""
    unit = _unit(b.dtype)
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    alike = finite | (np.isnan(x) & np.isnan(y)) | (x == y)
    nonfinite = None
    if not alike.all():
        at = tuple(int(i) for i in np.argwhere(~alike)[0])
        value = y[at] if not np.isfinite(y[at]) else x[at]
        nonfinite = {"value": str(value), "at": list(at), "count": int((~alike).sum())}
    x, y = np.where(finite, x, 0), np.where(finite, y, 0)
    gap = np.abs(y - x)
    ulps = gap / np.maximum(np.abs(np.spacing(np.abs(x).astype(np.float32))).astype(np.float64), 2.0**-149) / unit
    counts = {str(low): int(((ulps >= low) & (ulps < high)).sum()) for low, high in zip(ULPS, [*ULPS[1:], math.inf], strict=True)}
    rows = (len(x), -1)
    lengths = np.linalg.norm(x.reshape(rows), axis=1) * np.linalg.norm(y.reshape(rows), axis=1)
    cosines = (x * y).reshape(rows).sum(1)[lengths > 0] / lengths[lengths > 0]
    size, difference = float(np.linalg.norm(x)), float(np.linalg.norm(gap))
    return {
        "max_abs": float(gap.max(initial=0)),
        "relative": difference / size if size else (math.inf if difference else 0.0),
        "cosine": float(np.clip(cosines.min(initial=1), -1, 1)),
        "argmax_flips": int((x.argmax(-1) != y.argmax(-1)).sum()) if x.shape[-1] > 1 else 0,
        "rows": len(x),
        "ulps": counts,
        "nonfinite": nonfinite,
    }


def _unit(dtype: Any) -> float:
    """A unit in the last place of a type, in float32's."""
    return {"float64": 2.0**-29, "float16": 2.0**13, "bfloat16": 2.0**16}.get(np.dtype(dtype).name, 1.0)


def _worst(added: Array, bounds: Array) -> int:
    """The row that is furthest past its bound, or nearest to it."""
    ratio = np.divide(added, bounds, out=np.where(added > 0, np.inf, 0.0), where=bounds > 0)
    return int(np.argmax(ratio)) if len(ratio) else 0


@dataclass
class _Transplanted:
    """What our ops give on each one's own inputs, and how far that moves when all is shaken."""

    of_candidate: Mapping[str, Array]
    of_reference: Mapping[str, Array] | None  # None where the reference is our float64 run itself
    moved: Mapping[str, Array]  # (T,) of our rows
    places: Array

    def of(self, name: str, pair: tuple[Array, Array], right: Recorded, b_rows: Array) -> tuple[Array, Array, Array, bool] | None:
        """By row: the norm of what the candidate adds beyond the reference, how far ours moves, and the norm of ours.

        Then whether what is not finite is so in both.
        """
        if name not in self.of_candidate:
            return None
        by_row = len(right.arrays[name]) == len(right.rows()) and len(self.of_candidate[name]) == len(self.places)
        rows = _rows_of(right.rows()[b_rows], self.places) if by_row else slice(None)
        ours = self.of_candidate[name][rows]
        if ours.shape != pair[1].shape:
            return None
        gap = pair[1].astype(np.float64) - ours
        if self.of_reference is not None:
            gap = gap - (pair[0].astype(np.float64) - self.of_reference[name][rows])
        alike = np.array_equal(np.isfinite(pair[1]), np.isfinite(ours))
        finite = np.isfinite(gap)
        gap, ours = np.where(finite, gap, 0).reshape(len(gap), -1), np.where(finite, ours, 0).reshape(len(gap), -1)
        return np.linalg.norm(gap, axis=1), self.moved[name][rows], np.linalg.norm(ours, axis=1), alike


def _rows_of(places: Array, own: Array) -> Array:
    order = np.argsort(own, kind="stable")
    return order[np.searchsorted(own[order], places)]


def _transplanted(
    exact: Any, left: Recorded, right: Recorded, again: Recorded, reference: TraceFile, run: Rounding
) -> _Transplanted:
    ours = transplant.ours(exact, _as(again, right), right.arrays)
    theirs = None
    if not _is_exact(reference, exact):
        theirs = transplant.ours(exact, _as(again, left), left.arrays)
    squares: dict[str, Array] = {}
    for seed in range(DRAWS):
        change = transplant.shaken(seed, run.eps, run.by_row)
        scores = run.eps_kept + run.eps_sum * math.sqrt(_head_size(exact)) / SAFETY
        shaky = exact if hasattr(exact, "encoder") else transplant.with_shaken_scores(exact, seed, scores)
        for name, x in transplant.ours(shaky, _as(again, right), right.arrays, change).items():
            gap = np.nan_to_num((x - ours[name]).reshape(len(x), -1), posinf=0, neginf=0)
            squares[name] = squares.get(name, 0) + np.square(gap).sum(1) / DRAWS
    return _Transplanted(ours, theirs, {name: np.sqrt(x) for name, x in squares.items()}, _as(again, right).rows())


def _head_size(exact: Any) -> int:
    return int(exact.encoder.config.head_size if hasattr(exact, "encoder") else exact.config.head_size)


def _as(again: Recorded, call: Recorded) -> Recorded:
    """A call with the inputs of another, of which it is a run."""
    return Recorded(call.part, again.shape, call.places if call.inputs is not None else again.places, again.inputs)


def _is_exact(reference: TraceFile, exact: Any) -> bool:
    """Whether a reference is our own float64 run of the model."""
    told = reference.manifest
    mine = told.get("program") == "tinyroberta" and told.get("backend") == "numpy" and told.get("dtype") == "float64"
    return mine and hasattr(exact, "tensors") and told.get("weights") in (None, weight_hashes(exact))
