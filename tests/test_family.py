"""The rest of the family against what Hugging Face's own classes gave (tools/make_golden_family.py), without torch."""

import ast
import dataclasses
import importlib
import inspect
import json
import pickle
import pydoc
import runpy
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import safetensors.numpy
from models_for_tests import skip_without

import tinyroberta
from tinyroberta import Error, RobertaPreLayerNormConfig, RobertaPreLayerNormForMaskedLM
from tinyroberta.config import CONFIGS
from tinyroberta.family import KIN
from tinyroberta.heads import HEADS
from tinyroberta.models import CLASSES
from tinyroberta.tasks.special_tokens import CLASS_OF_MODEL, KINDS
from tinyroberta.weights.names import FAMILIES

FOLDER = Path(__file__).parent / "golden_family"
NAMES = sorted(path.name for path in FOLDER.iterdir())
every_model = pytest.mark.parametrize("name", NAMES)


def golden(name: str, kind: str) -> dict[str, np.ndarray]:
    arrays = safetensors.numpy.load_file(FOLDER / name / "golden.safetensors")
    return {key.removeprefix(kind): value for key, value in arrays.items() if key.startswith(kind)}


def outputs(
    name: str, dtype: str, path: Path | None = None, backend: str = "numpy", version: Literal[4, 5] = 5
) -> dict[str, np.ndarray]:
    model = tinyroberta.load(path or FOLDER / name, backend, dtype, transformers_version=version)
    output = model(**golden(name, "inputs/"), output_hidden_states=True, output_attentions=True, padding="compute")
    arrays: dict[str, np.ndarray] = {}
    for field, value in output.items():
        arrays |= {f"{field}.{i}": x for i, x in enumerate(value)} if isinstance(value, tuple) else {field: np.asarray(value)}
    return arrays


@every_model
@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"), [("numpy", "float64", 1e-12), ("numpy", "float32", 2e-6), ("cpu", "float32", 2e-6)]
)
def test_every_head_of_every_family_equals_hugging_face(name: str, backend: str, dtype: str, tolerance: float) -> None:
    skip_without(backend)
    found, expected = outputs(name, dtype, backend=backend), golden(name, "outputs/")
    assert len(expected) > 2
    for field, value in expected.items():
        # transformers computes a causal loss in float32 whatever the model's dtype
        bound = max(tolerance, 2e-7) if field == "loss" and "Causal" in name else tolerance
        error = np.linalg.norm(found[field] - value) / np.linalg.norm(value)
        assert error <= bound, (field, error)


@every_model
def test_hidden_states_of_version_4_are_those_of_version_5(name: str) -> None:
    """XLM-RoBERTa-XL keeps its last state after the final norm in both; the others have no such norm."""
    found, expected = outputs(name, "float64", version=4), golden(name, "outputs/")
    states = [field for field in expected if field.startswith("hidden_states")]
    assert states
    assert all(np.linalg.norm(found[field] - expected[field]) <= 1e-12 * np.linalg.norm(expected[field]) for field in states)


@every_model
def test_the_class_has_hugging_faces_name(name: str) -> None:
    cls = getattr(tinyroberta, name)
    model = tinyroberta.load(FOLDER / name)
    assert type(model) is cls
    assert type(model.config) is CONFIGS[cls.model_type]
    assert name.startswith(FAMILIES[cls.model_type].classes)


def test_every_family_has_the_seven_classes() -> None:
    for model_type, family in FAMILIES.items():
        expected = [name.replace("RobertaPreLayerNorm", family.classes) for name in CLASSES]
        assert [cls.__name__ for cls in KIN[model_type].values()] == expected
        assert all(cls.model_type == model_type and cls.head is HEADS[head] for head, cls in KIN[model_type].items())
    assert set(NAMES) == set(tinyroberta.family.__all__) - set(CLASSES)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_configuration_of_a_family_is_public(model_type: str) -> None:
    name = f"{FAMILIES[model_type].classes}Config"
    assert name in tinyroberta.__all__
    assert getattr(tinyroberta, name) is CONFIGS[model_type]


def test_every_family_has_its_tokenizer() -> None:
    assert set(FAMILIES) <= set(CLASS_OF_MODEL)
    assert set(CLASS_OF_MODEL.values()) <= set(KINDS)


def test_the_stub_that_type_checkers_read_is_current() -> None:
    tool = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "make_stub.py"))
    assert tool["STUB"].read_text() == tool["stub"](), "run tools/make_stub.py"
    names = {node.name for node in ast.parse(tool["stub"]()).body if isinstance(node, ast.ClassDef)}
    assert names == set(NAMES)
    assert set(tinyroberta.family.__all__) <= set(tinyroberta.__all__)


