"""Files of traces: what passed through a model, by name, with all that it takes to run it again.

A trace is one safetensors file. Its tensors are the arrays that passed, under Hugging Face's paths of the modules whose results
they are, without the class's prefix: `embeddings`, `encoder.layer.3.attention.self.query`, `lm_head.decoder`; `probs` beside
`attention.self` are its probabilities. Those of a second call of the model (a step of generation, the other part of a pair) are
`1/NAME`, of a third `2/NAME`. They are float64, float32, float16 or bfloat16.

Rows are packed: text by text, its attended tokens in order, and behind them its position 0 where that is padding, since heads
read it. So an array is (T, ...); probabilities are (T, H, K), a row a query, its text's attended tokens the keys, then 0; a head
that reads one row a text gives (B, ...). `places` says which row is which of the B * S positions. Where padding was computed too,
or a mask is no 2-D one of 0 and 1, `places` is null: all B * S positions are rows, in order.

The file's metadata holds a JSON object as a string, under "tinyroberta.trace":

    schema     1: a reader refuses a greater one
    program    what wrote it, with its version
    model      the path of the checkpoint, or null
    class      the class of the model, as transformers names it
    config     its configuration, as in config.json
    weights    {name in transformers, without the class's prefix: SHA-256 of the numbers as little-endian float64, in hex}: the
               same hash in whichever type a number is stored
    backend    what computed: "numpy", "cpu", "cupy", "torch"
    dtype      of what was computed: "float64", "float32", "float16", "bfloat16"
    precision  of products: "highest", "high" (TF32 or alike), "medium" (bf16)
    threads    how many were asked for, or null; reproducible: true or false; versions: {program: version}
    calls      [{"part": "", or "encoder." and "decoder." of a pair,
                 "shape": [B, S], "places": [T] or null, "names": [in the order in which they passed],
                 "inputs": {"input_ids": [B][S], "attention_mask": [B][S] of 0 and 1, "position_ids", "token_type_ids"} or null}]

All but schema and calls may be missing or null. A call's inputs are null where ids and such a mask do not say it again: with a
cache's earlier tokens, vectors for ids, another model's rows, a mask of heads.
"""

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .backends import Array
from .errors import Error
from .weights.names import FAMILIES, module_name
from .weights.safetensors import Tensors, write_file

KEY, SCHEMA = "tinyroberta.trace", 1
INPUTS = ("input_ids", "attention_mask", "position_ids", "token_type_ids")
KINDS = ("float64", "float32", "float16", "bfloat16")


@dataclass
class Recorded:
    """One call of a model: what went in, which row is which token, and what passed, by name."""

    part: str
    shape: tuple[int, int]  # (B, S)
    places: Array | None  # (T,) int64
    inputs: dict[str, Array] | None  # (B, S) each
    arrays: Mapping[str, Array] = field(default_factory=dict)

    def rows(self) -> Array:  # -> (T,) int64
        """The place of every row among the B * S positions."""
        return np.arange(self.shape[0] * self.shape[1]) if self.places is None else self.places

    def attended(self) -> Array:  # -> (T,) bool
        """Which rows are tokens or what a head reads: all but computed padding."""
        rows = self.rows()
        if self.places is not None or self.inputs is None or self.inputs.get("attention_mask") is None:
            return np.ones(len(rows), bool)
        seen: Array = self.inputs["attention_mask"].astype(bool)
        seen = seen.copy()
        seen[:, 0] = True
        return seen.ravel()


@dataclass
class TraceFile:
    """A trace as a file holds it: the manifest, and its calls."""

    manifest: dict[str, Any]
    calls: list[Recorded]
    where: str = "the trace"  # its name in errors


def packed_places(mask: Array) -> Array:  # (B, S) of 0 and 1 -> (T,)
    """Where the rows of packed texts stand: each text's attended tokens, then its position 0 where that is padding."""
    S = mask.shape[1]
    return np.concatenate([b * S + np.append(np.flatnonzero(row), [0] * (not row[0])) for b, row in enumerate(mask)]).astype(int)


def weight_hashes(model: Any) -> dict[str, str]:
    """SHA-256 of every tensor of a model, of its numbers as little-endian float64, by transformers' names without the prefix."""
    family, done, hashes = FAMILIES[model.model_type], {}, {}
    for name, x in model.tensors.items():
        if id(x) not in done:
            done[id(x)] = hashed(x)
        module, _, leaf = name.rpartition(".")
        hashes[f"{module_name(module, family)}.{leaf}"] = done[id(x)]
    return hashes


def hashed(x: Array) -> str:
    digest, flat = hashlib.sha256(), np.ascontiguousarray(x).reshape(-1)
    for start in range(0, flat.size, 2**20):
        digest.update(flat[start : start + 2**20].astype("<f8").data)
    return digest.hexdigest()


def of_model(model: Any, calls: Iterable[Any], hashes: bool = True) -> TraceFile:
    """What tap.Calls of a model hold, as a file does; without hashes of weights, which take a second for a base model."""
    parts = {"encoder.": model.encoder, "decoder.": model.decoder} if hasattr(model, "encoder") else {"": model}
    part = next(iter(parts.values()))
    running = part.settings
    recorded = [
        Recorded(
            call.part, (0, 0) if call.rows is None else call.rows.shape, None if call.rows is None else call.rows.places,
            call.inputs, call.arrays,
        )
        for call in calls
    ]  # fmt: skip
    manifest = {
        "schema": SCHEMA,
        "program": "tinyroberta",
        "model": getattr(model, "name_or_path", None),
        "class": type(model).__name__,
        "config": _config(parts),
        "weights": {f"{prefix}{name}": x for prefix, each in parts.items() for name, x in weight_hashes(each).items()}
        if hashes
        else None,
        "backend": part.backend,
        "dtype": running.dtype,
        "precision": running.matmul_precision,
        "threads": running.threads,
        "reproducible": running.reproducible,
        "versions": _versions(part.backend),
    }
    return TraceFile(manifest, recorded)


