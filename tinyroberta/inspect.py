"""What a checkpoint holds, from the headers of its files alone."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .auto import class_of
from .encoder_decoder import MODEL_TYPE, PROJECTION, EncoderDecoderModel, Parts, is_pair, parts_of
from .errors import Error
from .tensors import check_layers
from .weights import names
from .weights.checkpoint import Part, Stored, read_config, weight_files, weights_of
from .weights.foreign import Renamed
from .weights.hub import checkpoint_folder
from .weights.names import Shape
from .weights.safetensors import DTYPES, Array, Tensors

SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings",
    "type_vocab_size",
)  # fmt: skip


def inspect(source: str | Path, revision: str | None = None) -> dict[str, Any]:
    """What a checkpoint holds, as JSON can say it; no tensor is read.

    source, format, files {name: bytes}; model_type, architecture (the class), sizes {name: number}, of an encoder-decoder
    {"encoder.name": number, ...}; parameters (the model's numbers, tied ones once) and bytes; dtypes {name: {tensors, bytes}};
    tensors [{name, shape, dtype, bytes, used}]; tied {name: the tensor that stands for it}; unused [name]; problem: why the
    model cannot be loaded, or null. Raises Error where there are no weights.
    """
    folder = checkpoint_folder(source, revision)
    form, path = weights_of(folder)
    stored = form.open(path)
    dtypes = {name: dtype_of(stored, name) for name in stored}
    taken = Taken(stored, dtypes)
    model_type, architecture, problem = None, None, None
    sizes: dict[str, int] = {}
    arrays: dict[str, Array] = {}
    try:
        content = read_config(folder)
        pair = is_pair(content)
        parts: Parts = parts_of(content, taken, str(folder)) if pair else {"": (*class_of(folder, stored), Part(taken, ""))}
        classes = ", ".join(cls.__name__ for cls, _, _ in parts.values())
        architecture = f"{EncoderDecoderModel.__name__} ({classes})" if pair else classes
        model_type = MODEL_TYPE if pair else parts[""][1].model_type
        for part, (_, config, _) in parts.items():
            sizes |= {joined(part, name): getattr(config, name) for name in SIZES}
        arrays = gathered(folder, parts, taken)
    except Error as error:
        problem = str(error)
    ties = tied(stored, arrays, taken)
    used = {ties.get(name, name) for name in taken.used} | set(taken.used)
    tensors: list[dict[str, Any]] = [
        {
            "name": name,
            "shape": list(stored.shape(name)),
            "dtype": dtype,
            "bytes": math.prod(stored.shape(name)) * item_size(dtype),
            "used": name in used if arrays else None,
        }
        for name, dtype in dtypes.items()
    ]
    counted: dict[str, dict[str, int]] = {}
    for tensor in tensors:
        count = counted.setdefault(tensor["dtype"], {"tensors": 0, "bytes": 0})
        count["tensors"] += 1
        count["bytes"] += tensor["bytes"]
    return {
        "source": str(source),
        "format": form.name,
        "files": {path.name: path.stat().st_size for path in weight_files(folder)},
        "model_type": model_type,
        "architecture": architecture,
        "sizes": sizes,
        "parameters": sum(math.prod(stored.shape(name)) for name in (used or stored) if name not in ties),
        "bytes": sum(count["bytes"] for count in counted.values()),
        "dtypes": counted,
        "tensors": tensors,
        "tied": ties,
        "unused": [name for name in stored if arrays and name not in used],
        "problem": problem,
    }


def joined(part: str, name: str) -> str:
    """A name in a part, or in a model that is whole."""
    return f"{part}.{name}" if part else name


def gathered(folder: Path, parts: Parts, taken: "Taken") -> dict[str, Array]:
    """The tensors of a model, or of an encoder-decoder's parts and what joins them; raises Error as names.gather."""
    arrays: dict[str, Array] = {}
    for part, (cls, config, held) in parts.items():
        where = f"{folder} ({part})" if part else str(folder)
        check_layers(config, held, where)
        shapes, family = (cls.encoder_shapes(config), cls.head_shapes(config)), names.FAMILIES[cls.model_type]
        tensors = names.gather(held, *shapes, config.tie_word_embeddings, where, family, left=lambda _: None)
        arrays |= {joined(part, name): value for name, value in tensors.items()}
    if "" not in parts:
        projection = Part(taken, PROJECTION)
        arrays |= {joined(PROJECTION, name): projection[name] for name in projection}
    return arrays


def dtype_of(stored: Stored, name: str) -> str:
    """A tensor's dtype as NumPy names it, from the header where the format has one."""
    return stored.dtype(name) if isinstance(stored, Tensors | Renamed) else stored[name].dtype.name


def item_size(dtype: str) -> int:
    """How many bytes a number takes, by NumPy's name of its dtype or by safetensors' for those of 8 bits that NumPy lacks."""
    known = {known.name: known.itemsize for known in DTYPES.values()}
    digits = "".join(filter(str.isdigit, dtype.partition("_")[0]))
    return known.get(dtype) or (int(digits) // 8 if digits else 1)


class Taken:
    """Stored tensors that notes which of them are asked for, and gives one number for each, told apart, in its dtype."""

    def __init__(self, stored: Stored, dtypes: dict[str, str]) -> None:
        self.stored, self.dtypes, self.aliases = stored, dtypes, stored.aliases
        self.used: dict[str, int] = {}

    def __getitem__(self, name: str) -> Array:
        dtype = next((dtype for dtype in DTYPES.values() if dtype.name == self.dtypes[name]), None)
        if dtype is None:
            raise Error(f"{name} is stored as {self.dtypes[name]}; weights can be {', '.join(DTYPES)}")
        number = self.used.setdefault(name, len(self.used))
        return np.array([number]).astype(np.float32 if dtype.kind in "fV" else dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def shape(self, name: str) -> Shape:
        """The shape of a tensor."""
        return self.stored.shape(name)


def tied(stored: Stored, arrays: dict[str, Array], taken: Taken) -> dict[str, str]:
    """{a weight: the tensor that stands for it}: the model's ties, the metadata's aliases, tensors in one place or twice."""
    sources = {number: name for name, number in taken.used.items()}
    shared: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, array in arrays.items():
        if id(array) in first:
            shared[name] = sources[int(array.reshape(-1)[0])]
        first.setdefault(id(array), name)
    if isinstance(stored, Renamed):
        for name in stored:
            shared |= dict.fromkeys(stored.sources(name)[1:], name)
    elif not isinstance(stored, Tensors):
        places: dict[Any, str] = {}
        for name in stored:
            view = stored[name]
            kept = places.setdefault((view.__array_interface__["data"], view.shape, view.strides), name)
            if kept != name:
                shared[name] = kept
    return shared | stored.aliases
