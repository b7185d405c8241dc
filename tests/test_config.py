"""config.py: Hugging Face's fields, round trips, refusals."""

import copy
import dataclasses
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest

from tinyroberta import Error, RobertaConfig, RobertaPreLayerNormConfig, RobertaPreLayerNormForMaskedLM


def test_defaults_are_hugging_faces() -> None:
    config = RobertaPreLayerNormConfig()
    shape = (
        config.vocab_size,
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.intermediate_size,
    )
    assert shape == (50265, 768, 12, 12, 3072)
    assert (config.max_position_embeddings, config.type_vocab_size, config.layer_norm_eps) == (512, 2, 1e-12)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id, config.hidden_act) == (1, 0, 2, "gelu")
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert config.usable_length == 510
    assert config.tie_last_hidden_states


def test_unknown_fields_survive_a_round_trip(tmp_path: Path) -> None:
    content = {
        "model_type": "roberta-prelayernorm",
        "architectures": ["RobertaPreLayerNormForSequenceClassification"],
        "hidden_size": 48,
        "num_attention_heads": 4,
        "id2label": {"0": "sad", "1": "glad", "2": "odd"},
        "label2id": {"sad": 0, "glad": 1, "odd": 2},
        "transformers_version": "4.57.6",
        "torch_dtype": "float32",
        "pruned_heads": {"1": [2, 0]},
        "something_new": {"nested": [1, 2, None]},
    }
    config = RobertaPreLayerNormConfig.from_dict(content)
    assert config.pruned_heads == {1: [0, 2]}
    assert config.num_labels == 3
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    for name in content.keys() - {"pruned_heads"}:
        assert written[name] == content[name], name
    again = RobertaPreLayerNormConfig.from_pretrained(tmp_path)
    assert again == config
    assert again.to_dict() == config.to_dict()


def test_num_labels_and_replace() -> None:
    config = RobertaPreLayerNormConfig(num_labels=3)
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    assert dataclasses.replace(config, num_labels=5).id2label == {i: f"LABEL_{i}" for i in range(5)}
    assert dataclasses.replace(config, hidden_size=96).num_labels == 3


def test_label2id_alone_names_the_labels(tmp_path: Path) -> None:
    config = RobertaPreLayerNormConfig(label2id={"glad": 1, "sad": 0, "merry": 1, "odd": 2})
    assert config.id2label == {0: "sad", 1: "glad", 2: "odd"}
    assert config.num_labels == 3
    assert config.label2id == {"glad": 1, "sad": 0, "merry": 1, "odd": 2}
    config.save_pretrained(tmp_path)
    assert RobertaPreLayerNormConfig.from_pretrained(tmp_path) == config
    assert RobertaPreLayerNormConfig.from_dict({"label2id": {"LABEL_0": 0, "LABEL_1": 1}, "num_labels": 3}).num_labels == 3
    assert RobertaPreLayerNormConfig(label2id={}) == RobertaPreLayerNormConfig()


def test_label2id_beside_default_names_is_kept(tmp_path: Path) -> None:
    """As transformers keeps both."""
    content = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"sad": 0, "glad": 1}}
    config = RobertaPreLayerNormConfig.from_dict(content)
    assert (config.id2label, config.label2id) == ({0: "LABEL_0", 1: "LABEL_1"}, content["label2id"])
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert {name: written[name] for name in content} == content
    assert RobertaPreLayerNormConfig.from_pretrained(tmp_path) == config
    assert "label2id" not in RobertaPreLayerNormConfig().to_dict()


@pytest.mark.parametrize("cls", [RobertaPreLayerNormConfig, RobertaConfig])
def test_a_configuration_is_copied_pickled_and_hashed(cls: type[RobertaPreLayerNormConfig]) -> None:
    config = cls(extra={"new": {"a": [1]}}, eos_token_id=[2, 3], architectures=["RobertaModel"], pruned_heads={1: [0]})
    for other in (copy.deepcopy(config), copy.copy(config), pickle.loads(pickle.dumps(config)), dataclasses.replace(config)):
        assert other == config
        assert hash(other) == hash(config)
    assert copy.deepcopy(config).extra["new"] is not config.extra["new"]
    assert dataclasses.asdict(config)["extra"] == {"new": {"a": [1]}}
    assert cls(**dataclasses.asdict(config)) == config
    assert len({config, cls(hidden_size=96), cls(hidden_size=96)}) == 2
    given = {"new": 1}
    kept = cls(extra=given)
    given["new"] = 2
    assert kept.extra == {"new": 1}


