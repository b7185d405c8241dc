"""The names and numbers of tinyroberta.trace against what forward hooks see on transformers' own modules, in float64."""

import itertools
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models_for_tests import relative_error
from test_tap import model_of, pair, texts

from tinyroberta import trace
from tinyroberta.config import CONFIGS
from tinyroberta.family import KIN
from tinyroberta.weights.names import FAMILIES

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.live

EXACT = {"backend": "numpy", "dtype": "float64"}
OLD = int(transformers.__version__.split(".")[0]) < 5
# Modules that change nothing, tables, and activations, whose results are the layers' around them.
SILENT = r"(.*\.)?(dropout|intermediate_act_fn|activation|\w+_embeddings|distance_embedding)"


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def seen_by_hooks(model: Any, folder: Path, **inputs: Any) -> tuple[dict[str, Any], set[str]]:
    """What each of transformers' modules gives, by our names, and the names of those that are called."""
    model.save_pretrained(folder)
    theirs = getattr(transformers, type(model).__name__).from_pretrained(folder, attn_implementation="eager").double().eval()
    found: dict[str, Any] = {}

    def hook(name: str) -> Any:
        def keep(module: Any, given: Any, output: Any) -> None:  # noqa: ARG001
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, torch.Tensor):
                found[name] = first.numpy().copy()
            if name.endswith(".self"):
                found[f"{name}.probs"] = output[1].numpy().copy()

        return keep

    prefixes = "|".join({family.prefix.replace(".", r"\.") for family in FAMILIES.values()})
    for name, module in theirs.named_modules():
        name = re.sub(rf"^((?:encoder|decoder)\.)?(?:{prefixes})", lambda match: match[1] or "", f"{name}.").removesuffix(".")
        if name:
            module.register_forward_hook(hook(name))
    tensors = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in inputs.items()}
    with torch.no_grad():
        theirs(**{n: x.double() if x.is_floating_point() else x for n, x in tensors.items()}, output_attentions=True)
    return found, {name for name in found if not re.fullmatch(SILENT, name)}


def assert_alike(model: Any, folder: Path, **inputs: Any) -> None:
    theirs, modules = seen_by_hooks(model, folder, **inputs)
    with trace(model) as seen:
        model(**inputs)
    assert set(seen) == modules
    for call in seen.calls:
        for name, ours in call.arrays.items():
            wanted = theirs[name]
            if name.endswith(".probs"):
                rows, B = wanted.transpose(0, 2, 1, 3), len(wanted)
                kept = inputs["decoder_input_ids" if call.part == "decoder." else "input_ids"].reshape(B, -1)
                wanted, places = rows.reshape(-1, *rows.shape[2:]), call.rows.places
                assert rows.shape[:2] == kept.shape
                ours = unpacked(call, ours, wanted.shape[-1]) if "crossattention" not in name else ours
            else:
                wanted, places = wanted.reshape(-1, wanted.shape[-1]), call.rows.places
            if places is not None and len(wanted) > len(ours):
                wanted = wanted[places]
            assert relative_error(ours, wanted) < 1e-12, name


def unpacked(call: Any, probs: Any, keys: int) -> Any:
    """Probabilities (T, H, K) with their keys at their places in the text."""
    starts, places = call.rows.sequences.query_start, call.rows.places
    if places is None:
        return probs
    whole = np.zeros((*probs.shape[:2], keys))
    for b, (start, end) in enumerate(itertools.pairwise(starts)):
        own = places[start : start + call.rows.sequences.key_length[b]] - b * keys
        whole[start:end][:, :, own] = probs[start:end, :, : len(own)]
    return whole


@pytest.mark.parametrize("place", range(7))
@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_class(model_type: str, place: int, tmp_path: Path) -> None:
    if place == 1:
        return assert_alike(model_of(model_type, place, EXACT), tmp_path, input_ids=texts()["input_ids"])
    return assert_alike(model_of(model_type, place, EXACT), tmp_path, **texts(1 + (place == 4)))


@pytest.mark.parametrize("model_type", ["roberta-prelayernorm", "roberta", "xlm-roberta-xl"])
def test_cross_attention(model_type: str, tmp_path: Path) -> None:
    model = model_of(model_type, 1, EXACT, add_cross_attention=True)
    source = np.random.default_rng(0).standard_normal((3, 5, 48))
    assert_alike(model, tmp_path, input_ids=texts()["input_ids"], encoder_hidden_states=source)


@pytest.mark.skipif(not OLD, reason="transformers 5 has no relative positions")
@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
def test_relative_positions(kind: str, tmp_path: Path) -> None:
    assert_alike(model_of(running=EXACT, position_embedding_type=kind), tmp_path, **texts())


def test_a_pair(tmp_path: Path) -> None:
    model = pair(EXACT)
    assert_alike(model, tmp_path, input_ids=texts()["input_ids"], decoder_input_ids=np.arange(12).reshape(3, 4) + 3)


def test_the_families_are_all_here() -> None:
    assert set(FAMILIES) == set(CONFIGS)
    assert {len(KIN[kind]) for kind in FAMILIES} == {7}
