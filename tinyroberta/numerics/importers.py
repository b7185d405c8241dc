"""Other programs' arrays as a trace: an .npz whose keys are theirs, with a table of names.

A line of the table is `theirs -> ours`, `#` begins a comment. Ours is a name of model.tap_names(), or an input (input_ids,
attention_mask, position_ids, token_type_ids). A star stands for a number on both sides: `h_*_out -> encoder.layer.*`;
`hidden_states.*` are transformers' hidden states, 0 the embeddings, and i what layer i - 1 gives. Where only ours has a star, the
first axis of the array counts: `states -> hidden_states.*`. Arrays (B, S, ...) are packed by the mask, (B, H, S, S) likewise.
ONNX Runtime's outputs become an .npz by np.savez(path, **dict(zip(names, session.run(names, feeds)))).
"""

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from .. import traces
from ..backends import Array
from ..errors import Error

ARROW = re.compile(r"\s*(\S+)\s*->\s*(\S+)\s*")
STATES = "hidden_states."


def open_trace(path: str, table: str | None = None) -> traces.TraceFile:
    """A trace's file, or an .npz by a table of names; raises Error on anything else."""
    if not Path(path).expanduser().is_file():
        known = "a trace's file, an .npz, or a backend such as numpy:float64 or cpu:high"
        raise Error(f"there is no file {path}: compare reads {known}")
    return load_npz(path, table) if path.endswith(".npz") else traces.load(path)


def load_npz(path: str | Path, table: str | Path | None = None) -> traces.TraceFile:
    """An .npz as a trace of one call; its keys are our names where there is no table.

    The arrays are packed once the inputs are known, by `settle`. Raises Error on a file that is no .npz, and a table that names
    what it does not hold.
    """
    try:
        with Path(path).expanduser().open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, KeyError, EOFError, AttributeError) as error:
        raise Error(f"{path} is no .npz that can be read: {error}") from error
    named = dict(arrays) if table is None else _renamed(arrays, read_table(table), str(path), str(table))
    for name, x in named.items():
        if x.dtype.kind not in "fiubV" or x.dtype.names:
            raise Error(f"{path}: {name} holds {x.dtype}, which is no number")
    inputs = {name: np.asarray(named.pop(name)).astype(np.int64) for name in traces.INPUTS if name in named}
    floats = [x for x in named.values() if x.dtype.kind in "fV"]
    dtype = floats[0].dtype.name if floats else "float32"
    manifest = {"schema": traces.SCHEMA, "program": str(path), "dtype": dtype, "backend": None}
    return traces.TraceFile(manifest, [traces.Recorded("", (0, 0), None, inputs or None, named)], str(path))


