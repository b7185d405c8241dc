"""The seven classes: Hugging Face's names, arguments and outputs around one forward pass; family.py names its kin."""

import dataclasses
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypedDict, TypeVar, Unpack, cast

import numpy as np

from . import forward, generation, losses, surgery, tap
from .backends import PRECISIONS, Array, Backend, Sequences, Settings, default_backend, load_backend
from .cache import Cache
from .config import CONFIGS, RobertaPreLayerNormConfig, config_of
from .errors import Error, ieee
from .inputs import (
    Rows,
    additive,
    arrange,
    as_array,
    check_ids,
    check_numbers,
    check_vectors,
    even,
    kept_layers,
    position_ids_of,
    take_places,
)
from .keywords import dtype_name, running_of
from .outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    MaskedLMOutput,
    ModelOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from .plan import plan
from .weights import names
from .weights.checkpoint import Stored, open_checkpoint, read_config, read_generation_config
from .weights.files import write_json
from .weights.hub import checkpoint_folder, on_disk
from .weights.safetensors import SHARD_SIZE, save_tensors, size_of

Output = TypeVar("Output", bound=ModelOutput)
Past = Cache | Sequence[Sequence[Array]] | None


class Running(TypedDict, total=False):
    """How a model is run: the same arguments for load, from_pretrained and a new model.

    backend: its name, None for numba where that is installed and can run the model, else numpy; dtype: "float32" or "float64";
    matmul_precision: "highest", "high" or "medium"; threads: how many, None for all the process may use; reproducible: the
    outputs but for losses have the same bits on every machine, path, number of threads and in any batch, as backends/bitwise.py
    defines them.
    """

    backend: str | None
    dtype: str
    matmul_precision: str
    threads: int | None
    reproducible: bool


class Options(TypedDict, total=False):
    """What every call may ask for besides its inputs.

    output_attentions and output_hidden_states (which may be a list of layers): kept and returned; return_dict=False: a tuple;
    padding: "skip" (default: nothing is computed for padding, those outputs are 0) or "compute" (as Hugging Face does).
    """

    output_attentions: bool | None
    output_hidden_states: bool | Sequence[int] | None
    return_dict: bool | None
    padding: Literal["skip", "compute"]


class Encoding(NamedTuple):
    """The encoder's result with what it takes to unpack it."""

    rows: Rows
    encoded: forward.Encoded
    cache: Cache | None
    sources: int | None  # Se, the length of cross-attention's keys


