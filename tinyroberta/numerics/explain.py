"""Which known deviation makes a candidate what it is: our model is run again with one at a time, in float64 (deviations.py).

Each run reads the candidate's own arrays in the place of what every op gave (transplant.py), so that an op answers for itself
alone, and two deviations do not hide each other. With g the Frobenius norm of theirs less ours, over that of theirs,

    explains = 1 - sum g(deviation)^2 / sum g(none)^2        over all that the candidate recorded

is 1 for a deviation that reproduces the candidate and 0 for one that brings nothing. What is left is explained by a second and
a third, given those before. A set of causes fits where its last one explains at least FITS of what the others left.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from .. import tap
from ..backends import Array, load_backend
from ..backends.numpy import finish, softmax
from ..errors import Error, ieee
from ..traces import INPUTS, Recorded, TraceFile
from ..weights.names import DECODER, WORDS
from . import transplant
from .deviations import MASK, UNKNOWN, Deviation, Setup, deviations
from .importers import keys_packed

FITS = 0.9  # of what is left, which a cause must explain
LEAST = 0.01  # what is told
MOST_CAUSES = 3  # that are sought together
BEAM = 3  # first causes for which a second is sought
SAFETY = 4.0
HEADS_OPS = ("lm_head.decoder", "classifier", "classifier.out_proj")  # whose results a softmax may have been taken of


@dataclass
class Explanation:
    """What is found. A cause is {"cause", "explains"}."""

    verdict: str  # "same", "explained" or "unexplained"
    causes: list[dict[str, Any]]  # each alone, best first
    together: list[dict[str, Any]]  # that fit: each explains so much of what those before it left
    notes: list[str] = field(default_factory=list)

    @property
    def explained(self) -> float:
        """How much the causes explain together."""
        return 1 - math.prod(1 - cause["explains"] for cause in self.together) if self.together else 0.0

    def as_json(self) -> dict[str, Any]:
        """{"verdict", "causes": [{"cause", "explains"}, ...], "together": the same, "notes"}."""
        return dict(vars(self))


# A run, and what it leaves.


def built(model: Any, setup: Setup) -> Any:
    """A model in float64 of a setup, whatever tensors that has, on a backend around the backend."""
    inner: Any = load_backend("numpy")
    paths: dict[int, str] = {}

    def where(weight: Any) -> str:
        if not paths:
            paths.update((id(leaf), path) for path, leaf in _leaves(made.weights, ""))
        return paths.get(id(weight), "")

    for around in setup.ops:
        changed = around(inner, where)
        inner = SimpleNamespace(**vars(inner) | {"in_steps": _in_steps(inner, changed)} | changed)
    kind, own = type(model), {
        "ops": property(lambda self: tap.around(self, inner)),
        "model_type": setup.config.model_type,
        "_check_tensors": classmethod(lambda *_: None),
    }  # fmt: skip
    made = type(kind.__name__, (kind,), own)(setup.config, setup.tensors, backend="numpy", dtype="float64")
    return made


def _in_steps(inner: Any, changed: Mapping[str, Any]) -> Any:
    """The op contract's in_steps of a backend some of whose ops are changed."""
    linear, activate = (changed.get(name, getattr(inner, name)) for name in ("linear", "activation"))
    if not {"linear", "activation"} & set(changed):
        return inner.in_steps

    def in_steps(x: Array, weight: Array, bias: Array, activation: Any, residual: Any) -> Any:
        return linear(x, weight, bias), partial(finish, activate, activation=activation, residual=residual)

    return in_steps


