"""Fairseq's RoBERTa checkpoints (and DeepSpeed's of DinkyTrain): their names become this library's, their arguments a config.

A .pt file holds {"model": tensors by fairseq's names, "args" or "cfg": what the training was told}. Sizes are read from the
tensors; from the arguments come the number of heads and what must be refused. Where the norms stand is read from the names: a
LayerNorm after the last layer is there in pre-norm models only.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Error
from .safetensors import Array
from .torch_bin import Arrays, Record, TorchFile, named_arrays, read_torch, short, state_dict

EPS = 1e-5
FIXED = {
    "activation_fn": "gelu",
    "pooler_activation_fn": "tanh",
    "no_scale_embedding": True,
    "no_token_positional_embeddings": False,
}

NAMES = (  # fairseq's, with what older versions and DeepSpeed call them, and this library's; {} stand for where the norms are
    (r"(en|de)coder\.", ""),
    (r"sentence_encoder\.embed_tokens\.", "embeddings.word_embeddings."),
    (r"sentence_encoder\.embed_positions\.", "embeddings.position_embeddings."),
    (r"sentence_encoder\.segment_embeddings\.", "embeddings.token_type_embeddings."),
    (r"sentence_encoder\.(layernorm_embedding|emb_layer_norm)\.", "embeddings.LayerNorm."),
    (r"sentence_encoder\.layer_norm\.", "LayerNorm."),
    (r"sentence_encoder\.layers\.", "encoder.layer."),
    (r"lm_head\.weight$", "lm_head.decoder.weight"),
)
LAYER_NAMES = (
    (r"(attn_qkv|self_attn\.in_proj_)(w|b)\w*$", r"attention.self.qkv.\2"),
    (r"self_attn\.([qkv])_proj\.", r"attention.self.\1."),
    (r"self_attn\.out_proj\.|attn_o(?=[wb]$)", "attention.output.dense."),
    (r"self_attn_layer_norm\.|layer_norms\.0\.|norm_(?=[wb]$)", "{attention}.LayerNorm."),
    (r"final_layer_norm\.|layer_norms\.1\.|attn_n(?=[wb]$)", "{feed_forward}.LayerNorm."),
    (r"fc1\.|inter_(?=[wb]$)", "intermediate.dense."),
    (r"fc2\.|output_(?=[wb]$)", "output.dense."),
)
BEFORE = {"attention": "attention", "feed_forward": "intermediate"}
AFTER = {"attention": "attention.output", "feed_forward": "output"}
LETTERS = {"q": "query", "k": "key", "v": "value", "w": "weight", "b": "bias"}
DROPPED = re.compile(r"(^|\.)(version|_float_tensor)$")
KNOWN = re.compile(r"(embeddings|encoder\.layer|LayerNorm|lm_head|classifier|pooler)\.")


def is_fairseq(file: TorchFile) -> bool:
    """Whether a torch file holds a RoBERTa of fairseq's."""
    content = file.content if isinstance(file.content, dict) else {}
    tensors = state_dict(content.get("model"))
    return any("sentence_encoder.embed_tokens." in name and tensor.shape for name, tensor in tensors.items())


def open_fairseq(path: Path) -> Arrays:
    """The tensors of a .pt file by this library's names; raises Error as read_fairseq."""
    return read_fairseq(path)[1]


def read_fairseq_config(path: Path) -> dict[str, Any]:
    """What config.json would say of a fairseq checkpoint; raises Error as read_fairseq."""
    return read_fairseq(path)[0]


def read_fairseq(path: Path) -> tuple[dict[str, Any], Arrays]:
    """The configuration and the tensors of a fairseq checkpoint.

    Raises Error where the file is corrupt, is no RoBERTa of fairseq's, or is one that no class here represents, with the reason.
    """
    file = read_torch(path)
    if not is_fairseq(file):
        told = "it has no model with sentence_encoder.embed_tokens; another .pt file needs a config.json beside it"
        raise Error(f"{path} is not a RoBERTa checkpoint of fairseq: {told}")
    content = file.content
    stored = named_arrays(file, state_dict(content.get("model")))
    stored = {name: array for name, array in stored.items() if array.ndim}
    arguments = _arguments(content)
    for name, needed in FIXED.items():
        if arguments.get(name, needed) != needed:
            raise Error(f"{path} was trained with {name} {short(arguments[name])}; RoBERTa's classes have {needed}")
    arrays = _renamed(stored, str(path))
    if strangers := [name for name in arrays if not KNOWN.match(name)]:
        raise Error(f"{path} holds {', '.join(strangers[:8])}, which no RoBERTa has: it is another model of fairseq's")
    model_type = _model_type(arrays, str(path))
    if "embeddings.token_type_embeddings.weight" not in arrays:  # fairseq's RoBERTa has none
        width = next(array.shape[-1] for name, array in stored.items() if "sentence_encoder.embed_tokens." in name)
        arrays["embeddings.token_type_embeddings.weight"] = np.zeros((1, width), np.float32)
    return _config(arrays, arguments, model_type, str(path)), Arrays(arrays)