class RobertaPreLayerNormPreTrainedModel:
    """A configuration, the tensors of a checkpoint and the weights a backend has prepared from them."""

    has_pooler: ClassVar[bool] = False
    model_type: ClassVar[str] = "roberta-prelayernorm"
    generation_config: dict[str, Any] | None = None  # the checkpoint's generation_config.json

    def __init__(
        self,
        config: RobertaPreLayerNormConfig,
        tensors: Mapping[str, Array] | None = None,
        *,
        seed: int = 0,
        **running: Unpack[Running],
    ) -> None:
        """A model of given tensors, not copied, by this library's names (names.encoder_shapes), or one drawn with a seed.

        Raises Error on settings that the backend cannot fulfil.
        """
        _check_kind(config)
        if running.get("backend") is None and callable(config.hidden_act):
            running["backend"] = "numpy"  # what Numba cannot compile NumPy can call
        self.backend, self.settings = settings_of(**running)
        self._check_config(config)
        if tensors is None:
            tensors = surgery.new_tensors(config, self.encoder_shapes(config), self.head_shapes(config), seed)
        self._check_tensors(config, tensors)
        self._adopt(config, tensors)

    @classmethod
    def head_shapes(cls, config: RobertaPreLayerNormConfig) -> dict[str, names.Shape]:  # noqa: ARG003
        """The head's tensors, name to shape."""
        return {}

    @classmethod
    def encoder_shapes(cls, config: RobertaPreLayerNormConfig) -> dict[str, names.Shape]:
        """The encoder's tensors, name to shape."""
        return names.encoder_shapes(config, cls.has_pooler)

    @classmethod
    def _check_config(cls, config: RobertaPreLayerNormConfig) -> None:
        if config.model_type != cls.model_type:
            raise Error(
                f"config: model_type is {config.model_type!r}; {cls.__name__} runs {cls.model_type!r}, "
                f"this version {', '.join(names.FAMILIES)}"
            )

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
        """The backend's functions, heard by the traces that are under way."""
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
            _check_kind(config)
        config = _placed(config or config_of(folder, model_type=lambda: cls.model_type), stored)
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
        names.check_layers(config, stored, where)
        shapes, family = (cls.encoder_shapes(config), cls.head_shapes(config)), names.FAMILIES[cls.model_type]
        tensors = names.gather(stored, *shapes, config.tie_word_embeddings, where, family, transformers_version)
        return cls(config, tensors, **running)

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

    def _encode(
        self,
        input_ids: Any,
        attention_mask: Any,
        token_type_ids: Any,
        position_ids: Any,
        head_mask: Any,
        inputs_embeds: Any,
        *,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        past_key_values: Past = None,
        use_cache: bool | None = None,
        labelled: bool = False,
        check: Callable[[tuple[int, int]], object] | None = None,
        options: Options,
    ) -> Encoding:
        """Check the inputs, with `check` of their (B, S) before a cache is touched, choose the rows, run the encoder."""
        config, dtype = self.config, np.dtype(self.settings.dtype)
        if (input_ids is None) == (inputs_embeds is None):
            raise Error("give exactly one of input_ids and inputs_embeds")
        padding = options.get("padding", "skip")
        if padding not in ("skip", "compute"):
            raise Error(f'padding is {padding!r}; it must be "skip" or "compute"')
        if unknown := set(options) - set(Options.__annotations__):
            raise Error(f"unknown argument {', '.join(sorted(unknown))}")
        ids = None if input_ids is None else check_ids(input_ids, "input_ids", config.vocab_size)
        if ids is not None:
            given, shape = ids, (ids.shape[0], ids.shape[1])
        else:
            given = check_vectors(inputs_embeds, "inputs_embeds", config.hidden_size, dtype)
            shape = (given.shape[0], given.shape[1])
        if 0 in shape:
            raise Error(f"the input has shape {shape}; there must be at least one text and one token")
        if config.chunk_size_feed_forward and shape[1] % config.chunk_size_feed_forward:
            raise Error(
                f"{shape[1]} tokens are not a multiple of config.chunk_size_feed_forward {config.chunk_size_feed_forward}"
            )
        types = np.zeros(shape, np.int64)
        if token_type_ids is not None:
            types = check_ids(token_type_ids, "token_type_ids", config.type_vocab_size)
            if types.shape not in (shape, (1, shape[1])):
                raise Error(f"token_type_ids has shape {types.shape}; it must be {shape}")
            types = np.broadcast_to(types, shape)

        caching = config.is_decoder and (config.use_cache if use_cache is None else use_cache)
        if check is not None:
            check(shape)
        cache = None
        if caching or past_key_values is not None:
            cache = Cache.of(past_key_values, config.num_hidden_layers, shape[0], dtype, self.ops.asarray)
        past = 0 if cache is None else cache.length
        mask = None if attention_mask is None else check_numbers(attention_mask, "attention_mask")
        positions = position_ids_of(position_ids, ids, shape, past, config)
        relative = config.position_embedding_type != "absolute"
        if relative and past + shape[1] > config.max_position_embeddings:
            raise Error(f"{past + shape[1]} tokens; this model's relative positions reach {config.max_position_embeddings}")
        source, source_mask = self._source(encoder_hidden_states, encoder_attention_mask, shape, dtype)
        head_masks = self._head_masks(head_mask, dtype, (*shape, past + shape[1]), None if source is None else source.shape[1])
        if cache is not None and source is not None and cache.layer(0)[1].length not in (0, source.shape[1]):
            held = cache.layer(0)[1].length
            raise Error(f"encoder_hidden_states have {source.shape[1]} tokens, past_key_values hold cross-attention to {held}")
        whole = cache is not None or relative or (source_mask is not None and source_mask.shape[2] > 1)
        whole = whole or (head_masks is not None and any(max(m.shape[2:]) > 1 for m in head_masks))
        skip = padding == "skip" and not labelled
        rows = arrange(
            mask, shape, None if cache is None else past, causal=config.is_decoder, whole=whole, skip=skip, dtype=dtype
        )

        ops, eps = self.ops, config.layer_norm_eps
        tap.begin(ops, rows)
        states = kept_layers(options.get("output_hidden_states"), config.output_hidden_states, config.num_hidden_layers + 1)
        probs = options.get("output_attentions")
        call = forward.Call(
            eps=eps,
            head_size=config.head_size,
            hidden_act=config.hidden_act,
            position_embedding_type=config.position_embedding_type,
            sequences=rows.sequences,
            bias=None if rows.bias is None else ops.asarray(rows.bias),
            head_mask=None if head_masks is None else [ops.asarray(mask) for mask in head_masks],
            pre_norm=names.FAMILIES[self.model_type].pre_norm,
            probs=config.output_attentions if probs is None else bool(probs),
            states=bool(states),
            cache=cache,
            chunk=config.chunk_size_feed_forward * shape[0],
        )
        if source is not None:
            S = source.shape[1]
            places = even(shape[0], shape[1], S, False, cache is not None)._replace(query_start=rows.sequences.query_start)
            bias = None if source_mask is None else ops.asarray(source_mask)
            source_rows = ops.asarray(source.reshape(-1, source.shape[2]))
            call = call._replace(source=source_rows, source_sequences=places, source_bias=bias)

        def encode(ids: Array, positions: Array | None, types: Array, sequences: Sequences) -> forward.Encoded:
            where = None if positions is None else ops.asarray(positions)
            x = forward.embed(ops, ops.asarray(ids), where, ops.asarray(types), eps, **self.weights["embeddings"])
            layers, norm = self.weights["encoder"]["layer"], self.weights.get("LayerNorm")
            return forward.encode(ops, x, call._replace(sequences=sequences), layer=layers, LayerNorm=norm)

        inputs = (rows.pack(given), None if relative else rows.pack(positions), rows.pack(types), rows.sequences)
        plain = ids is not None and isinstance(call.hidden_act, str) and not (relative or call.probs or call.states or call.chunk)
        plain = plain and all(extra is None for extra in (call.bias, call.head_mask, call.cache, call.source))
        with ops.running(self.settings):
            if plain:  # nothing but the last hidden state is wanted, so a backend may play what it recorded
                fixed = tuple(x for x in call if x is not call.sequences)
                last = ops.recorded(lambda *rows: encode(*rows).last, self.weights, config.head_size, fixed)(*inputs)
                encoded = forward.Encoded(last, [], [], [])
            else:
                encoded = encode(*inputs)
        if call.states and config.tie_last_hidden_states:
            encoded.hidden_states[-1] = encoded.last
        return Encoding(rows, encoded, cache if caching else None, None if source is None else source.shape[1])

    def _head_masks(self, head_mask: Any, dtype: Any, shape: tuple[int, int, int], sources: int | None) -> list[Array] | None:
        """(heads,), (layers, heads) or (layers, 1 or B, heads, 1 or Sq, 1 or Sk) -> a 4-D mask a layer; shape: B, Sq, Sk."""
        if head_mask is None:
            return None
        config, (B, Sq, Sk) = self.config, shape
        mask = check_numbers(head_mask, "head_mask").astype(dtype)
        if mask.ndim == 1:
            mask = np.broadcast_to(mask, (config.num_hidden_layers, len(mask)))
        if mask.ndim == 2:
            mask = mask[:, None, :, None, None]
        kept = [config.num_attention_heads - len(config.pruned_heads.get(i, ())) for i in range(config.num_hidden_layers)]
        every = {*kept, *([] if sources is None else [config.num_attention_heads])}
        fits = mask.ndim == 5 and len(mask) >= len(kept) and mask.shape[2] in ({1} | every if len(every) == 1 else {1})
        fits = fits and mask.shape[1] in (1, B) and mask.shape[3] in (1, Sq) and mask.shape[4] in (1, Sk)
        if not fits or (sources is not None and mask.shape[4] not in (1, sources)):
            heads = " or ".join(map(str, sorted(every)))
            told = f"head_mask has shape {np.shape(head_mask)}; it must be (heads,) or ({len(kept)}, heads), heads being {heads}"
            raise Error(told + ("" if len(every) == 1 else ": with layers of different heads, give (layers, 1, 1, 1, 1)"))
        return list(mask[: len(kept)])

    def _source(self, states: Any, mask: Any, shape: tuple[int, int], dtype: Any) -> tuple[Array | None, Array | None]:
        """Cross-attention's source (B, Se, D) and the bias that its mask makes."""
        config = self.config
        if states is None:
            return None, None
        if not config.is_decoder:
            warnings.warn("encoder_hidden_states are ignored: config.is_decoder is false", stacklevel=4)
            return None, None
        if not config.add_cross_attention:
            raise Error(
                "encoder_hidden_states were given, but the model has no cross-attention: config.add_cross_attention is false"
            )
        states = check_vectors(states, "encoder_hidden_states", config.hidden_size, dtype)
        B, S = states.shape[:2]
        if S == 0:
            raise Error("encoder_hidden_states hold no token")
        if shape[0] != B:
            raise Error(f"encoder_hidden_states are for a batch of {B}, the input is one of {shape[0]}")
        if mask is None:
            return states, None
        mask = check_numbers(mask, "encoder_attention_mask")
        if mask.shape not in ((B, S), (1, S), (B, shape[1], S), (1, shape[1], S)):
            raise Error(f"encoder_attention_mask has shape {mask.shape}; it must be {(B, S)} or {(B, shape[1], S)}")
        return states, additive(mask, shape[1], False, dtype)

    def _kept(self, encoding: Encoding, options: Options, cross: bool = False) -> dict[str, Any]:
        """hidden_states, attentions and past_key_values as an output's fields."""
        rows, encoded = encoding.rows, encoding.encoded
        fields: dict[str, Any] = {}
        if encoded.hidden_states:
            count = len(encoded.hidden_states)
            chosen = kept_layers(options.get("output_hidden_states"), self.config.output_hidden_states, count)
            fields["hidden_states"] = tuple(rows.unpack(x) if i in chosen else None for i, x in enumerate(encoded.hidden_states))
        if encoded.attentions:
            fields["attentions"] = tuple(rows.unpack_probabilities(p) for p in encoded.attentions)
            if cross:
                sources = encoding.sources
                fields["cross_attentions"] = tuple(rows.unpack_probabilities(p, sources) for p in encoded.cross_attentions)
        if cross and encoding.cache is not None:
            fields["past_key_values"] = encoding.cache
        return fields

    def _returned(self, output: Output, options: Options) -> Output:
        """The output, or the tuple of its fields where that was asked for."""
        wanted = options.get("return_dict")
        as_output = self.config.return_dict if wanted is None else wanted
        return output if as_output else cast(Output, output.to_tuple())


