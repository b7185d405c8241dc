"""Whether someone else's forward pass is the model's: tiny checkpoints of every option, masks and lengths, answer by answer.

What is tested is one function, given a folder with config.json and model.safetensors, that returns a function of ids and mask:

    def load(folder):                                                                      # in mine.py
        kind = transformers.AutoConfig.from_pretrained(folder).architectures[0]
        model = getattr(transformers, kind).from_pretrained(folder).eval()
        return lambda ids, mask: model(torch.tensor(ids), torch.tensor(mask))[0].detach()   # ids, mask: NumPy, int64, (B, S)

    tinyroberta conformance mine:load

What that returns is hidden states (B, S, hidden_size), which are the last ones, or logits (B, S, vocab_size): the last axis tells
them apart. They are held to our float64 at the positions that are attended. The bound is what rounding of their type can do: four
times as far as our result moves when all that passes is moved at random by eps sqrt(K), K the longest sum (Monte Carlo, Parker
1997).
"""

import contextlib
import importlib
import math
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ..backends import Array
from ..config import config_from
from ..errors import Error, ieee
from ..family import KIN
from ..inputs import as_array
from ..traces import Recorded
from . import transplant

SAFETY, DRAWS = 4.0, 3
EPS = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-9}
SIZES = {
    "model_type": "roberta-prelayernorm", "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 40, "max_position_embeddings": 36, "type_vocab_size": 2, "pad_token_id": 1, "layer_norm_eps": 1e-12,
}  # fmt: skip


class Option(NamedTuple):
    """A row of the table: a name, the fields that differ, the class's head, how its numbers are stored."""

    name: str
    fields: Mapping[str, Any]
    head: str = "ForMaskedLM"
    stored: str = "float32"


def _fields(name: str, value: Any) -> Option:
    return Option(f"{name} {value}", {name: value})


PLAIN = Option("as it is", {})
OPTIONS = (
    PLAIN,
    *(_fields("hidden_act", name) for name in ("gelu_new", "quick_gelu", "relu", "silu")),
    *(_fields("layer_norm_eps", eps) for eps in (1e-5, 1e-2)),
    *(_fields("position_embedding_type", name) for name in ("relative_key", "relative_key_query")),
    *(_fields("pad_token_id", id_) for id_ in (0, 5)),
    Option("tie_word_embeddings false", {"tie_word_embeddings": False}),
    _fields("type_vocab_size", 1),
    _fields("num_attention_heads", 1),
    _fields("num_hidden_layers", 1),
    _fields("intermediate_size", 37),
    _fields("max_position_embeddings", 12),
    _fields("chunk_size_feed_forward", 1),
    Option("pruned_heads", {"pruned_heads": {0: [1], 1: [0, 3]}}),
    Option("is_decoder true", {"is_decoder": True, "use_cache": False}, "ForCausalLM"),
    Option("no head", {}, "Model"),
    Option("weights stored as bfloat16", {}, stored="bfloat16"),
    Option("weights stored as float16", {}, stored="float16"),
    *(_fields("model_type", name) for name in KIN if name != SIZES["model_type"]),
)
MASKS: dict[str, Callable[[Array], Array]] = {  # of positions (3, S) -> 0 and 1: texts of S tokens, fewer and one
    "no padding": np.ones_like,
    "padding on the right": lambda at: (at < _lengths(at)).astype(int),
    "padding on the left": lambda at: (at >= at.shape[1] - _lengths(at)).astype(int),
    "padding inside": lambda at: ((at % 3 != 1) | (at == 0) | (np.arange(3)[:, None] == 0)).astype(int),
}
LENGTHS = (1, 2, 9, 0)  # 0: the longest that the model reads


