"""The configuration: Hugging Face's fields, names and defaults, checked once."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from .backends.numpy import ACTIVATIONS
from .errors import Error
from .weights.checkpoint import read_config
from .weights.files import write_json
from .weights.hub import checkpoint_folder

POSITION_TYPES = ("absolute", "relative_key", "relative_key_query")
MOST_LABELS = 2**20
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

POSITIVE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
            "max_position_embeddings", "type_vocab_size")  # fmt: skip
FRACTIONS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
SWITCHES = ("use_cache", "is_decoder", "add_cross_attention", "is_encoder_decoder", "tie_word_embeddings", "tie_encoder_decoder",
            "tie_last_hidden_states", "return_dict", "output_hidden_states", "output_attentions")  # fmt: skip
TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "sep_token_id")


@dataclass(frozen=True)
class RobertaPreLayerNormConfig:
    """What a RoBERTa-PreLayerNorm model is; mirrors transformers' RobertaPreLayerNormConfig.

    Fields this library does not know are kept in `extra` and written back by `save_pretrained`. Raises Error on a value
    that makes no sense.
    """

    vocab_size: int = 50265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str | Callable[[Any], Any] = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = field(default=2, hash=False)
    position_embedding_type: str = "absolute"
    use_cache: bool = True
    classifier_dropout: float | None = None
    model_type: str = "roberta-prelayernorm"
    architectures: list[str] | None = field(default=None, hash=False)
    num_labels: int | None = None
    id2label: dict[int, str] | None = field(default=None, hash=False)
    label2id: dict[str, int] | None = field(default=None, hash=False)
    problem_type: str | None = None
    is_decoder: bool = False
    add_cross_attention: bool = False
    is_encoder_decoder: bool = False
    cross_attention_hidden_size: int | None = None
    decoder_start_token_id: int | None = None
    sep_token_id: int | None = None
    chunk_size_feed_forward: int = 0
    pruned_heads: dict[int, list[int]] = field(default_factory=dict, hash=False)
    tie_word_embeddings: bool = True
    tie_encoder_decoder: bool = False
    tie_last_hidden_states: bool = True
    return_dict: bool = True
    output_hidden_states: bool = False
    output_attentions: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        assign = object.__setattr__
        if not isinstance(self.extra, Mapping) or not all(isinstance(name, str) for name in self.extra):
            raise Error(f"config: extra is {self.extra!r}; it must map the names of other fields to their values")
        if twice := [entry.name for entry in dataclasses.fields(self) if entry.name in self.extra and entry.name != "extra"]:
            raise Error(f"config: extra holds {', '.join(twice)}, which the configuration has itself: give it there")
        assign(self, "extra", dict(self.extra))
        for name in POSITIVE:
            _check_int(name, getattr(self, name), 1)
        for name in TOKENS:
            value = getattr(self, name)
            for token in value if name == "eos_token_id" and isinstance(value, list) else [value]:
                if token is not None:
                    _check_int(name, token, 0)
        for name in FRACTIONS:
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 <= value <= 1):
                raise Error(f"config: {name} is {value!r}; it must be a number from 0 to 1")
        for name in SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise Error(f"config: {name} is {getattr(self, name)!r}; it must be true or false")
        for name in ("layer_norm_eps", "initializer_range"):
            value = getattr(self, name)
            if not (_is_number(value) and math.isfinite(value) and value >= 0):
                raise Error(f"config: {name} is {value!r}; it must be a number of at least 0")
        _check_int("chunk_size_feed_forward", self.chunk_size_feed_forward, 0)
        if self.cross_attention_hidden_size is not None:
            _check_int("cross_attention_hidden_size", self.cross_attention_hidden_size, 1)
        if self.hidden_size % self.num_attention_heads:
            raise Error(
                f"config: hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if not callable(self.hidden_act) and not (isinstance(self.hidden_act, str) and self.hidden_act in ACTIVATIONS):
            raise Error(
                f"config: hidden_act is {self.hidden_act!r}; known are {', '.join(ACTIVATIONS)}, or a function of an array"
            )
        if self.position_embedding_type not in POSITION_TYPES:
            raise Error(
                f"config: position_embedding_type is {self.position_embedding_type!r}; known are {', '.join(POSITION_TYPES)}"
            )
        if self.problem_type is not None and self.problem_type not in PROBLEM_TYPES:
            raise Error(f"config: problem_type is {self.problem_type!r}; it must be one of {', '.join(PROBLEM_TYPES)}")
        if not isinstance(self.model_type, str):
            raise Error(f"config: model_type is {self.model_type!r}; it must be a string")
        if self.architectures is not None and not (
            isinstance(self.architectures, list) and all(isinstance(name, str) for name in self.architectures)
        ):
            raise Error(f"config: architectures is {self.architectures!r}; it must be a list of class names")
        pad = self.pad_token_id
        if pad is not None and (pad >= self.vocab_size or pad >= self.max_position_embeddings):
            raise Error(
                f"config: pad_token_id {pad} must be below vocab_size {self.vocab_size} "
                f"and max_position_embeddings {self.max_position_embeddings}"
            )
        if self.add_cross_attention and not self.is_decoder:
            raise Error("config: add_cross_attention needs is_decoder: only a decoder has cross-attention")
        assign(self, "pruned_heads", self._pruned())
        self._label()

    def _pruned(self) -> dict[int, list[int]]:
        pruned: dict[int, list[int]] = {}
        try:
            for layer, heads in dict(self.pruned_heads).items():
                pruned[int(layer)] = sorted({int(head) for head in heads})
        except (TypeError, ValueError) as error:
            raise Error(f"config: pruned_heads is {self.pruned_heads!r}; it must map layers to lists of heads") from error
        for layer, heads in pruned.items():
            if not 0 <= layer < self.num_hidden_layers:
                raise Error(f"config: pruned_heads names layer {layer}, the model has layers 0 to {self.num_hidden_layers - 1}")
            if len(heads) == self.num_attention_heads:
                raise Error(f"config: pruned_heads names all heads of layer {layer}; one must stay")
            if any(not 0 <= head < self.num_attention_heads for head in heads):
                raise Error(f"config: pruned_heads names heads {heads}, the model has heads 0 to {self.num_attention_heads - 1}")
        return pruned

    def _label(self) -> None:
        """num_labels, id2label and label2id from those that are given; where it is label2id alone, id2label is its inverse."""
        assign, count = object.__setattr__, self.num_labels
        if count is not None:
            _check_int("num_labels", count, 1)
            if count > MOST_LABELS:
                raise Error(f"config: num_labels is {count}; at most {MOST_LABELS} are named here")
        names, numbers = self._names(), self._numbers()
        if names is None and numbers is not None:
            names = {index: label for label, index in reversed(numbers.items())}  # of two labels of a number the first
            names = dict(sorted(names.items()))
        if names is not None and count is not None and count != len(names):
            if names != _default_labels(len(names)):
                which = "label2id" if self.id2label is None else "id2label"
                raise Error(f"config: num_labels is {count}, {which} has {len(names)} names: give one of them, or both alike")
            if numbers not in (None, _inverse(names)):
                raise Error(f"config: num_labels is {count}, label2id has {len(names)} names: give one of them, or both alike")
            names = numbers = None
        names = _default_labels(2 if count is None else count) if names is None else names
        assign(self, "label2id", _inverse(names) if numbers is None else numbers)
        assign(self, "id2label", names)
        assign(self, "num_labels", len(names))

    def _names(self) -> dict[int, str] | None:
        if self.id2label is None:
            return None
        try:
            return {int(index): str(label) for index, label in self.id2label.items()}
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            raise Error(f"config: id2label is {self.id2label!r}; it must map numbers to names") from error

    def _numbers(self) -> dict[str, int] | None:
        if self.label2id is None or self.label2id == {}:
            return None
        try:
            return {str(label): int(index) for label, index in self.label2id.items()}
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            raise Error(f"config: label2id is {self.label2id!r}; it must map names to numbers") from error

    @property
    def head_size(self) -> int:
        """The width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def usable_length(self) -> int:
        """The longest text in tokens: RoBERTa's positions start after the padding index."""
        return self.max_position_embeddings - (self.pad_token_id or 0) - 1

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """A configuration from the object in a config.json; raises Error on a value that makes no sense."""
        known = {entry.name for entry in dataclasses.fields(cls)} - {"extra"}
        fields = {name: value for name, value in content.items() if name in known}
        if isinstance(fields.get("architectures"), tuple):
            fields["architectures"] = list(fields["architectures"])
        return cls(**fields, extra={name: value for name, value in content.items() if name not in known})

    @classmethod
    def from_pretrained(cls, path_or_repo: str | Path, revision: str | None = None) -> Self:
        """The configuration of a checkpoint folder or Hub repository; raises Error where there is none."""
        return cls.from_dict(read_config(checkpoint_folder(path_or_repo, revision, weights=False)))

    def to_dict(self) -> dict[str, Any]:
        """The object to write as config.json: the model's fields, everything that differs from its default, and `extra`."""
        content: dict[str, Any] = {}
        for entry in dataclasses.fields(self):
            if entry.name in ("extra", "num_labels", "label2id"):
                continue
            value = getattr(self, entry.name)
            default = entry.default_factory() if entry.default_factory is not dataclasses.MISSING else entry.default
            if entry.name == "id2label":
                if value == _default_labels(2) and self.label2id == _inverse(value):
                    continue
                content["label2id"] = self.label2id
                value = {str(index): label for index, label in value.items()}
            elif entry.name == "pruned_heads":
                value = {str(layer): heads for layer, heads in value.items()}
            if entry.name in ALWAYS_WRITTEN or value != default:
                content[entry.name] = value
        return content | dict(self.extra)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json to a folder; raises Error on what JSON cannot hold: a function as hidden_act, objects in `extra`."""
        if callable(self.hidden_act):
            raise Error("config: hidden_act is a function, which config.json cannot hold; name a known activation to save")
        write_json(Path(folder) / "config.json", self.to_dict())


@dataclass(frozen=True)
class RobertaConfig(RobertaPreLayerNormConfig):
    """What a RoBERTa model is; mirrors transformers' RobertaConfig."""

    model_type: str = "roberta"


