"""The seven heads, an entry each: its tensors, what it computes from the encoder's rows, its output and its loss.

models.py has a class for each, which says what arguments it takes and in which order. What a head computes is a function of the
rows (T, D) that forward.encode leaves, packed, and gives its output's fields by name, with a row for each text or place.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from . import forward, losses, outputs
from .backends import Array, Backend
from .config import RobertaPreLayerNormConfig
from .errors import Error
from .inputs import Rows, as_array, take_places
from .tensors import dense, norm
from .weights.names import Shape

Fields = dict[str, Array | None]
Weights = Mapping[str, Any]


class Encoded(NamedTuple):
    """What a head reads: the model's prepared weights, and the encoder's rows with what it takes to unpack them."""

    weights: Weights
    rows: Rows
    last: Array  # (T, D)
    eps: float

    def first(self) -> Array:  # -> (B, D)
        return self.rows.first(self.last)


# What they compute, inside the backend's `running`.


def bare(ops: Backend, x: Encoded) -> Fields:
    """The rows themselves, last_hidden_state (B, S, D), and pooler_output (B, D) where the checkpoint has a pooler."""
    pooled = forward.pool(ops, x.first(), **x.weights["pooler"]) if "pooler" in x.weights else None
    return {"last_hidden_state": x.rows.unpack(x.last), "pooler_output": pooled}


def words(ops: Backend, x: Encoded, places: Array | None) -> Fields:
    """A score for every word of the vocabulary at every place, (B, S, V), or at those that logits_to_keep asks for."""
    head = x.weights["lm_head"]
    if places is None:
        return {"logits": x.rows.unpack(forward.lm_head(ops, x.last, x.eps, **head))}
    computed = x.rows.take(np.ones((len(x.last), 1), bool), places)
    kept = x.rows.take(x.last, places)
    scores = forward.lm_head(ops, kept.reshape(-1, kept.shape[-1]), x.eps, **head)
    scores[~computed.ravel()] = 0
    return {"logits": scores.reshape(*kept.shape[:-1], scores.shape[-1])}


def labels_of_text(ops: Backend, x: Encoded) -> Fields:
    """A score for every label of a text, (B, labels)."""
    return {"logits": forward.classification_head(ops, x.first(), **x.weights["classifier"])}


def choices(ops: Backend, x: Encoded, shape: tuple[int, ...]) -> Fields:
    """A score for each of a question's continuations, `shape` (B, choices)."""
    pooled = forward.pool(ops, x.first(), **x.weights["pooler"])
    return {"logits": ops.linear(pooled, **x.weights["classifier"]).reshape(shape)}


def labels_of_tokens(ops: Backend, x: Encoded) -> Fields:
    """A score for every label of every token, (B, S, labels)."""
    return {"logits": x.rows.unpack(ops.linear(x.last, **x.weights["classifier"]))}


def spans(ops: Backend, x: Encoded) -> Fields:
    """Every token's scores as the start and as the end of an answer, (B, S) each."""
    scores = x.rows.unpack(ops.linear(x.last, **x.weights["qa_outputs"]))
    return {"start_logits": scores[..., 0], "end_logits": scores[..., 1]}


# What heads refuse: it is checked before a cache is written to.


def places_of(logits_to_keep: Any) -> Array | None:
    """The places that logits_to_keep asks for; None where it is 0, which asks for all."""
    places = as_array(logits_to_keep, "logits_to_keep")
    return places if places.ndim or places else None


def every_place(_: int) -> dict[str, Any]:
    """What a language model's head is asked where logits_to_keep is not given."""
    return {"places": None}


def check_words(shape: tuple[int, int], labels: tuple[Array, ...], places: Array | None) -> None:
    """Raise Error on labels of another shape than (B, S), and on places that are not there."""
    for given in labels:
        losses.check_labels(given, shape)
    if places is not None:
        take_places(np.empty((*shape, 1)), places)


def check_spans(config: RobertaPreLayerNormConfig) -> None:
    """Raise Error where a configuration has other labels than a span's two ends."""
    if config.num_labels != 2:
        raise Error(f"config: num_labels is {config.num_labels}; question answering has 2, a start and an end")


class Head(NamedTuple):
    """One head: everything that tells its model from another's but the arguments of a call."""

    output: type[outputs.ModelOutput]
    compute: Callable[..., Fields]  # (ops, encoded, and what its class's call adds) -> the output's fields
    tensors: Callable[[RobertaPreLayerNormConfig], dict[str, Shape]] = lambda _: {}
    pooler: bool = False  # whether the encoder has one
    labels: tuple[str, ...] = ("labels",)  # what a call must give for a loss
    loss: Callable[..., Array] | None = None  # (the fields computed, the labels, and these of the configuration) -> ()
    loss_reads: tuple[str, ...] = ()
    check_config: Callable[[RobertaPreLayerNormConfig], None] = lambda _: None
    check_call: Callable[..., None] = lambda *_, **__: None  # ((B, S), the labels, and what its class's call adds)
    packed: Callable[[int], dict[str, Any]] = lambda _: {}  # B -> what its class's call would add, for texts without padding


def _lm_head(config: RobertaPreLayerNormConfig) -> dict[str, Shape]:
    D, V = config.hidden_size, config.vocab_size
    return dense("lm_head.dense", D, D) | norm("lm_head.layer_norm", D) | dense("lm_head.decoder", V, D)


def _classification_head(config: RobertaPreLayerNormConfig) -> dict[str, Shape]:
    D = config.hidden_size
    return dense("classifier.dense", D, D) | dense("classifier.out_proj", config.num_labels or 0, D)


HEADS = {
    "Model": Head(outputs.BaseModelOutputWithPoolingAndCrossAttentions, bare, pooler=True),
    "ForCausalLM": Head(
        outputs.CausalLMOutputWithCrossAttentions,
        words,
        _lm_head,
        loss=losses.causal_lm,
        check_call=check_words,
        packed=every_place,
    ),
    "ForMaskedLM": Head(
        outputs.MaskedLMOutput, words, _lm_head, loss=losses.masked_lm, check_call=check_words, packed=every_place
    ),
    "ForSequenceClassification": Head(
        outputs.SequenceClassifierOutput,
        labels_of_text,
        _classification_head,
        loss=losses.sequence_classification,
        loss_reads=("problem_type",),
    ),
    "ForMultipleChoice": Head(
        outputs.MultipleChoiceModelOutput,
        choices,
        lambda config: dense("classifier", 1, config.hidden_size),
        pooler=True,
        loss=losses.multiple_choice,
        packed=lambda texts: {"shape": (texts, 1)},
    ),
    "ForTokenClassification": Head(
        outputs.TokenClassifierOutput,
        labels_of_tokens,
        lambda config: dense("classifier", config.num_labels or 0, config.hidden_size),
        loss=losses.token_classification,
    ),
    "ForQuestionAnswering": Head(
        outputs.QuestionAnsweringModelOutput,
        spans,
        lambda config: dense("qa_outputs", config.num_labels or 0, config.hidden_size),
        labels=("start_positions", "end_positions"),
        loss=losses.question_answering,
        check_config=check_spans,
    ),
}