@pytest.mark.parametrize("extra", [None, 5, [("a", 1)], {5: 1}, {"hidden_size": 5}, {"num_labels": 5}], ids=repr)
def test_extra_maps_other_names_to_values(extra: object) -> None:
    with pytest.raises(Error, match="config: extra"):
        RobertaPreLayerNormConfig(extra=extra)


def test_a_field_called_extra_survives() -> None:
    assert RobertaPreLayerNormConfig.from_dict({"extra": {"hidden_size": 5}}).to_dict()["extra"] == {"hidden_size": 5}


CIRCLE: list = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize("value", [{1, 2}, np.float32(1), {(1, 2): 3}, CIRCLE, "half \ud83d", {"\udcff": 1}], ids=repr)
def test_what_json_cannot_hold_is_not_saved(tmp_path: Path, value: object) -> None:
    RobertaPreLayerNormConfig().save_pretrained(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(Error, match="JSON cannot"):
        RobertaPreLayerNormConfig(extra={"a": value}).save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"config.json": before}


NONSENSE = [
    ({"hidden_size": 50, "num_attention_heads": 4}, "not a multiple"),
    ({"hidden_act": "gelou"}, "hidden_act"),
    ({"hidden_act": ["gelu"]}, "hidden_act"),
    ({"position_embedding_type": "rotary"}, "position_embedding_type"),
    ({"position_embedding_type": {}}, "position_embedding_type"),
    ({"problem_type": "guess"}, "problem_type"),
    ({"vocab_size": 0}, "vocab_size"),
    ({"vocab_size": "many"}, "vocab_size"),
    ({"num_hidden_layers": True}, "num_hidden_layers"),
    ({"layer_norm_eps": -1.0}, "layer_norm_eps"),
    ({"layer_norm_eps": math.nan}, "layer_norm_eps"),
    ({"hidden_dropout_prob": 2}, "hidden_dropout_prob"),
    ({"pad_token_id": 50265}, "pad_token_id"),
    ({"pad_token_id": -1}, "pad_token_id"),
    ({"is_decoder": "yes"}, "is_decoder"),
    ({"add_cross_attention": True}, "is_decoder"),
    ({"id2label": ["a"]}, "id2label"),
    ({"label2id": ["a"]}, "label2id"),
    ({"label2id": {"a": "b"}}, "label2id"),
    ({"label2id": {"a": math.inf}}, "label2id"),
    ({"label2id": {"a": 0, "b": 1}, "num_labels": 3}, "num_labels is 3, label2id has 2"),
    ({"id2label": {"0": "a", "1": "b"}, "num_labels": 3}, "num_labels"),
    ({"num_labels": 10**12}, "num_labels"),
    ({"pruned_heads": {"99": [0]}}, "layer 99"),
    ({"pruned_heads": {"0": [12]}}, "heads"),
    ({"pruned_heads": {"0": list(range(12))}}, "heads"),
    ({"pruned_heads": 3}, "pruned_heads"),
    ({"architectures": "RobertaPreLayerNormModel"}, "architectures"),
    ({"chunk_size_feed_forward": -1}, "chunk_size_feed_forward"),
]


@pytest.mark.parametrize(("content", "said"), NONSENSE, ids=lambda x: str(x)[:40])
def test_nonsense_is_refused(content: dict, said: str) -> None:
    with pytest.raises(Error, match=said):
        RobertaPreLayerNormConfig.from_dict(content)


@pytest.mark.parametrize("text", ["", "[1]", "{", "null", '{"a": ' * 5000, "\xff"], ids=lambda x: x[:8])
def test_a_config_that_is_not_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin1"))
    with pytest.raises(Error, match=r"config\.json"):
        RobertaPreLayerNormConfig.from_pretrained(tmp_path)


def test_a_missing_config(tmp_path: Path) -> None:
    with pytest.raises(Error, match=r"config\.json"):
        RobertaPreLayerNormConfig.from_pretrained(tmp_path)


def test_a_callable_activation_runs_and_is_not_saved(tmp_path: Path) -> None:
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    named = RobertaPreLayerNormConfig(**sizes, hidden_act="relu")
    called = RobertaPreLayerNormConfig(**sizes, hidden_act=lambda x: np.maximum(x, 0))
    ids = np.array([[0, 5, 6, 2]])
    expected = RobertaPreLayerNormForMaskedLM(named, seed=3, backend="numpy")(ids).logits
    assert np.array_equal(RobertaPreLayerNormForMaskedLM(called, seed=3)(ids).logits, expected)  # by default NumPy's, too
    with pytest.raises(Error, match="function"):
        called.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()
    shrinking = RobertaPreLayerNormConfig(**sizes, hidden_act=lambda x: x[:, :3])
    with pytest.raises(Error, match="keep the shape"):
        RobertaPreLayerNormForMaskedLM(shrinking)(ids)
