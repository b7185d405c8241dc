"""An encoder and a decoder that reads it: translation, summaries. Mirrors transformers' EncoderDecoderModel."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, Unpack

import numpy as np

from . import generation, losses, tap
from .backends import Array
from .call import Options, Past
from .config import RobertaPreLayerNormConfig, config_from
from .errors import Error, ieee
from .family import KIN
from .inputs import as_array, check_ids, check_integers, on_gpu
from .keywords import Running, running_of
from .models import RobertaPreLayerNormForCausalLM, RobertaPreLayerNormModel, RobertaPreLayerNormPreTrainedModel
from .outputs import BaseModelOutputWithPoolingAndCrossAttentions, Seq2SeqLMOutput
from .plan import plan
from .tensors import check_layers
from .weights import names
from .weights.checkpoint import Part, Stored, open_checkpoint, read_config, read_generation_config
from .weights.files import write_json
from .weights.hub import checkpoint_folder, on_disk
from .weights.safetensors import SHARD_SIZE, save_tensors, size_of

MODEL_TYPE = "encoder-decoder"
PROJECTION = "enc_to_dec_proj"

Parts = dict[str, tuple[type[RobertaPreLayerNormPreTrainedModel], RobertaPreLayerNormConfig, Part]]


def is_pair(content: Mapping[str, Any]) -> bool:
    """Whether a config.json is an encoder-decoder's: it says so, or has no model_type and two parts."""
    if content.get("model_type") is None:
        return isinstance(content.get("encoder"), dict) and isinstance(content.get("decoder"), dict)
    return bool(content["model_type"] == MODEL_TYPE)


def parts_of(content: Mapping[str, Any], stored: Stored, where: str) -> Parts:
    """The class, configuration and tensors of the encoder and of the decoder.

    Under tie_encoder_decoder one part's tensors stand for those that the file does not hold of the other, as transformers 4 saves
    them. Raises Error where config.json lacks a part or names one that is not run here.
    """
    tied, held = content.get("tie_encoder_decoder") is True, {part: Part(stored, part) for part in ("encoder", "decoder")}
    found: Parts = {}
    for part, other, head in (("encoder", "decoder", "Model"), ("decoder", "encoder", "ForCausalLM")):
        if not isinstance(content.get(part), dict):
            raise Error(f"{where}: config.json holds no {part}")
        seen = [*held[part], *(held[other] if tied else ())]
        config = config_from(content[part], lambda seen=seen: names.model_type_of(seen))  # type: ignore[misc]
        if config.model_type not in names.FAMILIES:
            known = ", ".join(names.FAMILIES)
            raise Error(f"{where}: the {part}'s model_type is {config.model_type!r}; this version runs {known}")
        kind, tensors = KIN[config.model_type][head], held[part]
        if tied:
            check_layers(config, stored, f"{where} ({part})")
            wanted = kind.encoder_shapes(config)
            own, theirs = (
                names.own_names(held[side], where, names.FAMILIES[config.model_type], wanted) for side in (part, other)
            )
            shared = {name: held[other].source(theirs[name]) for name in wanted if name in theirs and name not in own}
            tensors = Part(stored, part, shared)
        found[part] = kind, config, tensors
    return found


