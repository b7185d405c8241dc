"""The tap: what passes through a model, seen and replaced, by a backend around the backend.

Each op is known by the identity of the weight that it is given, so forward.py says nothing of it and a model that is not traced
pays nothing. A name is Hugging Face's path to the module whose result it is, without the prefix of the class: `encoder.layer.3`,
`encoder.layer.3.attention.self.query`, `lm_head.decoder`. `attention.self.probs` are the probabilities, which no module gives.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from . import traces
from .backends import Activation, Array, Backend, Sequences
from .errors import Error
from .inputs import Rows, as_array
from .weights.names import FAMILIES, module_name

Replace = Callable[[str, Any], Any]
PROJECTION = "enc_to_dec_proj"  # of a pair, which the encoder's backend computes


@dataclass
class Call:
    """What one call of an encoder or decoder, and of its head, let pass: arrays by name, and which row is which token."""

    part: str  # "encoder." or "decoder." of a pair, "" of another model
    rows: Rows | None  # None for what follows no call: a projection of encoder_outputs that were given
    arrays: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] | None = None  # (B, S) ids, 0/1 mask, positions and token types; None where those do not say the call


@dataclass
class Trace:
    """The calls that ran inside `trace`, in order; trace[name] is the array of the last that has it."""

    names: tuple[str, ...]  # that are recorded
    calls: list[Call] = field(default_factory=list)
    model: Any = None

    def save(self, path: str | Path) -> None:
        """Write the calls and what ran them as a safetensors file, as traces.py says; raises Error where it cannot be written."""
        traces.save(path, traces.of_model(self.model, self.calls))

    def __getitem__(self, name: str) -> Any:
        for call in reversed(self.calls):
            if name in call.arrays:
                return call.arrays[name]
        told = "has not passed" if name in self.names else "is not recorded"
        raise Error(f"{name} {told} in this trace: its names, and model.tap_names(), say what is")

    def __iter__(self) -> Iterator[str]:
        """The names that have passed."""
        return iter({name: None for call in self.calls for name in call.arrays})


@contextmanager
def trace(model: Any, names: str | Iterable[str] | None = None, replace: Mapping[str, Replace] | None = None) -> Iterator[Trace]:
    """Record what passes through a model, and replace some of it: `with trace(model) as t: model(ids)`; t["encoder.layer.3"].

    names: one or several of model.tap_names(), or patterns of them (`encoder.layer.*.attention`; a star stands for dots too),
    None for all, [] for none. What passes on is recorded, as read-only NumPy arrays, float32 or float64. replace: {name or
    pattern: function}; the function is given a name and its array and returns another of that shape, or None to leave it as it
    is. What equals the array given changes no bit; else all that follows reads it, rounded to what the backend hands on there.

    Arrays are packed, (T, D): a row for every token that is computed, none for padding; t.calls[-1].rows says which is whose:
    `.places` of B * S (None: all), `.sequences`, and `.unpack(array)` is (B, S, D), 0 at padding. Probabilities are (T, H, K): a
    row a query, K the longest sequence's keys, 0 past a sequence's own. A head's rows are those that it is given: (B, D) of first
    tokens, or the places of logits_to_keep. A cache's earlier keys and values do not pass again. t.calls holds a Call for every
    call of an encoder or decoder, generation's steps and a pair's two parts one by one. With chunk_size_feed_forward a function
    sees a chunk of rows at a time; what is recorded is whole.

    The outputs have the bits that they have untapped, on every backend, until something is replaced. A product before its
    activation and residual (`intermediate.dense`) is the op's own where it rounds alike in one and in two; elsewhere (cupy) it is
    computed once more beside the op, and so are cupy's probabilities. What a backend hands on in fewer bits
    is shown in those. What the backend has recorded of earlier calls, to play it again, is neither played nor lost. Only calls of
    this thread are seen.

    Raises Error where the model is none, a name is none of its, or a function gives another shape; mirrors torch's forward hooks.
    """
    parts = _parts(model)
    known = _names(parts)
    chosen = known if names is None else _chosen([names] if isinstance(names, str) else names, known, "names")
    functions: dict[str, list[Replace]] = {}
    for pattern, function in (replace or {}).items():
        if not callable(function):
            raise Error(f"replace: {pattern!r} has a {type(function).__name__}; it must be a function of a name and an array")
        for name in _chosen([pattern], known, "replace"):
            functions.setdefault(name, []).append(function)
    listener = Listener(Trace(tuple(chosen), model=model), parts, frozenset(chosen), functions)
    before = ACTIVE.set((*ACTIVE.get(), listener))
    try:
        yield listener.trace
    finally:
        ACTIVE.reset(before)


def names_of(model: Any) -> list[str]:
    """The names that a model's tap knows, in the order in which they pass."""
    return _names(_parts(model))


