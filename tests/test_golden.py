"""Every class against what Hugging Face's own gave for the same weights and inputs (tools/make_golden.py), without torch."""

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from models_for_tests import TOLERANCE, Arrays, as_skipped, flatten, relative_error, worst
from safetensors import safe_open

import tinyroberta
from tinyroberta.backends import numpy as ops
from tinyroberta.models import CLASSES

FOLDER = Path(__file__).parent / "golden"


class Case(NamedTuple):
    """One call of the model in a folder, and what it should give."""

    folder: str
    version: int
    name: str
    inputs: Arrays
    outputs: Arrays
    flags: dict[str, Any]
    config: dict[str, Any]
    after: str | None
    tuple: list[Any] | None = None


def read_cases() -> dict[str, Case]:
    """All golden cases by folder-case, with -5 after those of transformers 5."""
    cases = {}
    for path in sorted(FOLDER.glob("*/golden_*.safetensors")):
        version = int(path.stem[-1])
        with safe_open(path, "np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            table = json.loads(file.metadata()["cases"])
        for entry in table:
            for kind in ("inputs", "outputs"):
                start = f"{entry['name']}/{kind}/"
                entry[kind] = {name.removeprefix(start): x for name, x in arrays.items() if name.startswith(start)}
            suffix = "" if version == 4 else "-5"
            cases[f"{path.parent.name}-{entry['name']}{suffix}"] = Case(path.parent.name, version, **entry)
    return cases


CASES = read_cases()
every_case = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
every_dtype = pytest.mark.parametrize("dtype", ["float64", "float32"])


@cache
def model_of(folder: str, dtype: str, changes: str) -> Any:
    """The model in a golden folder with changes (as JSON) to its configuration."""
    config = tinyroberta.RobertaPreLayerNormConfig.from_pretrained(FOLDER / folder)
    config = dataclasses.replace(config, **json.loads(changes))
    assert config.architectures
    return CLASSES[config.architectures[0]].from_pretrained(FOLDER / folder, config=config, backend="numpy", dtype=dtype)


def model_for(case: Case, dtype: str) -> Any:
    """A case's model; before transformers 5 the last hidden state was the one before the final norm."""
    changes = ({"tie_last_hidden_states": False} if case.version == 4 else {}) | case.config
    return model_of(case.folder, dtype, json.dumps(changes))


def tuples(arrays: Arrays, dtype: str) -> Any:
    """transformers' legacy cache, from the arrays past_key_values.layer.place."""
    layers: dict[str, list[Any]] = {}
    for name in sorted(name for name in arrays if name.startswith("past_key_values")):
        layers.setdefault(name.split(".")[1], []).append(arrays[name].astype(dtype))
    return tuple(tuple(layer) for layer in layers.values()) or None


def call(case: Case, dtype: str, past: Any = None, **options: Any) -> Any:
    """Our model's output for a case."""
    given = {name: x for name, x in case.inputs.items() if not name.startswith("past_key_values")}
    past = {"past_key_values": past} if past is not None else {}
    asked = {"output_hidden_states": True, "output_attentions": True} | case.flags | options
    return model_for(case, dtype)(**given, **past, **asked)


def past_of(case: Case, dtype: str) -> Any:
    """The tuples that a case continues, or that are among its inputs."""
    before = CASES[f"{case.folder}-{case.after}"].outputs if case.after else case.inputs
    return tuples(before, dtype)


@every_dtype
@every_case
def test_all_positions_equal(case: Case, dtype: str) -> None:
    output = call(case, dtype, past_of(case, dtype), padding="compute")
    error, field = worst(flatten(output.items()), case.outputs)
    assert error <= TOLERANCE[dtype], field


@every_dtype
@every_case
def test_skipping_padding_leaves_the_rest_equal(case: Case, dtype: str) -> None:
    output = flatten(call(case, dtype, past_of(case, dtype)).items())
    expected = as_skipped(case.outputs, case.inputs)
    error, field = worst(output, expected)
    assert error <= TOLERANCE[dtype], field
    for name in expected:
        gone = (expected[name] == 0) & (case.outputs[name] != 0)
        assert not output[name][gone].any(), name


@every_dtype
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.after])
def test_own_cache_equals_tuples(name: str, dtype: str) -> None:
    steps = [CASES[name]]
    while steps[0].after:
        steps.insert(0, CASES[f"{steps[0].folder}-{steps[0].after}"])
    past = None
    for step in steps:
        output = call(step, dtype, past, padding="compute")
        past = output.past_key_values
        assert isinstance(past, tinyroberta.Cache)
        assert past.get_seq_length() == output.past_key_values[0][0].shape[2]
        error, field = worst(flatten(output.items()), step.outputs)
        assert error <= TOLERANCE[dtype], field


