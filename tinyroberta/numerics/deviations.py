"""Known deviations, a row each: a name, and what it changes of a Setup, of which our own model is then run.

That is a field of the configuration, the inputs, the weights, or an op of a backend around the backend; forward.py is the same
for all. One more deviation is one more row of `deviations`.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from .. import tap
from ..backends import Array, load_backend
from ..weights.names import DECODER, FAMILIES, WORDS, module_name

MASK, UNKNOWN = "mask", "unk"  # of Setup.tokens
ACTIVATIONS = ("gelu", "gelu_new", "quick_gelu")
EPS = (1e-5, 1e-12, 1e-6)
MASK_VALUES = (0.0, -1.0, -10.0, -100.0, -1e4)
LAYER = re.compile(r"(.*\.layer\.)(\d+)\.")

Ops = Any
Where = Callable[[Any], str]  # the name of a weight that an op is given
Around = Callable[[Ops, Where], dict[str, Callable[..., Any]]]  # what stands in the place of a backend's ops


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


# The table.


def deviations(setup: Setup, suspects: set[str]) -> Iterator[Deviation]:
    """The table's rows; of one layer alone only in those that hold a suspect, a name of model.tap_names()."""
    for name in ACTIVATIONS:
        yield Deviation(f"hidden_act is {name}", fields(hidden_act=name))
    for name in ACTIVATIONS[1:]:
        yield Deviation(f"the activation of lm_head is {name}", head_activation(name))
        yield Deviation(
            f"hidden_act and the activation of lm_head are {name}", both(fields(hidden_act=name), head_activation(name))
        )
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
    for order in list(itertools.permutations(("query", "key", "value")))[1:]:
        yield Deviation(f"query, key and value are read as {', '.join(order)}", reordered(order))
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
        yield Deviation(
            f"everything is {kind}", both(tensors("", ROUNDED[kind]), ops(products(ROUNDED[kind]), results(ROUNDED[kind])))
        )


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
        if not {name, to} <= held.keys() or np.array_equal(held[name], held[to]):
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
    """The activation of lm_head, which is always GELU; hidden_act becomes a function, to be told from it."""

    def around(inner: Ops, _: Where) -> dict[str, Callable[..., Any]]:
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
    def around(inner: Ops, where: Where) -> dict[str, Callable[..., Any]]:
        def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
            return x if where(weight) == name else inner.layer_norm(x, weight, bias, eps)

        return {"layer_norm": layer_norm}

    return lambda setup: ops(around)(setup) if f"{name}.weight" in setup.tensors else None


def scaled(factor: Callable[[int], float]) -> Change:
    def around(inner: Ops, _: Where) -> dict[str, Callable[..., Any]]:
        def attention(q: Array, k: Array, v: Array, sequences: Any, heads: int, *more: Any) -> Any:
            return inner.attention(q * factor(q.shape[1] // heads), k, v, sequences, heads, *more)

        return {"attention": attention}

    return ops(around)


def relative(function: Callable[[Array, int], Array]) -> Change:
    def around(inner: Ops, _: Where) -> dict[str, Callable[..., Any]]:
        return {"relative": lambda q, k, vectors: function(inner.relative(q, k, vectors), q.shape[-1])}

    return lambda setup: None if setup.config.position_embedding_type == "absolute" else ops(around)(setup)


def mask_value(value: float) -> Change:
    """Padding is computed, and what the mask adds to its scores is `value`."""

    def around(inner: Ops, _: Where) -> dict[str, Callable[..., Any]]:
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

    def around(inner: Ops, _: Where) -> dict[str, Callable[..., Any]]:
        def linear(x: Array, weight: Array, *more: Any, **named: Any) -> Array:
            return inner.linear(rounded(x), rounded(weight), *more, **named)

        def attention(q: Array, k: Array, v: Array, sequences: Any, heads: int, *more: Any) -> Any:
            q, k, v = rounded(q), rounded(k), rounded(v)
            _, found = inner.attention(q, k, v, sequences, heads, *more[:2], True)
            return tap.weighed([rounded(p) for p in found], v, sequences), found

        return {"linear": linear, "attention": attention}

    return around


def results(rounded: Callable[[Array], Array]) -> Around:
    """What each op gives is rounded."""

    def around(inner: Ops, _: Where) -> dict[str, Callable[..., Any]]:
        def in_steps(x: Array, weight: Array, bias: Array, activation: Any, residual: Any) -> Any:
            def finish(y: Array) -> Array:
                y = y if activation is None else rounded(inner.activation(y, activation))
                return y if residual is None else rounded(y + residual)

            return rounded(inner.linear(x, weight, bias)), finish

        def linear(x: Array, weight: Array, bias: Array, activation: Any = None, residual: Any = None) -> Array:
            y, finish = in_steps(x, weight, bias, activation, residual)
            return finish(y)

        def attention(*given: Any) -> Any:
            context, probabilities = inner.attention(*given)
            return rounded(context), probabilities and [rounded(p) for p in probabilities]

        def embed(*given: Any) -> Array:
            return rounded(inner.embed(*given))

        def layer_norm(*given: Any, **named: Any) -> Array:
            return rounded(inner.layer_norm(*given, **named))

        return {"embed": embed, "layer_norm": layer_norm, "linear": linear, "in_steps": in_steps, "attention": attention}

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