def _names(parts: Iterable["Part"]) -> list[str]:
    found: list[str] = []
    for part in parts:
        for point in part.points().values():
            own = [*(point.parts or (point.product,)), *point.result]
            if own[-1].endswith(".self.value"):
                attention = own[-1].removesuffix(".value")
                own += [f"{attention}.probs", attention]
            found += map(part.full, own)
    return found


def around(model: Any, backend: Backend) -> Backend:
    """A model's backend, tapped where a trace of it is under way."""
    active = ACTIVE.get()
    if not active:
        return backend
    heard = [(listener, part) for listener in active for part in listener.parts if part.model is model]
    return cast(Backend, Tapped(backend, heard)) if heard else backend


def begin(ops: Backend, ready: Any) -> None:
    """Tell who listens that a call begins (a call.Ready), which rows it has and what went in."""
    if isinstance(ops, Tapped):
        ops.begin(ready.rows, _inputs(ready))


def _inputs(ready: Any) -> dict[str, Any] | None:
    """A call's inputs, (B, S) each; None where ids and a 2-D mask of 0 and 1 are not all that it reads."""
    rows, call = ready.rows, ready.call
    told = rows.bias is None or (rows.attended is not None and np.isin(rows.bias, (0, np.finfo(rows.bias.dtype).min)).all())
    if ready.tokens.ndim > 1 or not told or call.head_mask is not None or call.source is not None:
        return None
    if call.cache is not None and call.cache.length:
        return None
    mask = np.ones(len(ready.tokens), np.int64) if rows.attended is None else rows.attended.astype(np.int64)
    packed = {"input_ids": ready.tokens, "attention_mask": mask, "token_type_ids": ready.token_types}
    packed |= {} if ready.positions is None else {"position_ids": ready.positions}
    return {name: rows._replace(shown=None).unpack(x) for name, x in packed.items()}


# Where the ops stand.


class Point(NamedTuple):
    """The names under which an op passes, known by its weight."""

    product: str  # of its product alone, before activation and residual; of a norm its result
    result: tuple[str, ...]  # of its whole result, the innermost module first: `attention.output`, then `attention`
    parts: tuple[str, ...] = ()  # of what stands side by side in it: query, key and value
    share: Any = None  # of a norm, (D,): what the backend has taken from its gains and given to the weights that read it


@dataclass
class Part:
    """A model that is traced, alone or in a pair; how its names begin; the projection that its backend computes too."""

    model: Any
    prefix: str = ""
    projection: Mapping[str, Any] | None = None
    _known: tuple[Any, dict[int, Point]] | None = None  # of these weights

    def full(self, name: str) -> str:
        return name if name == PROJECTION else self.prefix + name

    def points(self) -> dict[int, Point]:
        """The points by the identity of their weights, in the order of the model's tree."""
        weights = self.model.weights
        if self._known is None or self._known[0] is not weights:
            found = {id(weight): point for weight, point in _points(self.model, weights, ())}
            if self.projection is not None:
                found[id(self.projection["weight"])] = Point(PROJECTION, ())
            self._known = weights, found
        return self._known[1]


def _parts(model: Any) -> tuple[Part, ...]:
    if hasattr(model, "encoder") and hasattr(model, "decoder"):
        return Part(model.encoder, "encoder.", model._projection), Part(model.decoder, "decoder.")
    if not (hasattr(model, "weights") and hasattr(model, "settings")):
        raise Error(f"trace reads a model of this library, and was given a {type(model).__name__}")
    return (Part(model),)


