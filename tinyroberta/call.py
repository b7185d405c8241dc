"""What a caller gave becomes what the encoder reads, Rows and forward.Call; what the encoder kept becomes an output's fields."""

import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np

from . import forward
from .backends import Array, Backend
from .cache import Cache
from .config import RobertaPreLayerNormConfig
from .errors import Error
from .inputs import (
    Rows,
    additive,
    arrange,
    check_ids,
    check_numbers,
    check_texts,
    check_vectors,
    even,
    kept_layers,
    packed_position_ids,
    position_ids_of,
    ragged,
)
from .weights.names import FAMILIES

Past = Cache | Sequence[Sequence[Array]] | None
Config = RobertaPreLayerNormConfig


class Options(TypedDict, total=False):
    """What every call may ask for besides its inputs.

    output_attentions and output_hidden_states (which may be a list of layers): kept and returned; return_dict=False: a tuple;
    padding: "skip" (default: nothing is computed for padding, those outputs are 0) or "compute" (as Hugging Face does).
    """

    output_attentions: bool | None
    output_hidden_states: bool | Sequence[int] | None
    return_dict: bool | None
    padding: Literal["skip", "compute"]


class Given(NamedTuple):
    """The inputs of a call as the caller gave them."""

    input_ids: Any
    attention_mask: Any
    token_type_ids: Any
    position_ids: Any
    head_mask: Any
    inputs_embeds: Any
    encoder_hidden_states: Any = None
    encoder_attention_mask: Any = None
    past_key_values: Past = None
    use_cache: bool | None = None  # as the configuration says


class Ready(NamedTuple):
    """The inputs of a call checked and packed: what the encoder reads, and what unpacks its rows."""

    rows: Rows
    call: forward.Call
    tokens: Array  # (T,) ids, or (T, D) vectors
    positions: Array | None  # (T,); None where they are relative
    token_types: Array  # (T,)
    states: set[int]  # which hidden states were asked for
    cache: Cache | None  # what the output returns
    source_length: int | None  # Se, the keys of cross-attention
    plain: bool  # nothing but the last hidden state is wanted of ids, so that a backend may play what it recorded


def prepare(config: Config, ops: Backend, dtype: Any, given: Given, options: Options, labelled: bool) -> Ready:
    """Check what a caller gave and choose the rows; `labelled`: a loss is wanted, for which padding is computed too.

    Nothing of the caller's is written to, so that a head may still refuse. Raises Error, RangeError for an id out of range.
    """
    skip = _skips(options) and not labelled
    tokens, shape = _tokens(config, given, dtype)
    ids = None if given.input_ids is None else tokens
    types = _token_types(config, given.token_type_ids, shape)
    returned, cache = _cache(config, ops, given, shape[0], dtype)
    past = 0 if cache is None else cache.length
    mask = None if given.attention_mask is None else check_numbers(given.attention_mask, "attention_mask")
    positions = position_ids_of(given.position_ids, ids, shape, past, config)
    relative = config.position_embedding_type != "absolute"
    if relative and past + shape[1] > config.max_position_embeddings:
        raise Error(f"{past + shape[1]} tokens; this model's relative positions reach {config.max_position_embeddings}")
    source, source_mask = _source(config, given, shape, dtype)
    length = None if source is None else source.shape[1]
    head_masks = _head_masks(config, given.head_mask, dtype, (*shape, past + shape[1]), length)
    if cache is not None and source is not None and cache.layer(0)[1].length not in (0, length):
        held = cache.layer(0)[1].length
        raise Error(f"encoder_hidden_states have {length} tokens, past_key_values hold cross-attention to {held}")

    whole = cache is not None or relative or (source_mask is not None and source_mask.shape[2] > 1)
    whole = whole or (head_masks is not None and any(max(m.shape[2:]) > 1 for m in head_masks))
    place = None if cache is None else past
    rows = arrange(mask, shape, place, causal=config.is_decoder, whole=whole, skip=skip, dtype=dtype)
    states = kept_layers(options.get("output_hidden_states"), config.output_hidden_states, config.num_hidden_layers + 1)
    probs = options.get("output_attentions")
    call = _call(
        config,
        rows,
        bias=None if rows.bias is None else ops.asarray(rows.bias),
        head_mask=None if head_masks is None else [ops.asarray(mask) for mask in head_masks],
        probs=config.output_attentions if probs is None else bool(probs),
        states=bool(states),
        cache=cache,
    )
    if source is not None:
        keys = even(*shape, source.shape[1], False, cache is not None)._replace(query_start=rows.sequences.query_start)
        bias = None if source_mask is None else ops.asarray(source_mask)
        source_rows = ops.asarray(source.reshape(-1, source.shape[2]))
        call = call._replace(source=source_rows, source_sequences=keys, source_bias=bias)
    packed = None if relative else rows.pack(positions)
    plain = ids is not None and not relative and _plain(call)
    return Ready(rows, call, rows.pack(tokens), packed, rows.pack(types), states, returned, length, plain)


