"""Write tests/torch_files: files by the real torch in every layout, fairseq's too, and what they hold.

    pip install 'omegaconf==2.0.6'            once: fairseq's configurations are its objects
    python tools/make_torch_files.py          with torch 2.13.0 and transformers 4.57.6

`kinds_*.bin` hold tensors of every dtype and of odd strides, `kinds.safetensors` the same; `model*` are folders of one tiny
model, and `*.pt` such models under the names that fairseq and DeepSpeed give them; `logits.safetensors` holds what they make
of `ids`.
"""

import argparse
import json
import re
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import transformers
from omegaconf import OmegaConf
from safetensors.torch import save_file

FOLDER = Path(__file__).parent.parent / "tests" / "torch_files"
SHAPE = {
    "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12, "vocab_size": 29, "max_position_embeddings": 14,
    "type_vocab_size": 1, "num_hidden_layers": 2, "layer_norm_eps": 1e-5, "attn_implementation": "eager",
}  # fmt: skip
IDS = torch.tensor([[0, 5, 9, 28, 2], [0, 7, 2, 11, 2]])
FAIRSEQ = (
    (r"^\w+\.embeddings\.word_embeddings\.", "sentence_encoder.embed_tokens."),
    (r"^\w+\.embeddings\.position_embeddings\.", "sentence_encoder.embed_positions."),
    (r"^\w+\.embeddings\.LayerNorm\.", "sentence_encoder.layernorm_embedding."),
    (r"^\w+\.(encoder\.)?LayerNorm\.", "sentence_encoder.layer_norm."),
    (r"^\w+\.encoder\.layer\.", "sentence_encoder.layers."),
    (r"attention\.self\.(q|k|v)\w+\.", r"self_attn.\1_proj."),
    (r"attention\.output\.dense\.", "self_attn.out_proj."),
    (r"attention\.(LayerNorm|output\.LayerNorm|self_attn_layer_norm)\.", "self_attn_layer_norm."),
    (r"(\d)\.((intermediate|output)\.)?LayerNorm\.", r"\1.final_layer_norm."),
    (r"intermediate\.dense\.", "fc1."),
    (r"output\.dense\.", "fc2."),
    (r"lm_head\.decoder\.", "lm_head."),
)
OLD = (
    ("encoder.sentence_encoder", "decoder.sentence_encoder"), ("encoder.lm_head", "decoder.lm_head"),
    ("layernorm_embedding", "emb_layer_norm"), ("self_attn_layer_norm", "layer_norms.0"), ("final_layer_norm", "layer_norms.1"),
)  # fmt: skip
DEEPSPEED = (
    (r"self_attn\.out_proj\.(w|b)\w+", r"attn_o\1"), (r"self_attn_layer_norm\.(w|b)\w+", r"norm_\1"),
    (r"final_layer_norm\.(w|b)\w+", r"attn_n\1"), (r"fc1\.(w|b)\w+", r"inter_\1"), (r"fc2\.(w|b)\w+", r"output_\1"),
)  # fmt: skip


def build(family: str, head: str = "ForMaskedLM", **changes: Any) -> Any:
    """A model whose every parameter is random."""
    torch.manual_seed(len(family))
    config = getattr(transformers, family + "Config")(**SHAPE | changes)
    model = getattr(transformers, family + head)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5 * ("token_type" not in name))
    return model


def kinds() -> dict[str, torch.Tensor]:
    """A tensor of every dtype, views of odd strides, two names for one tensor, and none at all."""
    torch.manual_seed(0)
    base, shared = torch.randn(6, 10), torch.randn(3, 4)
    return {
        "float64": torch.randn(3, dtype=torch.float64),
        "float16": torch.randn(2, 5).half(),
        "bfloat16": torch.randn(2, 5).bfloat16(),
        "int64": torch.arange(-3, 9),
        "int32": torch.arange(7, dtype=torch.int32),
        "bool": torch.tensor([True, False, True]),
        "uint8": torch.arange(250, 256, dtype=torch.uint8),
        "transposed": base.t(),
        "every_other": torch.randn(10, 10)[2:9:3, 1::2],
        "row": torch.randn(4, 3)[1],
        "expanded": torch.arange(5).expand(1, -1),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "one": shared,
        "same": shared,
        "parameter": torch.nn.Parameter(torch.randn(4)),
    }