def _arguments(content: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the model, from "args" or "cfg": a Namespace, a dict, or omegaconf's nodes, all of them inert."""
    configuration = _plain(content.get("cfg"))
    of_model = configuration.get("model") if isinstance(configuration, dict) else None
    for arguments in (_plain(of_model), _plain(content.get("args"))):
        if isinstance(arguments, dict):
            return {name: _plain(value) for name, value in arguments.items()}
    return {}


def _plain(x: Any) -> Any:
    for _ in range(4):  # a node in a node; no deeper
        if isinstance(x, Record):
            x = x.state
        if isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], dict):  # (state, slots)
            x = x[0]
        if not isinstance(x, dict) or not ({"_content", "_val"} & set(x)):
            return x
        x = x["_content"] if "_content" in x else x["_val"]
    return x


def _renamed(stored: dict[str, Array], where: str) -> dict[str, Array]:
    """Tensors under this library's names, stacked query, key and value taken apart; names it does not know stay."""
    pre_norm = any(re.fullmatch(r"(en|de)coder\.sentence_encoder\.layer_norm\.weight", name) for name in stored)
    places = BEFORE if pre_norm else AFTER
    heads = {name.split(".")[1] for name in stored if name.startswith("classification_heads.")}
    arrays: dict[str, Array] = {}

    def keep(name: str, array: Array) -> None:
        if name in arrays:
            raise Error(f"{where} holds {name} twice, under two of its names")
        arrays[name] = array

    for source, array in stored.items():
        name = source
        for theirs, ours in NAMES:
            name = re.sub("^" + theirs, ours, name)
        if layer := re.fullmatch(r"(encoder\.layer\.\d+\.)(.*)", name):
            inside = layer[2]
            for theirs, ours in LAYER_NAMES:
                if (renamed := re.sub("^(?:" + theirs + ")", ours.format(**places), inside)) != inside:
                    inside = re.sub(r"(?<=\.)[qkvwb](?=\.|$)", lambda letter: LETTERS[letter[0]], renamed)
                    break
            name = layer[1] + inside
        if DROPPED.search(name):
            continue
        if name.startswith("classification_heads."):
            if len(heads) == 1:
                keep("classifier." + name.split(".", 2)[-1], array)
        elif ".self.qkv." in name:
            if len(array) % 3:
                raise Error(f"{where}: {source} has {len(array)} rows, which are not query, key and value")
            for part, rows in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                keep(name.replace("qkv", part), rows)
        else:
            keep(name, array)
    return arrays


def _model_type(arrays: dict[str, Array], where: str) -> str:
    pre_norm, embedding_norm = "LayerNorm.weight" in arrays, "embeddings.LayerNorm.weight" in arrays
    if embedding_norm:
        return "roberta-prelayernorm" if pre_norm else "roberta"
    if pre_norm:
        return "xlm-roberta-xl"
    raise Error(f"{where} has no LayerNorm after the embeddings and none after the last layer; no RoBERTa class is like that")


def _config(arrays: dict[str, Array], arguments: dict[str, Any], model_type: str, where: str) -> dict[str, Any]:
    heads = arguments.get("encoder_attention_heads")
    if type(heads) is not int or heads < 1:
        raise Error(f"{where} does not say encoder_attention_heads in its args or cfg")
    needed = ("embeddings.word_embeddings", "embeddings.position_embeddings", "encoder.layer.0.intermediate.dense")
    for name in needed:
        if f"{name}.weight" not in arrays or arrays[f"{name}.weight"].ndim != 2:
            raise Error(f"{where} lacks the tensor that becomes {name}.weight, or it is not a matrix")
    words, positions, wide = (arrays[f"{name}.weight"].shape for name in needed)
    layers = {name.split(".")[2] for name in arrays if name.startswith("encoder.layer.")}
    stem = {"roberta-prelayernorm": "RobertaPreLayerNorm", "roberta": "Roberta", "xlm-roberta-xl": "XLMRobertaXL"}[model_type]
    head = "ForMaskedLM" if "lm_head.dense.weight" in arrays else "Model"
    labels = {}
    if "classifier.out_proj.weight" in arrays:
        head = "ForSequenceClassification"
        labels = {"num_labels": len(arrays["classifier.out_proj.weight"])}
    return {
        "model_type": model_type,
        "architectures": [stem + head],
        "vocab_size": words[0],
        "hidden_size": words[1],
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads,
        "intermediate_size": wide[0],
        "max_position_embeddings": positions[0],
        "type_vocab_size": len(arrays["embeddings.token_type_embeddings.weight"]),
        "layer_norm_eps": EPS,
        "tie_word_embeddings": arguments.get("untie_weights_roberta") is not True,
        **labels,
    }
