"""weights/fairseq.py: the names and arguments of fairseq's checkpoints, and a real one."""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_torch_bin import EXAMPLES, damaged, opened
from torch_writer import name, put, save, storage, tensor, zipped

import tinyroberta
from tinyroberta import Error
from tinyroberta.weights.fairseq import read_fairseq
from tinyroberta.weights.torch_bin import read_torch

FOLDER = Path(__file__).parent / "torch_files"
LOGITS = safetensors.numpy.load_file(FOLDER / "logits.safetensors")
CHECKPOINTS = {
    "prenorm.pt": ("model", "RobertaPreLayerNormForMaskedLM"),
    "prenorm_omegaconf.pt": ("model", "RobertaPreLayerNormForMaskedLM"),
    "prenorm_deepspeed.pt": ("model", "RobertaPreLayerNormForMaskedLM"),
    "postnorm_old.pt": ("postnorm_old", "RobertaForMaskedLM"),
    "xl.pt": ("xl", "XLMRobertaXLForMaskedLM"),
    "classifier.pt": ("classifier", "RobertaForSequenceClassification"),
}


def error_of(found: Any, expected: Any) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("file", CHECKPOINTS)
def test_every_kind_gives_hugging_faces_numbers(file: str) -> None:
    expected, cls = CHECKPOINTS[file]
    model = tinyroberta.load(FOLDER / file, dtype="float64")
    assert type(model).__name__ == cls
    assert error_of(model(LOGITS["ids"]).logits, LOGITS[expected]) < 1e-12


def test_half_precision_in_the_legacy_layout() -> None:
    model = tinyroberta.load(FOLDER / "prenorm_half.pt", dtype="float64")
    assert {x.dtype.name for key, x in model.tensors.items() if "token_type" not in key} == {"float16"}
    assert error_of(model(LOGITS["ids"]).logits, LOGITS["model"]) < 1e-2


def test_the_configuration() -> None:
    config = tinyroberta.RobertaPreLayerNormConfig.from_pretrained(FOLDER / "prenorm.pt")
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (29, 8, 2, 2)
    assert (config.intermediate_size, config.max_position_embeddings, config.layer_norm_eps) == (12, 14, 1e-5)
    assert config.tie_word_embeddings
    model = tinyroberta.load(FOLDER / "prenorm.pt")
    assert model.tensors["lm_head.decoder.weight"] is model.tensors["embeddings.word_embeddings.weight"]
    assert not model.tensors["embeddings.token_type_embeddings.weight"].any()


def test_a_folder_that_holds_one(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "prenorm.pt", tmp_path / "checkpoint_1_100.pt")
    assert type(tinyroberta.load(tmp_path)).__name__ == "RobertaPreLayerNormForMaskedLM"
    shutil.copy(FOLDER / "xl.pt", tmp_path / "checkpoint_2_200.pt")
    with pytest.raises(Error, match="holds 2 files of torch"):
        tinyroberta.load(tmp_path)
    shutil.copy(FOLDER / "postnorm_old.pt", tmp_path / "checkpoint_best.pt")
    assert type(tinyroberta.load(tmp_path)).__name__ == "RobertaForMaskedLM"


def test_saved_and_loaded_it_is_a_hub_folder(tmp_path: Path) -> None:
    for file, (expected, cls) in CHECKPOINTS.items():
        tinyroberta.load(FOLDER / file).save_pretrained(tmp_path / file.removesuffix(".pt"))
        again = tinyroberta.load(tmp_path / file.removesuffix(".pt"), dtype="float64")
        assert type(again).__name__ == cls
        assert error_of(again(LOGITS["ids"]).logits, LOGITS[expected]) < 1e-12


