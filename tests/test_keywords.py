"""keywords.py: what from_pretrained and load take of transformers' keywords, and how they refuse the rest."""

import dataclasses
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import tinyroberta
from tinyroberta import (
    EncoderDecoderModel,
    Error,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForCausalLM,
    RobertaPreLayerNormModel,
)
from tinyroberta.keywords import HUB, OTHERS, dtype_name, running_of

CONFIG = RobertaPreLayerNormConfig(
    vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, max_position_embeddings=20
)
IDS = np.array([[0, 7, 2]])
TAKEN: list[dict[str, Any]] = [
    {"torch_dtype": "auto"}, {"torch_dtype": None}, {"dtype": "auto"}, {"dtype": np.float32}, {"dtype": np.dtype("float32")},
    {"device_map": None}, {"device_map": "cpu"}, {"device_map": "auto"}, {"device_map": {"": "cpu"}},
    {"low_cpu_mem_usage": True}, {"low_cpu_mem_usage": False}, {"use_safetensors": True}, {"weights_only": True},
    {"trust_remote_code": False}, {"attn_implementation": "eager"}, {"attn_implementation": "sdpa"}, {"add_pooling_layer": True},
    {"local_files_only": True}, {"cache_dir": "/tmp"}, {"token": "hf_secret"}, {"subfolder": ""}, {"quantization_config": None},
    {"low_cpu_mem_usage": True, "torch_dtype": "auto", "device_map": "auto", "output_loading_info": False},
]  # fmt: skip
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"torch_dtype": "float16"}, "torch_dtype is 'float16'"),
    ({"dtype": np.float16}, "dtype is 'float16'"),
    ({"dtype": ml_dtypes.bfloat16}, "dtype is 'bfloat16'"),
    ({"dtype": 7}, "dtype is '7'"),
    ({"device_map": "cuda"}, "device_map"),
    ({"trust_remote_code": True}, "trust_remote_code"),
    ({"attn_implementation": "flash_attention_2"}, "attn_implementation"),
    ({"add_pooling_layer": False}, "add_pooling_layer"),
    ({"subfolder": "x"}, "subfolder"),
    ({"state_dict": {"a": np.zeros(3)}}, "state_dict"),
    ({"num_labels": 3}, "num_labels is a field of the configuration"),
    ({"backnd": "numpy"}, "from_pretrained does not know backnd"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    RobertaPreLayerNormModel(CONFIG, backend="numpy").save_pretrained(path)
    return path


@pytest.mark.parametrize("given", TAKEN, ids=str)
def test_what_changes_nothing_is_taken(given: dict[str, Any], folder: Path) -> None:
    plain = tinyroberta.load(folder, backend="numpy")(IDS).last_hidden_state
    for call in (tinyroberta.load, RobertaPreLayerNormModel.from_pretrained):
        np.testing.assert_array_equal(call(folder, backend="numpy", **given)(IDS).last_hidden_state, plain)


@pytest.mark.parametrize(("given", "said"), REFUSED, ids=[str(next(iter(given.items()))) for given, _ in REFUSED])
def test_what_would_is_refused_by_name(given: dict[str, Any], said: str, folder: Path) -> None:
    for call in (tinyroberta.load, RobertaPreLayerNormModel.from_pretrained, EncoderDecoderModel.from_pretrained):
        with pytest.raises(Error, match=said) as told:
            call(folder, **given)
        assert "\n" not in str(told.value)
    assert not set(HUB) & set(OTHERS)


def test_what_a_hub_would_be_told() -> None:
    for given in ({"token": "hf_secret"}, {"cache_dir": "/there"}, {"local_files_only": True}, {"force_download": True}):
        with pytest.raises(Error, match=next(iter(given))) as told:
            tinyroberta.load("organisation/name", **given)
        assert "hf_secret" not in str(told.value)
    assert running_of({"token": True, "resume_download": True, "local_files_only": False}, local=False) == {}


def test_a_dtype_by_any_of_its_names(folder: Path) -> None:
    for double in ("float64", np.float64, np.dtype("float64"), float):
        assert dtype_name(double) == "float64"
        assert tinyroberta.load(folder, torch_dtype=double)(IDS).last_hidden_state.dtype == np.float64
    torch = pytest.importorskip("torch")
    assert (dtype_name(torch.float64), dtype_name(torch.float32)) == ("float64", "float32")
    with pytest.raises(Error, match="matmul_precision"):
        dtype_name(torch.bfloat16)


def test_a_class_of_a_configuration_and_a_prompt(folder: Path) -> None:
    with pytest.raises(Error, match="does not know backnd"):
        RobertaPreLayerNormModel(CONFIG, backnd="numpy")  # type: ignore[call-arg]
    with pytest.raises(Error, match="config is of type dict"):
        RobertaPreLayerNormModel({})  # type: ignore[arg-type]
    with pytest.raises(Error, match="config is of type dict"):
        RobertaPreLayerNormModel.from_pretrained(folder, config={"vocab_size": 9})  # type: ignore[arg-type]
    for call in (tinyroberta.load, EncoderDecoderModel.from_pretrained):
        with pytest.raises(Error, match="the from_pretrained of one model's class takes a configuration"):
            call(folder, config=CONFIG)
    decoder = dataclasses.replace(CONFIG, is_decoder=True, add_cross_attention=True)
    causal = RobertaPreLayerNormForCausalLM(decoder, backend="numpy")
    for model in (causal, EncoderDecoderModel(RobertaPreLayerNormModel(CONFIG, backend="numpy"), causal)):
        with pytest.raises(Error, match="input_ids is missing"):
            model.generate()
