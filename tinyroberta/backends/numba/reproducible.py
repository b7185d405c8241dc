"""The same ops with the bits of backends/bitwise.py on every path: what `reproducible=True` chooses.

Weights are prepared for products of digits, and attention rounds every product; norms and activations are the same anyway.
"""

from .. import Sequences
from ..bitwise import relative
from . import (
    Array,
    activation,
    asarray,
    embed,
    in_steps,
    keeps_alike,
    layer_norm,
    linear,
    prepare,
    recorded,
    running,
    sums,
    to_numpy,
)
from .attention import float32

__all__ = [
    "activation",
    "asarray",
    "attention",
    "embed",
    "in_steps",
    "keeps_alike",
    "layer_norm",
    "linear",
    "prepare",
    "recorded",
    "relative",
    "running",
    "sums",
    "to_numpy",
]


def attention(
    q: Array,
    k: Array,
    v: Array,
    sequences: Sequences,
    heads: int,
    bias: Array | None = None,
    head_mask: Array | None = None,
    probs: bool = False,
) -> tuple[Array, list[Array] | None]:  # (Tq, D), (Tk, D) x2 -> (Tq, D), B x (H, Sq, Sk)
    """As backends/bitwise.py."""
    return float32.attention(q, k, v, sequences, heads, bias, head_mask, probs, fused=False)