def prepare_ragged(
    config: Config, ops: Backend, dtype: Any, texts: Sequence[Any], token_types: Sequence[Any] | None = None
) -> Ready:
    """Texts, a list of lists of ids, of any lengths: what `prepare` makes of them padded on the right, without the padding.

    Nothing but the last hidden state is kept, and no cache. Raises Error on no text, on a text of no token, or as `prepare`.
    """
    ids, lengths = check_texts(texts, config.vocab_size)
    types = np.zeros_like(ids)
    if token_types is not None:
        types, counted = check_texts(token_types, config.type_vocab_size, "token_type_ids")
        if not np.array_equal(counted, lengths):
            raise Error("token_type_ids must have a number for every token of every text")
    rows = ragged(lengths, config.is_decoder)
    if config.position_embedding_type != "absolute":  # relative positions need every position as a row
        padded, mask = np.full(rows.shape, config.pad_token_id or 0), rows.unpack(np.ones_like(ids))
        padded[mask == 1] = ids
        given = Given(padded, mask, rows.unpack(types), None, None, None, use_cache=False)
        options = Options(output_attentions=False, output_hidden_states=False)
        return prepare(config, ops, dtype, given, options, False)
    call = _call(config, rows)
    return Ready(rows, call, ids, packed_position_ids(ids, lengths, config), types, set(), None, None, _plain(call))


def _call(config: Config, rows: Rows, **more: Any) -> forward.Call:
    """What a configuration and the rows fix, and more."""
    return forward.Call(
        eps=config.layer_norm_eps,
        head_size=config.head_size,
        hidden_act=config.hidden_act,
        position_embedding_type=config.position_embedding_type,
        sequences=rows.sequences,
        pre_norm=FAMILIES[config.model_type].pre_norm,
        chunk=config.chunk_size_feed_forward * rows.shape[0],
        **more,
    )


def _plain(call: forward.Call) -> bool:
    """Whether nothing but the last hidden state is asked for, and nothing but rows and their sequences goes in."""
    more = call.probs or call.states or call.chunk or not isinstance(call.hidden_act, str)
    return not more and call.bias is None and call.head_mask is None and call.cache is None and call.source is None


def _skips(options: Options) -> bool:
    padding = options.get("padding", "skip")
    if padding not in ("skip", "compute"):
        raise Error(f'padding is {padding!r}; it must be "skip" or "compute"')
    if unknown := options.keys() - OPTIONS:
        raise Error(f"unknown argument {', '.join(sorted(unknown))}")
    return padding == "skip"


OPTIONS = set(Options.__annotations__)


def _tokens(config: Config, given: Given, dtype: Any) -> tuple[Array, tuple[int, int]]:
    """The ids (B, S) or the vectors (B, S, D) of a call, and B and S."""
    if (given.input_ids is None) == (given.inputs_embeds is None):
        raise Error("give exactly one of input_ids and inputs_embeds")
    if given.input_ids is not None:
        tokens = check_ids(given.input_ids, "input_ids", config.vocab_size)
    else:
        tokens = check_vectors(given.inputs_embeds, "inputs_embeds", config.hidden_size, dtype)
    shape, chunk = (tokens.shape[0], tokens.shape[1]), config.chunk_size_feed_forward
    if 0 in shape:
        raise Error(f"the input has shape {shape}; there must be at least one text and one token")
    if chunk and shape[1] % chunk:
        raise Error(f"{shape[1]} tokens are not a multiple of config.chunk_size_feed_forward {chunk}")
    return tokens, shape


