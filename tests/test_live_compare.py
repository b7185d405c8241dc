"""Mistakes planted in PyTorch, in an implementation of its own and by hooks on transformers, are named by tinyroberta compare."""

import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_tap import model_of, texts

from tinyroberta import trace, traces
from tinyroberta.numerics import importers, transplant
from tinyroberta.numerics.compare import Comparison, compare

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    import roberta_in_torch

    from tinyroberta.numerics import torch_recorder

pytestmark = pytest.mark.live


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def reference_of(model: Any, inputs: Any) -> traces.TraceFile:
    exact = transplant.exact_of(model)
    with trace(exact) as seen:
        exact(**inputs)
    return traces.of_model(exact, seen.calls)


def in_plain_torch(
    model: Any, folder: Path, planted: tuple[str, ...], keep: tuple[str, ...] = (), dtype: Any = None
) -> Comparison:
    """A run of roberta_in_torch as an .npz, of which compare is told."""
    inputs = texts()
    found = roberta_in_torch.run(model.tensors, model.config, inputs["input_ids"], inputs["attention_mask"], planted, dtype)
    kept = {name: x for name, x in found.items() if not keep or name in keep}
    np.savez(folder / "theirs.npz", **kept, **inputs)
    theirs = importers.open_trace(str(folder / "theirs.npz"))
    importers.settle(theirs, model, None)
    return compare(reference_of(model, inputs), theirs, model)


@pytest.mark.parametrize("model_type", ["roberta-prelayernorm", "roberta"])
def test_what_is_right_is_the_same(model_type: str, tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.float64):
        result = in_plain_torch(model_of(model_type), tmp_path, (), dtype=dtype)
        assert (result.verdict, result.first) == ("same", None)
        assert [op.name for op in result.ops] == model_of(model_type).tap_names()


@pytest.mark.parametrize(("model_type", "planted", "first"), [
    *(("roberta-prelayernorm", *entry) for entry in roberta_in_torch.PRE_NORM.items()),
    *(("roberta", *entry) for entry in roberta_in_torch.POST_NORM.items()),
])  # fmt: skip
def test_a_mistake_is_named(model_type: str, planted: str, first: str, tmp_path: Path) -> None:
    result = in_plain_torch(model_of(model_type), tmp_path, (planted,))
    assert result.verdict == "differs"
    assert result.first == first


def test_two_mistakes_are_both_named(tmp_path: Path) -> None:
    for pair in itertools.combinations(("gelu_tanh", "eps", "mask_value", "bias_missing", "untied", "no_residual"), 2):
        result = in_plain_torch(model_of(), tmp_path, pair)
        assert {roberta_in_torch.PRE_NORM[planted] for planted in pair} <= {op.name for op in result.ops if not op.ok}, pair


def test_ops_behind_a_mistake_are_not_blamed(tmp_path: Path) -> None:
    result = in_plain_torch(model_of(), tmp_path, ("bias_missing",))
    assert [op.name for op in result.ops if not op.ok] == ["encoder.layer.1.output.dense"]
    assert {op.name for op in result.ops if op.relative > op.bound} > {"encoder.layer.1.output", "LayerNorm", "lm_head"}


def test_hidden_states_alone_name_the_layer_and_what_it_answers_for(tmp_path: Path) -> None:
    keep = ("embeddings", "encoder.layer.0", "encoder.layer.1")
    for planted, first in (("gelu_tanh", "encoder.layer.0"), ("bias_missing", "encoder.layer.1"), ("eps", "embeddings")):
        result = in_plain_torch(model_of(), tmp_path, (planted,), keep)
        assert result.first == first
        covers = next(op for op in result.ops if op.name == first).covers
        assert roberta_in_torch.PRE_NORM[planted] in covers
        assert all(name.startswith(first) for name in covers)


# transformers, recorded by hooks.


def recorded(model: Any, folder: Path, plant: Any = None, dtype: Any = None, **inputs: Any) -> traces.TraceFile:
    model.save_pretrained(folder)
    theirs = getattr(transformers, type(model).__name__).from_pretrained(folder, attn_implementation="eager").eval()
    theirs = theirs.to(dtype or torch.float32)
    if plant is not None:
        plant(theirs)
    with torch.no_grad(), torch_recorder.trace(theirs) as seen:
        theirs(**{name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in inputs.items()})
    seen.save(folder / "theirs.safetensors")
    return traces.load(folder / "theirs.safetensors")


@pytest.mark.parametrize("place", range(7))
@pytest.mark.parametrize("model_type", ["roberta-prelayernorm", "roberta", "xlm-roberta-xl"])
def test_transformers_is_the_same_in_every_dtype(model_type: str, place: int, tmp_path: Path) -> None:
    model = model_of(model_type, place)
    inputs = {"input_ids": texts()["input_ids"]} if place == 1 else texts(1 + (place == 4))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        theirs = recorded(model, tmp_path, dtype=dtype, **inputs)
        result = compare(reference_of(model, inputs), theirs, model)
        assert (result.verdict, result.inputs, result.weights, result.config) == ("same", {}, [], {})
        assert len(result.ops) == len(model.tap_names())
        ours = theirs.manifest["weights"] | traces.weight_hashes(model)
        assert dtype == torch.bfloat16 or ours == theirs.manifest["weights"]


def test_hooks_that_change_transformers_are_named(tmp_path: Path) -> None:
    model, inputs = model_of(), texts()

    def scaled(theirs: Any) -> None:
        module = theirs.roberta_prelayernorm.encoder.layer[1].attention.self.value
        module.register_forward_hook(lambda *given: given[2] * 1.00001, prepend=True)

    result = compare(reference_of(model, inputs), recorded(model, tmp_path, scaled, **inputs), model)
    assert [op.name for op in result.ops if not op.ok] == [result.first] == ["encoder.layer.1.attention.self.value"]

    def other_weights(theirs: Any) -> None:
        theirs.lm_head.dense.weight.data[0] += 1e-6

    result = compare(reference_of(model, inputs), recorded(model, tmp_path, other_weights, **inputs), model)
    assert (result.weights, result.first) == (["lm_head.dense.weight"], "lm_head.dense")

    def other_eps(theirs: Any) -> None:
        theirs.config.layer_norm_eps = theirs.roberta_prelayernorm.LayerNorm.eps = 1e-4

    result = compare(reference_of(model, inputs), recorded(model, tmp_path, other_eps, **inputs), model)
    assert (result.config, result.first) == ({"layer_norm_eps": [1e-12, 1e-4]}, "LayerNorm")


def test_two_files_of_others_and_no_model(tmp_path: Path) -> None:
    model, inputs = model_of(), texts()

    def scaled(theirs: Any) -> None:
        theirs.lm_head.dense.register_forward_hook(lambda *given: given[2] + 1e-3, prepend=True)

    plain, other = recorded(model, tmp_path, **inputs), recorded(model, tmp_path, scaled, **inputs)
    assert compare(plain, plain).verdict == "same"
    assert compare(plain, other).first == "lm_head.dense"
    assert compare(other, other, model).verdict == "same"  # what both do is no difference
    assert compare(plain, other, model).first == "lm_head.dense"
