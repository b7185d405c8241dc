"""Which known deviation makes a candidate what it is: our model is run again with one at a time, in float64.

A deviation is a row of the table below: a name, and what it changes of a Setup: a field of the configuration, the ids, the weights,
an op of a backend around the backend. One more is one row more. forward.py is the same for all of them.

Each run reads the candidate's own arrays in the place of what every op gave (transplant.py), so that an op answers for itself
alone, and two deviations do not hide each other. With g the gap between theirs and ours, in the Frobenius norm over that of theirs,

    explains = 1 - sum g(deviation)^2 / sum g(none)^2        over all that the candidate recorded

is 1 for a deviation that reproduces the candidate and 0 for one that brings nothing. What is left is explained by a second and
a third, given those before. A set of causes fits where its last one explains at least FITS of what the others left.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from .. import tap
from ..backends import Array, load_backend
from ..backends.numpy import softmax
from ..errors import Error, ieee
from ..traces import INPUTS, Recorded, TraceFile
from ..weights.names import DECODER, FAMILIES, WORDS, module_name
from . import transplant
from .importers import keys_packed

FITS = 0.9  # of what is left, which a cause must explain
LEAST = 0.01  # what is told
MOST_CAUSES = 3  # that are sought together
BEAM = 3  # first causes for which a second is sought
SAFETY = 4.0
MASK, UNKNOWN = "mask", "unk"  # of Setup.tokens
HEADS_OPS = ("lm_head.decoder", "classifier", "classifier.out_proj")  # whose results a softmax may have been taken of
ACTIVATIONS = ("gelu", "gelu_new", "quick_gelu")
EPS = (1e-5, 1e-12, 1e-6)
MASK_VALUES = (0.0, -1.0, -10.0, -100.0, -1e4)
LAYER = re.compile(r"(.*\.layer\.)(\d+)\.")

Ops = Any
Around = Callable[[Ops, Callable[[Any], str]], dict[str, Callable[..., Any]]]  # (a backend, a weight's name) -> ops in its place


class Setup(NamedTuple):
    """What a run is made of."""

    config: Any
    tensors: Mapping[str, Array]
    inputs: Mapping[str, Array]  # (B, S) each
    tokens: Mapping[str, int | None]  # the ids of the mask and of what is unknown
    ops: tuple[Around, ...] = ()
    padding: bool = False  # whether padding is computed
    named: Callable[[str], str | None] = lambda name: name  # what the candidate calls what passes in this run; None: nothing


Change = Callable[[Setup], Setup | None]  # None where it can change nothing


class Deviation(NamedTuple):
    """A row of the table."""

    name: str
    change: Change


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


# The table.


def deviations(setup: Setup, suspects: set[str]) -> Iterator[Deviation]:
    """The table's rows; of one layer alone only in those that hold a suspect, a name of model.tap_names()."""
    for name in ACTIVATIONS:
        yield Deviation(f"hidden_act is {name}", fields(hidden_act=name))
    for name in ACTIVATIONS[1:]:
        yield Deviation(f"the activation of lm_head is {name}", head_activation(name))
        yield Deviation(f"hidden_act and the activation of lm_head are {name}", both(fields(hidden_act=name), head_activation(name)))
    for eps in EPS:
        yield Deviation(f"layer_norm_eps is {eps:g}", fields(layer_norm_eps=eps))
    for counts, told in ((False, ""), (True, ", and padding counts")):
        for first in (0, 1, 2):
            yield Deviation(f"positions begin at {first}{told}", positions(first, counts))
    yield Deviation("unk in place of mask", token(MASK, UNKNOWN))
    yield Deviation("mask in place of unk", token(UNKNOWN, MASK))
    yield Deviation("token types are not added", zeroed("embeddings.token_type_embeddings.weight"))
    yield Deviation("token types are 1", types_of_one)
    yield Deviation("post-norm in place of pre-norm, without the final norm", placed(after=True, final=False))
    yield Deviation("post-norm in place of pre-norm, and the final norm", placed(after=True, final=True))
    yield Deviation("pre-norm in place of post-norm", placed(after=False, final=False))
    yield Deviation("the final norm is missing", without_norm("LayerNorm"))
    yield Deviation("the norm of the embeddings is missing", without_norm("embeddings.LayerNorm"))
    yield Deviation("the norm of lm_head is missing", without_norm("lm_head.layer_norm"))
    yield Deviation("scores are not scaled", scaled(lambda d: math.sqrt(d)))
    yield Deviation("scores are scaled twice", scaled(lambda d: 1 / math.sqrt(d)))
    yield Deviation("the relative term is added after the scale", relative(lambda x, d: x * math.sqrt(d)))
    yield Deviation("the relative term is missing", relative(lambda x, _: x * 0))
    yield Deviation("relative distances have the other sign", tensors(r"distance_embedding\.weight$", lambda x: x[::-1]))
    yield Deviation("padding is attended", mask_value(0.0))
    for value in MASK_VALUES[1:]:
        yield Deviation(f"the mask adds {value:g}", mask_value(value))
    yield Deviation("the decoder is tied to the word embeddings", tied(DECODER, WORDS))
    yield Deviation("the word embeddings are the decoder", tied(WORDS, DECODER))
    for name in itertools.permutations(("query", "key", "value")):
        if name != ("query", "key", "value"):
            yield Deviation(f"query, key and value are read as {', '.join(name)}", reordered(name))
    yield Deviation("query, key and value stand side by side and are read head by head", by_head(read=True))
    yield Deviation("query, key and value stand head by head and are read side by side", by_head(read=False))
    for kind, names in kinds(setup, lambda name, x: name.endswith(".weight") and x.ndim == 2 and x.shape[0] == x.shape[1]):
        if not kind.endswith(("_embeddings.weight", "_embedding.weight", "decoder.weight")):
            yield from each(f"{kind} is transposed", names, suspects, np.transpose)
    for kind, names in kinds(setup, lambda name, x: name.endswith(".bias") and x.ndim == 1):
        yield from each(f"{kind} is missing", names, suspects, np.zeros_like)
    yield Deviation("the biases of query, key and value are missing", tensors(r"self\.(query|key|value)\.bias$", np.zeros_like))
    for kind, around in ROUNDED.items():
        yield Deviation(f"products of {kind}", ops(products(around)))
    for kind in ("bfloat16", "float16"):
        yield Deviation(f"weights of {kind}", tensors("", ROUNDED[kind]))
        yield Deviation(f"everything is {kind}", both(tensors("", ROUNDED[kind]), ops(products(ROUNDED[kind]), results(ROUNDED[kind]))))