@pytest.mark.parametrize("name", tinyroberta.family.__all__)
def test_a_class_made_from_the_tables_is_as_good_as_one_written_out(name: str) -> None:
    cls = getattr(tinyroberta, name)
    assert pickle.loads(pickle.dumps(cls)) is cls
    assert getattr(importlib.import_module(cls.__module__), cls.__qualname__) is cls
    assert cls.__module__ == ("tinyroberta.models" if name in CLASSES else "tinyroberta.family")
    own = CLASSES[name.replace(FAMILIES[cls.model_type].classes, "RobertaPreLayerNorm", 1)]
    assert issubclass(cls, own)
    assert inspect.signature(cls.__call__) == inspect.signature(own.__call__)
    assert cls.__doc__
    assert cls.__doc__.splitlines()[0] in pydoc.render_doc(cls, renderer=pydoc.plaintext)


@every_model
def test_saving_writes_hugging_faces_names(name: str, tmp_path: Path) -> None:
    model = tinyroberta.load(FOLDER / name, "numpy")
    model.save_pretrained(tmp_path)
    theirs = safetensors.numpy.load_file(FOLDER / name / "model.safetensors")
    ours = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    untied = {"lm_head.decoder.bias"} if not model.config.tie_word_embeddings else set()
    assert set(ours) - untied == set(theirs)
    again = outputs(name, "float64", tmp_path)
    assert all(np.array_equal(again[field], value) for field, value in outputs(name, "float64").items())


@pytest.mark.parametrize("model_type", FAMILIES)
def test_new_models_run(model_type: str) -> None:
    sizes = {"vocab_size": 31, "hidden_size": 12, "num_attention_heads": 3, "num_hidden_layers": 1, "intermediate_size": 20}
    config = CONFIGS[model_type](**sizes)
    assert KIN[model_type]["ForMaskedLM"](config)([[0, 5, 2]]).logits.shape == (1, 3, 31)
    with pytest.raises(Error, match="runs"):
        KIN[model_type]["Model"](dataclasses.replace(config, model_type="bert"))


@pytest.mark.parametrize("name", ["RobertaModel", "XLMRobertaXLModel"])
def test_chunks_change_nothing(name: str) -> None:
    config = dataclasses.replace(tinyroberta.load(FOLDER / name).config, chunk_size_feed_forward=2)
    whole, given = outputs(name, "float64"), golden(name, "inputs/")
    model = getattr(tinyroberta, name).from_pretrained(FOLDER / name, config=config, dtype="float64")
    found = model(**given, padding="compute").last_hidden_state
    np.testing.assert_allclose(found, whole["last_hidden_state"], rtol=1e-12)


def test_another_familys_class_is_refused() -> None:
    with pytest.raises(Error, match="model_type is 'roberta'"):
        RobertaPreLayerNormForMaskedLM.from_pretrained(FOLDER / "RobertaForMaskedLM")
    content = json.loads((FOLDER / "RobertaModel" / "config.json").read_text()) | {"model_type": "xlm-roberta-xl"}
    config = CONFIGS["xlm-roberta-xl"].from_dict(content)
    with pytest.raises(Error, match="missing"):
        tinyroberta.XLMRobertaXLModel.from_pretrained(FOLDER / "RobertaModel", config=config)


def dinkytrain(folder: Path) -> Any:
    """A pre-norm model as DinkyTrain's repositories have it: called roberta, with a dead norm in every attention."""
    sizes = {"vocab_size": 31, "hidden_size": 12, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 20}
    model = RobertaPreLayerNormForMaskedLM(RobertaPreLayerNormConfig(**sizes), seed=1)
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors = {key.replace("roberta_prelayernorm.", "roberta."): x for key, x in safetensors.numpy.load_file(path).items()}
    for layer in range(2):
        for leaf in ("weight", "bias"):
            tensors[f"roberta.encoder.layer.{layer}.attention.self.LayerNorm.{leaf}"] = np.full(12, np.nan, np.float32)
    safetensors.numpy.save_file(tensors, path)
    content = json.loads((folder / "config.json").read_text())
    content |= {"model_type": "roberta", "architectures": ["RobertaForMaskedLM"]}
    (folder / "config.json").write_text(json.dumps(content))
    return model


def test_dinkytrains_roberta_is_known_by_its_names(tmp_path: Path) -> None:
    model = dinkytrain(tmp_path)
    for again in (tinyroberta.load(tmp_path), RobertaPreLayerNormForMaskedLM.from_pretrained(tmp_path)):
        assert type(again) is RobertaPreLayerNormForMaskedLM
        assert again.config.model_type == "roberta-prelayernorm"
        np.testing.assert_array_equal(again([[0, 5, 6, 2]]).logits, model([[0, 5, 6, 2]]).logits)
    with pytest.raises(Error, match="RobertaForMaskedLM runs 'roberta'"):
        tinyroberta.RobertaForMaskedLM.from_pretrained(tmp_path)


def test_an_unknown_model_type_or_class_is_told(tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "RobertaModel", tmp_path, dirs_exist_ok=True)
    content = json.loads((tmp_path / "config.json").read_text())
    for change, said in (
        ({"model_type": "bert"}, "model_type is 'bert'"),
        ({"model_type": ["roberta"]}, "model_type"),
        ({"architectures": ["RobertaPreLayerNormModel"]}, "for roberta there are RobertaModel"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content | change))
        with pytest.raises(Error, match=said):
            tinyroberta.load(tmp_path)