def fairseq_names(model: Any) -> dict[str, torch.Tensor]:
    """A model's tensors under the names of fairseq since 0.10."""
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if "token_type" in name or name == "lm_head.bias":
            continue
        for ours, theirs in FAIRSEQ:
            name = re.sub(ours, theirs, name)
        tensors[name if name.startswith("classif") else f"encoder.{name}"] = tensor.clone()
    return tensors


def stacked(tensors: dict[str, torch.Tensor], stem: str, ends: tuple[str, str]) -> dict[str, torch.Tensor]:
    """Query, key and value of every layer in one tensor."""
    whole = dict(tensors)
    for name in tensors:
        if found := re.fullmatch(r"(.*\.layers\.\d+\.)self_attn\.q_proj\.(weight|bias)", name):
            parts = [whole.pop(f"{found[1]}self_attn.{part}_proj.{found[2]}") for part in "qkv"]
            whole[f"{found[1]}{stem}{ends[found[2] == 'bias']}"] = torch.cat(parts)
    return whole


def renamed(tensors: dict[str, torch.Tensor], pairs: tuple[tuple[str, str], ...]) -> dict[str, torch.Tensor]:
    """Tensors by other names."""
    for old, new in pairs:
        tensors = {re.sub(old, new, name): tensor for name, tensor in tensors.items()}
    return tensors


def main() -> None:
    """Write everything anew."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    tensors = kinds()
    torch.save(tensors, FOLDER / "kinds_zip.bin")
    torch.save(tensors, FOLDER / "kinds_legacy.bin", _use_new_zipfile_serialization=False)
    torch.save(OrderedDict(tensors), FOLDER / "kinds_protocol_4.bin", pickle_protocol=4)
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, FOLDER / "kinds.safetensors")

    logits = {"ids": IDS}
    model = build("RobertaPreLayerNorm")
    model.save_pretrained(FOLDER / "model", safe_serialization=False)
    model.save_pretrained(FOLDER / "model_sharded", safe_serialization=False, max_shard_size="3KB")
    model.save_pretrained(FOLDER / "model_legacy", safe_serialization=False)
    torch.save(model.state_dict(), FOLDER / "model_legacy" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    old = build("Roberta")
    xl = build("XLMRobertaXL")
    classifier = build("Roberta", "ForSequenceClassification", num_labels=3)

    options = {"encoder_attention_heads": 2, "activation_fn": "gelu", "untie_weights_roberta": False, "max_positions": 12}
    namespace = argparse.Namespace(**options, arch="roberta_base", lr=[0.1])
    extra = {"extra_state": {"epoch": 3, "loss": torch.tensor(1.5)}, "optimizer_history": [{"num_updates": 7}]}
    new = fairseq_names(model)
    torch.save({"args": None, "cfg": {"model": namespace}, "model": new} | extra, FOLDER / "prenorm.pt")
    configuration = OmegaConf.create({"model": options | {"_name": "roberta"}, "task": {"data": "???"}})
    torch.save({"cfg": configuration, "model": new}, FOLDER / "prenorm_omegaconf.pt")
    deepspeed = renamed(stacked(new, "attn_qkv", ("w", "b")), DEEPSPEED)
    torch.save({"cfg": {"model": namespace}, "model": deepspeed}, FOLDER / "prenorm_deepspeed.pt")
    half = {name: tensor.half() for name, tensor in new.items()}
    torch.save({"args": namespace, "model": half}, FOLDER / "prenorm_half.pt", _use_new_zipfile_serialization=False)
    names = renamed(stacked(fairseq_names(old), "self_attn.in_proj_", ("weight", "bias")), OLD)
    names["decoder.sentence_encoder.version"] = torch.tensor([3.0])
    torch.save({"args": namespace, "model": names} | extra, FOLDER / "postnorm_old.pt", _use_new_zipfile_serialization=False)
    torch.save({"args": namespace, "model": fairseq_names(xl)}, FOLDER / "xl.pt")
    headed = renamed(fairseq_names(classifier), (("classifier", "classification_heads.mnli"),))
    torch.save({"args": namespace, "model": headed}, FOLDER / "classifier.pt")

    named = {"model": model, "postnorm_old": old, "xl": xl, "classifier": classifier}
    with torch.no_grad():
        for name, one in named.items():
            logits[name] = one.double()(IDS).logits
    save_file(logits, FOLDER / "logits.safetensors")
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    print(json.dumps({"files": len(list(FOLDER.rglob("*"))), "bytes": size}))


if __name__ == "__main__":
    main()
