"""What a sentence-transformers folder says of how a text becomes a vector, read from its files; nothing in it is ever run.

modules.json                       the modules in order, each a class and a folder: Transformer, Pooling, Dense, Normalize
1_Pooling/config.json              the modes, as one flag each, or in newer files as `pooling_mode`
2_Dense/config.json                sizes and activation; beside it model.safetensors or pytorch_model.bin
sentence_bert_config.json          max_seq_length, do_lower_case
config_sentence_transformers.json  prompts, default_prompt_name, similarity_fn_name

A folder without modules.json is a bare checkpoint: mean pooling, as sentence-transformers gives it. Where versions of
sentence-transformers differ, 5.7 is followed (texts are not stripped; a prompt left out of pooling is left out of cls too).
"""

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..backends import Backend
from ..backends.numpy import ACTIVATIONS
from ..errors import Error
from ..weights import safetensors, torch_bin
from ..weights.checkpoint import Stored, beside
from ..weights.files import read_json, read_json_value

Array = np.ndarray[Any, np.dtype[Any]]
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
ROOT_CONFIGS = tuple(
    f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
TORCH_ACTIVATIONS = {  # torch's classes by the names that the backends know
    "GELU": "gelu",
    "Hardswish": "hardswish",
    "Identity": "linear",
    "LeakyReLU": "leaky_relu",
    "Mish": "mish",
    "ReLU": "relu",
    "ReLU6": "relu6",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
}
assert set(TORCH_ACTIVATIONS.values()) <= set(ACTIVATIONS)


# Pooling: texts' rows -> a vector each. Sums are float64, row after row: they are the text's own and the same on every machine.


class Parts(NamedTuple):
    """Which rows are whose: text b begins at row begins[b] and ends before ends[b]; starts[b] is the first that is pooled."""

    begins: Array  # (B,) integers
    starts: Array
    ends: Array

    @property
    def counts(self) -> Array:
        """How many rows of each text are pooled, (B, 1)."""
        return (self.ends - self.starts)[:, None]


def cls(ops: Backend, x: Any, parts: Parts) -> Array:  # (T, D) of the backend -> (B, D)
    return ops.to_numpy(x[parts.starts])


def maximum(ops: Backend, x: Any, parts: Parts) -> Array:
    rows = ops.to_numpy(x)
    return np.stack([rows[start:end].max(0) for _, start, end in zip(*parts, strict=True)])


def mean(ops: Backend, x: Any, parts: Parts) -> Array:
    return ops.to_numpy(ops.sums(x, parts.starts, parts.ends)) / parts.counts


def mean_sqrt_len_tokens(ops: Backend, x: Any, parts: Parts) -> Array:
    return ops.to_numpy(ops.sums(x, parts.starts, parts.ends)) / np.sqrt(parts.counts)


def weightedmean(ops: Backend, x: Any, parts: Parts) -> Array:
    rows = ops.to_numpy(x)

    def pooled(begin: int, start: int, end: int) -> Array:
        weights = np.arange(start - begin + 1, end - begin + 1, dtype=np.float64)
        return (rows[start:end] * weights[:, None]).sum(0) / weights.sum()

    return np.stack([pooled(*part) for part in zip(*parts, strict=True)])


def lasttoken(ops: Backend, x: Any, parts: Parts) -> Array:
    return ops.to_numpy(x[parts.ends - 1])


Mode = Callable[[Backend, Any, Parts], Array]
MODES: dict[str, Mode] = {  # in the order in which a folder's flags are put side by side
    "cls": cls,
    "max": maximum,
    "mean": mean,
    "mean_sqrt_len_tokens": mean_sqrt_len_tokens,
    "weightedmean": weightedmean,
    "lasttoken": lasttoken,
}
FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class Pooling(NamedTuple):
    """The modes, whose vectors stand side by side, and whether a prompt's tokens are pooled too."""

    modes: tuple[str, ...] = ("mean",)
    include_prompt: bool = True

    def __call__(self, ops: Backend, x: Any, parts: Parts) -> Array:  # (T, D) of the backend -> (B, modes * D)
        """Texts' rows as a vector each, NumPy's; only these leave a GPU, but for the modes max and weightedmean."""
        return np.concatenate([MODES[mode](ops, x, parts) for mode in self.modes], 1)


class Dense(NamedTuple):
    """activation(x W^T + b), and where `residual` is not None x or x R^T added to it."""

    weight: Array  # (O, I)
    bias: Array | None
    activation: str
    residual: Array | bool = False


class Normalize(NamedTuple):
    """x divided by its length."""


class Recipe(NamedTuple):
    """How a text becomes a vector: the folder of the model and its tokenizer, how rows are pooled, and what follows."""

    folder: Path
    pooling: Pooling = Pooling()
    after: tuple[Dense | Normalize, ...] = ()
    max_seq_length: int | None = None
    lower: bool = False
    prompts: Mapping[str, str] = {}
    default_prompt_name: str | None = None
    similarity: str = "cosine"
    found: bool = True  # whether the folder says so, or it is a bare checkpoint

    def width(self, hidden_size: int) -> int:
        """How many numbers a vector has."""
        layers = [step for step in self.after if isinstance(step, Dense)]
        return len(layers[-1].weight) if layers else len(self.pooling.modes) * hidden_size

    def told(self) -> str:
        """What follows the model, in a few words."""
        steps = (
            f"Dense({step.weight.shape[1]}, {len(step.weight)})" if isinstance(step, Dense) else "Normalize"
            for step in self.after
        )
        said = f"{' + '.join(self.pooling.modes)} pooling" + ("" if self.found else ", since it has no modules.json")
        return ", ".join((said, *steps))


def read_recipe(folder: Path) -> Recipe:
    """What a folder says; raises Error on a file that is damaged, a module that is not read here and sizes that do not fit."""
    if folder.is_file() or not (folder / "modules.json").is_file():
        return Recipe(folder, found=False, **_settings(folder))
    first, *others = _modules(folder)
    if first[0] != "Transformer":
        raise Error(f"{folder}: modules.json begins with {first[0]}; it must begin with Transformer")
    root = first[1]
    config = read_transformer_config(root)
    task = config.get("transformer_task", "feature-extraction")
    if task != "feature-extraction" or config.get("module_output_name", "token_embeddings") != "token_embeddings":
        raise Error(f"{folder} is a model for {task}, not for embeddings: tinyroberta.Reranker reads rerankers")
    pooling: Pooling | None = None
    after: list[Dense | Normalize] = []
    hidden_size = read_json(root / "config.json").get("hidden_size")
    width = hidden_size if isinstance(hidden_size, int) else 0
    for kind, place in others:
        if kind == "Pooling" and pooling is None and not after:
            pooling, width = _pooling(place, width)
        elif kind == "Dense" and pooling is not None:
            layer = _dense(place, width)
            after.append(layer)
            width = len(layer.weight)
        elif kind == "Normalize" and pooling is not None:
            if (place / "config.json").is_file():
                _of_sentences(place / "config.json", kind)
            after.append(Normalize())
        elif kind in ("Pooling", "Dense", "Normalize"):
            raise Error(
                f"{folder}: in modules.json {kind} stands where it cannot: there is one Pooling, before Dense and Normalize"
            )
        elif kind != "Dropout":  # which does nothing outside training
            known = "Transformer, Pooling, Dense and Normalize"
            raise Error(f"{folder}: modules.json names the module {kind}, which is not read here; those that are: {known}")
    if pooling is None:
        raise Error(f"{folder}: modules.json names no Pooling, so it says nothing of how a text becomes one vector")
    return Recipe(root, pooling, tuple(after), found=True, **_settings(folder, config))


def read_transformer_config(root: Path) -> dict[str, Any]:
    """The Transformer module's own settings, {} where it has none."""
    return next((read_json(root / name) for name in ROOT_CONFIGS if (root / name).is_file()), {})


def modules_of(folder: Path) -> list[str]:
    """The classes that a folder's modules.json names, in order; [] where it has none."""
    return [kind for kind, _ in _modules(folder)] if (folder / "modules.json").is_file() else []


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """The class and the folder of each module; raises Error where modules.json is damaged or leaves the folder."""
    file = folder / "modules.json"
    entries = read_json_value(file)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise Error(f"{file} must hold a list of objects, a module each")
    modules = []
    for entry in entries:
        kind, path = entry.get("type"), entry.get("path", "")
        if not isinstance(kind, str) or not isinstance(path, str):
            raise Error(f"{file} holds a module without a type or a path: {str(entry)[:80]}")
        if Path(path).is_absolute() or ".." in re.split(r"[/\\]", path) or "\0" in path or ":" in path:
            raise Error(f"{file} names the folder {path[:80]!r} for {kind[:80]}, which is not inside {folder}")
        package, _, name = kind.rpartition(".")
        if not package.startswith("sentence_transformers"):
            raise Error(f"{file} names {kind[:80]}, a class of its own: no code of a checkpoint is ever run")
        modules.append((name, folder / path))
    return modules


def _settings(folder: Path, transformer: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What the small files in a folder say of prompts, lengths and case."""
    where = folder if folder.is_dir() else folder.parent
    said = transformer if transformer is not None else read_transformer_config(where)
    longest = said.get("max_seq_length")
    if longest is not None and (type(longest) is not int or longest < 1):
        raise Error(f"{where}: max_seq_length is {longest!r}; it must be a whole number of at least 1")
    file = beside(folder, "config_sentence_transformers.json")
    config = read_json(file) if file.is_file() else {}
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise Error(f"{file}: prompts must be texts by name")
    similarity = config.get("similarity_fn_name") or "cosine"
    if similarity not in SIMILARITIES:
        raise Error(f"{file}: similarity_fn_name is {similarity!r}; it must be one of {', '.join(SIMILARITIES)}")
    default = config.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise Error(
            f"{file}: default_prompt_name is {default!r}; it must be one of {', '.join(prompts) or 'prompts, which are none'}"
        )
    return {
        "max_seq_length": longest,
        "lower": bool(said.get("do_lower_case")),
        "prompts": {name: text or "" for name, text in prompts.items()},
        "default_prompt_name": default,
        "similarity": similarity,
    }


def _pooling(place: Path, hidden_size: int) -> tuple[Pooling, int]:
    """The pooling of a folder, and how wide its vectors are."""
    file = place / "config.json"
    config = read_json(file)
    if "pooling_mode" in config:
        named = config["pooling_mode"]
        modes = (named,) if isinstance(named, str) else named
    else:
        modes = [mode for flag, mode in FLAGS.items() if config.get(flag)] or ["mean"]
    if not isinstance(modes, list | tuple) or not modes or not all(isinstance(mode, str) and mode in MODES for mode in modes):
        raise Error(f"{file}: pooling_mode is {config['pooling_mode']!r}; there are {', '.join(MODES)}")
    width = config.get("embedding_dimension", config.get("word_embedding_dimension", hidden_size))
    if width != hidden_size:
        raise Error(f"{file} pools vectors of {width} numbers; the model's have {hidden_size}")
    return Pooling(tuple(modes), bool(config.get("include_prompt", True))), len(modes) * hidden_size


def _dense(place: Path, width: int) -> Dense:
    file = place / "config.json"
    config = _of_sentences(file, "Dense")
    I, O = config.get("in_features"), config.get("out_features")
    if type(I) is not int or type(O) is not int or width != I or O < 1:
        raise Error(f"{file}: a Dense layer from {I} to {O} numbers cannot follow vectors of {width}")
    stored = open_weights(place, "model")
    residual: Array | bool = bool(config.get("use_residual"))
    if residual and I != O:
        residual = tensor(stored, "residual.weight", (O, I), place)
    bias = tensor(stored, "linear.bias", (O,), place) if config.get("bias", True) else None
    activation = activation_of(config.get("activation_function"), "tanh", file)
    return Dense(tensor(stored, "linear.weight", (O, I), place), bias, activation, residual)


def _of_sentences(file: Path, kind: str) -> dict[str, Any]:
    """A module's settings; raises Error where it reads or makes anything but the one vector of a text."""
    config = read_json(file)
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise Error(f"{file}: {key} is {config[key]!r}; {kind} of sentence_embedding is read here")
    return config


def open_weights(folder: Path, name: str) -> Stored:
    """The tensors of a small module: NAME.safetensors, or what torch.save wrote (pytorch_model.bin of `model`, else NAME.pt)."""
    if (folder / f"{name}.safetensors").is_file():
        return safetensors.open_tensors(folder / f"{name}.safetensors")
    file = folder / (torch_bin.SINGLE if name == "model" else f"{name}.pt")
    if not file.is_file():
        raise Error(f"{folder} holds neither {name}.safetensors nor {file.name}")
    return torch_bin.open_torch([file])


def tensor(stored: Stored, name: str, shape: tuple[int, ...], where: Path) -> Array:
    """A tensor of a shape; raises Error where it is not there, has another or is no floating-point number."""
    if name not in stored:
        raise Error(f"{where} holds no {name}: it has {', '.join(stored)}")
    if stored.shape(name) != shape:
        raise Error(f"{where}: {name} has shape {stored.shape(name)}; it must be {shape}")
    x = stored[name]
    if x.dtype.kind not in "fV":
        raise Error(f"{where}: {name} is stored as {x.dtype}; a weight is a floating-point number")
    return x


def activation_of(path: Any, default: str, where: Path | str) -> str:
    """The name of an activation that a file names by torch's class, or the default where it names none.

    Of a class that is not torch's the default is taken, with a warning, as sentence-transformers does. Raises Error on a class of
    torch's that is not known here.
    """
    if path is None:
        return default
    if not isinstance(path, str):
        raise Error(f"{where}: an activation is of type {type(path).__name__}; it must be the name of a class")
    if not path.startswith("torch."):
        warnings.warn(f"{where} names the activation {path[:80]}, which is not torch's: {default} is taken instead", stacklevel=4)
        return default
    name = path.rpartition(".")[2]
    if name not in TORCH_ACTIVATIONS:
        raise Error(f"{where} names the activation {path[:80]}; there are {', '.join(TORCH_ACTIVATIONS)}")
    return TORCH_ACTIVATIONS[name]
