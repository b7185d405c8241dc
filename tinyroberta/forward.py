"""The forward pass of RoBERTa-PreLayerNorm and its family, from ids to logits. Read top to bottom.

Shapes: B sequences of S tokens; T tokens packed, all sequences one after another; D the model's width, H heads of width
d, V words. `ops` is a backend: its module says what linear, layer_norm and attention compute. The weights keep the names of the
checkpoint, so that a nested dict of them is a function's signature: `block(..., **layer)`; only self-attention's query, key and
value have become one dense layer, `qkv` (plan.py). `call` holds what does not change from layer to layer.

    x = embed(ids)                                       a vector for every token
    for each layer:   x = x + attention(norm(x))         tokens read each other
                      x = x + feed_forward(norm(x))      each token thinks for itself
    x = norm(x)                                          then a head: words, labels, spans

Pre-norm (Xiong et al. 2020): the norm stands before each sublayer and never on the path that carries x through. Plain RoBERTa
is post-norm: x = norm(x + attention(x)), and no norm at the end. That is all that tells pre_norm_block from post_norm_block.
The sum is the last thing that a sublayer's last product does: `residual` is what it adds to.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .backends import Activation, Array, Backend, Sequences
from .cache import Cache

Weights = dict[str, Any]


class Call(NamedTuple):
    """What one call of a model fixes for all its layers."""

    eps: float
    head_size: int  # d
    hidden_act: Activation
    position_embedding_type: str
    sequences: Sequences  # whose queries read which keys
    bias: Array | None = None  # added to the scores: masks that packing cannot say, (B, 1 or H, 1 or Sq, Sk)
    head_mask: Sequence[Array] | None = None  # one a layer, (1 or B, H, 1 or Sq, 1 or Sk)
    pre_norm: bool = True  # where the norms stand: before the sublayers, or behind the sums
    probs: bool = False  # keep the attention probabilities
    states: bool = False  # keep the hidden states
    chunk: int = 0  # rows that the feed-forward takes at a time, 0 for all
    cache: Cache | None = None  # keys and values of earlier tokens
    source: Array | None = None  # (Te, D), the encoder's tokens for cross-attention
    source_sequences: Sequences | None = None
    source_bias: Array | None = None


class Kept(NamedTuple):
    """What was asked to be kept on the way, one entry a layer."""

    hidden_states: list[Array]
    attentions: list[list[Array]]
    cross_attentions: list[list[Array]]


class Encoded(NamedTuple):
    """What the encoder leaves: packed rows, and what was kept on the way."""

    last: Array  # (T, D)
    hidden_states: list[Array]
    attentions: list[list[Array]]
    cross_attentions: list[list[Array]]


def embed(
    ops: Backend, ids: Array, positions: Array | None, token_types: Array, eps: float,
    *, word_embeddings: Weights, position_embeddings: Weights, token_type_embeddings: Weights, LayerNorm: Weights | None = None,
) -> Array:  # (T,) x3 -> (T, D)  # fmt: skip
    """What the word is, where it stands and which segment it is in, summed; then a norm (XLM-RoBERTa-XL has none here)."""
    tables = (word_embeddings["weight"], position_embeddings["weight"], token_type_embeddings["weight"])
    x = ops.embed(ids, positions, token_types, *tables)
    return x if LayerNorm is None else ops.layer_norm(x, **LayerNorm, eps=eps)


def pre_norm_block(
    ops: Backend, x: Array, call: Call, index: int, kept: Kept,
    *, attention: Weights, intermediate: Weights, output: Weights, crossattention: Weights | None = None,
) -> Array:  # (T, D) -> (T, D)  # fmt: skip
    """One layer in which a norm feeds each sublayer, and x passes by it untouched; `residual` is what a sublayer adds to."""
    norm = partial(ops.layer_norm, eps=call.eps)
    # x + attention(norm(x))
    h = norm(x, **attention["LayerNorm"])
    x = self_attention(ops, h, call, index, kept, attention["self"], attention["output"], residual=x)
    if crossattention is not None and call.source is not None:
        h = norm(x, **crossattention["LayerNorm"])
        x = cross_attention(ops, h, call, index, kept, crossattention["self"], crossattention["output"], residual=x)
    # x + feed_forward(norm(x))
    h = norm(x, **intermediate["LayerNorm"])
    return feed_forward(ops, h, call, intermediate["dense"], output["dense"], residual=x)


def post_norm_block(
    ops: Backend, x: Array, call: Call, index: int, kept: Kept,
    *, attention: Weights, intermediate: Weights, output: Weights, crossattention: Weights | None = None,
) -> Array:  # (T, D) -> (T, D)  # fmt: skip
    """One layer in which the sums themselves are normed, in every layer again (Vaswani et al. 2017)."""
    norm = partial(ops.layer_norm, eps=call.eps)
    # norm(x + attention(x))
    x = self_attention(ops, x, call, index, kept, attention["self"], attention["output"], residual=x)
    x = norm(x, **attention["output"]["LayerNorm"])
    if crossattention is not None and call.source is not None:
        x = cross_attention(ops, x, call, index, kept, crossattention["self"], crossattention["output"], residual=x)
        x = norm(x, **crossattention["output"]["LayerNorm"])
    # norm(x + feed_forward(x))
    x = feed_forward(ops, x, call, intermediate["dense"], output["dense"], residual=x)
    return norm(x, **output["LayerNorm"])


def self_attention(
    ops: Backend, h: Array, call: Call, index: int, kept: Kept, own: Weights, output: Weights, residual: Array
) -> Array:  # (T, D) x2 -> (T, D)
    """Every token asks (q), is asked (k) and answers (v); it gets the mean of the answers, weighed by how its q meets each k."""
    q, k, v = thirds(ops.linear(h, **own["qkv"]))
    heads = q.shape[-1] // call.head_size
    if call.cache is not None:
        k, v = call.cache.layer(index)[0].extend(k, v, heads)
    bias = call.bias
    if "distance_embedding" in own:
        relative = relative_bias(ops, q, k, call, heads, own["distance_embedding"]["weight"])
        bias = relative if bias is None else relative + bias
    head_mask = None if call.head_mask is None else call.head_mask[index]
    context, probabilities = ops.attention(q, k, v, call.sequences, heads, bias, head_mask, call.probs)
    if probabilities is not None:
        kept.attentions.append(probabilities)
    return ops.linear(context, **output["dense"], residual=residual)


def cross_attention(
    ops: Backend, h: Array, call: Call, index: int, kept: Kept, own: Weights, output: Weights, residual: Array
) -> Array:  # (T, D) x2, (Te, D) -> (T, D)
    """The same, but the keys and values come from another model's output, which is not normed here."""
    assert call.source_sequences is not None
    q = ops.linear(h, **own["query"])
    heads = q.shape[-1] // call.head_size
    past = None if call.cache is None else call.cache.layer(index)[1]
    if past is not None and past.length:
        k, v = past.stored()
    else:
        k, v = ops.linear(call.source, **own["key"]), ops.linear(call.source, **own["value"])
        if past is not None:
            k, v = past.extend(k, v, heads)
    head_mask = None if call.head_mask is None else call.head_mask[index]
    context, probabilities = ops.attention(q, k, v, call.source_sequences, heads, call.source_bias, head_mask, call.probs)
    if probabilities is not None:
        kept.cross_attentions.append(probabilities)
    return ops.linear(context, **output["dense"], residual=residual)