class RobertaPreLayerNormModel(RobertaPreLayerNormPreTrainedModel):
    """The bare encoder (or decoder), with a pooler where the checkpoint has one."""

    has_pooler = True

    @ieee
    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        past_key_values: Past = None,
        use_cache: bool | None = None,
        **options: Unpack[Options],
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """ids (B, S) -> last_hidden_state (B, S, D), pooler_output (B, D); mirrors RobertaPreLayerNormModel.forward."""
        encoding = self._encode(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            options=options,
        )
        rows, last = encoding.rows, encoding.encoded.last
        pooled = None
        if "pooler" in self.weights:
            with self.ops.running(self.settings):
                pooled = forward.pool(self.ops, rows.first(last), **self.weights["pooler"])
        kept = self._kept(encoding, options, cross=True)
        return self._returned(BaseModelOutputWithPoolingAndCrossAttentions(rows.unpack(last), pooled, **kept), options)


class _LanguageModel(RobertaPreLayerNormPreTrainedModel):
    """What the two language models share: their head, on all places or on some."""

    @classmethod
    def head_shapes(cls, config: RobertaPreLayerNormConfig) -> dict[str, names.Shape]:
        return names.lm_head_shapes(config)

    def _logits(self, encoding: Encoding, logits_to_keep: Any) -> Array:  # -> (B, S, V), or the places kept
        rows, last = encoding.rows, encoding.encoded.last
        keep = as_array(logits_to_keep, "logits_to_keep")
        everything = keep.ndim == 0 and not keep
        if not everything:
            computed = take_places(rows.unpack(np.ones((len(last), 1), bool)), keep)
            kept = take_places(rows.unpack(last), keep)
            last = kept.reshape(-1, kept.shape[-1])
        with self.ops.running(self.settings):
            scores = forward.lm_head(self.ops, last, self.config.layer_norm_eps, **self.weights["lm_head"])
        if everything:
            return rows.unpack(scores)
        scores[~computed.ravel()] = 0
        return scores.reshape(*kept.shape[:-1], scores.shape[-1])