def both(*changes: Change) -> Change:
    """Several changes as one; None where any changes nothing."""

    def change(setup: Setup) -> Setup | None:
        found: Setup | None = setup
        for one in changes:
            found = None if found is None else one(found)
        return found

    return change


# Changes of the configuration and of the inputs.


def fields(**values: Any) -> Change:
    def change(setup: Setup) -> Setup | None:
        if all(getattr(setup.config, name) == value for name, value in values.items()):
            return None
        return setup._replace(config=replace(setup.config, **values))

    return change


def positions(first: int, padding_counts: bool) -> Change:
    def change(setup: Setup) -> Setup | None:
        mask = setup.inputs["attention_mask"]
        if setup.config.position_embedding_type != "absolute":
            return None
        index = np.broadcast_to(np.arange(mask.shape[1]), mask.shape) if padding_counts else np.cumsum(mask, 1) - 1
        found = np.where(mask == 1, index + first, min(setup.config.pad_token_id or 0, first))
        if found.max() >= setup.config.max_position_embeddings:
            return None
        return setup._replace(inputs={**setup.inputs, "position_ids": found})

    return change


def token(from_: str, to: str) -> Change:
    def change(setup: Setup) -> Setup | None:
        (old, new), ids = (setup.tokens[name] for name in (from_, to)), setup.inputs["input_ids"]
        if old is None or new is None or old == new or not (ids == old).any():
            return None
        return setup._replace(inputs={**setup.inputs, "input_ids": np.where(ids == old, new, ids)})

    return change