def _chosen(patterns: Iterable[str], known: list[str], what: str) -> list[str]:
    """The known names that any of the patterns names."""
    found: set[str] = set()
    for pattern in patterns:
        matching = {name for name in known if fnmatchcase(name, pattern)} if isinstance(pattern, str) else set()
        if not matching:
            raise Error(f"{what}: {pattern!r} is no name, nor a pattern of names, of this model; model.tap_names() lists them")
        found |= matching
    return [name for name in known if name in found]


def _points(model: Any, tree: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[Any, Point]]:
    """The prepared weights of a tree with their points."""
    for name, branch in tree.items():
        if "weight" not in branch:
            yield from _points(model, branch, (*path, name))
            continue
        point = _point(path, name, tree, lambda name: module_name(name, FAMILIES[model.model_type]))
        if point is not None:
            norm = name in ("LayerNorm", "layer_norm")
            yield branch["weight"], point._replace(share=_share(model, (*path, name), branch)) if norm else point


# Sublayers and heads whose last op has their own name too.
LAST = (("output", "dense"), ("output", "LayerNorm"), ("intermediate", "dense"), ("pooler", "dense"), ("lm_head", "decoder"),
        ("classifier", "out_proj"), ("embeddings", "LayerNorm"))  # fmt: skip


def _point(path: tuple[str, ...], leaf: str, beside: Mapping[str, Any], named: Callable[[str], str]) -> Point | None:
    """The point of the weight `leaf` on a path; `beside`: what the tree holds there. None for a table that another's op reads."""
    above, name = ".".join(path), named(".".join((*path, leaf)))
    if leaf == "word_embeddings" and "LayerNorm" not in beside:
        return Point(above, ())
    if leaf.endswith(("_embeddings", "_embedding")):
        return None
    if leaf == "qkv":
        return Point(name, (), tuple(f"{above}.{part}" for part in ("query", "key", "value")))
    if (*path[-1:], leaf) not in LAST or (leaf == "dense" and path[-1] == "output" and "LayerNorm" in beside):
        return Point(name, ())
    return Point(name, (above, above.removesuffix(".output")) if path[-1] == "output" else (above,))


def _share(model: Any, path: tuple[str, ...], prepared: Mapping[str, Any]) -> Any:
    """How many times smaller a backend's gain and shift of a norm are than the checkpoint's: powers of two; None if all are 1."""
    share: Any = np.ones(len(prepared["bias"]))
    for own in ("bias", "weight"):
        given, held = model.tensors[".".join((*path, own))], model.ops.to_numpy(prepared[own])
        if given is held or np.array_equal(given, held):
            continue
        given, held = (np.asarray(x, np.float64) for x in (given, held))
        told = (given != 0) & (held != 0) & np.isfinite(given) & np.isfinite(held)
        ratio = np.where(told, given, 1) / np.where(told, held, 1)
        share = np.where(told, 2.0 ** np.rint(np.log2(np.abs(ratio))), share)
    return None if (share == 1).all() else share.astype(np.float32)


# The backend around a backend.


class Listener(NamedTuple):
    """A trace under way: what it records and what it replaces, by full names."""

    trace: Trace
    parts: tuple[Part, ...]
    names: frozenset[str]
    functions: dict[str, list[Replace]]


ACTIVE: ContextVar[tuple[Listener, ...]] = ContextVar("ACTIVE", default=())


