"""tasks/embed.py and tasks/sentence_transformers.py: sentence-transformers' vectors, a text's own bits, and what is refused."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from embed_folders import CASES, PROMPTS, ROOT, TEXTS, laid_over
from models_for_tests import relative_error

from tinyroberta.tasks.embed import Embedder

pytest.importorskip("tokenizers")
TOLERANCE = 1e-6
ANSWERS = safetensors.numpy.load_file(ROOT / "answers.safetensors")
RUNNING = [
    {"backend": "numpy"},
    {"backend": "numba"},
    {"backend": "numpy", "dtype": "float64"},
    {"backend": "numba", "reproducible": True},
]
BITS = [
    {"backend": "numba"},
    {"backend": "numba", "matmul_precision": "medium"},
    {"backend": "numba", "reproducible": True},
    {"backend": "numpy", "reproducible": True},
]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\d+ texts? (was|were) longer")
        yield


def embedder(tmp_path: Path, name: str, **running: Any) -> Embedder:
    if running.get("backend", "numba") == "numba":
        pytest.importorskip("numba")
    folder = tmp_path / name
    return Embedder.from_pretrained(folder if folder.exists() else laid_over(folder, name), **running)


@pytest.mark.parametrize("running", RUNNING, ids=lambda running: "-".join(map(str, running.values())))
@pytest.mark.parametrize("name", CASES)
def test_a_folder_gives_sentence_transformers_vectors(tmp_path: Path, name: str, running: dict[str, Any]) -> None:
    model = embedder(tmp_path, name, **running)
    found = model.encode(TEXTS)
    assert found.dtype == np.float32
    assert relative_error(found, ANSWERS[name]) < TOLERANCE
    for prompt in PROMPTS if "prompts" in CASES[name][1] else ():
        assert relative_error(model.encode(TEXTS, prompt_name=prompt), ANSWERS[f"{name}/{prompt}"]) < TOLERANCE
        assert np.array_equal(model.encode(TEXTS, prompt=PROMPTS[prompt]), model.encode(TEXTS, prompt_name=prompt))
    cut = model.encode(TEXTS, truncate_dim=5, normalize_embeddings=True)
    assert relative_error(cut, ANSWERS[f"{name}/cut"]) < TOLERANCE
    assert np.array_equal(cut, model.encode(TEXTS, truncate_dim=5, normalize=True))
    assert np.allclose(np.linalg.norm(cut, axis=1), 1)
    alike = model.similarity(found, found)
    assert np.abs(alike - ANSWERS[f"{name}/similarity"]).max() < 2e-6 * max(1, np.abs(ANSWERS[f"{name}/similarity"]).max())
    assert relative_error(model.encode(TEXTS[1], output_value="token_embeddings"), ANSWERS[f"{name}/tokens"]) < TOLERANCE


@pytest.mark.parametrize("running", BITS, ids=lambda running: "-".join(map(str, running.values())))
@pytest.mark.parametrize("name", ["roberta-every", "xlm-every", "roberta-dense"])
def test_a_vectors_bits_depend_on_no_budget_no_neighbour_and_no_order(tmp_path: Path, name: str, running: dict[str, Any]) -> None:
    model = embedder(tmp_path, name, **running)
    alone = np.stack([model.encode(text) for text in TEXTS])
    for budget in (1, 30, 10**6):
        assert np.array_equal(model.encode(TEXTS, batch_tokens=budget), alone)
        assert np.array_equal(model.encode(TEXTS[::-1], batch_tokens=budget)[::-1], alone)
    assert np.array_equal(model.encode(TEXTS[:3] * 40)[: len(TEXTS[:3])], alone[:3])
    assert np.array_equal(np.stack(list(model.stream(iter(TEXTS)))), alone)


def test_reproducible_vectors_are_the_same_bits_on_numba_and_numpy(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    found = [embedder(tmp_path, "xlm-every", backend=backend, reproducible=True).encode(TEXTS) for backend in ("numba", "numpy")]
    assert np.array_equal(*found)
