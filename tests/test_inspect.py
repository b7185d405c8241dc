"""inspect.py: what a checkpoint holds, from its headers."""

import dataclasses
import json
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import tinyroberta
from tinyroberta import (
    EncoderDecoderModel,
    Error,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForCausalLM,
    RobertaPreLayerNormForMaskedLM,
    RobertaPreLayerNormModel,
)
from tinyroberta.inspect import inspect

HERE = Path(__file__).parent
WORDS = "roberta_prelayernorm.embeddings.word_embeddings.weight"
CONFIG = RobertaPreLayerNormConfig(
    vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, max_position_embeddings=20
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    RobertaPreLayerNormForMaskedLM(CONFIG, seed=1).save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def change(folder: Path, **tensors: np.ndarray) -> None:
    held = safetensors.numpy.load_file(folder / "model.safetensors")
    safetensors.numpy.save_file(held | tensors, folder / "model.safetensors", {"format": "pt"})


def test_a_checkpoint_is_described(source: Path) -> None:
    content = inspect(source)
    assert content["format"] == "safetensors"
    assert content["files"] == {"model.safetensors": (source / "model.safetensors").stat().st_size}
    assert content["architecture"] == "RobertaPreLayerNormForMaskedLM"
    assert content["model_type"] == "roberta-prelayernorm"
    assert content["sizes"]["hidden_size"] == 8
    assert content["parameters"] == RobertaPreLayerNormForMaskedLM(CONFIG).num_parameters
    assert content["bytes"] == 4 * content["parameters"]
    assert content["dtypes"] == {"float32": {"tensors": len(content["tensors"]), "bytes": content["bytes"]}}
    assert content["tied"] == {"lm_head.decoder.weight": WORDS}
    assert sorted(content["unused"]) == []
    assert content["problem"] is None
    assert {"name": WORDS, "shape": [30, 8], "dtype": "float32", "bytes": 960, "used": True} in content["tensors"]
    assert json.loads(json.dumps(content)) == content


def test_unused_tensors_are_named(source: Path) -> None:
    change(source, **{
        "roberta_prelayernorm.embeddings.position_ids": np.arange(20)[None],
        "classifier.weight": np.ones((3, 8), ml_dtypes.bfloat16),
    })  # fmt: skip
    content = inspect(source)
    assert sorted(content["unused"]) == ["classifier.weight", "roberta_prelayernorm.embeddings.position_ids"]
    assert content["dtypes"]["int64"] == {"tensors": 1, "bytes": 160}
    assert content["dtypes"]["bfloat16"] == {"tensors": 1, "bytes": 48}
    assert content["problem"] is None


def test_aliases_and_duplicates_are_ties() -> None:
    content = inspect(HERE / "golden_tf" / "ForMaskedLM")
    assert content["format"] == "tf"
    assert content["tied"].pop("lm_head.decoder.weight") == WORDS
    assert len(content["tied"]) == 5  # Keras keeps the embeddings twice, once below lm_head
    assert all(name.split("/")[0] in ("lm_head", "roberta_prelayernorm") for name in content["tied"])
    assert set(content["tied"].values()) <= {tensor["name"] for tensor in content["tensors"]}


@pytest.mark.parametrize("form", ["sharded", "chunked_bfloat16"])
def test_other_formats(form: str) -> None:
    content = inspect(HERE / "golden_flax" / form)
    assert content["format"] == "flax"
    assert content["problem"] is None
    assert list(content["dtypes"]) == ["bfloat16" if "bfloat16" in form else "float32"]
    assert len(content["files"]) == (2 if form == "sharded" else 1)


@pytest.mark.parametrize("name", ["model", "model_legacy"])
def test_torch_tensors_in_one_place_are_tied(name: str) -> None:
    content = inspect(HERE / "torch_files" / name)
    assert content["format"] == "torch"
    assert content["tied"] == {"lm_head.decoder.weight": WORDS, "lm_head.decoder.bias": "lm_head.bias"}
    assert content["unused"] == []
    assert content["parameters"] == tinyroberta.load(HERE / "torch_files" / name).num_parameters


def test_a_fairseq_file() -> None:
    content = inspect(HERE / "torch_files" / "prenorm.pt")
    assert content["format"] == "fairseq"
    assert list(content["files"]) == ["prenorm.pt"]
    assert content["problem"] is None


def test_what_is_wrong_is_said(source: Path) -> None:
    change(source, stranger=np.ones(3, np.float32))
    assert inspect(source)["problem"] is None
    assert inspect(source)["unused"] == ["stranger"]
    change(source, **{"lm_head.bias": np.ones(3, np.float32)})
    assert "1 unexpected: stranger; 1 mis-shaped: lm_head.bias is (3,), not (30,)" in inspect(source)["problem"]
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    content = inspect(source)
    assert "BertForMaskedLM" in content["problem"]
    assert content["architecture"] is None
    assert all(tensor["used"] is None for tensor in content["tensors"])
    (source / "model.safetensors").unlink()
    with pytest.raises(Error, match="neither"):
        inspect(source)


@pytest.mark.parametrize(("count", "said"), [(10**9, "says 1000000000 layers"), (3, r"16 missing: encoder\.layer\.2\.")])
def test_more_layers_than_there_are(source: Path, count: int, said: str) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"num_hidden_layers": count}))
    start = time.perf_counter()
    assert re.search(said, inspect(source)["problem"])
    assert time.perf_counter() - start < 2


