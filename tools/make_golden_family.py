"""Write tests/golden_family: tiny random models of the whole family, and the float64 outputs of Hugging Face's own classes.

    python tools/make_golden_family.py        with transformers 4.57.6

Every model_type with every head: a folder as save_pretrained writes it, and golden.safetensors beside it with `inputs/name` and
`outputs/field` arrays. Models are stored in float32 and run in float64, with every bias and norm gain random.
"""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

from tinyroberta.family import OWN
from tinyroberta.heads import HEADS
from tinyroberta.weights import names

FOLDER = Path(__file__).parent.parent / "tests" / "golden_family"
FAMILIES = tuple(family.classes for model_type, family in names.FAMILIES.items() if model_type != OWN)
SHAPE = {
    "hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 20, "vocab_size": 31, "max_position_embeddings": 20,
    "type_vocab_size": 2, "attn_implementation": "eager",
}  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "Model": {"num_hidden_layers": 2, "hidden_act": "gelu_new"},
    "ForCausalLM": {"num_hidden_layers": 2, "is_decoder": True, "add_cross_attention": True, "tie_word_embeddings": False},
    "ForTokenClassification": {"num_labels": 5, "layer_norm_eps": 1e-5},
    "ForSequenceClassification": {"num_labels": 3, "pad_token_id": 0},
}


def build(name: str, head: str) -> Any:
    """A model whose every parameter is random and a float32 number."""
    torch.manual_seed(seed_of(name))
    config = getattr(transformers, name.removesuffix(head) + "Config")(**{"num_hidden_layers": 1} | SHAPE | CHANGES.get(head, {}))
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    model.tie_weights()
    return model


def seed_of(name: str) -> int:
    """A number from a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


def inputs(name: str, head: str, pad: int) -> dict[str, np.ndarray]:
    """Padded ids with segments, and the labels that the head takes."""
    random = np.random.default_rng(seed_of(name))
    mask = (np.arange(6) < [[6], [3], [5]]).astype(np.int64)
    ids = np.where(mask == 1, random.integers(4, 31, (3, 6)), pad)
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": random.integers(0, 2, (3, 6))}
    if head == "ForMultipleChoice":
        given = {key: value[None] for key, value in given.items()} | {"labels": np.array([1])}
    if head in ("ForCausalLM", "ForMaskedLM"):
        given["labels"] = np.where(mask == 1, random.integers(0, 31, (3, 6)), -100)
    if head == "ForCausalLM":
        given["encoder_hidden_states"] = random.standard_normal((3, 4, 12))
    if head == "ForSequenceClassification":
        given["labels"] = np.array([2, 0, 1])
    if head == "ForTokenClassification":
        given["labels"] = np.where(mask == 1, random.integers(0, 5, (3, 6)), -100)
    if head == "ForQuestionAnswering":
        given |= {"start_positions": np.array([1, 0, 2]), "end_positions": np.array([5, 0, 9])}
    return given


def flat(output: Any) -> dict[str, np.ndarray]:
    """The output's arrays by field, those of a tuple by their place."""
    arrays: dict[str, np.ndarray] = {}
    for field, value in output.items():
        for place, array in enumerate(value) if isinstance(value, tuple) else [(None, value)]:
            if isinstance(array, torch.Tensor):
                arrays[field if place is None else f"{field}.{place}"] = array.numpy()
    return arrays


def main() -> None:
    """Write everything anew."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    for family in FAMILIES:
        for head in HEADS:
            name = family + head
            model = build(name, head)
            model.save_pretrained(FOLDER / name)
            (FOLDER / name / "generation_config.json").unlink(missing_ok=True)
            given = inputs(name, head, model.config.pad_token_id)
            with torch.no_grad():
                tensors = {key: torch.tensor(value) for key, value in given.items()}
                output = model.double()(**tensors, output_hidden_states=True, output_attentions=head in ("Model", "ForCausalLM"))
            expected = {f"outputs/{key}": value for key, value in flat(output).items()}
            stored = {f"inputs/{key}": value for key, value in given.items()} | expected
            save_file({key: np.ascontiguousarray(value) for key, value in stored.items()}, FOLDER / name / "golden.safetensors")
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    print(f"{FOLDER}: {len(FAMILIES) * len(HEADS)} models, {size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
