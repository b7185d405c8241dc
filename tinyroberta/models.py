"""The model, a configuration and tensors with the weights that a backend has prepared from them, and its seven classes.

The classes have Hugging Face's names, arguments and outputs. call.py checks what a call is given, forward.py computes, and
heads.py says what each class makes of it; family.py names their kin.
"""

import dataclasses
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, Unpack

import numpy as np

from . import forward, generation, surgery, tap
from .backends import Array, Backend, Sequences, load_backend
from .call import Given, Options, Past, Ready, kept_fields, prepare, prepare_ragged
from .config import CONFIGS, RobertaPreLayerNormConfig, config_of
from .errors import Error, ieee
from .heads import HEADS, Encoded, Head, places_of
from .inputs import Ragged, as_array
from .keywords import Running, running_of, settings_of
from .outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from .plan import plan
from .tensors import check_layers, encoder_shapes
from .weights import names
from .weights.checkpoint import Stored, open_checkpoint, read_generation_config
from .weights.files import write_json
from .weights.hub import checkpoint_folder, on_disk
from .weights.safetensors import SHARD_SIZE, save_tensors, size_of


class RobertaPreLayerNormPreTrainedModel:
    """A configuration, the tensors of a checkpoint and the weights a backend has prepared from them."""

    head: ClassVar[Head]
    model_type: ClassVar[str] = "roberta-prelayernorm"
    generation_config: dict[str, Any] | None = None  # the checkpoint's generation_config.json
    name_or_path: str | None = None  # where the checkpoint was

    def __init__(
        self,
        config: RobertaPreLayerNormConfig,
        tensors: Mapping[str, Array] | None = None,
        *,
        seed: int = 0,
        **running: Unpack[Running],
    ) -> None:
        """A model of given tensors, not copied, by this library's names (tensors.encoder_shapes), or one drawn with a seed.

        Raises Error on settings that the backend cannot fulfil.
        """
        check_kind(config)
        if running.get("backend") is None and callable(config.hidden_act):
            running["backend"] = "numpy"  # what Numba cannot compile NumPy can call
        self.backend, self.settings = settings_of(**running)
        self._check_config(config)
        if tensors is None:
            tensors = surgery.new_tensors(config, self.encoder_shapes(config), self.head_shapes(config), seed)
        self._check_tensors(config, tensors)
        self._adopt(config, tensors)

    @classmethod
    def head_shapes(cls, config: RobertaPreLayerNormConfig) -> dict[str, names.Shape]:
        """The head's tensors, name to shape."""
        return cls.head.tensors(config)

    @classmethod
    def encoder_shapes(cls, config: RobertaPreLayerNormConfig) -> dict[str, names.Shape]:
        """The encoder's tensors, name to shape."""
        return encoder_shapes(config, cls.head.pooler)

    @classmethod
    def _check_config(cls, config: RobertaPreLayerNormConfig) -> None:
        if config.model_type != cls.model_type:
            raise Error(
                f"config: model_type is {config.model_type!r}; {cls.__name__} runs {cls.model_type!r}, "
                f"this version {', '.join(names.FAMILIES)}"
            )
        cls.head.check_config(config)

    @classmethod
    def _check_tensors(cls, config: RobertaPreLayerNormConfig, tensors: Mapping[str, Array]) -> None:
        wanted = cls.encoder_shapes(config) | cls.head_shapes(config)
        if not cls.head_shapes(config) and "pooler.dense.weight" not in tensors:
            wanted = {name: shape for name, shape in wanted.items() if not name.startswith("pooler.")}
        wrong = [name for name, shape in wanted.items() if name not in tensors or np.shape(tensors[name]) != shape]
        wrong += [name for name in tensors if name not in wanted]
        if wrong:
            raise Error(f"these tensors do not fit the configuration: {', '.join(wrong[:8])}{' ...' if len(wrong) > 8 else ''}")

    @property
    def ops(self) -> Backend:
        """The backend's functions, wrapped by the traces that are under way (tap.py)."""
        return tap.around(self, load_backend(self.backend, self.settings.reproducible))

    def tap_names(self) -> list[str]:
        """The names under which tinyroberta.trace records and replaces what passes, in the order in which it does."""
        return tap.names_of(self)

    @ieee
    def _adopt(self, config: RobertaPreLayerNormConfig, tensors: Mapping[str, Array]) -> None:
        """Take a configuration and its tensors: the one place where weights are prepared."""
        self.config, self.tensors = config, dict(tensors)
        self.weights = self.ops.prepare(plan(names.nest(self.tensors)), self.settings)

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | Path,
        *,
        config: RobertaPreLayerNormConfig | None = None,
        revision: str | None = None,
        transformers_version: Literal[4, 5] = 5,
        **running: Unpack[Running],
    ) -> Self:
        """The model in a folder, a file or a Hub repository; raises Error on weights of another model, listing what is wrong.

        transformers_version says whose rules hold: which of a file's tied weights where they differ (names.gather), and what
        hidden_states[-1] is. In 5 it is the last hidden state, after the final norm, unless config.tie_last_hidden_states is
        false; in 4 RobertaPreLayerNorm's is the stream before that norm. transformers' keywords that change nothing here are
        taken, the others refused by name (keywords.py).
        """
        running = running_of(running, on_disk(path_or_repo))
        settings_of(**running)
        folder = checkpoint_folder(path_or_repo, revision)
        stored = open_checkpoint(folder)
        if config is not None:
            check_kind(config)
        config = placed(config or config_of(folder, model_type=lambda: cls.model_type), stored)
        model = cls.from_stored(stored, config, str(folder), transformers_version, **running)
        model.generation_config = read_generation_config(folder)
        return model

    @classmethod
    def from_stored(
        cls,
        stored: Stored,
        config: RobertaPreLayerNormConfig,
        where: str,
        transformers_version: Literal[4, 5] = 5,
        **running: Unpack[Running],
    ) -> Self:
        """The model of an opened checkpoint, called `where` in errors; raises Error as from_pretrained."""
        cls._check_config(config)
        if transformers_version == 4:  # knows no such field: of all these families one keeps its states before the final norm
            config = dataclasses.replace(config, tie_last_hidden_states=cls.model_type != "roberta-prelayernorm")
        check_layers(config, stored, where)
        shapes, family = (cls.encoder_shapes(config), cls.head_shapes(config)), names.FAMILIES[cls.model_type]
        tensors = names.gather(stored, *shapes, config.tie_word_embeddings, where, family, transformers_version)
        model = cls(config, tensors, **running)
        model.name_or_path = where
        return model

    def save_pretrained(
        self, folder: str | Path, *, max_shard_size: int | str = SHARD_SIZE, written: Callable[[int], object] = lambda _: None
    ) -> None:
        """Write config.json and the tensors as they were stored, in shards past a size ("5GB"), for transformers too.

        `written` is told of every few bytes on their way.
        """
        folder, max_shard_size = Path(folder).expanduser(), size_of(max_shard_size)
        dataclasses.replace(self.config, architectures=[type(self).__name__]).save_pretrained(folder)
        if self.generation_config is not None:
            write_json(folder / "generation_config.json", self.generation_config)
        headed, family = bool(self.head_shapes(self.config)), names.FAMILIES[self.model_type]
        save_tensors(
            folder, names.stored_names(self.tensors, headed, family, self.config.tie_word_embeddings), max_shard_size, written
        )

    def __repr__(self) -> str:
        config, settings = self.config, self.settings
        size = f"{self.num_parameters:,} parameters, {config.num_hidden_layers} layers of width {config.hidden_size}"
        how = f"{self.backend}, {settings.dtype}, {settings.matmul_precision}{', reproducible' if settings.reproducible else ''}"
        return f"<{type(self).__name__}: {size}; {how}>"

    @property
    def num_parameters(self) -> int:
        """How many numbers the model holds, tied ones once."""
        return sum(value.size for value in {id(value): value for value in self.tensors.values()}.values())

    def get_input_embeddings(self) -> Array:
        """The word embeddings (V, D) as the checkpoint stores them."""
        return self.tensors[names.WORDS]

    def set_input_embeddings(self, weight: Any) -> None:
        """Replace the word embeddings by (V', D) numbers; tied output embeddings follow, a tied bias is cut or padded with 0."""
        self._adopt(*surgery.with_embeddings(self.config, self.tensors, names.WORDS, as_array(weight, "weight")))

    def get_output_embeddings(self) -> Array | None:
        """The language model head's (V, D) weight; None for other heads."""
        return self.tensors.get(names.DECODER)

    def set_output_embeddings(self, weight: Any) -> None:
        """Replace the language model head's weight by (V, D) numbers, which unties it; raises Error for other heads."""
        self._adopt(*surgery.with_embeddings(self.config, self.tensors, names.DECODER, as_array(weight, "weight")))

    def tie_weights(self) -> None:
        """Make the head's weight the word embeddings again, where config.tie_word_embeddings says so."""
        if names.DECODER in self.tensors and self.config.tie_word_embeddings:
            self._adopt(self.config, self.tensors | {names.DECODER: self.tensors[names.WORDS]})

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True, seed: int = 0
    ) -> Array:
        """Cut or extend the vocabulary, and the head's with it; returns the new word embeddings.

        New rows are drawn around the mean of the old ones, or as for a new model with mean_resizing=False (Hewitt 2021).
        """
        resized = surgery.resize(self.config, self.tensors, new_num_tokens, pad_to_multiple_of, mean_resizing, seed)
        self._adopt(*resized)
        return self.get_input_embeddings()

    def prune_heads(self, heads_to_prune: Mapping[int, Sequence[int]]) -> None:
        """Remove attention heads, {layer: heads} by their original numbers; remembered in config.pruned_heads."""
        self._adopt(*surgery.prune(self.config, self.tensors, heads_to_prune))

    def _answer(self, given: Given, options: Options, *labels: Any, **asked: Any) -> Any:
        """A call from beginning to end: inputs checked, rows encoded, the head's fields, the loss where there are all labels."""
        config, ops, head = self.config, self.ops, self.head
        labelled = bool(labels) and all(x is not None for x in labels)
        ready = prepare(config, ops, np.dtype(self.settings.dtype), given, options, labelled)
        wanted = tuple(as_array(x, name) for x, name in zip(labels, head.labels, strict=True)) if labelled else ()
        head.check_call(ready.rows.shape, wanted, **asked)
        encoded = self._encode(ops, ready)
        with ops.running(self.settings):
            fields = head.compute(ops, Encoded(self.weights, ready.rows, encoded.last, config.layer_norm_eps), **asked)
        if labelled and head.loss is not None:
            scores = (ops.to_numpy(x) for x in fields.values())
            fields["loss"] = head.loss(*scores, *wanted, *(getattr(config, name) for name in head.loss_reads))
        output = head.output(**fields, **kept_fields(ready, encoded, head.output.__dataclass_fields__))
        as_output = options.get("return_dict")
        return output if (config.return_dict if as_output is None else as_output) else output.to_tuple()

    @ieee
    def packed(self, texts: Sequence[Any], token_type_ids: Sequence[Any] | None = None, **asked: Any) -> Any:
        """Texts of any lengths, lists of ids, without padding: a call's output with (T, ...) where that has (B, S, ...).

        The T tokens of all texts stand one after another, with the bits that they have in a call. What is (B, ...) of texts stays
        so. For a language model's head `places` (K,) of the T says where to score: logits (K, V). Nothing is kept but what the
        head gives. Raises Error on no text, a text of no token, and RangeError on ids out of range or too many.
        """
        ops = self.ops
        encoded = self._encode_ragged(texts, token_type_ids)
        encoded = encoded._replace(rows=Ragged(*encoded.rows))
        with ops.running(self.settings):
            return self.head.output(**self.head.compute(ops, encoded, **{**self.head.packed(len(texts)), **asked}))

    @ieee
    def _encode_ragged(self, texts: Sequence[Any], token_types: Sequence[Any] | None = None) -> Encoded:
        """Lists of ids of any lengths -> the encoder's rows (T, D), with no padding; Rows unpacks them."""
        ops = self.ops
        ready = prepare_ragged(self.config, ops, np.dtype(self.settings.dtype), texts, token_types)
        return Encoded(self.weights, ready.rows, self._encode(ops, ready).last, self.config.layer_norm_eps)

    def _encode(self, ops: Backend, ready: Ready) -> forward.Encoded:
        """The encoder on the rows of a call."""
        call, weights = ready.call, self.weights
        tap.begin(ops, ready)

        def encode(tokens: Array, positions: Array | None, types: Array, sequences: Sequences) -> forward.Encoded:
            where = None if positions is None else ops.asarray(positions)
            x = forward.embed(ops, ops.asarray(tokens), where, ops.asarray(types), call.eps, **weights["embeddings"])
            layers, norm = weights["encoder"]["layer"], weights.get("LayerNorm")
            return forward.encode(ops, x, call._replace(sequences=sequences), layer=layers, LayerNorm=norm)

        sequences = call.sequences
        rows = (ready.tokens, ready.positions, ready.token_types, sequences)
        with ops.running(self.settings):
            if ready.plain:
                fixed = tuple(x for x in call if x is not sequences)
                last = ops.recorded(lambda *rows: encode(*rows).last, weights, call.head_size, fixed)(*rows)
                return forward.Encoded(last, [], [], [])
            encoded = encode(*rows)
        if call.states and self.config.tie_last_hidden_states:
            encoded.hidden_states[-1] = encoded.last
        return encoded