def read_table(path: str | Path) -> list[tuple[str, str]]:
    """The lines of a table of names; raises Error on one that is none."""
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Error(f"cannot read {path}: {error}") from error
    table = []
    for number, line in enumerate(lines, 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        found = ARROW.fullmatch(line)
        if found is None or found[1].count("*") not in (0, found[2].count("*")):
            raise Error(f"{path}, line {number}: {line!r} is no name; write theirs -> ours, as in hidden_* -> encoder.layer.*")
        table.append((found[1], found[2]))
    if not table:
        raise Error(f"{path} holds no name: write theirs -> ours, as in hidden_* -> encoder.layer.*, one a line")
    return table


def _renamed(arrays: Mapping[str, Array], table: list[tuple[str, str]], where: str, told: str) -> dict[str, Array]:
    named: dict[str, Array] = {}
    for theirs, ours in table:
        found = dict(_matched(arrays, theirs, ours))
        if not found:
            raise Error(f"{told} names {theirs}, and {where} holds {', '.join(sorted(arrays)) or 'nothing'}")
        named |= found
    return named


def _matched(arrays: Mapping[str, Array], theirs: str, ours: str) -> Iterator[tuple[str, Array]]:
    if "*" not in theirs:
        if theirs in arrays and "*" in ours:
            yield from ((ours.replace("*", str(i)), x) for i, x in enumerate(arrays[theirs]))
        elif theirs in arrays:
            yield ours, arrays[theirs]
        return
    pattern = re.compile(re.escape(theirs).replace(r"\*", r"(\d+)"))
    for name, x in arrays.items():
        if match := pattern.fullmatch(name):
            name = ours
            for number in match.groups():
                name = name.replace("*", str(int(number)), 1)
            yield name, x


def settle(trace: traces.TraceFile, model: Any, inputs: Mapping[str, Array] | None) -> None:
    """Give an imported trace the inputs that it lacks, its rows, and our names; raises Error where they do not fit the model."""
    for call in trace.calls:
        if call.shape != (0, 0) or not isinstance(call.arrays, dict):
            continue
        own = _inputs(call, inputs, trace.where)
        mask = own["attention_mask"]
        call.inputs, call.shape = own, mask.shape
        call.places = None if mask.all() else traces.packed_places(mask)
        arrays = _states(call.arrays, model)
        known = set(model.tap_names())
        if unknown := [name for name in arrays if name not in known]:
            raise Error(
                f"{trace.where}: {unknown[0]} is no name of this model; model.tap_names() lists them, --names FILE maps them"
            )
        call.arrays = {name: packed(x, mask, call.rows(), f"{trace.where}: {name}") for name, x in arrays.items()}


def _inputs(call: traces.Recorded, given: Mapping[str, Array] | None, where: str) -> dict[str, Array]:
    own = dict(call.inputs or {})
    if "input_ids" not in own:
        if given is None:
            raise Error(f"{where} does not say which ids went in: name them (theirs -> input_ids), or give --inputs")
        own = {**given, **own}
    ids = own["input_ids"]
    own = {name: x[None] if x.ndim == 1 else x for name, x in own.items()}
    ids = own["input_ids"]
    own.setdefault("attention_mask", np.ones_like(ids))
    for name, x in own.items():
        if ids.ndim != 2 or x.shape != ids.shape:
            raise Error(f"{where}: {name} has shape {x.shape}; input_ids and all beside it must be (texts, tokens)")
    if not np.isin(own["attention_mask"], (0, 1)).all():
        raise Error(f"{where}: attention_mask holds other numbers than 0 and 1")
    return own


def _states(arrays: Mapping[str, Array], model: Any) -> dict[str, Array]:
    """transformers' hidden states by our names; as in its version 5 the last is behind the final norm, where there is one."""
    layers = model.config.num_hidden_layers
    named: dict[str, Array] = {}
    for name, x in arrays.items():
        index = name.removeprefix(STATES)
        if not name.startswith(STATES) or not index.isdecimal():
            named[name] = x
        elif int(index) == 0:
            named["embeddings"] = x
        elif int(index) == layers and model.config.tie_last_hidden_states and _final(model):
            named[_final(model)] = x
        else:
            named[f"encoder.layer.{int(index) - 1}"] = x
    return named


def _final(model: Any) -> str:
    return next((name for name in model.tap_names() if name in ("LayerNorm", "encoder.LayerNorm")), "")


def packed(x: Array, mask: Array, rows: Array, name: str) -> Array:
    """(B, S, ...) or (T, ...) -> (T, ...); probabilities (B, H, S, S) -> (T, H, K); rows of heads (B, ...) stay; raises Error."""
    B, S = mask.shape
    x = x.astype(np.float32) if x.dtype.kind == "V" or x.dtype == ml_dtypes.bfloat16 else x
    if name.endswith(".probs") and x.ndim == 4 and x.shape[0] == B and x.shape[2:] == (S, S):
        flat = x.transpose(0, 2, 1, 3).reshape(B * S, x.shape[1], S)[rows]
        return flat if mask.all() else keys_packed(flat, mask, rows)
    if x.shape[:2] == (B, S) and x.ndim > 2:
        return x.reshape(B * S, *x.shape[2:])[rows]
    if x.ndim == 2 and B == 1 and len(x) == S:
        return x[rows]
    if x.ndim >= 2 and len(x) in (B, len(rows)):
        return x
    raise Error(f"{name} has shape {x.shape}; it must be ({B}, {S}, ...), or packed ({len(rows)}, ...)")


def keys_packed(probs: Array, mask: Array, rows: Array) -> Array:
    """Probabilities (T, H, S) -> (T, H, K): the attended keys of each row's text first, then 0."""
    S = mask.shape[1]
    whole = np.zeros((*probs.shape[:2], int(mask.sum(1).max())), probs.dtype)
    for b, keys in enumerate(mask.astype(bool)):
        mine = rows // S == b
        whole[mine, :, : keys.sum()] = probs[mine][:, :, keys]
    return whole