def _token_types(config: Config, given: Any, shape: tuple[int, int]) -> Array:
    if given is None:
        return np.zeros(shape, np.int64)
    types = check_ids(given, "token_type_ids", config.type_vocab_size)
    if types.shape not in (shape, (1, shape[1])):
        raise Error(f"token_type_ids has shape {types.shape}; it must be {shape}")
    return np.broadcast_to(types, shape)


def _cache(config: Config, ops: Backend, given: Given, batch: int, dtype: Any) -> tuple[Cache | None, Cache | None]:
    """The cache that the output returns, and the one that the call reads: a past may be read and not returned."""
    caching = config.is_decoder and (config.use_cache if given.use_cache is None else given.use_cache)
    if not caching and given.past_key_values is None:
        return None, None
    cache = Cache.of(given.past_key_values, config.num_hidden_layers, batch, dtype, ops.asarray)
    return (cache if caching else None), cache


def _head_masks(
    config: Config, head_mask: Any, dtype: Any, shape: tuple[int, int, int], sources: int | None
) -> list[Array] | None:
    """(heads,), (layers, heads) or (layers, 1 or B, heads, 1 or Sq, 1 or Sk) -> a 4-D mask a layer; shape: B, Sq, Sk."""
    if head_mask is None:
        return None
    B, Sq, Sk = shape
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


def _source(config: Config, given: Given, shape: tuple[int, int], dtype: Any) -> tuple[Array | None, Array | None]:
    """Cross-attention's source (B, Se, D) and the bias that its mask makes."""
    if given.encoder_hidden_states is None:
        return None, None
    if not config.is_decoder:
        warnings.warn("encoder_hidden_states are ignored: config.is_decoder is false", stacklevel=6)  # where the model is called
        return None, None
    if not config.add_cross_attention:
        told = "encoder_hidden_states were given, but the model has no cross-attention"
        raise Error(f"{told}: config.add_cross_attention is false")
    states = check_vectors(given.encoder_hidden_states, "encoder_hidden_states", config.hidden_size, dtype)
    B, S = states.shape[:2]
    if S == 0:
        raise Error("encoder_hidden_states hold no token")
    if shape[0] != B:
        raise Error(f"encoder_hidden_states are for a batch of {B}, the input is one of {shape[0]}")
    if given.encoder_attention_mask is None:
        return states, None
    mask = check_numbers(given.encoder_attention_mask, "encoder_attention_mask")
    if mask.shape not in ((B, S), (1, S), (B, shape[1], S), (1, shape[1], S)):
        raise Error(f"encoder_attention_mask has shape {mask.shape}; it must be {(B, S)} or {(B, shape[1], S)}")
    return states, additive(mask, shape[1], False, dtype)


def kept_fields(ready: Ready, encoded: forward.Encoded, fields: Any) -> dict[str, Any]:
    """hidden_states, attentions, cross_attentions and past_key_values, of which an output has these fields, as asked for."""
    rows = ready.rows
    kept: dict[str, Any] = {}
    if encoded.hidden_states:
        states = enumerate(encoded.hidden_states)
        kept["hidden_states"] = tuple(rows.unpack(x) if i in ready.states else None for i, x in states)
    if encoded.attentions:
        kept["attentions"] = tuple(rows.unpack_probabilities(p) for p in encoded.attentions)
        if "cross_attentions" in fields:
            cross = encoded.cross_attentions
            kept["cross_attentions"] = tuple(rows.unpack_probabilities(p, ready.source_length) for p in cross)
    if ready.cache is not None and "past_key_values" in fields:
        kept["past_key_values"] = ready.cache
    return kept