# The seven classes: the arguments of each, in Hugging Face's order.


class RobertaPreLayerNormModel(RobertaPreLayerNormPreTrainedModel):
    """The bare encoder (or decoder), with a pooler where the checkpoint has one."""

    head = HEADS["Model"]

    @ieee
    def __call__(
        self, input_ids: Any = None, attention_mask: Any = None, token_type_ids: Any = None, position_ids: Any = None,
        head_mask: Any = None, inputs_embeds: Any = None, encoder_hidden_states: Any = None, encoder_attention_mask: Any = None,
        past_key_values: Past = None, use_cache: bool | None = None, **options: Unpack[Options],
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:  # fmt: skip
        """ids (B, S) -> last_hidden_state (B, S, D), pooler_output (B, D); mirrors RobertaPreLayerNormModel.forward."""
        given = Given(
            input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds,
            encoder_hidden_states, encoder_attention_mask, past_key_values, use_cache,
        )  # fmt: skip
        return self._answer(given, options)


class RobertaPreLayerNormForCausalLM(RobertaPreLayerNormPreTrainedModel):
    """A decoder with a language-model head: each place predicts the next token.

    Warns, as transformers does, where config.is_decoder is false.
    """

    head = HEADS["ForCausalLM"]

    def __init__(
        self,
        config: RobertaPreLayerNormConfig,
        tensors: Mapping[str, Array] | None = None,
        *,
        seed: int = 0,
        **running: Unpack[Running],
    ) -> None:
        super().__init__(config, tensors, seed=seed, **running)
        if not config.is_decoder:
            told = "config.is_decoder is false, so every place reads those behind it too and nothing is cached"
            warnings.warn(f"{told}: for a model that writes from left to right set is_decoder to true", stacklevel=3)

    @ieee
    def __call__(
        self, input_ids: Any = None, attention_mask: Any = None, token_type_ids: Any = None, position_ids: Any = None,
        head_mask: Any = None, inputs_embeds: Any = None, encoder_hidden_states: Any = None, encoder_attention_mask: Any = None,
        labels: Any = None, past_key_values: Past = None, use_cache: bool | None = None, logits_to_keep: Any = 0,
        **options: Unpack[Options],
    ) -> CausalLMOutputWithCrossAttentions:  # fmt: skip
        """ids (B, S) -> logits (B, S, V), loss with labels (B, S); mirrors RobertaPreLayerNormForCausalLM.forward.

        logits_to_keep: the last k places, places (K,), places of each row (B, K), or those where a (B, S) mask of booleans is
        true, which gives (K, V); 0 for all.
        """
        given = Given(
            input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds,
            encoder_hidden_states, encoder_attention_mask, past_key_values, False if labels is not None else use_cache,
        )  # fmt: skip
        return self._answer(given, options, labels, places=places_of(logits_to_keep))

    def generate(self, input_ids: Any = None, attention_mask: Any = None, **arguments: Any) -> Any:
        """Prompts (B, S) continued, as ids; the arguments are those of generation.generate, their defaults the checkpoint's own.

        Those are generation_config's where there is one, else what the configuration says of generation.
        """
        return generation.generate(self, input_ids, attention_mask, **self.generation_settings(arguments))

    def stream(self, input_ids: Any, attention_mask: Any = None, **arguments: Any) -> Iterator[Array]:
        """The tokens (R,) that `generate` appends, a step at a time, as they are asked for; raises Error on beams too."""
        arguments = self.generation_settings(arguments)
        arguments.pop("return_dict_in_generate", None)
        return generation.stream(self, input_ids, attention_mask, **arguments)

    def generation_settings(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of generation.generate: those given, then the checkpoint's own."""
        found = generation.settings(self.generation_config, arguments, self.config.to_dict())
        return {name: value for name, value in found.items() if name not in generation.STARTS}


class RobertaPreLayerNormForMaskedLM(RobertaPreLayerNormPreTrainedModel):
    """An encoder with a language-model head: a masked place predicts its token."""

    head = HEADS["ForMaskedLM"]

    @ieee
    def __call__(
        self, input_ids: Any = None, attention_mask: Any = None, token_type_ids: Any = None, position_ids: Any = None,
        head_mask: Any = None, inputs_embeds: Any = None, encoder_hidden_states: Any = None, encoder_attention_mask: Any = None,
        labels: Any = None, *, logits_to_keep: Any = 0, **options: Unpack[Options],
    ) -> MaskedLMOutput:  # fmt: skip
        """ids (B, S) -> logits (B, S, V), loss with labels (B, S); mirrors RobertaPreLayerNormForMaskedLM.forward.

        logits_to_keep as in RobertaPreLayerNormForCausalLM.
        """
        given = Given(
            input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds,
            encoder_hidden_states, encoder_attention_mask, use_cache=False,
        )  # fmt: skip
        return self._answer(given, options, labels, places=places_of(logits_to_keep))


class RobertaPreLayerNormForSequenceClassification(RobertaPreLayerNormPreTrainedModel):
    """An encoder with labels (or a number) for the whole text."""

    head = HEADS["ForSequenceClassification"]

    @ieee
    def __call__(
        self, input_ids: Any = None, attention_mask: Any = None, token_type_ids: Any = None, position_ids: Any = None,
        head_mask: Any = None, inputs_embeds: Any = None, labels: Any = None, **options: Unpack[Options],
    ) -> SequenceClassifierOutput:  # fmt: skip
        """ids (B, S) -> logits (B, labels); mirrors RobertaPreLayerNormForSequenceClassification.forward.

        The loss is config.problem_type's, inferred from the labels where that is None (and not written back to the config).
        """
        given = Given(input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        return self._answer(given, options, labels)


class RobertaPreLayerNormForMultipleChoice(RobertaPreLayerNormPreTrainedModel):
    """An encoder with a score for each of several continuations."""

    head = HEADS["ForMultipleChoice"]

    @ieee
    def __call__(
        self, input_ids: Any = None, token_type_ids: Any = None, attention_mask: Any = None, labels: Any = None,
        position_ids: Any = None, head_mask: Any = None, inputs_embeds: Any = None, **options: Unpack[Options],
    ) -> MultipleChoiceModelOutput:  # fmt: skip
        """ids (B, choices, S) -> logits (B, choices); mirrors RobertaPreLayerNormForMultipleChoice.forward, its order too."""
        name, rank = ("input_ids", 3) if input_ids is not None else ("inputs_embeds", 4)
        tokens = input_ids if input_ids is not None else inputs_embeds
        shape = () if tokens is None else as_array(tokens, name).shape
        if len(shape) != rank:
            raise Error(f"multiple choice reads input_ids of shape (batch, choices, tokens); these have {shape}")

        def flat(x: Any) -> Any:
            x = None if x is None else as_array(x, "an input")
            return x.reshape(-1, *x.shape[2:]) if x is not None and x.ndim > 2 else x

        given = Given(
            flat(input_ids), flat(attention_mask), flat(token_type_ids), flat(position_ids), head_mask, flat(inputs_embeds)
        )
        return self._answer(given, options, labels, shape=shape[:2])


class RobertaPreLayerNormForTokenClassification(RobertaPreLayerNormPreTrainedModel):
    """An encoder with labels for every token."""

    head = HEADS["ForTokenClassification"]

    @ieee
    def __call__(
        self, input_ids: Any = None, attention_mask: Any = None, token_type_ids: Any = None, position_ids: Any = None,
        head_mask: Any = None, inputs_embeds: Any = None, labels: Any = None, **options: Unpack[Options],
    ) -> TokenClassifierOutput:  # fmt: skip
        """ids (B, S) -> logits (B, S, labels), loss with labels; mirrors RobertaPreLayerNormForTokenClassification.forward."""
        given = Given(input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        return self._answer(given, options, labels)


class RobertaPreLayerNormForQuestionAnswering(RobertaPreLayerNormPreTrainedModel):
    """An encoder that scores every token as the start and as the end of an answer."""

    head = HEADS["ForQuestionAnswering"]

    @ieee
    def __call__(
        self, input_ids: Any = None, attention_mask: Any = None, token_type_ids: Any = None, position_ids: Any = None,
        head_mask: Any = None, inputs_embeds: Any = None, start_positions: Any = None, end_positions: Any = None,
        **options: Unpack[Options],
    ) -> QuestionAnsweringModelOutput:  # fmt: skip
        """ids (B, S) -> start_logits, end_logits (B, S); mirrors RobertaPreLayerNormForQuestionAnswering.forward.

        Skipped padding has logits 0, which may be above an answer's: look for the best among attended places.
        """
        given = Given(input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        return self._answer(given, options, start_positions, end_positions)


CLASSES: dict[str, type[RobertaPreLayerNormPreTrainedModel]] = {
    cls.__name__: cls
    for cls in (
        RobertaPreLayerNormModel,
        RobertaPreLayerNormForCausalLM,
        RobertaPreLayerNormForMaskedLM,
        RobertaPreLayerNormForSequenceClassification,
        RobertaPreLayerNormForMultipleChoice,
        RobertaPreLayerNormForTokenClassification,
        RobertaPreLayerNormForQuestionAnswering,
    )
}


def check_kind(config: object) -> None:
    """Raise Error where a thing is no configuration."""
    if not isinstance(config, RobertaPreLayerNormConfig):
        raise Error(f"config is of type {type(config).__name__}; it must be a {RobertaPreLayerNormConfig.__name__} or its kin")


def placed(config: RobertaPreLayerNormConfig, stored: Stored) -> RobertaPreLayerNormConfig:
    """The configuration that a checkpoint should have had: DinkyTrain's call themselves roberta, with pre-norm weights."""
    if config.model_type != "roberta" or not names.placed_before(stored):
        return config
    model_type = "roberta-prelayernorm"
    content = config.to_dict() | {"model_type": model_type}
    if config.architectures:
        content["architectures"] = [re.sub("^Roberta(?=Model|For)", "RobertaPreLayerNorm", name) for name in config.architectures]
    return CONFIGS[model_type].from_dict(content)