def types_of_one(setup: Setup) -> Setup | None:
    if setup.config.type_vocab_size < 2:
        return None
    return setup._replace(inputs={**setup.inputs, "token_type_ids": np.ones_like(setup.inputs["input_ids"])})


# Changes of the weights.


def tensors(pattern: str, function: Callable[[Array], Array]) -> Change:
    def change(setup: Setup) -> Setup | None:
        found = {name: function(x) for name, x in setup.tensors.items() if re.search(pattern, name)}
        return setup._replace(tensors={**setup.tensors, **found}) if found else None

    return change


def zeroed(name: str) -> Change:
    return tensors(f"^{re.escape(name)}$", np.zeros_like)


def tied(name: str, to: str) -> Change:
    def change(setup: Setup) -> Setup | None:
        held = setup.tensors
        if name not in held or np.array_equal(held[name], held[to]):
            return None
        return setup._replace(tensors={**held, name: held[to]})

    return change


def reordered(order: Sequence[str]) -> Change:
    def change(setup: Setup) -> Setup | None:
        found = dict(setup.tensors)
        for prefix, leaf in _attentions(setup):
            for name, other in zip(("query", "key", "value"), order, strict=True):
                found[f"{prefix}{name}.{leaf}"] = setup.tensors[f"{prefix}{other}.{leaf}"]
        return setup._replace(tensors=found)

    return change


def by_head(read: bool) -> Change:
    """The joined weight (3, heads, d, ...) taken for (heads, 3, d, ...), or the other way around."""

    def change(setup: Setup) -> Setup | None:
        found, d = dict(setup.tensors), setup.config.head_size
        for prefix, leaf in _attentions(setup):
            names = [f"{prefix}{name}.{leaf}" for name in ("query", "key", "value")]
            whole = np.concatenate([setup.tensors[name] for name in names])
            heads = len(whole) // (3 * d)
            shape = (heads, 3, d) if read else (3, heads, d)
            whole = whole.reshape(*shape, *whole.shape[1:]).swapaxes(0, 1).reshape(whole.shape)
            found |= dict(zip(names, np.split(whole, 3), strict=True))
        return setup._replace(tensors=found)

    return change


def _attentions(setup: Setup) -> list[tuple[str, str]]:
    found = (re.fullmatch(r"(.*\.attention\.self\.)query\.(weight|bias)", name) for name in setup.tensors)
    return [(match[1], match[2]) for match in found if match]


def kinds(setup: Setup, chosen: Callable[[str, Array], bool]) -> list[tuple[str, list[str]]]:
    """The tensors that are chosen, those of all layers together, by their name within one."""
    found: dict[str, list[str]] = {}
    for name, x in setup.tensors.items():
        if chosen(name, x):
            found.setdefault(LAYER.sub("", name), []).append(name)
    return list(found.items())


def each(told: str, names: list[str], suspects: set[str], function: Callable[[Array], Array]) -> Iterator[Deviation]:
    """A row that changes all these tensors, and one for each that is a suspect's, where there are several."""
    several = len(names) > 1
    yield Deviation(told + (" in all layers" if several else ""), tensors("|".join(f"^{re.escape(x)}$" for x in names), function))
    for name in names if several else ():
        match = LAYER.match(name)
        if match and any(suspect.startswith(match[0]) for suspect in suspects):
            yield Deviation(f"{told} in layer {match[2]}", tensors(f"^{re.escape(name)}$", function))


# Changes of ops: backends around a backend.


def ops(*arounds: Around) -> Change:
    return lambda setup: setup._replace(ops=(*setup.ops, *arounds))


