"""The mistakes that are planted, each with the cause that explain must name and the op that compare must."""

from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """A mistake: the model that has it, torch_roberta.Mistakes' fields, what explain must say, where compare must point."""

    mistakes: dict[str, Any]
    causes: tuple[str, ...]
    ops: tuple[str, ...]
    model: str = "prenorm"


LAYER = "encoder.layer.0."
OWN = f"{LAYER}attention.self."
CASES = {
    "gelu_tanh": Case({"act": "gelu_new"}, ("hidden_act is gelu_new",), (f"{LAYER}intermediate",)),
    "gelu_quick": Case({"act": "quick_gelu"}, ("hidden_act is quick_gelu",), (f"{LAYER}intermediate",)),
    "gelu_erf": Case({"act": "gelu"}, ("hidden_act is gelu",), (f"{LAYER}intermediate",), "tanh"),
    "head_gelu": Case({"head_act": "gelu_new"}, ("the activation of lm_head is gelu_new",), ("lm_head.layer_norm",)),
    "eps_5": Case({"eps": 1e-5}, ("layer_norm_eps is 1e-05",), ("embeddings.LayerNorm",)),
    "eps_6": Case({"eps": 1e-6}, ("layer_norm_eps is 1e-06",), ("embeddings.LayerNorm",)),
    "eps_12": Case({"eps": 1e-12}, ("layer_norm_eps is 1e-12",), ("embeddings.LayerNorm",), "postnorm"),
    "position_0": Case({"first_position": 0}, ("positions begin at 0",), ("embeddings.LayerNorm",)),
    "position_1": Case({"first_position": 1}, ("positions begin at 1",), ("embeddings.LayerNorm",)),
    "position_2": Case({"first_position": 2}, ("positions begin at 2",), ("embeddings.LayerNorm",), "pad0"),
    "positions_count_padding": Case(
        {"first_position": 2, "padding_counts": True}, ("positions begin at 2, and padding counts",), ("embeddings.LayerNorm",)
    ),
    "unk_for_mask": Case({"token": (39, 3)}, ("unk in place of mask",), ("embeddings.LayerNorm",)),
    "no_token_types": Case({"token_types": False}, ("token types are not added",), ("embeddings.LayerNorm",)),
    "post_norm": Case(
        {"other_norm_place": True, "final_norm": False},
        ("post-norm in place of pre-norm, without the final norm",),
        (f"{LAYER}attention.LayerNorm",),
    ),
    "post_norm_and_final": Case(
        {"other_norm_place": True}, ("post-norm in place of pre-norm, and the final norm",), (f"{LAYER}attention.LayerNorm",)
    ),
    "pre_norm": Case(
        {"other_norm_place": True},
        ("pre-norm in place of post-norm",),
        (f"{OWN}query",),
        "postnorm",
    ),
    "no_final_norm": Case({"final_norm": False}, ("the final norm is missing",), ("lm_head.dense",)),
    "no_embedding_norm": Case({"embedding_norm": False}, ("the norm of the embeddings is missing",), ("embeddings",)),
    "no_head_norm": Case({"head_norm": False}, ("the norm of lm_head is missing",), ("lm_head.decoder",)),
    "no_scale": Case({"score_scale": "one"}, ("scores are not scaled",), (f"{OWN}probs",)),
    "relative_unscaled": Case(
        {"relative_scale": "one"}, ("the relative term is added after the scale",), (f"{OWN}probs",), "relative"
    ),
    "padding_attended": Case({"mask_value": 0.0}, ("padding is attended",), (f"{OWN}probs",)),
    "mask_10": Case({"mask_value": -10.0}, ("the mask adds -10",), (f"{OWN}probs",)),
    "tied": Case({"tied": True}, ("the decoder is tied to the word embeddings",), ("lm_head.decoder",)),
    "transposed": Case(
        {"transposed": ("attention.self.key",)}, ("attention.self.key.weight is transposed in all layers",), (f"{OWN}key",)
    ),
    "transposed_in_one": Case(
        {"transposed": ("layer.1.attention.output.dense",)},
        ("attention.output.dense.weight is transposed in layer 1",),
        ("encoder.layer.1.attention.output.dense",),
    ),
    "order": Case(
        {"order": ("key", "query", "value")}, ("query, key and value are read as key, query, value",), (f"{OWN}query",)
    ),
    "by_head": Case({"by_head": True}, ("query, key and value stand side by side and are read head by head",), (f"{OWN}query",)),
    "no_bias": Case(
        {"no_bias": ("attention.self.value",)}, ("attention.self.value.bias is missing in all layers",), (f"{OWN}value",)
    ),
    "no_bias_in_one": Case(
        {"no_bias": ("layer.1.intermediate.dense",)},
        ("intermediate.dense.bias is missing in layer 1",),
        ("encoder.layer.1.intermediate.dense",),
    ),
    "bf16": Case({"products": "bfloat16"}, ("products of bfloat16",), (f"{OWN}query",)),
    "f16": Case({"products": "float16"}, ("products of float16",), (f"{OWN}query",)),
    "tf32": Case({"products": "tf32"}, ("products of TF32",), (f"{OWN}query",)),
    # pairs, any of which may be the larger
    "gelu_and_eps": Case(
        {"act": "gelu_new", "eps": 1e-5},
        ("hidden_act is gelu_new", "layer_norm_eps is 1e-05"),
        ("embeddings.LayerNorm", f"{LAYER}intermediate"),
    ),
    "position_and_types": Case(
        {"first_position": 0, "token_types": False},
        ("positions begin at 0", "token types are not added"),
        ("embeddings.LayerNorm",),
    ),
    "transposed_and_final": Case(
        {"transposed": ("layer.0.attention.self.query",), "final_norm": False},
        ("attention.self.query.weight is transposed in layer 0", "the final norm is missing"),
        (f"{OWN}query", "lm_head.dense"),
    ),
    "bf16_and_bias": Case(
        {"products": "bfloat16", "no_bias": ("layer.0.output.dense", "layer.1.output.dense")},
        ("products of bfloat16", "output.dense.bias is missing in all layers"),
        (f"{OWN}query", f"{LAYER}output.dense"),
    ),
    "mask_and_scale": Case(
        {"mask_value": 0.0, "score_scale": "one"}, ("padding is attended", "scores are not scaled"), (f"{OWN}probs",)
    ),
    "unk_and_gelu": Case(
        {"token": (39, 3), "act": "quick_gelu"},
        ("unk in place of mask", "hidden_act is quick_gelu"),
        ("embeddings.LayerNorm", f"{LAYER}intermediate"),
    ),
}

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": 16, "type_vocab_size": 2, "pad_token_id": 1, "tie_word_embeddings": False, "hidden_act": "gelu",
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "prenorm": {"model_type": "roberta-prelayernorm", "layer_norm_eps": 1e-12},
    "postnorm": {"model_type": "roberta", "layer_norm_eps": 1e-5},
    "tanh": {"model_type": "roberta-prelayernorm", "layer_norm_eps": 1e-12, "hidden_act": "gelu_new"},
    "relative": {"model_type": "roberta-prelayernorm", "layer_norm_eps": 1e-12, "position_embedding_type": "relative_key_query"},
    "pad0": {"model_type": "roberta-prelayernorm", "layer_norm_eps": 1e-12, "pad_token_id": 0},
}
MASK = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
IDS = np.array([[0, 39, 7, 22, 2], [1, 1, 0, 12, 39], [39, 30, 2, 1, 1]])