@dataclass(frozen=True)
class XLMRobertaConfig(RobertaPreLayerNormConfig):
    """What an XLM-RoBERTa model is; mirrors transformers' XLMRobertaConfig."""

    vocab_size: int = 30522
    model_type: str = "xlm-roberta"


@dataclass(frozen=True)
class CamembertConfig(RobertaPreLayerNormConfig):
    """What a CamemBERT model is; mirrors transformers' CamembertConfig."""

    vocab_size: int = 30522
    model_type: str = "camembert"


@dataclass(frozen=True)
class XLMRobertaXLConfig(RobertaPreLayerNormConfig):
    """What an XLM-RoBERTa-XL model is; mirrors transformers' XLMRobertaXLConfig."""

    vocab_size: int = 250880
    hidden_size: int = 2560
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    intermediate_size: int = 10240
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    layer_norm_eps: float = 1e-5
    model_type: str = "xlm-roberta-xl"


CONFIGS: dict[str, type[RobertaPreLayerNormConfig]] = {
    config.model_type: config
    for config in (RobertaPreLayerNormConfig, RobertaConfig, XLMRobertaConfig, CamembertConfig, XLMRobertaXLConfig)
}


def config_of(
    path_or_repo: str | Path, revision: str | None = None, model_type: Callable[[], str] | None = None
) -> RobertaPreLayerNormConfig:
    """The configuration of a checkpoint, of the class that its model_type says; raises Error as from_pretrained."""
    path = checkpoint_folder(path_or_repo, revision, weights=False)
    content = read_config(path)
    try:
        return config_from(content, model_type)
    except Error as error:
        raise Error(f"{path}: {error}") from error