def _config(parts: Mapping[str, Any]) -> dict[str, Any]:
    told = {prefix.removesuffix("."): _as_json(part.config.to_dict()) for prefix, part in parts.items()}
    return told.get("", told)


def _as_json(content: Any) -> Any:
    return json.loads(json.dumps(content, default=str))  # an activation may be a function


def _versions(backend: str) -> dict[str, str]:
    from importlib import metadata

    found = {"python": platform.python_version(), "numpy": np.__version__}
    for name in ("tinyroberta", {"cpu": "numba", "cupy": "cupy"}.get(backend, "tinyroberta")):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # a checkout, or a CuPy by another name
            continue
    return found


def save(path: str | Path, trace: TraceFile) -> None:
    """Write a trace as a safetensors file, whole or not at all; raises Error where it cannot be written."""
    calls = [
        {
            "part": call.part,
            "shape": list(call.shape),
            "places": None if call.places is None else np.asarray(call.places).tolist(),
            "names": list(call.arrays),
            "inputs": call.inputs and {name: np.asarray(x).tolist() for name, x in call.inputs.items() if x is not None},
        }
        for call in trace.calls
    ]
    arrays = {(f"{k}/" if k else "") + name: x for k, call in enumerate(trace.calls) for name, x in call.arrays.items()}
    told = json.dumps(trace.manifest | {"calls": calls}, ensure_ascii=False, separators=(",", ":"))
    write_file(Path(path).expanduser(), arrays, {"format": "pt", KEY: told})


def load(path: str | Path) -> TraceFile:
    """The trace in a file, its arrays read-only views; raises Error on a file that is no trace, or of a later schema."""
    path = Path(path).expanduser()
    stored = Tensors([path])
    told = stored.metadata.get(KEY)
    if told is None:
        raise Error(f"{path} is a safetensors file without a trace's manifest: give one that trace.save or a recorder wrote")
    try:
        manifest = json.loads(told)
        schema, calls = manifest["schema"], manifest.pop("calls")
        if not isinstance(schema, int) or schema < 1:
            raise ValueError(f"its schema is {schema!r}")
        if schema > SCHEMA:
            raise Error(f"{path} is a trace of schema {schema}; this version reads up to {SCHEMA}: install a later tinyroberta")
        recorded = [_call(call) for call in calls]
        for name in stored:
            index, slash, bare = name.partition("/")
            if not slash:
                index, bare = "0", name
            if stored.dtype(name) not in KINDS:
                raise ValueError(f"{name} is {stored.dtype(name)}, which no activation is")
            recorded[int(index)].arrays[bare] = _Later(stored, name)  # type: ignore[index]
        for call, told in zip(recorded, calls, strict=True):
            order = {name: place for place, name in enumerate(told.get("names") or ())}
            call.arrays = _Arrays(dict(sorted(call.arrays.items(), key=lambda entry: order.get(entry[0], len(order)))))
            _check_rows(call)
    except Error:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise Error(f"{path} holds a trace's manifest that is not valid: {type(error).__name__}: {error}") from error
    return TraceFile(manifest, recorded, str(path))


class _Later:
    """A tensor of a file that is not looked at yet."""

    def __init__(self, stored: Tensors, name: str) -> None:
        self.stored, self.name = stored, name
        self.shape = stored.shape(name)


class _Arrays(Mapping[str, Array]):
    """A file's tensors by name, each as a view of the file."""

    def __init__(self, later: Mapping[str, Any]) -> None:
        self.later = later

    def __getitem__(self, name: str) -> Array:
        later = self.later[name]
        return later.stored[later.name]

    def __iter__(self) -> Any:
        return iter(self.later)

    def __len__(self) -> int:
        return len(self.later)


def _call(told: Mapping[str, Any]) -> Recorded:
    """One call of a manifest; raises what a wrong one raises."""
    B, S = (int(n) for n in told["shape"])
    places = None if told.get("places") is None else np.array(told["places"], np.int64)
    if places is not None and (places.ndim != 1 or (len(places) and not 0 <= places.min() <= places.max() < B * S)):
        raise ValueError(f"places are not rows of {B} x {S} positions")
    inputs = None
    if told.get("inputs") is not None:
        inputs = {name: np.array(x, np.int64) for name, x in told["inputs"].items() if name in INPUTS and x is not None}
        if wrong := [name for name, x in inputs.items() if x.shape != (B, S)]:
            raise ValueError(f"{wrong[0]} has shape {inputs[wrong[0]].shape}, the call {(B, S)}")
    return Recorded(str(told.get("part", "")), (B, S), places, inputs)


def _check_rows(call: Recorded) -> None:
    """Raise ValueError where an array of an encoder has other rows than the call."""
    rows = len(call.rows())
    for name, later in call.arrays.later.items():  # type: ignore[attr-defined]
        shape = later.shape
        if len(shape) < 2 or (".layer." in name and "crossattention" not in name and shape[0] != rows):
            raise ValueError(f"{name} has shape {shape}, the call {rows} rows")