class Tapped:
    """The ops of a backend, heard by the traces of one model; one for each call, since it remembers where in it it is."""

    def __init__(self, ops: Backend, heard: list[tuple[Listener, Part]]) -> None:
        self.ops, self.heard = ops, heard
        self.points = heard[0][1].points if len(heard) == 1 else self._all_points
        self.calls: dict[tuple[int, str], Call] = {}  # where a trace's name was recorded
        self.own = ""  # the attention whose queries were computed last

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ops, name)

    def _all_points(self) -> dict[int, Point]:
        return {weight: point for _, part in self.heard for weight, point in part.points().items()}

    def begin(self, rows: Rows, inputs: dict[str, Any] | None) -> None:
        for listener, part in self.heard:
            listener.trace.calls.append(Call(part.prefix, rows, inputs=inputs))

    def recorded(
        self,
        compute: Callable[..., Array],
        weights: Any,  # noqa: ARG002
        head_size: int,  # noqa: ARG002
        fixed: tuple[Any, ...],  # noqa: ARG002
    ) -> Callable[..., Array]:
        return compute

    def embed(
        self, ids: Array, positions: Array | None, token_types: Array, word: Array, position: Array, token_type: Array
    ) -> Array:
        x = self.ops.embed(ids, positions, token_types, word, position, token_type)
        point = self.points().get(id(word))
        return x if point is None else self._pass((point.product,), x)

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        y, point = self.ops.layer_norm(x, weight, bias, eps), self.points().get(id(weight))
        return y if point is None else self._pass((point.product, *point.result), y, len(bias), point.share)

    def linear(
        self, x: Array, weight: Array, bias: Array, activation: Activation | None = None, residual: Array | None = None
    ) -> Array:
        ops, point = self.ops, self.points().get(id(weight))
        if point is None:
            return ops.linear(x, weight, bias, activation, residual)
        if point.parts or point.product.endswith(".self.query"):
            self.own = (*point.parts, point.product)[0].rpartition(".")[0]
        if point.parts:
            return self._pass_parts(point.parts, ops.linear(x, weight, bias))
        if activation is None and residual is None:
            return self._pass((point.product, *point.result), ops.linear(x, weight, bias))
        if not self._wanted(point.product):
            return self._pass(point.result, ops.linear(x, weight, bias, activation, residual))
        steps = ops.in_steps(x, weight, bias, activation, residual)
        if steps is not None:
            product, finish = steps
            return self._pass(point.result, finish(self._pass((point.product,), product)))
        product = ops.linear(x, weight, bias)
        y = self._pass((point.product,), product)
        if y is product:
            y = ops.linear(x, weight, bias, activation, residual)
        else:
            y = y if activation is None else ops.activation(y, activation)
            y = y if residual is None else y + residual
        return self._pass(point.result, y)

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
    ) -> tuple[Array, list[Array] | None]:
        given = (q, k, v, sequences, heads, bias, head_mask)
        wanted = self._wanted(f"{self.own}.probs")
        context, found = self.ops.attention(*given, probs or (wanted and self.ops.keeps_alike()))
        kept = found if probs else None
        if wanted:
            found = self.ops.attention(*given, True)[1] if found is None else found
            assert found is not None
            shown = _packed([self.ops.to_numpy(p) for p in found], sequences, own=not probs)
            replaced = self._hear(f"{self.own}.probs", shown)
            if replaced is not None:
                own = _unpacked(replaced, found)
                context = self._back(_weighed(own, self._shown(v), sequences), context)
                kept = kept and [self.ops.asarray(p) for p in own]
        return self._pass((self.own,), context), kept

    def _wanted(self, *names: str) -> bool:
        return any(
            (full := part.full(name)) in listener.names or full in listener.functions
            for listener, part in self.heard
            for name in names
        )

    def _pass(self, names: tuple[str, ...], flow: Array, width: int | None = None, share: Any = None) -> Array:
        """What passes on of what an op gave, known by these names one after another: itself, unless a function replaces it."""
        if not self._wanted(*names):
            return flow
        shown, replaced = self._shown(flow, width), None
        shown = shown if share is None else shown * share
        for name in names:
            given = self._hear(name, shown)
            shown, replaced = (shown, replaced) if given is None else (given, given)
        return flow if replaced is None else self._back(replaced if share is None else replaced / share, flow)

    def _pass_parts(self, names: tuple[str, ...], flow: Array) -> Array:
        """The same, of what stands side by side."""
        if not self._wanted(*names):
            return flow
        shown = [_copied(part) for part in np.split(self.ops.to_numpy(flow), len(names), 1)]
        replaced = [self._hear(name, part) for name, part in zip(names, shown, strict=True)]
        if all(given is None for given in replaced):
            return flow
        return self._back(np.hstack([old if new is None else new for old, new in zip(shown, replaced, strict=True)]), flow)

    def _hear(self, name: str, shown: Any) -> Any | None:
        """Let everyone who listens have an array; what replaces it, or None."""
        replaced = None
        for listener, part in self.heard:
            full = part.full(name)
            for function in listener.functions.get(full, ()):
                given = function(full, shown.copy())
                if given is not None and not np.array_equal(given := _checked(given, shown, full), shown, equal_nan=True):
                    shown = replaced = given
            if full in listener.names:
                self._record(listener.trace, part.prefix, full, shown)
        return replaced

    def _record(self, trace: Trace, part: str, name: str, shown: Any) -> None:
        """Add an array to the part's last call, chunks of one to each other."""
        mine = self.calls.get((id(trace), name))
        if mine is not None:
            shown = np.concatenate([mine.arrays[name], shown])
        else:
            mine = next((call for call in reversed(trace.calls) if call.part == part), None)
            if mine is None or name in mine.arrays:
                trace.calls.append(mine := Call(part, None))
            self.calls[id(trace), name] = mine
        shown.flags.writeable = False
        mine.arrays[name] = shown

    def _shown(self, flow: Array, width: int | None = None) -> Any:
        """An array that is nobody else's, of so many columns; what was no NumPy array has become one of its own."""
        shown = self.ops.to_numpy(flow)
        whole = not isinstance(flow, np.ndarray) and width in (None, shown.shape[1]) and shown.dtype.itemsize >= 4
        return shown if whole else _copied(shown[:, :width])

    def _back(self, array: Any, flow: Array) -> Array:
        """An array as the op would have given it, in fewer bits where those hold its numbers."""
        y, dtype = self.ops.asarray(array), getattr(flow, "dtype", None)
        if dtype is None or dtype == y.dtype or (dtype == np.float16 and np.abs(array).max(initial=0) > np.finfo(dtype).max):
            return y
        return y.astype(dtype)