class RobertaPreLayerNormForCausalLM(_LanguageModel):
    """A decoder with a language-model head: each place predicts the next token.

    Warns, as transformers does, where config.is_decoder is false.
    """

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
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        labels: Any = None,
        past_key_values: Past = None,
        use_cache: bool | None = None,
        logits_to_keep: Any = 0,
        **options: Unpack[Options],
    ) -> CausalLMOutputWithCrossAttentions:
        """ids (B, S) -> logits (B, S, V), loss with labels (B, S); mirrors RobertaPreLayerNormForCausalLM.forward.

        logits_to_keep: the last k places, places (K,), places of each row (B, K), or those where a (B, S) mask of booleans is
        true, which gives (K, V); 0 for all.
        """

        def check(shape: tuple[int, int]) -> None:
            if labels is not None:
                losses.check_labels(as_array(labels, "labels"), shape)
            if np.ndim(keep) or keep:
                take_places(np.empty((*shape, 1)), keep)

        keep = as_array(logits_to_keep, "logits_to_keep")
        encoding = self._encode(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=False if labels is not None else use_cache,
            labelled=labels is not None,
            check=check,
            options=options,
        )
        logits = self._logits(encoding, keep)
        loss = None if labels is None else losses.causal_lm(self.ops.to_numpy(logits), as_array(labels, "labels"))
        return self._returned(
            CausalLMOutputWithCrossAttentions(loss, logits, **self._kept(encoding, options, cross=True)), options
        )

    def generate(self, input_ids: Any = None, attention_mask: Any = None, **arguments: Any) -> Any:
        """Prompts (B, S) continued, as ids; the arguments are those of generation.generate, their defaults the checkpoint's own.

        Those are generation_config's where there is one, else what the configuration says of generation.
        """
        arguments = generation.settings(self.generation_config, arguments, self.config.to_dict())
        arguments = {name: value for name, value in arguments.items() if name not in generation.STARTS}
        return generation.generate(self, input_ids, attention_mask, **arguments)


