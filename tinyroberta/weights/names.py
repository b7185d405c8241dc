"""The checkpoint's names: how the names in a file become a model's, and back.

Mirrors what transformers' from_pretrained accepts for roberta-prelayernorm (5.23.0; where 4.57.6 differs gather says so). This
library's names are the checkpoint's without its prefix; xlm-roberta-xl alone calls its norms otherwise, and gets
roberta-prelayernorm's names.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..errors import Error
from .checkpoint import Stored as Stored
from .checkpoint import unwrapped
from .safetensors import Array

PREFIX = "roberta_prelayernorm."
HEADS = ("lm_head", "classifier", "qa_outputs")
WORDS = "embeddings.word_embeddings.weight"
DECODER, DECODER_BIAS = "lm_head.decoder.weight", "lm_head.decoder.bias"
UNUSED = re.compile(r"embeddings\.(position_ids|token_type_ids)$|attention\.self\.LayerNorm\.(weight|bias)$")  # DinkyTrain's

Shape = tuple[int, ...]
Tree = dict[str, Any]


class Family(NamedTuple):
    """What tells the checkpoints of one model_type from another's."""

    classes: str  # how transformers' class names begin
    prefix: str = "roberta."  # how the encoder's names begin in a model with a head
    pre_norm: bool = False
    embedding_norm: bool = True
    names: tuple[tuple[str, str], ...] = ()  # this library's names (patterns) and the checkpoint's


FAMILIES = {
    "roberta-prelayernorm": Family("RobertaPreLayerNorm", PREFIX, pre_norm=True),
    "roberta": Family("Roberta"),
    "xlm-roberta": Family("XLMRoberta"),
    "camembert": Family("Camembert"),
    "xlm-roberta-xl": Family(
        "XLMRobertaXL",
        pre_norm=True,
        embedding_norm=False,
        names=(
            (r"attention\.LayerNorm\.", "attention.self_attn_layer_norm."),
            (r"\.intermediate\.LayerNorm\.", ".LayerNorm."),
            (r"^LayerNorm\.", "encoder.LayerNorm."),
        ),
    ),
}


def placed_before(stored: Iterable[str]) -> bool:
    """Whether the first layer's norms stand before its sublayers: a pre-norm model, whatever its config.json calls it."""
    first = {name[name.find("layer.0.") :] for name in stored if ".layer.0." in name}
    return "layer.0.attention.LayerNorm.weight" in first and "layer.0.attention.output.LayerNorm.weight" not in first


def model_type_of(stored: Iterable[str]) -> str:
    """The model_type of a checkpoint whose config.json says none, by where its norms stand; kin alike in that are roberta."""
    stored = list(stored)
    if any(".self_attn_layer_norm." in name for name in stored):
        return "xlm-roberta-xl"
    return "roberta-prelayernorm" if placed_before(stored) else "roberta"