def head_activation(name: str) -> Change:
    """The activation of lm_head, which is GELU whatever the configuration says; hidden_act becomes a function, to tell them apart."""

    def around(inner: Ops, where: Callable[[Any], str]) -> dict[str, Callable[..., Any]]:
        def activation(x: Array, given: Any) -> Array:
            return inner.activation(x, name if given == "gelu" else given)

        def linear(x: Array, weight: Array, bias: Array, given: Any = None, residual: Any = None) -> Array:
            return inner.linear(x, weight, bias, name if isinstance(given, str) and given == "gelu" else given, residual)

        return {"activation": activation, "linear": linear}

    def change(setup: Setup) -> Setup | None:
        if not any(tensor.startswith("lm_head.dense") for tensor in setup.tensors):
            return None
        act = setup.config.hidden_act
        own = act if callable(act) else lambda x: load_backend("numpy").activation(x, act)
        return setup._replace(config=replace(setup.config, hidden_act=own), ops=(*setup.ops, around))

    return change


def without_norm(name: str) -> Change:
    def around(inner: Ops, where: Callable[[Any], str]) -> dict[str, Callable[..., Any]]:
        def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
            return x if where(weight) == name else inner.layer_norm(x, weight, bias, eps)

        return {"layer_norm": layer_norm}

    return lambda setup: ops(around)(setup) if f"{name}.weight" in setup.tensors else None


