"""Records what passes through a torch model as a trace's file. Copy it to where torch is, or import it: it needs torch alone.

    import torch_recorder

    with torch_recorder.trace(model) as trace:  # a transformers model, or any torch module
        model(input_ids=ids, attention_mask=mask)
    trace.save("theirs.safetensors")  # then: tinyroberta compare numpy:float64 theirs.safetensors --model PATH

The names are transformers' paths of the modules whose results they are, without the prefix of the class. Others are recorded by
`names`, {path: name}. A text's rows are its attended tokens and, behind them, its position 0 where that is padding; traces.py of
tinyroberta says the rest of the format. Attention's probabilities are recorded where modules give them, which they do in a model
that is loaded with attn_implementation="eager".
"""

import hashlib
import inspect
import json
import platform
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

PREFIXES = re.compile(r"^(roberta_prelayernorm|roberta|bert|model|module|_orig_mod)\.")
SILENT = re.compile(r"(.*\.)?(dropout|intermediate_act_fn|activation|\w+_embeddings|distance_embedding|embeddings\.padding_idx)")
DTYPES = {torch.float64: "F64", torch.float32: "F32"}


@contextmanager
def trace(model: Any, names: Any = None) -> Any:
    """Record the calls of a torch model, and of its modules by transformers' names, or by {path: name}."""
    recorder = Recorder(model, names)
    try:
        yield recorder
    finally:
        for handle in recorder.handles:
            handle.remove()


class Recorder:
    """What has passed, a call at a time."""

    def __init__(self, model: Any, names: Any) -> None:
        self.model = model
        self.calls: list[Any] = []
        self.handles = [model.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for path, module in model.named_modules():
            name = bare(path) if names is None else names.get(path)
            if names is None and re.search(r"(^|\.)(position|token_type)_embeddings$", path):
                kind = "position_ids" if path.endswith("position_embeddings") else "token_type_ids"
                self.handles.append(module.register_forward_pre_hook(self._looked_up(kind)))
            if name and not (names is None and SILENT.fullmatch(name)):
                self.handles.append(module.register_forward_hook(self._passed(name)))

    def _begin(self, module: Any, args: Any, kwargs: Any) -> None:
        try:
            given = dict(inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments)
        except TypeError:
            given = dict(kwargs)
        given = {**given.pop("kwargs", {}), **given}
        kept = ("input_ids", "attention_mask", "position_ids", "token_type_ids")
        inputs = {name: given[name].detach().cpu() for name in kept if isinstance(given.get(name), torch.Tensor)}
        if "input_ids" not in inputs and args and isinstance(args[0], torch.Tensor) and not args[0].is_floating_point():
            inputs["input_ids"] = args[0].detach().cpu()
        self.calls.append({"inputs": inputs, "arrays": {}})

    def _looked_up(self, kind: str) -> Any:
        def keep(_: Any, args: Any) -> None:
            if self.calls and args and isinstance(args[0], torch.Tensor):
                self.calls[-1]["inputs"].setdefault(kind, args[0].detach().cpu())

        return keep

    def _passed(self, name: str) -> Any:
        def keep(_: Any, __: Any, output: Any) -> None:
            if not self.calls:
                return
            arrays = self.calls[-1]["arrays"]
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, torch.Tensor) and first.is_floating_point():
                arrays[name] = first.detach().cpu().clone()
            if name.endswith(".self") and isinstance(output, tuple) and len(output) > 1 and isinstance(output[1], torch.Tensor):
                arrays[name + ".probs"] = output[1].detach().cpu().clone()

        return keep

    def save(self, path: Any) -> None:
        """Write the calls as one safetensors file; raises ValueError where a call has no ids, or a mask of other shapes."""
        tensors: dict[str, Any] = {}
        calls = []
        for k, call in enumerate(self.calls):
            inputs = flat_inputs(call["inputs"])
            mask = inputs["attention_mask"]
            B, S = mask.shape
            places = None if bool(mask.bool().all()) else packed_places(mask)
            told = {name: x.tolist() for name, x in inputs.items()}
            arrays = {name: packed(x, mask, places, name) for name, x in call["arrays"].items()}
            arrays = {name: x for name, x in arrays.items() if x is not None}
            tensors |= {(f"{k}/" if k else "") + name: x for name, x in arrays.items()}
            calls.append({"part": "", "shape": [B, S], "places": places, "names": list(arrays), "inputs": told})
        write(path, tensors, {"format": "pt", "tinyroberta.trace": json.dumps(self.manifest() | {"calls": calls})})

    def manifest(self) -> dict[str, Any]:
        dtype = next((p.dtype for p in self.model.parameters()), torch.float32)
        config = getattr(self.model, "config", None)
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        if config is not None and getattr(config, "transformers_version", None):
            versions["transformers"] = config.transformers_version
        weights = {bare(name): hashed(x) for name, x in self.model.state_dict().items() if x.is_floating_point()}
        return {
            "schema": 1,
            "program": "torch_recorder",
            "model": getattr(config, "_name_or_path", None) or None,
            "class": type(self.model).__name__,
            "config": _as_json(config),
            "weights": weights,
            "backend": "torch",
            "dtype": str(dtype).removeprefix("torch."),
            "precision": torch.get_float32_matmul_precision(),
            "threads": torch.get_num_threads(),
            "reproducible": False,
            "versions": versions,
        }