def feed_forward(
    ops: Backend, h: Array, call: Call, inner: Weights, outer: Weights, residual: Array
) -> Array:  # (T, D) x2 -> (T, I) -> (T, D)
    """Each token for itself: to a larger width I, through the activation, back to D, and added to `residual`."""
    if 0 < call.chunk < len(residual):
        chunks = [slice(start, start + call.chunk) for start in range(0, len(residual), call.chunk)]
        return np.concatenate([feed_forward(ops, h[c], call, inner, outer, residual[c]) for c in chunks])
    h = ops.linear(h, **inner, activation=call.hidden_act)
    return ops.linear(h, **outer, residual=residual)


def encode(
    ops: Backend, x: Array, call: Call, *, layer: dict[str, Weights], LayerNorm: Weights | None
) -> Encoded:  # (T, D) -> (T, D)
    """All layers, then in a pre-norm model the final norm, since x has grown with depth and the heads expect one size."""
    block = pre_norm_block if call.pre_norm else post_norm_block
    kept = Kept([x] if call.states else [], [], [])
    for index, weights in enumerate(layer.values()):
        x = block(ops, x, call, index, kept, **weights)
        if call.states:  # before the final norm; models.py puts `last` for the last one if config.tie_last_hidden_states
            kept.hidden_states.append(x)
    return Encoded(x if LayerNorm is None else ops.layer_norm(x, **LayerNorm, eps=call.eps), *kept)


# The heads: each reads rows of the encoder's output.


def pool(ops: Backend, first: Array, *, dense: Weights) -> Array:  # (B, D) -> (B, D)
    """One vector a sequence, from its position 0: its first token, or padding that stands on the left."""
    return ops.linear(first, **dense, activation="tanh")


def lm_head(
    ops: Backend, x: Array, eps: float, *, dense: Weights, layer_norm: Weights, decoder: Weights
) -> Array:  # (T, D) -> (T, V)
    """A score for every word of the vocabulary; `decoder` is the word embeddings again where they are tied."""
    h = ops.linear(x, **dense, activation="gelu")
    return ops.linear(ops.layer_norm(h, **layer_norm, eps=eps), **decoder)


def classification_head(ops: Backend, first: Array, *, dense: Weights, out_proj: Weights) -> Array:  # (B, D) -> (B, labels)
    """A score for every label, from the row that `pool` reads."""
    return ops.linear(ops.linear(first, **dense, activation="tanh"), **out_proj)


# Used by few checkpoints, or small.


def thirds(qkv: Array) -> tuple[Array, Array, Array]:  # (T, 3 D) -> (T, D) x3
    """Queries, keys and values, which stand side by side."""
    width = qkv.shape[-1] // 3
    return qkv[:, :width], qkv[:, width : 2 * width], qkv[:, 2 * width :]


def relative_bias(
    ops: Backend, q: Array, k: Array, call: Call, heads: int, table: Array
) -> Array:  # (B Sq, D), keys -> (B, H, Sq, Sk)
    """What is added to the score of a query and a key for their distance: q (and k) times the vector of that distance.

    Shaw et al. 2018, Huang et al. 2020. The queries stand after the Sk - Sq keys that a cache holds. (There transformers takes
    the last query's distances for all queries: a bug.)
    """
    B, d = len(call.sequences.key_start), call.head_size
    q = q.reshape(B, -1, heads, d).transpose(0, 2, 1, 3)
    k = k.reshape(B, -1, heads, d).transpose(0, 2, 1, 3) if k.ndim == 2 else k
    Sq, Sk = q.shape[2], k.shape[2]
    distance = np.arange(Sk - Sq, Sk)[:, None] - np.arange(Sk)
    vectors = table[distance + len(table) // 2]  # (Sq, Sk, d)
    both = call.position_embedding_type == "relative_key_query"
    return ops.relative(q, k if both else None, vectors) / math.sqrt(d)