def pair() -> EncoderDecoderModel:
    """An encoder and a wider decoder, with a projection between them."""
    decoder = dataclasses.replace(CONFIG, hidden_size=12, num_hidden_layers=1, is_decoder=True, add_cross_attention=True)
    projection = {"weight": np.ones((12, 8), np.float32), "bias": np.ones(12, np.float32)}
    return EncoderDecoderModel(RobertaPreLayerNormModel(CONFIG), RobertaPreLayerNormForCausalLM(decoder), projection)


def test_an_encoder_decoder_has_two_parts(tmp_path: Path) -> None:
    model = pair()
    model.save_pretrained(tmp_path)
    content = inspect(tmp_path)
    assert content["problem"] is None
    assert content["model_type"] == "encoder-decoder"
    assert content["architecture"] == "EncoderDecoderModel (RobertaPreLayerNormModel, RobertaPreLayerNormForCausalLM)"
    assert (content["sizes"]["encoder.hidden_size"], content["sizes"]["decoder.hidden_size"]) == (8, 12)
    assert content["tied"] == {"decoder.lm_head.decoder.weight": f"decoder.{WORDS}"}
    assert content["unused"] == []
    assert content["parameters"] == model.encoder.num_parameters + model.decoder.num_parameters + 12 * 8 + 12
    assert json.loads(json.dumps(content)) == content
    assert "decoder.hidden_size 12" in " ".join(run(tmp_path).stdout.split())
    change(tmp_path, stranger=np.ones(3, np.float32), **{"decoder.stranger": np.ones(3, np.float32)})
    assert inspect(tmp_path)["problem"] is None
    assert inspect(tmp_path)["unused"] == ["decoder.stranger", "stranger"]
    change(tmp_path, **{"decoder.lm_head.bias": np.ones(3, np.float32)})
    assert "(decoder) does not hold the weights of this model: 1 unexpected: stranger; 1" in inspect(tmp_path)["problem"]
    config = json.loads((tmp_path / "config.json").read_text())
    for part, said in ((None, "holds no encoder"), ({"model_type": "bert"}, "the encoder's model_type is 'bert'")):
        (tmp_path / "config.json").write_text(json.dumps(config | {"encoder": part}))
        assert said in inspect(tmp_path)["problem"]


def test_dtypes_that_no_weight_has(source: Path) -> None:
    change(source, odd=np.zeros(5, np.uint8), **{"lm_head.bias": np.zeros(30, np.int32)})
    content = inspect(source)
    assert {tensor["dtype"] for tensor in content["tensors"]} == {"float32", "int32", "U8"}
    assert next(tensor["bytes"] for tensor in content["tensors"] if tensor["name"] == "odd") == 5


def test_ten_gigabytes_take_no_time(tmp_path: Path) -> None:
    """A sparse file: a header of an 80-layer model and 10 GB of holes behind it."""
    config = RobertaPreLayerNormConfig(hidden_size=1600, num_attention_heads=25, intermediate_size=6400, num_hidden_layers=80)
    config.save_pretrained(tmp_path)
    header, offset = {}, 0
    for name, shape in RobertaPreLayerNormModel.encoder_shapes(config).items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    start = time.perf_counter()
    content = inspect(tmp_path)
    assert time.perf_counter() - start < 2
    assert content["bytes"] == offset > 10**10
    assert content["problem"] is None


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tinyroberta", "inspect", *map(str, arguments)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_command(source: Path) -> None:
    done = run(source, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == inspect(source)
    pytest.importorskip("rich")
    done = run(source)
    assert (done.returncode, done.stderr) == (0, "")
    assert WORDS in done.stdout
    assert "RobertaPreLayerNormForMaskedLM" in done.stdout
    change(source, **{"[bold]": np.ones(3, np.float32), "lm_head.bias": np.ones(3, np.float32)})
    done = run(source)
    assert done.returncode == 1
    assert "cannot be loaded: " in done.stdout
    assert "[bold]" in done.stdout