# Of these the files of tests/golden_numerics hold what the candidate computed, in float32; the others run where torch is.
STORED = ("gelu_tanh", "eps_5", "position_0", "unk_for_mask", "no_token_types", "post_norm", "no_final_norm", "tied", "order",
          "relative_unscaled", "padding_attended", "transposed_in_one", "no_bias", "tf32",
          "gelu_and_eps", "unk_and_gelu")  # fmt: skip


def tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Weights that hide nothing: no bias is 0, no gain 1, and some numbers are so small that float16 loses bits of them."""
    random, found = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        x = random.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            found[name] = np.float32("orm.weight" in name) + np.float32(0.3) * x
            continue
        if name.endswith("dense.weight"):
            x.ravel()[::7] *= 2.0**-14
        found[name] = x * np.float32(0.5 if "embedding" in name else shape[1] ** -0.5)
    return found


def planted(mistakes: dict[str, Any]) -> dict[str, Any]:
    """The fields of torch_roberta.Mistakes: "one" is a scale of 1."""
    return {name: (lambda _: 1.0) if value == "one" else value for name, value in mistakes.items()}


def inputs(model: str) -> dict[str, np.ndarray]:
    pad = (SIZES | MODELS[model])["pad_token_id"]
    return {"input_ids": np.where(MASK, np.where(pad == IDS, 5, IDS), pad), "attention_mask": MASK}