def _leaves(tree: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, branch in tree.items():
        if "weight" in branch:
            yield path + name, branch["weight"]
        else:
            yield from _leaves(branch, f"{path}{name}.")


def passed(model: Any, setup: Setup, call: Recorded, change: transplant.Change = lambda _, x: x) -> dict[str, Array]:
    """What our ops give on a candidate's own inputs, in a setup, in the candidate's rows and by its names; no row has padding."""
    made = built(model, setup)
    whole = setup.padding or call.places is None
    given = dict(setup.inputs)
    found: dict[str, Array] = {}

    def function(name: str, x: Array) -> Array:
        theirs = setup.named(name)
        rows = seen.calls[-1].rows
        assert rows is not None
        places = np.arange(rows.shape[0] * rows.shape[1]) if rows.places is None else rows.places
        if theirs is None or theirs not in call.arrays:
            return change(name, x)
        own = call.arrays[theirs]
        aligned = _rows(x, places, own, call, given["attention_mask"], theirs)
        if aligned is not None:
            found[theirs] = aligned
        if theirs.endswith((*HEADS_OPS, ".probs")) or not np.isfinite(own).all():
            return change(name, x)  # of probabilities the tap would make means of its own, past the ops of a setup
        return change(name, transplant.placed(own, call.rows(), x, places))

    with tap.trace(made, [], {"*": function}) as seen:
        transplant.replay(made, Recorded("", given["input_ids"].shape, None if whole else np.zeros(0, int), given))
    return found


def _rows(x: Array, places: Array, theirs: Array, call: Recorded, mask: Array, name: str) -> Array | None:
    """Ours in the rows of theirs that are tokens; None where the shapes do not allow it."""
    rows, wanted = call.rows(), _wanted(theirs, call, mask)
    if len(theirs) == len(rows) and len(x) == len(places):
        order = np.argsort(places, kind="stable")
        at = np.searchsorted(places[order], rows[wanted])
        if (at == len(order)).any() or not np.array_equal(places[order][at], rows[wanted]):
            return None
        x = x[order[at]]
        if name.endswith(".probs") and call.places is not None and len(places) == mask.size and not mask.all():
            x = keys_packed(x, mask, rows[wanted])
    return x if x.shape == theirs[wanted].shape else None


def _wanted(theirs: Array, call: Recorded, mask: Array) -> Any:
    """Which rows are tokens: positions that are padding have no position that all agree on."""
    rows = call.rows()
    return np.flatnonzero(mask.ravel()[rows]) if len(theirs) == len(rows) else slice(None)


class Run(NamedTuple):
    """One call of a candidate, and the setup of the model that it should have been."""

    setup: Setup
    call: Recorded
    probabilities: frozenset[str]  # of its arrays, those that are a softmax


def measured(model: Any, run: Run, setup: Setup) -> dict[str, float]:
    """The gaps of a run in a setup: by name ||theirs - ours||^2 / ||theirs||^2 over what is finite in theirs."""
    found = {}
    for name, ours in passed(model, setup, run.call).items():
        theirs = run.call.arrays[name]
        theirs = theirs[_wanted(theirs, run.call, setup.inputs["attention_mask"])].astype(np.float64)
        ours = softmax(ours) if name in run.probabilities else ours
        told = np.isfinite(theirs)
        size = float(np.square(theirs[told]).sum())
        off = float(np.square(theirs[told] - ours[told]).sum())
        found[name] = (off / size if size else off) if math.isfinite(off) else math.inf
    return found


def noise(model: Any, run: Run, eps: float) -> dict[str, float]:
    """What rounding to eps may make of each gap, by one Monte Carlo run (compare.py says how)."""
    ours, moved = (passed(model, run.setup, run.call, change) for change in (lambda _, x: x, transplant.shaken(0, eps, False)))
    found = {}
    for name, x in ours.items():
        shaken = moved[name]
        if name in run.probabilities:
            x, shaken = softmax(x), softmax(shaken)
        size, far = np.linalg.norm(x), np.linalg.norm(shaken - x)
        sums = eps * (1 + math.sqrt(max(4 * run.setup.config.hidden_size, 64)))
        found[name] = float((SAFETY * (far / size + sums)) ** 2) if size else 0.0
    return found


# The search.


@ieee
def explain(
    reference: TraceFile, candidate: TraceFile, model: Any, tokens: Mapping[str, int | None] | None = None
) -> Explanation:
    """Rank the known deviations by how well each reproduces a candidate; `model` is what the reference ran, in any dtype.

    The inputs are the reference's. tokens: {"mask": id, "unk": id}; RoBERTa's are the default: the last id, and 3. Raises Error
    where no call has inputs, the two have other tokens, or no name is the model's.
    """
    if hasattr(model, "decoder"):
        raise Error("explain reads traces of one model, and was given a pair: trace its encoder or decoder alone")
    exact = transplant.exact_of(model)
    held = {name: np.asarray(x, np.float64) for name, x in exact.tensors.items()}
    if DECODER in exact.tensors and exact.tensors[DECODER] is exact.tensors[WORDS]:
        held[DECODER] = held[WORDS]
    special = {MASK: exact.config.vocab_size - 1, UNKNOWN: 3, **(tokens or {})}
    runs = [
        Run(Setup(exact.config, held, inputs, special), call, _probabilities(call))
        for inputs, call in _calls(reference, candidate, exact.config.pad_token_id or 0)
    ]
    eps = 2.0**-53 if candidate.manifest.get("dtype") == "float64" else 2.0**-24
    before: list[dict[str, float]] = [measured(exact, run, run.setup) for run in runs]
    if not any(before):
        names = ", ".join(list(candidate.calls[0].arrays)[:4]) or "none"
        raise Error(f"{candidate.where} holds no array of this model's names and shapes, but {names}: compare says more")
    floors = [noise(exact, run, eps) for run in runs]
    found = Explanation("same", [], [])
    _note(found, reference, candidate, runs)
    suspects = _suspects(exact, before, floors)
    if not suspects:
        return found
    table = list(deviations(runs[0].setup, suspects))
    first = _round(exact, runs, [run.setup for run in runs], before, table)
    found.causes = [{"cause": row.name, "explains": share} for share, row, _, _ in first if share >= LEAST]
    found.together = _together(exact, runs, table, first, floors)
    found.verdict = "explained" if found.together else "unexplained"
    return found


def _calls(reference: TraceFile, candidate: TraceFile, pad: int) -> Iterator[tuple[dict[str, Array], Recorded]]:
    """The calls of the candidate with the inputs that the reference was given; a packed trace does not say what padding was."""
    told = False
    for left, right in zip(reference.calls, candidate.calls, strict=False):
        inputs = left.inputs or right.inputs
        if inputs is None:
            continue
        if left.shape != right.shape:
            raise Error(
                f"{candidate.where} has texts of shape {right.shape}, {reference.where} of {left.shape}: run the same texts"
            )
        mask = inputs.get("attention_mask", np.ones_like(inputs["input_ids"]))
        told, inputs = True, {**inputs, "attention_mask": mask}
        for name in ("input_ids", "position_ids"):
            if name in inputs:
                inputs[name] = np.where(mask == 1, inputs[name], pad)
        yield inputs, right
    if not told:
        raise Error(f"{reference.where} and {candidate.where} do not say which ids went in: give --inputs")


def _probabilities(call: Recorded) -> frozenset[str]:
    """The heads' results that a softmax was taken of: numbers from 0 to 1 with sums of 1, or less where some are missing."""
    found = set()
    for name, x in call.arrays.items():
        if not name.endswith(HEADS_OPS) or x.shape[-1] < 2:
            continue
        whole = np.asarray(x, np.float64)
        told, sums = np.isfinite(whole), np.nansum(whole, -1)
        rows = told.any(-1)
        if not rows.any() or not ((whole[told] >= 0) & (whole[told] <= 1)).all():
            continue
        if (sums[rows] < 1.01).all() and (np.abs(sums - 1) < 0.01)[told.all(-1)].all():
            found.add(name)
    return frozenset(found)


def _note(found: Explanation, reference: TraceFile, candidate: TraceFile, runs: list[Run]) -> None:
    for name in sorted({name for run in runs for name in run.probabilities}):
        found.notes.append(f"{name} of {candidate.where} holds probabilities, so ours are compared with them behind a softmax.")
    for left, right in zip(reference.calls, candidate.calls, strict=False):
        if left.inputs is None or right.inputs is None:
            continue
        for name in [name for name in INPUTS if name in left.inputs and name in right.inputs]:
            seen = name == "attention_mask" or left.inputs.get("attention_mask", np.ones(left.shape)) == 1
            if ((left.inputs[name] != right.inputs[name]) & seen).any():
                found.notes.append(f"{name} of the two differ: the reference's were run.")


def _suspects(model: Any, before: list[dict[str, float]], floors: list[dict[str, float]]) -> set[str]:
    """The ops that differ by more than rounding, and those before them that the candidate did not record."""
    found: set[str] = set()
    for off, floor in zip(before, floors, strict=True):
        covered: list[str] = []
        for name in model.tap_names():
            covered.append(name)
            if name in off:
                found |= set(covered) if off[name] > floor.get(name, 0) else set()
                covered = []
    return found


Found = tuple[float, Deviation, list[Setup], list[dict[str, float]]]


def _round(
    model: Any, runs: list[Run], setups: list[Setup], before: list[dict[str, float]], table: Sequence[Deviation]
) -> list[Found]:
    """Every row of the table on top of setups: how much of the gaps it explains, best first."""
    found = []
    for row in table:
        changed = [row.change(setup) for setup in setups]
        if all(setup is None for setup in changed):
            continue
        try:
            after, own = [], []
            for run, old, setup in zip(runs, setups, changed, strict=True):
                own.append(setup or old)
                after.append(measured(model, run, setup or old))
        except Error:  # what the model cannot be: positions past its table
            continue
        found.append((_explained(before, after), row, own, after))
    return sorted(found, key=lambda entry: -round(entry[0], 12))


def _explained(before: list[dict[str, float]], after: list[dict[str, float]]) -> float:
    old = new = 0.0
    for a, b in zip(before, after, strict=True):
        shared = a.keys() & b.keys()
        old += sum(min(a[name], 1e300) for name in shared)
        new += sum(min(b[name], 1e300) for name in shared)
    return max(0.0, 1 - new / old) if old else 0.0


def _together(
    model: Any, runs: list[Run], table: Sequence[Deviation], first: list[Found], floors: list[dict[str, float]]
) -> list[dict[str, Any]]:
    """The causes that explain together, each given those before it; none where none fits."""
    best: tuple[float, list[dict[str, Any]]] = (0.0, [])
    for start in first[:BEAM]:
        if start[0] < LEAST:
            break
        chosen, entry, fits = [_told(start)], start, 1 if start[0] >= FITS else 0
        while len(chosen) < MOST_CAUSES and _differs(entry[3], floors):
            named = {cause["cause"] for cause in chosen}
            following = _round(model, runs, entry[2], entry[3], [row for row in table if row.name not in named])
            if not following or following[0][0] < LEAST:
                break
            entry = following[0]
            chosen.append(_told(entry))
            fits = len(chosen) if entry[0] >= FITS else fits
        if fits:
            left = math.prod(1 - cause["explains"] for cause in chosen[:fits])
            if not best[1] or left < 1e-3 * (1 - best[0]):  # the better first cause, unless another set is much better
                best = (1 - left, chosen[:fits])
        if start[0] >= FITS:
            break
    return best[1]


def _told(entry: Found) -> dict[str, Any]:
    return {"cause": entry[1].name, "explains": entry[0]}


def _differs(after: list[dict[str, float]], floors: list[dict[str, float]]) -> bool:
    return any(off > floor.get(name, 0) for each, floor in zip(after, floors, strict=True) for name, off in each.items())