def written(path: Path, arguments: dict[str, Any], change=lambda tensors: tensors) -> Path:
    """A checkpoint of fairseq's names with other arguments and tensors, by hand."""
    file = read_torch(FOLDER / "prenorm.pt")
    shapes = change({key: value.shape for key, value in file.content["model"].items()})
    arrays = {key: np.ones(shape, np.float32) for key, shape in shapes.items()}
    model = {
        key: tensor(x.shape, tuple(step // 4 for step in x.strides), 0, storage(str(i), x.size))
        for i, (key, x) in enumerate(arrays.items())
    }
    namespace = name("argparse Namespace") + b")\x81" + put(arguments) + b"b"
    data = b"\x80\x02" + put({"args": namespace, "model": put(model)}) + b"."
    path.write_bytes(zipped(data, {f"data/{i}": x.tobytes() for i, x in enumerate(arrays.values())}))
    return path


def without(*words: str):
    return lambda tensors: {key: value for key, value in tensors.items() if not any(word in key for word in words)}


HEADS = {"encoder_attention_heads": 2}
REFUSED = {
    "no norm anywhere": (HEADS, without("layernorm_embedding", "sentence_encoder.layer_norm."), "no RoBERTa class is like that"),
    "no heads": ({}, without(), "does not say encoder_attention_heads"),
    "heads that do not divide": ({"encoder_attention_heads": 3}, without(), r"x\.pt: config: hidden_size 8"),
    "heads of all memory": ({"encoder_attention_heads": 2**64}, without(), r"x\.pt: config"),
    "heads that are true": ({"encoder_attention_heads": True}, without(), "does not say"),
    "another activation": (HEADS | {"activation_fn": "relu"}, without(), "trained with activation_fn 'relu'"),
    "an activation of tuples": (HEADS | {"activation_fn": b")" + b"\x85" * 10_000}, without(), "activation_fn 'tuple'"),
    "scaled embeddings": (HEADS | {"no_scale_embedding": False}, without(), "no_scale_embedding"),
    "no words": (HEADS, without("embed_tokens"), "not a RoBERTa checkpoint of fairseq"),
    "no positions": (HEADS, without("embed_positions"), "position_embeddings"),
    "no layers": (HEADS, without("layers."), "intermediate.dense"),
    "a layer missing": (HEADS, without("layers.1.fc2"), r"2 missing: encoder\.layer\.1\.output\.dense"),
    "words that are a row": (HEADS, lambda t: t | {"encoder.sentence_encoder.embed_tokens.weight": (8,)}, "not a matrix"),
    "words that are a number": (HEADS, lambda t: t | {"encoder.sentence_encoder.embed_tokens.weight": ()}, "not a RoBERTa"),
    "a stranger": (
        HEADS,
        lambda t: t | {"encoder.quantizer.weight": (3,)},
        r"holds quantizer\.weight, which no RoBERTa has",
    ),
    "two names for one": (HEADS, lambda t: t | {"decoder.lm_head.bias": (29,)}, "twice"),
    "stacks of no three": (
        HEADS,
        lambda t: t | {"encoder.sentence_encoder.layers.0.attn_qkvb": (25,)},
        "not query, key and value",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_represented_is_refused_with_the_reason(tmp_path: Path, kind: str) -> None:
    arguments, change, said = REFUSED[kind]
    with pytest.raises(Error, match=said) as told:
        tinyroberta.load(written(tmp_path / "x.pt", arguments, change))
    assert "x.pt" in str(told.value)


def test_the_hand_written_one_loads(tmp_path: Path) -> None:
    assert tinyroberta.load(written(tmp_path / "x.pt", HEADS)).config.num_attention_heads == 2
    untied = tinyroberta.load(written(tmp_path / "y.pt", HEADS | {"untie_weights_roberta": True}))
    assert not untied.config.tie_word_embeddings


def test_other_files_are_told(tmp_path: Path) -> None:
    save(tmp_path / "x.pt", {"w": np.ones(3, np.float32)})
    with pytest.raises(Error, match=r"x\.pt is not a RoBERTa checkpoint of fairseq"):
        tinyroberta.load(tmp_path / "x.pt")
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(Error, match="is a file"):
        tinyroberta.load(tmp_path / "x.txt")


@pytest.mark.filterwarnings("ignore:.*left out here")  # a name may be what is damaged
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_checkpoints_are_one_error(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(damaged(data.draw(st.sampled_from(sorted(FOLDER.glob("*.pt")))).read_bytes(), data))
    opened(path, read_fairseq, path)
    opened(path, tinyroberta.load, path)


SAPIENS = os.environ.get("TINYROBERTA_SAPIENS", "")


@pytest.mark.skipif(not SAPIENS, reason="TINYROBERTA_SAPIENS names no folder (tools/fetch_sapiens.py FOLDER fetches it)")
@pytest.mark.parametrize(("rows", "mask"), [("rows", 24), ("rows_with_the_mask_as_unk", 3)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-6), ("float32", 2e-6)])
def test_a_real_model_gives_its_authors_numbers(rows: str, mask: int, dtype: str, tolerance: float) -> None:
    """Fed <unk> where the mask belongs, it gives what was published after the migration that lost the mask."""
    published = json.loads((Path(__file__).parent / "sapiens.json").read_text())
    words = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        *(line.split()[0] for line in (Path(SAPIENS) / "dict.txt").read_text().splitlines()),
        "<mask>",
    ]
    model = tinyroberta.load(Path(SAPIENS) / "checkpoint_vh.pt", dtype=dtype)
    assert type(model).__name__ == "RobertaForMaskedLM"
    assert len(words) == model.config.vocab_size == 25
    ids = [mask if letter == "*" else words.index(letter) for letter in published["sequence"]]
    logits = model([[0, *ids, 2]]).logits[0].astype(np.float64)
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    columns = [words.index(letter) for letter in published["letters"]]
    for place, expected in published[rows].items():
        np.testing.assert_allclose(probabilities[int(place) + 1, columns], expected, rtol=0, atol=tolerance)


def test_the_arguments_are_inert() -> None:
    arguments = read_torch(FOLDER / "prenorm.pt").content["cfg"]["model"]
    assert not isinstance(arguments, argparse.Namespace)
    assert arguments.name == "argparse.Namespace"
    assert arguments.state["arch"] == "roberta_base"
