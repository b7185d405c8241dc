"""What models return: transformers' output classes, holding the backend's arrays."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Array = Any
Arrays = tuple[Array, ...]


@dataclass
class ModelOutput:
    """Fields by attribute, by name, or by place among those that are not None; mirrors transformers' ModelOutput."""

    def keys(self) -> tuple[str, ...]:
        """The names of the fields that are not None."""
        return tuple(entry.name for entry in dataclasses.fields(self) if getattr(self, entry.name) is not None)

    def values(self) -> tuple[Any, ...]:
        """The fields that are not None."""
        return tuple(getattr(self, name) for name in self.keys())

    def items(self) -> tuple[tuple[str, Any], ...]:
        """Names and fields that are not None."""
        return tuple(zip(self.keys(), self.values(), strict=True))

    to_tuple = values

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)

    def get(self, key: str, default: Any = None) -> Any:
        """The field of a name, or the default where it is None or there is no such field."""
        return getattr(self, key) if key in self.keys() else default

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, key: object) -> bool:
        return key in self.keys()


@dataclass
class BaseModelOutputWithPoolingAndCrossAttentions(ModelOutput):
    """last_hidden_state (B, S, D), pooler_output (B, D), and what was asked for."""

    last_hidden_state: Array = None
    pooler_output: Array | None = None
    past_key_values: Any = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None
    cross_attentions: Arrays | None = None


@dataclass
class CausalLMOutputWithCrossAttentions(ModelOutput):
    """logits (B, S, V), and what was asked for."""

    loss: Array | None = None
    logits: Array = None
    past_key_values: Any = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None
    cross_attentions: Arrays | None = None


@dataclass
class MaskedLMOutput(ModelOutput):
    """logits (B, S, V), and what was asked for."""

    loss: Array | None = None
    logits: Array = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@dataclass
class SequenceClassifierOutput(MaskedLMOutput):
    """logits (B, labels), and what was asked for."""


@dataclass
class TokenClassifierOutput(MaskedLMOutput):
    """logits (B, S, labels), and what was asked for."""


@dataclass
class MultipleChoiceModelOutput(MaskedLMOutput):
    """logits (B, choices), and what was asked for."""


@dataclass
class QuestionAnsweringModelOutput(ModelOutput):
    """start_logits and end_logits (B, S), and what was asked for."""

    loss: Array | None = None
    start_logits: Array = None
    end_logits: Array = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@dataclass
class Seq2SeqLMOutput(ModelOutput):
    """The decoder's logits (B, S, V) and what was asked for, and the encoder's last_hidden_state and what was asked for."""

    loss: Array | None = None
    logits: Array = None
    past_key_values: Any = None
    decoder_hidden_states: Arrays | None = None
    decoder_attentions: Arrays | None = None
    cross_attentions: Arrays | None = None
    encoder_last_hidden_state: Array | None = None
    encoder_hidden_states: Arrays | None = None
    encoder_attentions: Arrays | None = None


@dataclass
class GenerateOutput(ModelOutput):
    """sequences (R, L); scores, one (R, V) a step, as they were when the token was chosen; the beams' final scores (R,)."""

    sequences: Array = None
    scores: Arrays = ()
    sequences_scores: Array | None = None
