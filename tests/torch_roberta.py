"""RoBERTa in plain PyTorch with every known mistake as a switch: nothing here is this library's, so it can find its mistakes.

run() gives every intermediate result under transformers' names, (B, S, ...) in float64.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Mistakes:
    """What is done otherwise; as it stands nothing is."""

    act: str | None = None
    head_act: str = "gelu"
    eps: float | None = None
    first_position: int | None = None
    padding_counts: bool = False
    token: tuple[int, int] | None = None  # an id and the one that goes in instead
    token_types: bool = True
    other_norm_place: bool = False
    final_norm: bool = True
    embedding_norm: bool = True
    head_norm: bool = True
    score_scale: Callable[[int], float] = lambda d: 1 / math.sqrt(d)
    relative_scale: Callable[[int], float] = lambda d: 1 / math.sqrt(d)
    mask_value: float = -math.inf
    tied: bool = False
    transposed: tuple[str, ...] = ()  # how names end
    no_bias: tuple[str, ...] = ()
    order: tuple[str, str, str] = ("query", "key", "value")
    by_head: bool = False
    products: str = ""


def gelu_by_name(x: Tensor, name: str) -> Tensor:
    if name == "gelu":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    if name == "gelu_new":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if name == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    raise KeyError(name)


def rounded(x: Tensor, kind: str) -> Tensor:
    if kind == "tf32":  # ten bits behind the point, halves away from zero, as the hardware's conversion
        bits = x.float().view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).double()
    return x if not kind else x.to(getattr(torch, kind)).to(x.dtype)


def run(
    config: Mapping[str, Any], weights: Mapping[str, np.ndarray], ids: np.ndarray, mask: np.ndarray, wrong: Mistakes = Mistakes()
) -> dict[str, np.ndarray]:
    """Every named result of a masked language model, or of a bare one where there is no lm_head."""
    w = {name: torch.tensor(np.asarray(x, np.float64)) for name, x in weights.items()}
    for name in w:
        module, _, leaf = name.rpartition(".")
        if leaf == "weight" and module.endswith(wrong.transposed or ("?",)):
            w[name] = w[name].T.contiguous()
        if leaf == "bias" and module.endswith(wrong.no_bias or ("?",)):
            w[name] = torch.zeros_like(w[name])
    seen: dict[str, Tensor] = {}
    pre_norm = config["model_type"] == "roberta-prelayernorm"
    eps = config["layer_norm_eps"] if wrong.eps is None else wrong.eps
    heads, d = config["num_attention_heads"], config["hidden_size"] // config["num_attention_heads"]
    kept, tokens = torch.tensor(mask).bool(), torch.tensor(ids)
    if wrong.token:
        tokens = torch.where(tokens == wrong.token[0], wrong.token[1], tokens)

    def record(name: str, x: Tensor) -> Tensor:
        seen[name] = x
        return x

    def norm(name: str, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(-1, keepdim=True)
        return record(name, (x - mean) / torch.sqrt(variance + eps) * w[f"{name}.weight"] + w[f"{name}.bias"])

    def product(a: Tensor, b: Tensor) -> Tensor:
        return rounded(a, wrong.products) @ rounded(b, wrong.products)

    def dense(name: str, x: Tensor) -> Tensor:
        return product(x, w[f"{name}.weight"].T) + w[f"{name}.bias"]

    # embeddings
    first = config["pad_token_id"] + 1 if wrong.first_position is None else wrong.first_position
    if wrong.padding_counts:
        positions = torch.arange(ids.shape[1]).expand(*ids.shape) + first
    else:
        positions = torch.where(kept, kept.long().cumsum(1) - 1 + first, config["pad_token_id"])
    x = w["embeddings.word_embeddings.weight"][tokens]
    relative = config.get("position_embedding_type", "absolute")
    if relative == "absolute":
        x = x + w["embeddings.position_embeddings.weight"][positions]
    if wrong.token_types:
        x = x + w["embeddings.token_type_embeddings.weight"][0]
    x = norm("embeddings.LayerNorm", x) if wrong.embedding_norm else x
    record("embeddings", x)

    for index in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{index}."
        own = f"{layer}attention.self."
        after = pre_norm == wrong.other_norm_place
        names = (
            ("attention.LayerNorm", "intermediate.LayerNorm") if pre_norm else ("attention.output.LayerNorm", "output.LayerNorm")
        )

        h = x if after else norm(layer + names[0], x)
        parts = dict(zip(("query", "key", "value"), (dense(own + name, h) for name in wrong.order), strict=True))
        if wrong.by_head:  # one joined matrix whose rows are read head by head
            whole = torch.cat(list(parts.values()), -1).reshape(*h.shape[:2], heads, 3, d)
            parts = {name: whole[:, :, :, i].reshape(h.shape) for i, name in enumerate(parts)}
        q, k, v = (record(own + name, part).reshape(*h.shape[:2], heads, d).transpose(1, 2) for name, part in parts.items())
        scores = product(q, k.transpose(2, 3)) * wrong.score_scale(d)
        if relative != "absolute":
            S = ids.shape[1]
            table = w[f"{own}distance_embedding.weight"]
            distance = torch.arange(S)[:, None] - torch.arange(S)[None] + config["max_position_embeddings"] - 1
            vectors = table[distance]
            term = torch.einsum("bhld,lrd->bhlr", q, vectors)
            if relative == "relative_key_query":
                term = term + torch.einsum("bhrd,lrd->bhlr", k, vectors)
            scores = scores + term * wrong.relative_scale(d)
        bias = torch.zeros(kept.shape, dtype=scores.dtype).masked_fill(~kept, wrong.mask_value)
        probs = record(f"{own}probs", torch.softmax(scores + bias[:, None, None], -1))
        context = record(own[:-1], product(probs, v).transpose(1, 2).reshape(h.shape))
        x = x + record(f"{layer}attention.output.dense", dense(f"{layer}attention.output.dense", context))
        if pre_norm:
            record(f"{layer}attention.output", x)
            record(f"{layer}attention", x)
        if after:
            x = norm(layer + names[0], x)
        if not pre_norm:
            record(f"{layer}attention.output", x)
            record(f"{layer}attention", x)

        h = x if after else norm(layer + names[1], x)
        h = record(f"{layer}intermediate.dense", dense(f"{layer}intermediate.dense", h))
        h = record(f"{layer}intermediate", gelu_by_name(h, wrong.act or config["hidden_act"]))
        x = x + record(f"{layer}output.dense", dense(f"{layer}output.dense", h))
        if pre_norm:
            record(f"{layer}output", x)
        if after:
            x = norm(layer + names[1], x)
        if not pre_norm:
            record(f"{layer}output", x)
        record(layer[:-1], x)

    if pre_norm and wrong.final_norm:
        x = norm("LayerNorm", x)
    if "lm_head.dense.weight" in w:
        h = record("lm_head.dense", dense("lm_head.dense", x))
        h = gelu_by_name(h, wrong.head_act)
        h = norm("lm_head.layer_norm", h) if wrong.head_norm else h
        if wrong.tied:
            w["lm_head.decoder.weight"] = w["embeddings.word_embeddings.weight"]
        record("lm_head", record("lm_head.decoder", dense("lm_head.decoder", h)))
    return {name: x.numpy() for name, x in seen.items()}