class RobertaPreLayerNormForMaskedLM(_LanguageModel):
    """An encoder with a language-model head: a masked place predicts its token."""

    @ieee
    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        labels: Any = None,
        *,
        logits_to_keep: Any = 0,
        **options: Unpack[Options],
    ) -> MaskedLMOutput:
        """ids (B, S) -> logits (B, S, V), loss with labels (B, S); mirrors RobertaPreLayerNormForMaskedLM.forward.

        logits_to_keep as in RobertaPreLayerNormForCausalLM.
        """
        encoding = self._encode(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            use_cache=False,
            labelled=labels is not None,
            options=options,
        )
        logits = self._logits(encoding, logits_to_keep)
        loss = None if labels is None else losses.masked_lm(self.ops.to_numpy(logits), as_array(labels, "labels"))
        return self._returned(MaskedLMOutput(loss, logits, **self._kept(encoding, options)), options)


class RobertaPreLayerNormForSequenceClassification(RobertaPreLayerNormPreTrainedModel):
    """An encoder with labels (or a number) for the whole text."""

    @classmethod
    def head_shapes(cls, config: RobertaPreLayerNormConfig) -> dict[str, names.Shape]:
        return names.classification_head_shapes(config)

    @ieee
    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        **options: Unpack[Options],
    ) -> SequenceClassifierOutput:
        """ids (B, S) -> logits (B, labels); mirrors RobertaPreLayerNormForSequenceClassification.forward.

        The loss is config.problem_type's, inferred from the labels where that is None (and not written back to the config).
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        encoding = self._encode(*inputs, labelled=labels is not None, options=options)
        with self.ops.running(self.settings):
            logits = forward.classification_head(
                self.ops, encoding.rows.first(encoding.encoded.last), **self.weights["classifier"]
            )
        loss = None
        if labels is not None:
            loss = losses.sequence_classification(self.ops.to_numpy(logits), as_array(labels, "labels"), self.config.problem_type)
        return self._returned(SequenceClassifierOutput(loss, logits, **self._kept(encoding, options)), options)


class RobertaPreLayerNormForMultipleChoice(RobertaPreLayerNormPreTrainedModel):
    """An encoder with a score for each of several continuations."""

    has_pooler = True

    @classmethod
    def head_shapes(cls, config: RobertaPreLayerNormConfig) -> dict[str, names.Shape]:
        return names.choice_classifier_shapes(config)

    @ieee
    def __call__(
        self,
        input_ids: Any = None,
        token_type_ids: Any = None,
        attention_mask: Any = None,
        labels: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        **options: Unpack[Options],
    ) -> MultipleChoiceModelOutput:
        """ids (B, choices, S) -> logits (B, choices); mirrors RobertaPreLayerNormForMultipleChoice.forward, its order too."""
        given = input_ids if input_ids is not None else inputs_embeds
        shape = () if given is None else as_array(given, "input_ids" if input_ids is not None else "inputs_embeds").shape
        if given is None or len(shape) != (3 if input_ids is not None else 4):
            raise Error(f"multiple choice reads input_ids of shape (batch, choices, tokens); these have {shape}")

        def flat(x: Any) -> Any:
            x = None if x is None else as_array(x, "an input")
            return x.reshape(-1, *x.shape[2:]) if x is not None and x.ndim > 2 else x

        inputs = (flat(input_ids), flat(attention_mask), flat(token_type_ids), flat(position_ids), head_mask, flat(inputs_embeds))
        encoding = self._encode(*inputs, labelled=labels is not None, options=options)
        with self.ops.running(self.settings):
            pooled = forward.pool(self.ops, encoding.rows.first(encoding.encoded.last), **self.weights["pooler"])
            logits = self.ops.linear(pooled, **self.weights["classifier"]).reshape(shape[:2])
        loss = None if labels is None else losses.multiple_choice(self.ops.to_numpy(logits), as_array(labels, "labels"))
        return self._returned(MultipleChoiceModelOutput(loss, logits, **self._kept(encoding, options)), options)


class RobertaPreLayerNormForTokenClassification(RobertaPreLayerNormPreTrainedModel):
    """An encoder with labels for every token."""

    @classmethod
    def head_shapes(cls, config: RobertaPreLayerNormConfig) -> dict[str, names.Shape]:
        return names.token_classifier_shapes(config)

    @ieee
    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        **options: Unpack[Options],
    ) -> TokenClassifierOutput:
        """ids (B, S) -> logits (B, S, labels), loss with labels; mirrors RobertaPreLayerNormForTokenClassification.forward."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        encoding = self._encode(*inputs, labelled=labels is not None, options=options)
        with self.ops.running(self.settings):
            logits = encoding.rows.unpack(self.ops.linear(encoding.encoded.last, **self.weights["classifier"]))
        loss = None if labels is None else losses.token_classification(self.ops.to_numpy(logits), as_array(labels, "labels"))
        return self._returned(TokenClassifierOutput(loss, logits, **self._kept(encoding, options)), options)