@every_dtype
@every_case
def test_outputs_have_the_models_dtype(case: Case, dtype: str) -> None:
    output = flatten(call(case, dtype, past_of(case, dtype)).items())
    assert {name: str(x.dtype) for name, x in output.items()} == dict.fromkeys(output, dtype)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.tuple is not None])
def test_tuples_have_the_layout_of_version_5(name: str) -> None:
    def layout(x: Any) -> Any:
        if isinstance(x, tinyroberta.Cache):
            return "cache"
        if x is None:
            return None
        return [layout(y) for y in x] if isinstance(x, tuple) else list(np.shape(x))

    case = CASES[name]
    output = call(case, "float64", return_dict=False)
    assert isinstance(output, tuple)
    assert layout(output) == case.tuple


NAMED = ["base-right_padding", "causal_lm-no_mask", "masked_lm-no_mask", "question_answering-no_labels"]


@pytest.mark.parametrize("name", NAMED)
def test_hidden_states_are_those_of_the_version_asked_for(name: str) -> None:
    case = CASES[name]
    assert case.version == 4
    for version, same in ((4, True), (5, False)):
        model = tinyroberta.load(FOLDER / case.folder, dtype="float64", transformers_version=version)
        output = flatten(model(**case.inputs, output_hidden_states=True, padding="compute").items())
        last = max(field for field in output if field.startswith("hidden_states"))
        found = {field: x for field, x in output.items() if field.startswith(("hidden_states", "logits", "last"))}
        error = {field: relative_error(x, case.outputs[field]) for field, x in found.items()}
        assert (error.pop(last) <= 1e-12) is same
        assert max(error.values()) <= 1e-12


@pytest.mark.parametrize("name", NAMED)
def test_last_hidden_state_is_normed_unless_untied(name: str) -> None:
    case = CASES[name]
    untied = call(case, "float64", padding="compute")
    tied = call(case._replace(config={"tie_last_hidden_states": True}), "float64", padding="compute")
    norm = model_for(case, "float64").tensors
    weight, bias = (norm[f"LayerNorm.{part}"].astype(np.float64) for part in ("weight", "bias"))
    eps = model_for(case, "float64").config.layer_norm_eps
    assert relative_error(tied.hidden_states[-1], ops.layer_norm(untied.hidden_states[-1], weight, bias, eps)) <= 1e-12
    for one, other in zip(tied.hidden_states[:-1], untied.hidden_states[:-1], strict=True):
        np.testing.assert_array_equal(one, other)


@every_dtype
@pytest.mark.parametrize("version", [4, 5])
def test_activations_equal(version: int, dtype: str) -> None:
    with safe_open(FOLDER / f"activations_{version}.safetensors", "np") as file:
        expected = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    x = expected.pop("x").astype(dtype)
    assert set(expected) <= set(ops.ACTIVATIONS)
    errors = {name: relative_error(ops.activation(x, name), y) for name, y in expected.items()}
    assert {name: error for name, error in errors.items() if not error <= TOLERANCE[dtype]} == {}


@pytest.mark.parametrize("folder", sorted({case.folder for case in CASES.values()}))
def test_load_takes_the_class_from_the_folder(folder: str) -> None:
    model = tinyroberta.load(FOLDER / folder, dtype="float32")
    assert type(model).__name__ == model.config.architectures[0]
    assert model.settings.dtype == "float32"


def test_the_cases_cover_every_class_and_input() -> None:
    assert {type(model_for(case, "float64")).__name__ for case in CASES.values()} == set(CLASSES)
    given = {name.split(".")[0] for case in CASES.values() for name in case.inputs}
    assert given == {
        "attention_mask", "encoder_attention_mask", "encoder_hidden_states", "end_positions", "head_mask", "input_ids",
        "inputs_embeds", "labels", "logits_to_keep", "past_key_values", "position_ids", "start_positions", "token_type_ids",
    }  # fmt: skip