def _lengths(at: Array) -> Array:
    S = at.shape[1]
    return np.array([S, max(1, S // 2), 1])[:, None]


@ieee
def check(callable_: Callable[[str], Callable[[Array, Array], Any]], dtype: str | None = None) -> dict[str, Any]:
    """Hold a function to the model, option by option; dtype: what it computes in, where its result's type does not say.

                case = {"option": option.name, "mask": mask, "length": length, "error": None, "bound": None}
    "mask", "length", "error", "bound", "ok", "told"}]}. What it raises is told in its case.
    """
    cases: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        for number, option in enumerate(OPTIONS):
            model = made(option)
            folder = Path(work) / str(number)
            model.save_pretrained(folder)
            forward, told = _tried(lambda folder=folder: callable_(str(folder)))  # type: ignore[misc]
            if told is None and not callable(forward):
                told = f"load(folder) gave a {type(forward).__name__}; it must give a function of input_ids and attention_mask"
            for mask, length, given in inputs(option, model.config):
                case = {
                    "option": option.name,
                    "mask": mask,
                    "length": length,
                    "error": None,
                    "bound": None,
                    "ok": False,
                    "told": told,
                }
                case |= {"ok": False, "told": told}
                cases.append(case if told else case | _case(model, forward, given, dtype))
    options = []
    for option in OPTIONS:
        mine = [case for case in cases if case["option"] == option.name]
        wrong = [case for case in mine if not case["ok"]]
        first = f"{wrong[0]['mask']}, {wrong[0]['length']} tokens: {wrong[0]['told']}" if wrong else None
        options.append({"option": option.name, "cases": len(mine), "failed": len(wrong), "first": first})
    return {"verdict": "conforms" if all(case["ok"] for case in cases) else "fails", "options": options, "cases": cases}


def made(option: Option) -> Any:
    """The model of an option, of random weights: no bias is 0 and no gain 1."""
    config = config_from({**SIZES, **option.fields})
    cls = KIN[config.model_type][option.head]
    random, tensors = np.random.default_rng(0), {}
    for name, shape in (cls.encoder_shapes(config) | cls.head_shapes(config)).items():
        x = random.standard_normal(shape)
        if len(shape) == 1:
            x = 0.3 * x + name.endswith("orm.weight")
        else:
            x *= 0.5 if "embedding" in name else shape[1] ** -0.5
        tensors[name] = x.astype(np.float32).astype(getattr(ml_dtypes, option.stored, option.stored))
    if config.tie_word_embeddings and "lm_head.decoder.weight" in tensors:
        tensors["lm_head.decoder.weight"] = tensors["embeddings.word_embeddings.weight"]
    return cls(config, tensors, backend="numpy", dtype="float64")


def inputs(option: Option, config: Any) -> Iterator[tuple[str, int, dict[str, Array]]]:
    """A mask's name, a length, and ids with that mask: all of both as the model is, of an option what pads on either side."""
    random, pad = np.random.default_rng(1), config.pad_token_id
    words = np.setdiff1d(np.arange(config.vocab_size), [pad])
    for name, mask_of in MASKS.items():
        if option.name != PLAIN.name and name == "padding inside":
            continue
        for length in LENGTHS if option.name == PLAIN.name else (9, 0)[: 2 if name == "no padding" else 1]:
            S = length or config.usable_length
            at = np.broadcast_to(np.arange(S), (3, S))
            mask = mask_of(at)
            ids = random.choice(words, (3, S))
            ids = ids if name == "padding inside" else np.where(mask == 1, ids, pad)  # inside, what is not read has a position
            yield name, S, {"input_ids": ids.astype(np.int64), "attention_mask": mask.astype(np.int64)}


def _case(model: Any, forward: Any, given: dict[str, Array], dtype: str | None) -> dict[str, Any]:
    ids, mask = given["input_ids"], given["attention_mask"]
    got, told = _tried(lambda: as_array(forward(ids.copy(), mask.copy()), "what forward gave"))
    if told is not None:
        return {"told": told}
    config, head = model.config, "lm_head.decoder" in {name.rpartition(".")[0] for name in model.tensors}
    widths = {config.hidden_size: "hidden states", **({config.vocab_size: "logits"} if head else {})}
    if got.dtype.kind not in "fV" or got.shape[:-1] != ids.shape or got.shape[-1] not in widths:
        allowed = " or ".join(f"{told} ({ids.shape[0]}, {ids.shape[1]}, {width})" for width, told in widths.items())
        return {"told": f"forward gave {got.dtype} of shape {got.shape}; it must give {allowed}"}
    kind = dtype or (got.dtype.name if got.dtype.name in EPS else "float32")
    wanted, moved = _expected(model, given, widths[got.shape[-1]], EPS[kind])
    seen = mask == 1
    got = got.astype(np.float64)[seen]
    if not np.isfinite(got).all():
        return {"told": f"{int((~np.isfinite(got)).sum())} numbers are not finite"}
    error, bound = float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted)), SAFETY * moved
    told = None if error <= bound else f"{widths[len(got[0])]} are off by {error:.1e}, of {kind} at most {bound:.1e}"
    return {"error": error, "bound": bound, "ok": told is None, "told": told}


def _expected(model: Any, given: dict[str, Array], what: str, eps: float) -> tuple[Array, float]:
    """The right answer (T, ...) at attended positions, and how far it moves, relative to its norm."""
    exact = type(model)(replace(model.config, chunk_size_feed_forward=0), model.tensors, backend="numpy", dtype="float64")
    names = exact.tap_names()
    final = [name for name in names if name in ("LayerNorm", "encoder.LayerNorm")]
    name = "lm_head.decoder" if what == "logits" else (final or [f"encoder.layer.{model.config.num_hidden_layers - 1}"])[0]
    call = Recorded("", given["input_ids"].shape, None, given)
    rows = given["attention_mask"].ravel() == 1
    wanted = transplant.ours(exact, call, {})[name][rows]
    step = eps * math.sqrt(max(model.config.intermediate_size, model.config.hidden_size))
    squares = 0.0
    for seed in range(DRAWS):
        moved = transplant.ours(exact, call, {}, transplant.shaken(seed, step, False))[name][rows]
        squares += float(np.square(moved - wanted).sum()) / DRAWS
    return wanted, math.sqrt(squares) / float(np.linalg.norm(wanted)) + step


def _tried(function: Callable[[], Any]) -> tuple[Any, str | None]:
    """What another's function gives, or what it raises, in a line; what it prints goes to standard error."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return function(), None
    except (Exception, SystemExit) as error:
        lines = traceback.format_exception_only(error)[-1].split()
        return None, " ".join(lines)[:300]


def find(told: str) -> Any:
    """The callable that `module:callable` names, looked for in the working directory too; raises Error where there is none."""
    module, colon, name = told.partition(":")
    if not (module and colon and name):
        raise Error(f"{told!r} names no function: give module:callable, as in mine:load for a function load in mine.py")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as python -m does
    found, why = _tried(lambda: importlib.import_module(module))
    if why is not None:
        raise Error(f"cannot import {module}: {why}")
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise Error(f"{module} has no function {name}: give module:callable, as in mine:load for a function load in mine.py")
    return found