class RobertaPreLayerNormForQuestionAnswering(RobertaPreLayerNormPreTrainedModel):
    """An encoder that scores every token as the start and as the end of an answer."""

    @classmethod
    def head_shapes(cls, config: RobertaPreLayerNormConfig) -> dict[str, names.Shape]:
        return names.qa_outputs_shapes(config)

    @classmethod
    def _check_config(cls, config: RobertaPreLayerNormConfig) -> None:
        super()._check_config(config)
        if config.num_labels != 2:
            raise Error(f"config: num_labels is {config.num_labels}; question answering has 2, a start and an end")

    @ieee
    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        start_positions: Any = None,
        end_positions: Any = None,
        **options: Unpack[Options],
    ) -> QuestionAnsweringModelOutput:
        """ids (B, S) -> start_logits, end_logits (B, S); mirrors RobertaPreLayerNormForQuestionAnswering.forward.

        Skipped padding has logits 0, which may be above an answer's: look for the best among attended places.
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        labelled = start_positions is not None and end_positions is not None
        encoding = self._encode(*inputs, labelled=labelled, options=options)
        with self.ops.running(self.settings):
            logits = encoding.rows.unpack(self.ops.linear(encoding.encoded.last, **self.weights["qa_outputs"]))
        start, end, loss = logits[..., 0], logits[..., 1], None
        if labelled:
            positions = (as_array(start_positions, "start_positions"), as_array(end_positions, "end_positions"))
            loss = losses.question_answering(self.ops.to_numpy(start), self.ops.to_numpy(end), *positions)
        return self._returned(QuestionAnsweringModelOutput(loss, start, end, **self._kept(encoding, options)), options)


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


def load(
    path_or_repo: str | Path,
    backend: str | None = None,
    dtype: str = "float32",
    matmul_precision: str = "highest",
    threads: int | None = None,
    reproducible: bool = False,
    *,
    revision: str | None = None,
    transformers_version: Literal[4, 5] = 5,
    **others: Any,
) -> Any:
    """The model in a folder, a file of weights or a Hub repository, of the class that its config.json names, or the bare model.

    A file is read with the config.json beside it, fairseq's without.

    transformers_version=4 gives that version's tied weights and hidden_states[-1] where they differ from version 5's
    (`from_pretrained` says how).
    Raises Error where the class is none of this library's, or as `from_pretrained` does, whose other keywords are taken too.
    """
    running = Running(backend=backend, dtype=dtype, matmul_precision=matmul_precision, threads=threads, reproducible=reproducible)
    running = running_of({**running, **others}, on_disk(path_or_repo))
    settings_of(**running)
    folder = checkpoint_folder(path_or_repo, revision)
    from .encoder_decoder import EncoderDecoderModel, is_pair

    if is_pair(read_config(folder)):
        return EncoderDecoderModel.from_pretrained(folder, transformers_version=transformers_version, **running)
    stored = open_checkpoint(folder)
    cls, config = class_of(folder, stored)
    model = cls.from_stored(stored, config, str(folder), transformers_version, **running)
    model.generation_config = read_generation_config(folder)
    return model


def class_of(folder: Path, stored: Stored) -> tuple[type[RobertaPreLayerNormPreTrainedModel], RobertaPreLayerNormConfig]:
    """The class and configuration that a checkpoint asks for; raises Error where the class is none of this library's."""
    config = _placed(config_of(folder, model_type=lambda: names.model_type_of(stored)), stored)
    if config.model_type not in names.FAMILIES:
        raise Error(f"{folder}: model_type is {config.model_type!r}; this version runs {', '.join(names.FAMILIES)}")
    classes = {cls.__name__: cls for cls in classes_of(config.model_type)}
    name = (config.architectures or list(classes))[0]
    if name not in classes:
        raise Error(f"{folder}: config.json names the class {name}; for {config.model_type} there are {', '.join(classes)}")
    return classes[name], config