def _checked(given: Any, shown: Any, name: str) -> Any:
    """What a function gave, as an array of its own of the old one's shape and type; raises Error on another shape."""
    array = as_array(given, f"what replaces {name}")
    if array.shape != shown.shape or array.dtype.kind not in "biufV":
        told = f"an array of {array.dtype} and shape {array.shape}"
        raise Error(f"replace: the function for {name} gave {told}; it must be numbers of shape {shown.shape}, or None")
    return array.astype(shown.dtype)


def _copied(x: Any) -> Any:
    """A copy, in float32 of what has fewer bits."""
    return np.array(x, np.float32 if x.dtype.itemsize < 4 else x.dtype, order="C")


def _packed(probabilities: list[Any], sequences: Sequences, own: bool = False) -> Any:  # B x (H, Sq, Sk) -> (T, H, K)
    """Probabilities by rows; `own` says that nobody else holds them, so that those of one text need no copy."""
    if own and len(probabilities) == 1:
        return probabilities[0].transpose(1, 0, 2)
    heads, longest = len(probabilities[0]), max(p.shape[2] for p in probabilities)
    packed = np.zeros((int(sequences.query_start[-1]), heads, longest), probabilities[0].dtype)
    for p, start in zip(probabilities, sequences.query_start[:-1], strict=True):
        packed[start : start + p.shape[1], :, : p.shape[2]] = p.transpose(1, 0, 2)
    return packed


def _unpacked(packed: Any, like: list[Any]) -> list[Any]:  # (T, H, K) -> B x (H, Sq, Sk)
    starts = np.cumsum([p.shape[1] for p in like])[:-1]
    return [x[:, :, : p.shape[2]].transpose(1, 0, 2) for x, p in zip(np.split(packed, starts), like, strict=True)]


def _weighed(probabilities: list[Any], v: Any, sequences: Sequences) -> Any:  # B x (H, Sq, Sk), (Tk, D) or a cache -> (Tq, D)
    """Attention's means of values, of given probabilities."""
    rows = []
    for b, (p, key) in enumerate(zip(probabilities, sequences.key_start, strict=True)):
        H, Sq, Sk = p.shape
        own = v[b, :, key : key + Sk] if v.ndim == 4 else v[key : key + Sk].reshape(Sk, H, -1).transpose(1, 0, 2)
        rows.append((p @ own).transpose(1, 0, 2).reshape(Sq, -1))
    return np.concatenate(rows)