def config_from(content: Mapping[str, Any], model_type: Callable[[], str] | None = None) -> RobertaPreLayerNormConfig:
    """The configuration in the object of a config.json, of the class that its model_type says; raises Error as from_dict.

    Files of 2019 have no model_type: its architectures say it, else `model_type` is asked.
    """
    if content.get("model_type") is None:
        told = _model_type_named(content.get("architectures")) or (model_type and model_type())
        content = {**content, "model_type": told or RobertaPreLayerNormConfig.model_type}
    name = content["model_type"]
    return CONFIGS.get(name if isinstance(name, str) else "", RobertaPreLayerNormConfig).from_dict(content)


def _model_type_named(architectures: object) -> str | None:
    """The model_type whose classes a config.json names."""
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    stem = re.match(r"(\w+?)(Model|For[A-Z])", name) if isinstance(name, str) else None
    stems = {config.__name__.removesuffix("Config"): model_type for model_type, config in CONFIGS.items()}
    return stems.get(stem[1]) if stem else None


ALWAYS_WRITTEN = {"architectures", "model_type", "position_embedding_type", "use_cache", "classifier_dropout"} | {
    *POSITIVE, *FRACTIONS[:2], *TOKENS[:3], "hidden_act", "initializer_range", "layer_norm_eps"
}  # fmt: skip


def _default_labels(count: int) -> dict[int, str]:
    return {index: f"LABEL_{index}" for index in range(count)}


def _inverse(names: Mapping[int, str]) -> dict[str, int]:
    return {label: index for index, label in names.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_int(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise Error(f"config: {name} is {value!r}; it must be a whole number of at least {least}")