class EncoderDecoderModel:
    """RobertaPreLayerNormModel and RobertaPreLayerNormForCausalLM, joined by the decoder's cross-attention."""

    @ieee
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
        self.generation_config: dict[str, Any] | None = None  # the checkpoint's generation_config.json
        self.name_or_path: str | None = None  # where the checkpoint was
        self.projection = None if projection is None else dict(projection)
        self._projection = (
            None if projection is None else encoder.ops.prepare(plan({"proj": dict(projection)}), encoder.settings)["proj"]
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: encoder {self.encoder!r}, decoder {self.decoder!r}>"

    def tap_names(self) -> list[str]:
        """As a model's, the parts' names behind `encoder.` and `decoder.`."""
        return tap.names_of(self)

    @property
    def config(self) -> RobertaPreLayerNormConfig:
        """The decoder's configuration, with what the pair's own config.json says of tokens."""
        said = ("decoder_start_token_id", "pad_token_id", "eos_token_id")
        tokens = {name: self.extra[name] for name in said if self.extra.get(name) is not None}
        return dataclasses.replace(self.decoder.config, **tokens)

    @classmethod
    def from_encoder_decoder_pretrained(cls, encoder: str | Path, decoder: str | Path, **running: Unpack[Running]) -> Self:
        """A pair from two checkpoints, the decoder's with cross-attention weights; raises Error where they do not fit."""
        return cls(
            RobertaPreLayerNormModel.from_pretrained(encoder, **running),
            RobertaPreLayerNormForCausalLM.from_pretrained(decoder, **running),
        )

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | Path,
        *,
        revision: str | None = None,
        transformers_version: Literal[4, 5] = 5,
        **running: Unpack[Running],
    ) -> Self:
        """The pair in a folder, a file or a Hub repository, each part as its own from_pretrained; raises Error on another."""
        running = running_of(running, on_disk(path_or_repo))
        folder = checkpoint_folder(path_or_repo, revision)
        content = read_config(folder)
        if not is_pair(content):
            raise Error(f"{folder}: model_type is {content.get('model_type')!r}, not {MODEL_TYPE!r}")
        stored = open_checkpoint(folder)
        models: list[Any] = []
        for part, (kind, config, held) in parts_of(content, stored, str(folder)).items():
            models.append(kind.from_stored(held, config, f"{folder} ({part})", transformers_version, **running))
        joined = Part(stored, PROJECTION)
        projection = {name: joined[name] for name in joined} or None
        extra = {name: value for name, value in content.items() if name not in ("encoder", "decoder")}
        pair = cls(models[0], models[1], projection, extra)
        pair.generation_config, pair.name_or_path = read_generation_config(folder), str(folder)
        return pair

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
        if self.generation_config is not None:
            write_json(folder / "generation_config.json", self.generation_config)
        save_tensors(folder, tensors, max_shard_size)

    @ieee
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

    @ieee
    def generate(self, input_ids: Any = None, attention_mask: Any = None, **arguments: Any) -> Any:
        """Texts (B, Se) -> what the decoder says of them, (B, L) ids from decoder_start_token_id on; as generation.generate.

        The arguments' defaults are the checkpoint's own: generation_config's where there is one, else those of the pair's
        config.json and then of its decoder. Without a mask, padding is every pad token of the texts (unless it also ends texts).
        """
        ids = check_ids(input_ids, "input_ids", self.encoder.config.vocab_size)
        prompts = arguments.pop("decoder_input_ids", None)
        arguments = generation.settings(self.generation_config, arguments, self.decoder.config.to_dict(), self.extra)
        starts = (*(arguments.pop(name, None) for name in generation.STARTS), self.config.decoder_start_token_id)
        if prompts is None:
            start = next((token for token in starts if token is not None), None)
            if start is None:
                raise Error("config: decoder_start_token_id is needed to generate")
            prompts = np.full((len(ids), 1), check_integers(start, "decoder_start_token_id"))
        if attention_mask is None:
            config = self.config
            pad, eos = (arguments.get(name, getattr(config, name)) for name in ("pad_token_id", "eos_token_id"))
            attention_mask = generation.padding_mask(ids, pad, generation.ends_of(eos, config.vocab_size))
        source = self._projected(self.encoder(ids, attention_mask, return_dict=True).last_hidden_state)
        mask = np.ones_like(prompts)
        return generation.generate(
            self.decoder, prompts, mask, encoder_hidden_states=source, encoder_attention_mask=attention_mask, **arguments
        )

    def resize_token_embeddings(self, *_: Any, **__: Any) -> None:
        """Raise Error: resize the encoder or the decoder, each has its own vocabulary."""
        raise Error("an encoder-decoder has two vocabularies: resize model.encoder or model.decoder")