def gather(
    stored: Stored,
    encoder: Mapping[str, Shape],
    head: Mapping[str, Shape],
    tied: bool,
    where: str,
    family: Family = FAMILIES["roberta-prelayernorm"],
    version: int = 5,
    left: Callable[[str], object] = lambda told: warnings.warn(told, stacklevel=5),
) -> dict[str, Array]:
    """The tensors a model wants, from a file's own names: {encoder's names, head's names} -> arrays.

    Accepted, as transformers does: the prefix present or absent, and what was put around a model (WRAPPING); LayerNorm.gamma and
    .beta; tied weights stored under either name, or under an alias in the metadata; position_ids, poolers and heads of other
    classes, which are left out. So are tensors that no class has, of which `left` is told, once. A bare model is left without
    the pooler that its file lacks. A language model's decoder bias is lm_head.decoder.bias, else lm_head.bias
    (an untied file without the former too, as 4.57.6 takes it; 5.23.0 leaves zeros there), else zeros.
    `version` is the transformers whose tied weights are wanted where both are stored and differ: 5 (5.23.0) uses both, 4
    (4.57.6) the word embeddings for both.
    Raises Error that lists the missing, unexpected and mis-shaped tensors together, or on another version.
    """
    if version not in (4, 5):
        raise Error(f"version is {version!r}; it must be 4 or 5, a transformers whose tied weights are wanted")
    wanted = dict(encoder) | dict(head)
    sources = own_names(stored, where, family, wanted)
    found = {name: source for name, source in sources.items() if name in wanted}
    if DECODER_BIAS in wanted and DECODER_BIAS not in found and "lm_head.bias" in sources:
        found[DECODER_BIAS] = sources["lm_head.bias"]
    tie = {WORDS: DECODER, DECODER: WORDS} if tied else {}
    for name, other in tie.items():
        if name in wanted and name not in found and other in sources:
            found[name] = sources[other]
    if tied and version == 4 and WORDS in found and DECODER in found:
        found[DECODER] = found[WORDS]
    pooler = {name for name in wanted if name.startswith("pooler.")}
    if not head and not pooler & set(found):
        wanted = {name: shape for name, shape in wanted.items() if name not in pooler}

    optional = {DECODER_BIAS}
    other_heads = ("pooler.", *(f"{name}." for name in HEADS if not any(key.startswith(f"{name}.") for key in head)))
    missing = [name for name in wanted if name not in found and name not in optional]
    unexpected = [
        source
        for name, source in sources.items()
        if name not in wanted and name != "lm_head.bias" and not UNUSED.search(name) and not name.startswith(other_heads)
    ]
    shaped = [
        f"{source} is {stored.shape(source)}, not {wanted[name]}"
        for name, source in found.items()
        if name in wanted and stored.shape(source) != wanted[name]
    ]
    if unexpected and not (missing or shaped):
        left(f"{where} holds tensors that this model does not have, left out here: {_few(unexpected)}")
    if missing or shaped:
        lists = (("missing", missing), ("unexpected", unexpected), ("mis-shaped", shaped))
        told = "; ".join(f"{len(names)} {word}: {_few(names)}" for word, names in lists if names)
        raise Error(f"{where} does not hold the weights of this model: {told}")

    read: dict[str, Array] = {}
    arrays = {}
    for name in wanted:
        if name in found:
            arrays[name] = read.setdefault(found[name], stored[found[name]])
            if arrays[name].dtype.kind not in "fV":
                raise Error(f"{where}: {found[name]} is stored as {arrays[name].dtype}; a weight is a floating-point number")
    if DECODER in arrays and tied and arrays[WORDS] is not arrays[DECODER]:
        decoder = arrays[DECODER]
        if decoder.dtype == arrays[WORDS].dtype and np.array_equal(decoder, arrays[WORDS]):
            arrays[DECODER] = arrays[WORDS]
    if DECODER_BIAS in wanted and DECODER_BIAS not in arrays:
        arrays[DECODER_BIAS] = np.zeros(wanted[DECODER_BIAS], np.float32)
    return arrays


def _few(names: list[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def own_names(stored: Stored, where: str, family: Family, wanted: Iterable[str]) -> dict[str, str]:
    """{this library's name without the prefix: the file's name}."""
    names: dict[str, str] = {}
    own = {_theirs(name, family): name for name in wanted}

    def bare(name: str) -> str:
        name = unwrapped(name).removeprefix(family.prefix)
        name = name.removeprefix("roberta.") if family.pre_norm else name
        return own.get(name, name)

    for source in stored:
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", source)
        name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        name = bare(name)
        if name in names:
            raise Error(f"{where} holds both {names[name]} and {source}, which are the same weight")
        names[name] = source
    for alias, kept in stored.aliases.items():
        names.setdefault(bare(alias), kept)
    return names


def module_name(name: str, family: Family) -> str:
    """A module of this library's tree by the name that it has in transformers."""
    return _theirs(f"{name}.", family).removesuffix(".")


def _theirs(name: str, family: Family) -> str:
    for ours, theirs in family.names:
        name = re.sub(ours, theirs, name)
    return name


def nest(flat: Mapping[str, Any]) -> Tree:
    """{"a.b.c": x} -> {"a": {"b": {"c": x}}}; keys keep their order."""
    tree: Tree = {}
    for name, value in flat.items():
        *path, leaf = name.split(".")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[leaf] = value
    return tree


def stored_names(
    arrays: Mapping[str, Array], headed: bool, family: Family = FAMILIES["roberta-prelayernorm"], tied: bool = True
) -> dict[str, Array]:
    """A model's tensors under the names that transformers saves, given its own: the prefix back on, tied ones once.

    `tied` is config.tie_word_embeddings: without it both word arrays are stored, one array or not, as a reader looks for both.
    """
    flat: dict[str, Array] = {}
    for name, value in arrays.items():
        if tied and name == DECODER and value is arrays[WORDS]:
            continue
        name = _theirs(name, family)
        flat[name if not headed or name.split(".")[0] in HEADS else family.prefix + name] = value
    if DECODER_BIAS in flat:
        flat["lm_head.bias"] = flat[DECODER_BIAS]
        if DECODER not in flat:
            del flat[DECODER_BIAS]
    return flat
