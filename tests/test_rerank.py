"""tasks/rerank.py: sentence-transformers' CrossEncoder's scores, a pair's own bits, and what is refused."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from embed_folders import PAIRS, RERANKERS, ROOT, laid_over
from models_for_tests import relative_error

from tinyroberta import Reranker

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
CUT = r"\d+ texts? (was|were) longer than 64 tokens, and cut"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", CUT)
        yield


def reranker(tmp_path: Path, name: str, **running: Any) -> Reranker:
    if running.get("backend", "numba") == "numba":
        pytest.importorskip("numba")
    folder = tmp_path / name
    return Reranker.from_pretrained(folder if folder.exists() else laid_over(folder, name), **running)


@pytest.mark.parametrize("running", RUNNING, ids=lambda running: "-".join(map(str, running.values())))
@pytest.mark.parametrize("name", RERANKERS)
def test_a_folder_gives_cross_encoders_scores(tmp_path: Path, name: str, running: dict[str, Any]) -> None:
    model = reranker(tmp_path, name, **running)
    found = model.predict(PAIRS)
    assert found.dtype == np.float32
    assert relative_error(found, ANSWERS[name]) < TOLERANCE
    plain = model.predict([list(pair) for pair in PAIRS], activation_fn="identity")
    assert relative_error(plain, ANSWERS[f"{name}/identity"]) < TOLERANCE
    if model.num_labels > 1:
        assert relative_error(model.predict(iter(PAIRS), apply_softmax=True), ANSWERS[f"{name}/softmax"]) < TOLERANCE
    else:
        assert np.array_equal(model.predict(PAIRS, apply_softmax=True), found)
        documents = [pair[1] for pair in PAIRS]
        ranked = model.rank(PAIRS[0][0], documents, top_k=3)
        assert [one["corpus_id"] for one in ranked] == ANSWERS[f"{name}/rank"].tolist()
        every = model.rank(PAIRS[0][0], documents, return_documents=True)
        assert [one["text"] for one in every] == [documents[one["corpus_id"]] for one in every]
        assert [one["score"] for one in every] == sorted((one["score"] for one in every), reverse=True)
        assert every[:3] == [one | {"text": documents[one["corpus_id"]]} for one in ranked]


@pytest.mark.parametrize("running", BITS, ids=lambda running: "-".join(map(str, running.values())))
@pytest.mark.parametrize("name", ["reranker-1", "reranker-3-relu"])
def test_a_scores_bits_depend_on_no_budget_no_neighbour_and_no_order(tmp_path: Path, name: str, running: dict[str, Any]) -> None:
    model = reranker(tmp_path, name, **running)
    alone = np.stack([model.predict(pair) for pair in PAIRS])
    for budget in (1, 40, 10**6):
        assert np.array_equal(model.predict(PAIRS, batch_tokens=budget), alone)
        assert np.array_equal(model.predict(PAIRS[::-1], batch_tokens=budget)[::-1], alone)
