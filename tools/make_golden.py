"""Write tests/golden: tiny random models, inputs, and the float64 outputs of Hugging Face's own classes.

    python tools/make_golden.py        with transformers 4.57.6: the models and golden_4.safetensors beside each
    python tools/make_golden.py        with transformers 5.23.0: golden_5.safetensors, for what version 5 does otherwise

Run them in this order. The same versions on the same machine give the same bytes; versions.json records the versions.
Each file holds `case/inputs/name` and `case/outputs/field` arrays, and in its metadata the list of cases. Models are stored in
float32 and run in float64, with every bias and norm gain random: a fresh model's zeros and ones would hide half the mistakes.
"""

import hashlib
import json
import platform
import shutil
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

FOLDER = Path(__file__).parent.parent / "tests" / "golden"
VERSION = int(transformers.__version__.split(".")[0])
SHAPE = {"hidden_size": 18, "num_attention_heads": 3, "intermediate_size": 28, "vocab_size": 61, "max_position_embeddings": 20}
SMALL = SHAPE | {"hidden_size": 12, "intermediate_size": 20, "vocab_size": 31, "num_hidden_layers": 1}
DECODER = {"is_decoder": True, "add_cross_attention": True}
NO_STATES = {"output_hidden_states": False, "output_attentions": False}
ACTIVATIONS = (
    "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh", "gelu_pytorch_tanh", "laplace",
    "leaky_relu", "linear", "mish", "quick_gelu", "relu", "relu2", "relu6", "sigmoid", "silu", "swish", "tanh",
)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A class's name without the common prefix, and its configuration."""

    head: str
    config: dict[str, Any]
    pruned: dict[int, list[int]] = field(default_factory=dict)
    pooler: bool = True


@dataclass(frozen=True)
class Case:
    """One call: arrays, other arguments, changes to the configuration, and the case whose cache it continues."""

    name: str
    inputs: dict[str, Any]
    flags: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    after: str | None = None


