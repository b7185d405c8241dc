"""RoBERTa in PyTorch, written for these tests from the papers and not from this package, with mistakes that can be planted.

`run` gives what each module of transformers' would give, by its name, (B, S, ...).
"""

import math
from collections.abc import Iterable
from typing import Any

import torch

# Mistakes, and the first op of a masked language model whose arithmetic each changes.
PLANTED = {
    "gelu_tanh": "encoder.layer.0.intermediate",
    "gelu_quick": "encoder.layer.0.intermediate",
    "eps": "embeddings.LayerNorm",
    "position_offset": "embeddings.LayerNorm",
    "no_token_types": "embeddings.LayerNorm",
    "no_embedding_norm": "embeddings.LayerNorm",
    "no_scale": "encoder.layer.0.attention.self.probs",
    "mask_value": "encoder.layer.0.attention.self.probs",
    "heads_order": "encoder.layer.0.attention.self.probs",
    "query_key_swapped": "encoder.layer.0.attention.self.query",
    "transposed": "encoder.layer.1.attention.self.query",
    "bias_missing": "encoder.layer.1.output.dense",
    "no_residual": "encoder.layer.1.attention.output",
    "untied": "lm_head.decoder",
    "bf16_products": "encoder.layer.0.attention.self.query",
}
POST_NORM = PLANTED | {"no_residual": "encoder.layer.1.attention.output.LayerNorm"}  # the sum itself has no name there
PRE_NORM = PLANTED | {"post_norm": "encoder.layer.0.attention.LayerNorm", "no_final_norm": "LayerNorm"}


def run(
    tensors: dict[str, Any], config: Any, ids: Any, mask: Any, planted: Iterable[str] = (), dtype: Any = None
) -> dict[str, Any]:
    """A masked language model's modules' results for ids and mask (B, S), by name, as NumPy arrays."""
    planted, dtype = set(planted), dtype or torch.float32
    assert planted <= set(PRE_NORM)
    weights = {name: torch.from_numpy(x.copy()).to(dtype) for name, x in tensors.items()}
    ids, mask = torch.from_numpy(ids), torch.from_numpy(mask)
    pre_norm = config.model_type == "roberta-prelayernorm"
    found: dict[str, Any] = {}
    eps = 1e-5 if "eps" in planted else config.layer_norm_eps

    def keep(x: Any, *names: str) -> Any:
        for name in names:
            found[name] = x.numpy().copy()
        return x

    def norm(x: Any, name: str) -> Any:
        x = x - x.mean(-1, keepdim=True)
        x = x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: Any, name: str, source: str | None = None) -> Any:
        weight, bias = weights[f"{source or name}.weight"], weights[f"{source or name}.bias"]
        if "bias_missing" in planted and name == "encoder.layer.1.output.dense":
            bias = 0
        if "transposed" in planted and name == "encoder.layer.1.attention.self.query":
            weight = weight.T
        if "bf16_products" in planted:
            x, weight = (each.bfloat16().to(dtype) for each in (x, weight))
        return keep(x @ weight.T + bias, name)

    def gelu(x: Any) -> Any:
        if "gelu_tanh" in planted:
            return torch.nn.functional.gelu(x, approximate="tanh")
        return x * torch.sigmoid(1.702 * x) if "gelu_quick" in planted else torch.nn.functional.gelu(x)

    def attention(x: Any, layer: str) -> Any:
        B, S, D = x.shape
        H = config.num_attention_heads
        own = f"{layer}.attention.self"
        query, key = ("key", "query") if "query_key_swapped" in planted else ("query", "key")
        q, k = linear(x, f"{own}.query", f"{own}.{query}"), linear(x, f"{own}.key", f"{own}.{key}")
        v = linear(x, f"{own}.value")

        def split(y: Any) -> Any:
            if "heads_order" in planted:
                return y.view(B, S, D // H, H).permute(0, 3, 1, 2)
            return y.view(B, S, H, D // H).transpose(1, 2)

        scores = split(q) @ split(k).transpose(-1, -2)
        scores = scores if "no_scale" in planted else scores / math.sqrt(D // H)
        unread = -4.0 if "mask_value" in planted else torch.finfo(dtype).min
        scores = scores + (1 - mask[:, None, None].to(dtype)) * unread
        probs = keep(torch.softmax(scores, -1), f"{own}.probs")
        return keep((probs @ v.view(B, S, H, D // H).transpose(1, 2)).transpose(1, 2).reshape(B, S, D), own)

    positions = (torch.cumsum(ids != config.pad_token_id, 1) * (ids != config.pad_token_id)) + config.pad_token_id
    positions = (positions - 1).clamp(min=0) if "position_offset" in planted else positions
    tables = "embeddings.{}_embeddings.weight"
    x = weights[tables.format("word")][ids] + weights[tables.format("position")][positions]
    x = x if "no_token_types" in planted else x + weights[tables.format("token_type")][0]
    x = keep(x if "no_embedding_norm" in planted else norm(x, "embeddings.LayerNorm"), "embeddings.LayerNorm", "embeddings")
    for index in range(config.num_hidden_layers):
        layer = f"encoder.layer.{index}"
        if pre_norm and "post_norm" not in planted:
            h = keep(norm(x, f"{layer}.attention.LayerNorm"), f"{layer}.attention.LayerNorm")
            y = linear(attention(h, layer), f"{layer}.attention.output.dense")
            y = y if "no_residual" in planted and index == 1 else x + y
            x = keep(y, f"{layer}.attention.output", f"{layer}.attention")
            h = keep(norm(x, f"{layer}.intermediate.LayerNorm"), f"{layer}.intermediate.LayerNorm")
            h = keep(gelu(linear(h, f"{layer}.intermediate.dense")), f"{layer}.intermediate")
            x = keep(x + linear(h, f"{layer}.output.dense"), f"{layer}.output", layer)
            continue
        names = (
            ("attention.LayerNorm", "intermediate.LayerNorm") if pre_norm else ("attention.output.LayerNorm", "output.LayerNorm")
        )
        y = linear(attention(x, layer), f"{layer}.attention.output.dense")
        y = norm(y if "no_residual" in planted and index == 1 else x + y, f"{layer}.{names[0]}")
        x = keep(y, f"{layer}.{names[0]}", f"{layer}.attention.output", f"{layer}.attention")
        h = keep(gelu(linear(x, f"{layer}.intermediate.dense")), f"{layer}.intermediate")
        y = norm(x + linear(h, f"{layer}.output.dense"), f"{layer}.{names[1]}")
        x = keep(y, f"{layer}.{names[1]}", f"{layer}.output", layer)
    if pre_norm:
        x = keep(x if "no_final_norm" in planted else norm(x, "LayerNorm"), "LayerNorm")
    h = torch.nn.functional.gelu(linear(x, "lm_head.dense"))
    h = keep(norm(h, "lm_head.layer_norm"), "lm_head.layer_norm")
    if "untied" in planted:
        weights["lm_head.decoder.weight"] = weights["lm_head.decoder.weight"].roll(1, 0)
    keep(linear(h, "lm_head.decoder"), "lm_head")
    return found