def classes_of(model_type: str) -> list[type[RobertaPreLayerNormPreTrainedModel]]:
    """The seven classes of a model_type, in the order of CLASSES."""
    kin = [(cls, *cls.__subclasses__()) for cls in CLASSES.values()]
    return [next(cls for cls in family if cls.model_type == model_type) for family in kin]


def _check_kind(config: object) -> None:
    if not isinstance(config, RobertaPreLayerNormConfig):
        raise Error(f"config is of type {type(config).__name__}; it must be a {RobertaPreLayerNormConfig.__name__} or its kin")


def _placed(config: RobertaPreLayerNormConfig, stored: Stored) -> RobertaPreLayerNormConfig:
    """The configuration that a checkpoint should have had: DinkyTrain's call themselves roberta, with pre-norm weights."""
    if config.model_type != "roberta" or not names.placed_before(stored):
        return config
    model_type = "roberta-prelayernorm"
    content = config.to_dict() | {"model_type": model_type}
    if config.architectures:
        content["architectures"] = [re.sub("^Roberta(?=Model|For)", "RobertaPreLayerNorm", name) for name in config.architectures]
    return CONFIGS[model_type].from_dict(content)


def settings_of(
    backend: str | None = None,
    dtype: str = "float32",
    matmul_precision: str = "highest",
    threads: int | None = None,
    reproducible: bool = False,
    **unknown: Any,
) -> tuple[str, Settings]:
    """A backend's name and the settings for it; raises Error on a value that is none of the allowed ones.

    float64 is NumPy's alone, so it is the backend where none is named.
    """
    if unknown:
        raise Error(f"a model does not know {', '.join(sorted(unknown))}; it takes {', '.join(Running.__annotations__)}")
    dtype = dtype_name(dtype)
    if matmul_precision not in PRECISIONS:
        raise Error(f"matmul_precision is {matmul_precision!r}; it must be one of {', '.join(PRECISIONS)}")
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise Error(f"threads is {threads!r}; it must be a whole number of at least 1, or None for all the process may use")
    backend = backend or ("numpy" if dtype == "float64" else default_backend())
    load_backend(backend, reproducible)
    return backend, Settings(dtype, matmul_precision, threads, bool(reproducible))
