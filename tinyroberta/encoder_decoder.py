"""An encoder and a decoder that reads it: translation, summaries. Mirrors transformers' EncoderDecoderModel."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, Unpack

import numpy as np

from . import generation, losses
from .backends import Array
from .config import RobertaPreLayerNormConfig, config_from
from .errors import Error
from .inputs import as_array, check_ids, on_gpu
from .keywords import running_of
from .models import (
    Options,
    Past,
    RobertaPreLayerNormForCausalLM,
    RobertaPreLayerNormModel,
    Running,
    classes_of,
)
from .outputs import BaseModelOutputWithPoolingAndCrossAttentions, Seq2SeqLMOutput
from .weights import names
from .weights.checkpoint import Part, open_checkpoint
from .weights.files import read_json, write_json
from .weights.hub import checkpoint_folder, on_disk
from .weights.safetensors import SHARD_SIZE, save_tensors, size_of

MODEL_TYPE = "encoder-decoder"
PROJECTION = "enc_to_dec_proj"


class EncoderDecoderModel:
    """RobertaPreLayerNormModel and RobertaPreLayerNormForCausalLM, joined by the decoder's cross-attention."""

    def __init__(
        self,
        encoder: RobertaPreLayerNormModel,
        decoder: RobertaPreLayerNormForCausalLM,
        projection: Mapping[str, Array] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """`projection`: weight (D', D) and bias (D',), where the two widths differ; `extra`: other fields of config.json.

        Raises Error where the parts do not fit together.
        """
        if not (decoder.config.is_decoder and decoder.config.add_cross_attention):
            raise Error("the decoder cannot read an encoder: its config needs is_decoder and add_cross_attention")
        widths = (decoder.config.hidden_size, encoder.config.hidden_size)
        if (widths[0] != widths[1]) != (projection is not None):
            told = "needs" if projection is None else "must not have"
            raise Error(f"an encoder of width {widths[1]} and a decoder of width {widths[0]}: the model {told} {PROJECTION}")
        if projection is not None:
            shapes = {name: np.shape(value) for name, value in projection.items()}
            if shapes != {"weight": widths, "bias": widths[:1]}:
                raise Error(f"{PROJECTION} has shapes {shapes}; it must have weight {widths} and bias {widths[:1]}")
        self.encoder, self.decoder, self.extra = encoder, decoder, dict(extra or {})
        self.projection = None if projection is None else dict(projection)
        self._projection = (
            None if projection is None else encoder.ops.prepare({"proj": dict(projection)}, encoder.settings)["proj"]
        )

    @property
    def config(self) -> RobertaPreLayerNormConfig:
        """The decoder's configuration, with what the pair's own config.json says of tokens."""
        tokens = {
            name: self.extra[name] for name in ("decoder_start_token_id", "pad_token_id", "eos_token_id") if name in self.extra
        }
        return dataclasses.replace(self.decoder.config, **tokens)

    @classmethod
    def from_encoder_decoder_pretrained(cls, encoder: str | Path, decoder: str | Path, **running: Unpack[Running]) -> Self:
        """A pair from two checkpoints, the decoder's with cross-attention weights; raises Error where they do not fit."""
        return cls(
            RobertaPreLayerNormModel.from_pretrained(encoder, **running),
            RobertaPreLayerNormForCausalLM.from_pretrained(decoder, **running),
        )

    @classmethod
    def from_pretrained(cls, path_or_repo: str | Path, *, revision: str | None = None, **running: Unpack[Running]) -> Self:
        """The pair in a folder or Hub repository; raises Error on anything else."""
        running = running_of(running, on_disk(path_or_repo))
        folder = checkpoint_folder(path_or_repo, revision)
        content = read_json(folder / "config.json")
        if content.get("model_type") != MODEL_TYPE:
            raise Error(f"{folder}: model_type is {content.get('model_type')!r}, not {MODEL_TYPE!r}")
        parts = {}
        for part in ("encoder", "decoder"):
            if not isinstance(content.get(part), dict):
                raise Error(f"{folder}: config.json holds no {part}")
            parts[part] = config_from(content.pop(part))
            if parts[part].model_type not in names.FAMILIES:
                known = ", ".join(names.FAMILIES)
                raise Error(f"{folder}: the {part}'s model_type is {parts[part].model_type!r}; this version runs {known}")
        stored = open_checkpoint(folder)
        models: list[Any] = []
        for part, place in (("encoder", 0), ("decoder", 1)):  # of the seven: the bare model, and the causal language model
            config, where = parts[part], f"{folder} ({part})"
            models.append(classes_of(config.model_type)[place].from_stored(Part(stored, part), config, where, **running))
        joined = Part(stored, PROJECTION)
        projection = {name: joined[name] for name in joined} or None
        return cls(models[0], models[1], projection, content)

    def save_pretrained(self, folder: str | Path, *, max_shard_size: int | str = SHARD_SIZE) -> None:
        """Write both parts as one checkpoint that transformers loads."""
        folder, max_shard_size = Path(folder).expanduser(), size_of(max_shard_size)
        tensors: dict[str, Array] = {}
        content: dict[str, Any] = {**self.extra, "architectures": ["EncoderDecoderModel"], "model_type": MODEL_TYPE}
        content |= {"is_encoder_decoder": True}
        for part, model in (("encoder", self.encoder), ("decoder", self.decoder)):
            headed, family = bool(model.head_shapes(model.config)), names.FAMILIES[model.model_type]
            stored = names.stored_names(model.tensors, headed, family, model.config.tie_word_embeddings)
            tensors |= {f"{part}.{name}": value for name, value in stored.items()}
            if callable(model.config.hidden_act):
                raise Error("config: hidden_act is a function, which config.json cannot hold; name a known activation to save")
            content[part] = dataclasses.replace(model.config, architectures=[type(model).__name__]).to_dict()
        tensors |= {f"{PROJECTION}.{name}": value for name, value in (self.projection or {}).items()}
        write_json(folder / "config.json", content)
        save_tensors(folder, tensors, max_shard_size)

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        encoder_outputs: Any = None,
        past_key_values: Past = None,
        inputs_embeds: Any = None,
        decoder_inputs_embeds: Any = None,
        labels: Any = None,
        use_cache: bool | None = None,
        **options: Unpack[Options],
    ) -> Seq2SeqLMOutput:
        """ids (B, Se) and decoder ids (B, S) -> logits (B, S, V); mirrors EncoderDecoderModel.forward.

        With labels and no decoder ids, those are the labels shifted right, their padding masked; the loss compares logits and
        labels place by place.
        Raises Error where the decoder has nothing to read.
        """
        kept = Options(**{**options, "return_dict": True})
        if encoder_outputs is None:
            encoded = self.encoder(input_ids, attention_mask, inputs_embeds=inputs_embeds, **kept)
        else:
            first = encoder_outputs if hasattr(encoder_outputs, "last_hidden_state") else None
            if first is None and not (isinstance(encoder_outputs, Sequence) and len(encoder_outputs)):
                raise Error("encoder_outputs must be an encoder's output, or a tuple that begins with its last_hidden_state")
            states = None
            if first is None:
                given = encoder_outputs[0]
                states = given if on_gpu(given) else self.encoder.ops.asarray(as_array(given, "encoder_outputs"))
            encoded = first or BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=states)
        source = self._projected(encoded.last_hidden_state)
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self._shifted(as_array(labels, "labels"))
            if decoder_attention_mask is None:
                decoder_attention_mask = decoder_input_ids != self.config.pad_token_id
        if labels is not None:
            kept["padding"] = "compute"  # places whose token is padding may still be labelled
        output = self.decoder(
            decoder_input_ids,
            decoder_attention_mask,
            inputs_embeds=decoder_inputs_embeds,
            encoder_hidden_states=source,
            encoder_attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kept,
        )
        loss = None if labels is None else losses.masked_lm(self.decoder.ops.to_numpy(output.logits), as_array(labels, "labels"))
        whole = Seq2SeqLMOutput(
            loss,
            output.logits,
            output.past_key_values,
            output.hidden_states,
            output.attentions,
            output.cross_attentions,
            encoded.last_hidden_state,
            encoded.hidden_states,
            encoded.attentions,
        )
        return whole if options.get("return_dict") is not False else whole.to_tuple()  # type: ignore[return-value]

    def _projected(self, hidden: Array) -> Array:  # (B, Se, D) -> (B, Se, D')
        if self._projection is None:
            return hidden
        flat = self.encoder.ops.linear(hidden.reshape(-1, hidden.shape[2]), **self._projection)
        return flat.reshape(*hidden.shape[:2], -1)

    def _shifted(self, labels: Array) -> Array:
        """Labels a place to the right behind decoder_start_token_id, -100 as padding (shift_tokens_right)."""
        start, pad = self.config.decoder_start_token_id, self.config.pad_token_id
        if start is None or pad is None:
            raise Error("config: decoder_start_token_id and pad_token_id are needed to make decoder ids from labels")
        if labels.ndim != 2 or labels.dtype.kind not in "iu":
            raise Error(f"labels are {labels.dtype} of shape {labels.shape}; they must be integers, (batch, tokens)")
        shifted = np.concatenate([np.full_like(labels[:, :1], start), labels[:, :-1]], 1)
        return np.where(shifted == losses.IGNORED, pad, shifted)

    def generate(self, input_ids: Any = None, attention_mask: Any = None, **arguments: Any) -> Any:
        """Texts (B, Se) -> what the decoder says of them, (B, L) ids from decoder_start_token_id on; as generation.generate."""
        ids = check_ids(input_ids, "input_ids", self.encoder.config.vocab_size)
        start = self.config.decoder_start_token_id
        start = self.config.bos_token_id if start is None else start
        if start is None:
            raise Error("config: decoder_start_token_id is needed to generate")
        source = self._projected(self.encoder(ids, attention_mask, return_dict=True).last_hidden_state)
        for name in ("eos_token_id", "pad_token_id"):
            arguments.setdefault(name, getattr(self.config, name))
        prompts = arguments.pop("decoder_input_ids", np.full((len(ids), 1), start))
        mask = np.ones_like(prompts)
        return generation.generate(
            self.decoder, prompts, mask, encoder_hidden_states=source, encoder_attention_mask=attention_mask, **arguments
        )

    def resize_token_embeddings(self, *_: Any, **__: Any) -> None:
        """Raise Error: resize the encoder or the decoder, each has its own vocabulary."""
        raise Error("an encoder-decoder has two vocabularies: resize model.encoder or model.decoder")