def scaled(factor: Callable[[int], float]) -> Change:
    def around(inner: Ops, where: Callable[[Any], str]) -> dict[str, Callable[..., Any]]:  # noqa: ARG001
        def attention(q: Array, k: Array, v: Array, sequences: Any, heads: int, *more: Any) -> Any:
            return inner.attention(q * factor(q.shape[1] // heads), k, v, sequences, heads, *more)

        return {"attention": attention}

    return ops(around)


def relative(function: Callable[[Array, int], Array]) -> Change:
    def around(inner: Ops, where: Callable[[Any], str]) -> dict[str, Callable[..., Any]]:  # noqa: ARG001
        return {"relative": lambda q, k, vectors: function(inner.relative(q, k, vectors), q.shape[-1])}

    return lambda setup: None if setup.config.position_embedding_type == "absolute" else ops(around)(setup)


def mask_value(value: float) -> Change:
    """Padding is computed, and what the mask adds to its scores is `value`."""

    def around(inner: Ops, where: Callable[[Any], str]) -> dict[str, Callable[..., Any]]:  # noqa: ARG001
        def asarray(x: Any) -> Array:
            x = inner.asarray(x)
            return np.where(x == np.finfo(x.dtype).min, value, x) if x.ndim == 4 and x.dtype.kind == "f" else x

        return {"asarray": asarray}

    def change(setup: Setup) -> Setup | None:
        if setup.config.is_decoder or setup.inputs["attention_mask"].all():
            return None
        return setup._replace(padding=True, ops=(*setup.ops, around))

    return change


def products(rounded: Callable[[Array], Array]) -> Around:
    """What is multiplied is rounded; the sums are not."""

    def around(inner: Ops, where: Callable[[Any], str]) -> dict[str, Callable[..., Any]]:  # noqa: ARG001
        def linear(x: Array, weight: Array, *more: Any, **named: Any) -> Array:
            return inner.linear(rounded(x), rounded(weight), *more, **named)

        def attention(q: Array, k: Array, v: Array, sequences: Any, heads: int, *more: Any) -> Any:
            *more, probs = more if len(more) == 3 else (*more, False)
            _, found = inner.attention(rounded(q), rounded(k), rounded(v), sequences, heads, *more, True)
            context = tap.weighed([rounded(p) for p in found], rounded(v), sequences)
            return context, found if probs else None

        return {"linear": linear, "attention": attention}

    return around


def results(rounded: Callable[[Array], Array]) -> Around:
    """What each op gives is rounded."""

    def around(inner: Ops, where: Callable[[Any], str]) -> dict[str, Callable[..., Any]]:  # noqa: ARG001
        def linear(x: Array, weight: Array, bias: Array, activation: Any = None, residual: Any = None) -> Array:
            y = rounded(inner.linear(x, weight, bias))
            y = y if activation is None else rounded(inner.activation(y, activation))
            return y if residual is None else rounded(y + residual)

        def attention(*given: Any) -> Any:
            context, probabilities = inner.attention(*given)
            return rounded(context), probabilities and [rounded(p) for p in probabilities]

        return {
            "embed": lambda *given: rounded(inner.embed(*given)),
            "layer_norm": lambda *given, **named: rounded(inner.layer_norm(*given, **named)),
            "linear": linear,
            "activation": lambda x, name: rounded(inner.activation(x, name)),
            "attention": attention,
        }

    return around


def to_bits(x: Array, bits: int) -> Array:
    """Numbers with so many bits of significand, of any exponent; halves away from 0, as cvt.rna rounds to TF32."""
    significand, exponent = np.frexp(x)
    found: Array = np.ldexp(np.copysign(np.floor(np.abs(significand) * 2.0**bits + 0.5), x), exponent - bits)
    return found


ROUNDED: dict[str, Callable[[Array], Array]] = {  # of what others hold in float32
    "bfloat16": lambda x: x.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64),
    "float16": lambda x: x.astype(np.float32).astype(np.float16).astype(np.float64),
    "TF32": lambda x: to_bits(x.astype(np.float32).astype(np.float64), 11),
}


# Where the norms stand.


def placed(after: bool, final: bool) -> Change:
    """The blocks of the other kind, by the norms that there are: the same weights under the other kind's names."""
    before, behind = ("attention.LayerNorm", "intermediate.LayerNorm"), ("attention.output.LayerNorm", "output.LayerNorm")
    old, new = (before, behind) if after else (behind, before)

    def change(setup: Setup) -> Setup | None:
        family = FAMILIES[setup.config.model_type]
        if family.pre_norm != after:
            return None
        moved: dict[str, Array] = {}
        for name, x in setup.tensors.items():
            match = LAYER.match(name)
            own = name[match.end() :].rpartition(".") if match else ("", "", "")
            moved[f"{match[0]}{new[old.index(own[0])]}.{own[2]}" if match and own[0] in old else name] = x
        if not final:
            moved = {name: x for name, x in moved.items() if not name.startswith("LayerNorm.")}
        config = replace(setup.config, model_type="roberta" if after else "roberta-prelayernorm")

        def named(name: str) -> str | None:
            match = LAYER.match(name)
            own = name[match.end() :] if match else ""
            if own in ("attention.output", "attention", "output"):
                return None  # a sum in one of the two, a norm in the other
            if match and own in new:
                name = f"{match[0]}{old[new.index(own)]}"
            return setup.named(module_name(name, family))

        return setup._replace(config=config, tensors=moved, named=named)

    return change


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
        inner = SimpleNamespace(**vars(inner) | around(inner, where))
    kind, own = type(model), {
        "ops": property(lambda self: tap.around(self, inner)),
        "model_type": setup.config.model_type,
        "_check_tensors": classmethod(lambda *_: None),
    }  # fmt: skip
    made = type(kind.__name__, (kind,), own)(setup.config, setup.tensors, backend="numpy", dtype="float64")
    return made


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
def explain(reference: TraceFile, candidate: TraceFile, model: Any, tokens: Mapping[str, int | None] | None = None) -> Explanation:
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
    suspects = _suspects(exact, runs, before, floors)
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
            raise Error(f"{candidate.where} has texts of shape {right.shape}, {reference.where} of {left.shape}: run the same texts")
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


def _suspects(model: Any, runs: list[Run], before: list[dict[str, float]], floors: list[dict[str, float]]) -> set[str]:
    """The ops that differ by more than rounding, and those before them that the candidate did not record."""
    found: set[str] = set()
    for run, off, floor in zip(runs, before, floors, strict=True):
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