def _as_json(config: Any) -> Any:
    return json.loads(config.to_json_string(use_diff=False)) if hasattr(config, "to_json_string") else None


def bare(path: str) -> str:
    """A module's or weight's path without the prefixes of classes and wrappers."""
    while PREFIXES.match(path + "."):
        path = (path + ".").partition(".")[2].removesuffix(".")
    return path


def flat_inputs(given: dict[str, Any]) -> dict[str, Any]:
    """Ids, mask, positions and token types as (B, S) integers; a question's choices become texts."""
    if "input_ids" not in given:
        raise ValueError("the call was given no input_ids, so its rows cannot be told apart")
    ids = given["input_ids"]
    ids = ids.reshape(-1, ids.shape[-1])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for name, x in given.items():
        x = x.long().reshape(-1, x.shape[-1])
        inputs[name] = x if x.shape == ids.shape else x.expand(ids.shape)
    mask = inputs["attention_mask"]
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("attention_mask holds other numbers than 0 and 1")
    return inputs


def packed_places(mask: Any) -> list[int]:
    """Of (B, S): each text's attended places, then its position 0 where that is padding."""
    S = mask.shape[1]
    return [b * S + s for b, row in enumerate(mask.tolist()) for s in [i for i, m in enumerate(row) if m] + [0] * (not row[0])]


def packed(x: Any, mask: Any, places: list[int] | None, name: str) -> Any:
    """A result with a row for each packed token, or for each text; None where it is neither."""
    B, S = mask.shape
    x = x if x.dtype in DTYPES else x.float()
    rows = torch.arange(B * S) if places is None else torch.tensor(places)
    if name.endswith(".probs"):
        if x.dim() != 4 or x.shape[0] != B or x.shape[2:] != (S, S):
            return None
        x = x.transpose(1, 2).reshape(B * S, x.shape[1], S)[rows]
        if places is None:
            return x
        whole = x.new_zeros(len(rows), x.shape[1], int(mask.sum(1).max()))
        for b in range(B):
            keys, mine = mask[b].bool(), rows // S == b
            whole[mine, :, : int(keys.sum())] = x[mine][:, :, keys]
        return whole
    if x.dim() > 2 and x.shape[:2] == (B, S):
        return x.reshape(B * S, *x.shape[2:])[rows]
    return x if x.dim() >= 2 and len(x) in (B, len(rows)) else None


def hashed(x: Any) -> str:
    """SHA-256 of a tensor's numbers as little-endian float64."""
    return hashlib.sha256(raw(x.detach().cpu().double())).hexdigest()


def raw(x: Any) -> Any:
    """A tensor's numbers as bytes."""
    return x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b""


def write(path: Any, tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    """A safetensors file: the header's length in 8 bytes, the header, the numbers."""
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    ordered = sorted(tensors.items(), key=lambda entry: (-entry[1].element_size(), entry[0]))
    for name, x in ordered:
        size = x.numel() * x.element_size()
        header[name] = {"dtype": DTYPES[x.dtype], "shape": list(x.shape), "data_offsets": [offset, offset + size]}
        offset += size
    told = json.dumps(header, separators=(",", ":")).encode()
    told += b" " * (-len(told) % 8)
    part = Path(f"{path}.part")
    try:
        with part.open("wb") as file:
            file.write(len(told).to_bytes(8, "little") + told)
            for _, x in ordered:
                file.write(raw(x))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