MODELS = {
    "base": Model("Model", SHAPE | {"num_hidden_layers": 2}),
    "base_pruned": Model("Model", SHAPE | {"num_hidden_layers": 3, "type_vocab_size": 1}, {0: [1], 2: [0, 2]}, pooler=False),
    "base_decoder": Model("Model", SMALL | DECODER | {"num_hidden_layers": 2, "hidden_act": "gelu_new", "pad_token_id": 0}),
    "causal_lm": Model("ForCausalLM", SMALL | {"num_hidden_layers": 3, "is_decoder": True, "hidden_act": "silu"}),
    "causal_lm_cross": Model("ForCausalLM", SMALL | DECODER | {"pad_token_id": 2, "tie_word_embeddings": False}),
    "masked_lm": Model(
        "ForMaskedLM", SMALL | {"num_hidden_layers": 2, "hidden_act": "relu", "pad_token_id": 3, "type_vocab_size": 1}
    ),
    "masked_lm_untied": Model("ForMaskedLM", SMALL | {"tie_word_embeddings": False, "layer_norm_eps": 1e-5}),
    "relative": Model("ForMaskedLM", SMALL | {"num_hidden_layers": 2, "position_embedding_type": "relative_key"}),
    "relative_decoder": Model(
        "ForCausalLM", SMALL | DECODER | {"num_hidden_layers": 2, "position_embedding_type": "relative_key_query"}
    ),
    "sequence_classification": Model("ForSequenceClassification", SMALL | {"num_labels": 3, "hidden_act": "quick_gelu"}),
    "sequence_regression": Model("ForSequenceClassification", SMALL | {"num_labels": 1}),
    "multiple_choice": Model("ForMultipleChoice", SMALL),
    "token_classification": Model(
        "ForTokenClassification", SMALL | {"num_labels": 5, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    ),
    "question_answering": Model("ForQuestionAnswering", SMALL | {"hidden_act": "gelu_new"}),
}
UNTIED_5 = {"untied_version_5": Model("ForMaskedLM", SMALL | {"tie_word_embeddings": False})}


class Drawn:
    """Random inputs for one model, the same for the same name."""

    def __init__(self, name: str, config: dict[str, Any], texts: int = 3, length: int = 6) -> None:
        self.random = np.random.default_rng(seed_of(name))
        self.vocab, self.width, self.pad = config["vocab_size"], config["hidden_size"], config.get("pad_token_id", 1)
        self.types, self.texts, self.length = config.get("type_vocab_size", 2), texts, length

    def ids(self, *shape: int) -> Any:
        return self.random.integers(4, self.vocab, shape or (self.texts, self.length))

    def token_types(self, *shape: int) -> Any:
        return self.random.integers(0, self.types, shape or (self.texts, self.length))

    def vectors(self, *shape: int) -> Any:
        return self.random.standard_normal((*shape, self.width), np.float32)

    def padded(self, mask: Any) -> dict[str, Any]:
        """Ids with padding where the mask is 0, and the mask."""
        return {"input_ids": np.where(mask == 0, self.pad, self.ids(*mask.shape)), "attention_mask": mask}

    def right(self) -> Any:
        lengths = self.length - np.arange(self.texts)[::-1, None]
        return (np.arange(self.length) < lengths).astype(np.int64)

    def left(self) -> Any:
        return self.right()[:, ::-1].copy()

    def holes(self) -> Any:
        mask = np.ones((self.texts, self.length), np.int64)
        mask[0, 2] = mask[1, [0, 3]] = mask[2, [1, 5]] = 0
        return mask

    def one_unattended(self) -> Any:
        mask = self.right()
        mask[1] = 0
        return mask

    def fractional(self) -> Any:
        mask = self.right().astype(np.float32)
        mask[0, :2] = 0.25, 0.5
        mask[1] = 0.75
        return mask

    def beyond_one(self) -> Any:
        mask = np.ones((self.texts, self.length), np.float32)
        mask[0, 1], mask[1, 0] = 2, -1
        return mask

    def by_query(self, queries: int | None = None, keys: int | None = None) -> Any:
        mask = self.random.integers(0, 2, (self.texts, queries or self.length, keys or self.length))
        mask[:, :, 0] = 1
        return mask


def seed_of(name: str) -> int:
    """A number from a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


def encoder_cases(d: Drawn) -> list[Case]:
    """Masks, positions, segments and head masks: what every class shares."""
    ids, layers = d.ids(), np.array([[1, 0, 1], [0.5, 1, 0]], np.float32)
    inner_pads = ids.copy()
    inner_pads[0, 2:4] = inner_pads[2, 1] = d.pad
    positions = np.tile(np.arange(d.length)[::-1], (d.texts, 1)) + np.arange(d.texts)[:, None]
    return [
        Case("no_mask", {"input_ids": ids}),
        Case("right_padding", d.padded(d.right())),
        Case("left_padding", d.padded(d.left())),
        Case("holes", {"input_ids": ids, "attention_mask": d.holes()}),
        Case("nothing_attended", d.padded(d.one_unattended())),
        Case("fractional_mask", {"input_ids": ids, "attention_mask": d.fractional()}),
        Case("mask_beyond_one", {"input_ids": ids, "attention_mask": d.beyond_one()}),
        Case("mask_3d", {"input_ids": ids, "attention_mask": d.by_query()}),
        Case("mask_bool", d.padded(d.right().astype(bool))),
        Case("mask_of_one_row", {"input_ids": ids, "attention_mask": d.holes()[:1]}),
        Case("pads_without_mask", {"input_ids": inner_pads}),
        Case("token_types", {"input_ids": ids, "token_type_ids": d.token_types()}),
        Case("token_types_padded", d.padded(d.left()) | {"token_type_ids": d.token_types()}),
        Case("positions", {"input_ids": ids, "position_ids": positions, "token_type_ids": d.token_types()}),
        Case("positions_of_one_row", d.padded(d.left()) | {"position_ids": positions[1:2]}),
        Case("inputs_embeds", {"inputs_embeds": d.vectors(3, 6)}),
        Case("inputs_embeds_padded", {"inputs_embeds": d.vectors(3, 6), "attention_mask": d.left()}),
        Case("head_mask", {"input_ids": ids, "head_mask": layers[0]}),
        Case("head_mask_by_layer", d.padded(d.right()) | {"head_mask": layers}),
        Case("one_token", {"input_ids": d.ids(2, 1)}),
        Case("longest", {"input_ids": d.ids(1, 18)}, NO_STATES),
        Case("chunks", d.padded(d.right()), config={"chunk_size_feed_forward": 3}),
        Case("past", {"input_ids": d.ids(3, 2), "past_key_values": [[d.vectors(3, 3, 4)[..., :6] for _ in "kv"] for _ in "01"]}),
        Case("past_padded", {"input_ids": d.ids(3, 3), "attention_mask": d.left(),
             "past_key_values": [[d.vectors(3, 3, 3)[..., :6] for _ in "kv"] for _ in "01"]}),
    ] + [Case(f"activation_{name}", {"input_ids": ids[:1]}, NO_STATES, {"hidden_act": name}) for name in ACTIVATIONS]  # fmt: skip


def pruned_cases(d: Drawn) -> list[Case]:
    head_mask = {"head_mask": np.array([[0.5], [1], [0]], np.float32)}
    return [
        Case("no_mask", {"input_ids": d.ids()}),
        Case("left_padding", d.padded(d.left())),
        Case("head_mask", {"input_ids": d.ids()} | head_mask),
    ]


def decoder_cases(d: Drawn) -> list[Case]:
    """Cross-attention and its masks, with and without a cache."""
    source, ids = {"encoder_hidden_states": d.vectors(3, 5)}, d.ids()
    full, short = d.right(), (np.arange(5) < [[5], [2], [4]]).astype(np.int64)
    off, on = {"use_cache": False}, {"use_cache": True}
    padded = d.padded(full)
    more = {"input_ids": d.ids(3, 2), "attention_mask": np.concatenate([full, np.ones((3, 2), int)], 1)}
    left = d.padded(d.left())
    return [
        Case("no_source", {"input_ids": ids}, off | NO_STATES | {"output_hidden_states": True}),
        Case("no_source_cached", {"input_ids": ids}, on | NO_STATES),
        Case("no_source_next", {"input_ids": d.ids(3, 1)}, on | NO_STATES, after="no_source_cached"),
        Case("source", {"input_ids": ids} | source, off),
        Case("source_mask", padded | source | {"encoder_attention_mask": short}, off),
        Case("source_mask_3d", {"input_ids": ids} | source | {"encoder_attention_mask": d.by_query(6, 5)}, off),
        Case("source_unattended", left | source | {"encoder_attention_mask": short * [[1], [0], [1]]}, off),
        Case("mask_3d", {"input_ids": ids, "attention_mask": d.by_query()} | source, off),
        Case("head_mask", padded | source | {"head_mask": np.array([[0, 1, 0.5], [1, 1, 0]], np.float32)}, off),
        Case("inputs_embeds", {"inputs_embeds": d.vectors(3, 6)} | source, off),
        Case("cached", padded | source | {"encoder_attention_mask": short}, on),
        Case("cached_next", more | source | {"encoder_attention_mask": short}, on, after="cached"),
        Case("cached_next_mask_3d", {"input_ids": d.ids(3, 2), "attention_mask": d.by_query(2, 8)} | source, on, after="cached"),
        Case("cached_next_embeds", {"inputs_embeds": d.vectors(3, 2)} | source, on | NO_STATES, after="cached"),
    ]


def causal_cases(d: Drawn) -> list[Case]:
    """The causal mask with padding everywhere, the loss, and three calls over one cache."""
    ids, one = d.ids(), np.ones((3, 1), int)
    labels = np.where(d.right() == 0, -100, d.ids())
    left = d.padded(d.left())
    grown = np.concatenate([d.left(), one, one, one], 1)
    after_positions = {"position_ids": np.maximum(grown.cumsum(1) - 1, 0)}
    return [
        Case("no_mask", {"input_ids": ids}, {"use_cache": False}),
        Case("right_padding", d.padded(d.right()), {"use_cache": False}),
        Case("holes", {"input_ids": ids, "attention_mask": d.holes()}, {"use_cache": False}),
        Case("nothing_attended", d.padded(d.one_unattended()), {"use_cache": False}),
        Case("fractional_mask", {"input_ids": ids, "attention_mask": d.fractional()}, {"use_cache": False}),
        Case("mask_bool", d.padded(d.left().astype(bool)), {"use_cache": False}),
        Case("mask_3d", {"input_ids": ids, "attention_mask": d.by_query()}, {"use_cache": False}),
        Case("labels", {"input_ids": ids, "labels": d.ids()}),
        Case("labels_padded", d.padded(d.right()) | {"labels": labels}),
        Case("as_encoder", d.padded(d.right()), {"use_cache": False}, {"is_decoder": False}),
        Case("cached", {"input_ids": ids}),
        Case("cached_next", {"input_ids": d.ids(3, 2)}, after="cached"),
        Case("cached_third", {"input_ids": d.ids(3, 1)}, after="cached_next"),
        Case("cached_left", left | {"position_ids": after_positions["position_ids"][:, :6]}),
        Case("cached_left_next", {"input_ids": d.ids(3, 2), "attention_mask": grown[:, :8],
             "position_ids": after_positions["position_ids"][:, 6:8]}, after="cached_left"),
        Case("cached_left_third", {"input_ids": d.ids(3, 1), "attention_mask": grown}, after="cached_left_next"),
        Case("cached_head_mask", {"input_ids": ids, "head_mask": np.array([1, 0.5, 0], np.float32)}),
    ]  # fmt: skip


def causal_cross_cases(d: Drawn) -> list[Case]:
    source, ids = {"encoder_hidden_states": d.vectors(3, 4)}, d.ids()
    return [
        Case("source", d.padded(d.right()) | source, {"use_cache": False}),
        Case("labels", {"input_ids": ids, "labels": d.ids()} | source),
        Case("cached", {"input_ids": ids} | source),
        Case("cached_next", {"input_ids": d.ids(3, 3)} | source, after="cached"),
    ]


def masked_cases(d: Drawn) -> list[Case]:
    labels = np.where(d.holes() == 1, -100, d.ids())
    return [
        Case("no_mask", {"input_ids": d.ids()}),
        Case("left_padding", d.padded(d.left())),
        Case("labels", d.padded(d.right()) | {"labels": labels}),
        Case("labels_ignored", {"input_ids": d.ids(), "labels": labels * 0 - 100}),
        Case("as_decoder", d.padded(d.right()), config={"is_decoder": True}),
    ]


def relative_cases(d: Drawn) -> list[Case]:
    both, ids = {"position_embedding_type": "relative_key_query"}, d.ids()
    return [
        Case("relative_key", {"input_ids": ids}),
        Case("relative_key_padded", d.padded(d.right())),
        Case("relative_key_longest", {"input_ids": d.ids(1, 20), "position_ids": np.zeros((1, 20), int)}, NO_STATES),
        Case("relative_key_query", {"input_ids": ids}, config=both),
        Case("relative_key_query_padded", d.padded(d.left()) | {"token_type_ids": d.token_types()}, config=both),
    ]


def relative_decoder_cases(d: Drawn) -> list[Case]:
    """With a cache transformers is wrong here, so what is expected is cut from one call over the whole text without a cache."""
    source, mask = {"encoder_hidden_states": d.vectors(3, 4)}, d.right()
    whole = np.concatenate([mask, np.ones((3, 2), int)], 1)
    key = {"position_embedding_type": "relative_key"}
    cases = [Case("source", d.padded(mask) | source, {"use_cache": False})]
    for kind, config in (("", {}), ("_key", key)):
        cases += [
            Case(f"cached{kind}", d.padded(mask) | source, config=config),
            Case(f"cached{kind}_next", {"input_ids": d.ids(3, 2), "attention_mask": whole} | source, {}, config, f"cached{kind}"),
        ]
    return cases


def classification_cases(d: Drawn) -> list[Case]:
    padded, values = d.padded(d.right()), d.random.standard_normal((3, 3), np.float32)
    several = (values > 0).astype(np.float32)
    given = [
        ("regression", values),
        ("single_label_classification", np.array([2, 0, 1])),
        ("multi_label_classification", several),
    ]
    return [
        Case("no_labels", d.padded(d.left())),
        Case("integer_labels", padded | {"labels": np.array([0, 2, 2])}),
        Case("float_labels", padded | {"labels": several}),
        *[Case(kind, padded | {"labels": labels}, NO_STATES, {"problem_type": kind}) for kind, labels in given],
    ]


def regression_cases(d: Drawn) -> list[Case]:
    return [Case("labels", d.padded(d.right()) | {"labels": np.array([0.5, -1.25, 3], np.float32)})]


def choice_cases(d: Drawn) -> list[Case]:
    mask = np.ones((2, 3, 5), int)
    mask[0, 1, 3:] = mask[1, 2, :2] = 0
    positions = np.broadcast_to(np.arange(4, 9), (2, 3, 5)).copy()
    return [
        Case("no_mask", {"input_ids": d.ids(2, 3, 5), "token_type_ids": d.token_types(2, 3, 5)}),
        Case("padded", d.padded(mask)),
        Case("labels", d.padded(mask) | {"labels": np.array([2, 0]), "position_ids": positions}),
        Case("inputs_embeds", {"inputs_embeds": d.vectors(2, 3, 5), "attention_mask": mask}),
    ]


def token_cases(d: Drawn) -> list[Case]:
    labels = np.where(d.right() == 0, -100, d.random.integers(0, 5, (3, 6)))
    return [Case("no_labels", d.padded(d.left())), Case("labels", d.padded(d.right()) | {"labels": labels})]


def question_cases(d: Drawn) -> list[Case]:
    spans = {"start_positions": np.array([1, 9, -2]), "end_positions": np.array([[3], [2], [6]])}
    return [
        Case("no_labels", d.padded(d.right())),
        Case("spans", d.padded(d.right()) | {"start_positions": np.array([1, 0, 2]), "end_positions": np.array([5, 0, 2])}),
        Case("spans_out_of_range", {"input_ids": d.ids()} | spans),
        Case("spans_without_ends", {"input_ids": d.ids(), "start_positions": spans["start_positions"]}),
    ]


CASES = {
    "base": encoder_cases,
    "base_pruned": pruned_cases,
    "base_decoder": decoder_cases,
    "causal_lm": causal_cases,
    "causal_lm_cross": causal_cross_cases,
    "masked_lm": masked_cases,
    "masked_lm_untied": masked_cases,
    "relative": relative_cases,
    "relative_decoder": relative_decoder_cases,
    "sequence_classification": classification_cases,
    "sequence_regression": regression_cases,
    "multiple_choice": choice_cases,
    "token_classification": token_cases,
    "question_answering": question_cases,
}


def cases_of_version_5(name: str, d: Drawn) -> list[Case]:
    """What version 5 does otherwise: the last hidden state, the tuples, logits_to_keep, an untied language model's bias.

    It has no relative positions, and of an untied language model saved by version 4 it loses the bias.
    """
    padded, ids = d.padded(d.right()), d.ids()
    if name == "base_decoder":
        source = {"encoder_hidden_states": d.vectors(3, 4)}
        return [Case("source", padded | source), Case("no_source", {"input_ids": ids})]
    if name == "causal_lm":
        mask = np.zeros((3, 6), bool)
        mask[[0, 0, 0, 1, 2, 2], [1, 4, 5, 0, 2, 3]] = True
        plain, places, by_row = NO_STATES | {"use_cache": False}, np.array([0, 3, 5]), np.array([[0, 1], [2, 2], [5, 0]])
        asked = [Case(f"keep_{k}", {"input_ids": ids}, plain | {"logits_to_keep": k}) for k in (1, 4, 9)]
        for kind, kept in (("places", places), ("places_by_row", by_row), ("mask", mask)):
            asked.append(Case(f"keep_{kind}", {"input_ids": ids, "logits_to_keep": kept}, plain))
        return [Case("cached", {"input_ids": ids}), Case("labels", {"input_ids": ids, "labels": d.ids()}), *asked]
    if name == "multiple_choice":
        return [Case("choices", {"input_ids": d.ids(2, 3, 5)})]
    if name == "base":
        untied = Case("untied_states", padded, config={"tie_last_hidden_states": False})
        chosen = Case("chosen_states", {"input_ids": ids}, {"output_hidden_states": [0, 2], "output_attentions": False})
        return [Case("padded", padded), untied, chosen, Case("plain", {"input_ids": ids}, NO_STATES)]
    if name in ("base_pruned", "causal_lm_cross", "masked_lm_untied") or name.startswith("relative"):
        return []
    return [Case("padded", padded)]


def new_model(name: str, model: Model) -> Any:
    """A model whose every parameter is random; float32."""
    config = transformers.RobertaPreLayerNormConfig(**model.config)
    cls = getattr(transformers, f"RobertaPreLayerNorm{model.head}")
    made = cls(config) if model.pooler else cls(config, add_pooling_layer=False)
    if model.pruned:
        made.prune_heads(model.pruned)
    random = np.random.default_rng(seed_of(name))
    with torch.no_grad():
        for key, parameter in sorted(made.named_parameters()):
            values = random.standard_normal(tuple(parameter.shape), np.float32)
            norm = key.endswith("weight") and parameter.ndim == 1
            parameter.copy_(torch.from_numpy(1 + 0.3 * values if norm else 0.4 * values))
    return made


def load(folder: Path, changes: dict[str, Any]) -> Any:
    """The model of a folder in float64, with plain attention, its configuration changed."""
    config = transformers.RobertaPreLayerNormConfig.from_pretrained(folder)
    cls = getattr(transformers, config.architectures[0])
    for name, value in changes.items():
        setattr(config, name, value)
    extra = {"add_pooling_layer": False} if "pruned" in folder.name else {}
    return cls.from_pretrained(folder, config=config, attn_implementation="eager", **extra).double().eval()


def call(model: Any, case: Case, past: Any) -> Any:
    """A model's output for a case, asked for its states unless the case says otherwise."""
    given = {}
    for name, value in case.inputs.items():
        if name == "past_key_values":
            value = transformers.EncoderDecoderCache.from_legacy_cache([[tensor(x) for x in layer] for layer in value])
        given[name] = value if name == "past_key_values" else tensor(value)
    if past is not None:
        given["past_key_values"] = past
    with torch.no_grad():
        return model(**given, **{"output_hidden_states": True, "output_attentions": True} | case.flags)


def tensor(x: Any) -> torch.Tensor:
    """Floats in float64, the rest as they are."""
    y = torch.from_numpy(np.ascontiguousarray(x))
    return y.double() if y.is_floating_point() else y


def layers_of(cache: Any) -> list[list[torch.Tensor]]:
    """(k, v) or (k, v, cross_k, cross_v) of each layer."""
    own = getattr(cache, "self_attention_cache", cache).layers
    cross = cache.cross_attention_cache.layers if hasattr(cache, "cross_attention_cache") else []
    cross = [layer for layer in cross if getattr(layer, "keys", None) is not None and layer.keys.numel()]
    layers = [[layer.keys, layer.values] for layer in own]
    return [[*mine, c.keys, c.values] for mine, c in zip(layers, cross, strict=True)] if cross else layers


def flatten(fields: dict[str, Any]) -> dict[str, Any]:
    """Arrays by the path to them: hidden_states.0, past_key_values.1.0."""
    flat = {}
    for name, value in fields.items():
        if isinstance(value, list | tuple):
            flat |= flatten({f"{name}.{index}": entry for index, entry in enumerate(value)})
        elif value is not None:
            flat[name] = value.detach().numpy().copy()
    return flat


def outputs_of(case: Case, output: Any) -> dict[str, Any]:
    """The arrays to store; a causal language model's loss again in float64, which version 4.57 computes in float32."""
    fields = {name: value for name, value in output.items() if name != "past_key_values"}
    if output.get("past_key_values") is not None and "past_key_values" not in case.inputs:
        fields["past_key_values"] = layers_of(output["past_key_values"])
    if "labels" in case.inputs and "CausalLM" in type(output).__name__:
        logits, labels = output.logits[:, :-1].flatten(0, 1), tensor(case.inputs["labels"])[:, 1:].flatten()
        fields["loss"] = torch.nn.functional.cross_entropy(logits, labels)
    return flatten(fields)


def chain(case: Case, cases: dict[str, Case]) -> list[Case]:
    """A case after those whose cache it continues."""
    return [*chain(cases[case.after], cases), case] if case.after else [case]


def expected(folder: Path, case: Case, cases: dict[str, Case]) -> tuple[Any, dict[str, Any]]:
    """A case's output and its arrays."""
    model, output = load(folder, case.config), None
    for step in chain(case, cases):
        output = call(model, step, None if output is None else output.past_key_values)
    return output, outputs_of(case, output)


def expected_without_cache(folder: Path, case: Case, cases: dict[str, Case]) -> dict[str, Any]:
    """The arrays that calls over a cache should give, cut from one call over all their tokens without one."""
    steps = chain(case, cases)
    model = load(folder, case.config)
    ids = np.concatenate([step.inputs["input_ids"] for step in steps], 1)
    end = ids.shape[1] if case is steps[-1] and len(steps) > 1 else steps[0].inputs["input_ids"].shape[1]
    start = end - case.inputs["input_ids"].shape[1]
    kept: dict[str, Any] = {}
    for index, layer in enumerate(model.roberta_prelayernorm.encoder.layer):
        parts = [(layer.attention.self, "key"), (layer.attention.self, "value")]
        parts += [(layer.crossattention.self, "key"), (layer.crossattention.self, "value")]
        for place, (part, name) in enumerate(parts):
            heads = part.num_attention_heads

            def keep(_: Any, __: Any, x: Any, at: str = f"past_key_values.{index}.{place}", heads: int = heads) -> None:
                kept[at] = x.view(*x.shape[:2], heads, -1).transpose(1, 2).numpy()

            getattr(part, name).register_forward_hook(keep)
    whole = Case("", case.inputs | {"input_ids": ids[:, :end]}, {"use_cache": False})
    arrays = outputs_of(whole, call(model, whole, None))
    arrays = {name: x[:, :, start:] if "attentions" in name else x[:, start:] for name, x in arrays.items()}
    return arrays | kept


def nested(x: Any) -> Any:
    """The shapes in a tuple, as lists; a cache is the word cache."""
    if hasattr(x, "get_seq_length"):
        return "cache"
    if x is None:
        return None
    return [nested(y) for y in x] if isinstance(x, tuple) else list(x.shape)


def write_cases(folder: Path, cases: list[Case]) -> None:
    """Run the cases of a folder's model and store their inputs and outputs."""
    arrays: dict[str, Any] = {}
    table = []
    by_name = {case.name: case for case in cases}
    for case in cases:
        entry = vars(case) | {"inputs": sorted(case.inputs)}
        if folder.name == "relative_decoder" and case.name.startswith("cached"):
            outputs = expected_without_cache(folder, case, by_name)
        else:
            output, outputs = expected(folder, case, by_name)
            if VERSION >= 5:
                entry["tuple"] = [nested(x) for x in output.to_tuple()]
        table.append(entry | {"outputs": list(outputs)})
        arrays |= {f"{case.name}/inputs/{name}": np.asarray(x, order="C") for name, x in flat_inputs(case).items()}
        arrays |= {f"{case.name}/outputs/{name}": np.asarray(x, order="C") for name, x in outputs.items()}
    save_file(arrays, folder / f"golden_{VERSION}.safetensors", {"cases": json.dumps(table)})


def flat_inputs(case: Case) -> dict[str, Any]:
    """A case's arrays, a past one array for each key and value."""
    flat = {name: value for name, value in case.inputs.items() if name != "past_key_values"}
    for i, layer in enumerate(case.inputs.get("past_key_values", ())):
        flat |= {f"past_key_values.{i}.{j}": x for j, x in enumerate(layer)}
    return flat


def write_activations() -> None:
    """What every activation gives on numbers from -12 to 12."""
    x = torch.cat([torch.linspace(-12, 12, 49), torch.tensor([1e-3, -1e-3, 1e-6, 707.107e-3])]).double()
    with torch.no_grad():
        arrays = {name: f(x).numpy() for name, f in activations() if name != "prelu" and name != "xielu"}
    save_file(arrays | {"x": x.numpy()}, FOLDER / f"activations_{VERSION}.safetensors")


def activations() -> list[tuple[str, Any]]:
    return [(name, transformers.activations.ACT2FN[name]) for name in sorted(transformers.activations.ACT2CLS)]


def main() -> None:
    """Write everything that the installed version of transformers is for."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    made = MODELS if VERSION < 5 else UNTIED_5
    for name, model in made.items():
        shutil.rmtree(FOLDER / name, ignore_errors=True)
        new_model(name, model).save_pretrained(FOLDER / name)
        (FOLDER / name / "generation_config.json").unlink(missing_ok=True)
    for name, model in MODELS.items() if VERSION < 5 else (MODELS | UNTIED_5).items():
        d = Drawn(f"{name}-{VERSION}", model.config)
        cases = CASES[name](d) if VERSION < 5 else cases_of_version_5(name, d)
        if cases:
            write_cases(FOLDER / name, cases)
    write_activations()
    path = FOLDER / "versions.json"
    versions = json.loads(path.read_text()) if path.exists() else {}
    versions[f"golden_{VERSION}"] = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    path.write_text(json.dumps(versions, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
