"""tasks/rerank.py: sentence-transformers' CrossEncoder's scores, a pair's own bits, and what is refused."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from embed_folders import PAIRS, RERANKERS, ROOT, laid_over
from models_for_tests import relative_error

import tinyroberta
from tinyroberta import Error, Reranker

pytest.importorskip("tokenizers")
TOLERANCE = 1e-6
ANSWERS = safetensors.numpy.load_file(ROOT / "answers.safetensors")
RUNNING = [
    {"backend": "numpy"},
    {"backend": "numba"},
    {"backend": "numpy", "dtype": "float64"},  # not reproducible=True, whose digits are coarser in rows of 16 numbers: README
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


def test_pairs_are_read_as_they_come(tmp_path: Path) -> None:
    model = reranker(tmp_path, "reranker-1")
    found = model.predict(PAIRS)
    assert np.array_equal(np.array(list(model.stream(iter(PAIRS)))), found)
    assert np.array_equal(model.predict(pair for pair in PAIRS), found)
    mixed = list(model.stream([("a", "b"), ("a", "\ud800"), ("c", "d")], keep_errors=True))
    assert [isinstance(one, Error) for one in mixed] == [False, True, False]
    for name, shape in (("reranker-1", (0,)), ("reranker-3", (0, 3))):
        empty = reranker(tmp_path, name).predict([])
        assert (empty.shape, empty.dtype) == (shape, np.float32)
    assert model.rank("a", []) == []
    assert model.predict(PAIRS, batch_size=3, show_progress_bar=False, convert_to_numpy=True).shape == found.shape


def test_a_long_document_is_cut_refused_or_read_in_windows_of_which_the_best_counts(tmp_path: Path) -> None:
    model = reranker(tmp_path, "reranker-1")
    query, document = "a boat", "and a train and a sea " * 4000
    with pytest.warns(UserWarning, match="^1 text was longer than 64 tokens, and cut$"):
        cut = model.predict((query, document))
    with pytest.raises(Error, match=r'a text has .* tokens; this model reads at most 64, .*long="truncate"'):
        model.predict([(query, document)], long="error")
    document = document[:700]
    model.tokenizer.enable_truncation(64, strategy="only_second")
    first = model.tokenizer.encode(query, document)
    model.tokenizer.no_truncation()
    windows = [first.ids, *(one.ids for one in first.overflowing)]
    assert len(windows) > 3
    logits = model.model.packed(windows).logits
    assert model.predict((query, document), activation_fn="identity", long="window") == logits.max()
    assert model.predict((query, document), long="window") >= cut
    assert np.array_equal(model.predict([("a", "b")], long="window"), model.predict([("a", "b")]))
    short = reranker(tmp_path, "reranker-1", max_length=9)
    with pytest.warns(UserWarning, match="longer than 9 tokens"):
        found = short.predict(("a boat and", "a train and a sea and more"))
    with pytest.warns(UserWarning, match="longer than 9 tokens"):
        assert found == model.predict(("a boat and", "a train and a sea and more"), max_length=9)


def test_activations_are_names_functions_or_torchs(tmp_path: Path) -> None:
    model = reranker(tmp_path, "reranker-1")
    plain, found = model.predict(PAIRS, activation_fn="identity"), model.predict(PAIRS)
    assert np.array_equal(model.predict(PAIRS, activation_fn=lambda x: x), plain)
    assert np.array_equal(model.predict(PAIRS, activation_fn="sigmoid"), found)
    assert np.allclose(model.predict(PAIRS, activation_fn=np.tanh), np.tanh(plain))
    assert np.array_equal(reranker(tmp_path, "reranker-1", activation_fn="identity").predict(PAIRS), plain)
    for wrong, told in (
        ("sigmoyd", "activation_fn is 'sigmoyd'; it must be one of identity"),
        (3, "activation_fn is of type int"),
    ):
        with pytest.raises(Error, match=told):
            model.predict(PAIRS, activation_fn=wrong)
    torch = pytest.importorskip("torch")
    assert np.array_equal(model.predict(PAIRS, activation_fn=torch.nn.Identity()), plain)
    assert np.array_equal(model.predict(PAIRS, activation_fn=torch.nn.Sigmoid), found)


def test_a_folder_that_a_newer_sentence_transformers_has_written(tmp_path: Path) -> None:
    """modules.json with Transformer alone, and the activation in config_sentence_transformers.json (5.4)."""
    folder = laid_over(tmp_path / "folder", "reranker-1")
    kind = "sentence_transformers.base.modules.transformer.Transformer"
    modules = [{"idx": 0, "name": "0", "path": "", "type": kind}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.linear.Identity"})
    )
    assert relative_error(Reranker.from_pretrained(folder).predict(PAIRS), ANSWERS["reranker-1/identity"]) < TOLERANCE
    modules.append(
        {"idx": 1, "name": "1", "path": "1_LogitScore", "type": "sentence_transformers.cross_encoder.modules.LogitScore"}
    )
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(Error, match="has the modules Transformer, LogitScore"):
        Reranker.from_pretrained(folder)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, "pairs are of type NoneType"),
        ("a text", "pairs are of type str"),
        (5, "pairs are of type int"),
        (["a text"], "a pair is 'a text'"),
        ([("a", "b", "c")], "a pair is"),
        ([("a", None)], "a text is of type NoneType"),
        ([(b"a", "b")], "a text is of type bytes"),
        ([("a", "\ud800")], "half of a surrogate pair"),
    ],
)
def test_what_are_no_pairs_is_one_sentence(tmp_path: Path, given: Any, told: str) -> None:
    with pytest.raises(Error, match=told):
        reranker(tmp_path, "reranker-1").predict(given)


def test_what_is_wrong_is_one_sentence(tmp_path: Path) -> None:
    model = reranker(tmp_path, "reranker-3")
    with pytest.raises(Error, match="rank needs a model with one label, and this one has 3"):
        model.rank("a", ["b"])
    one = reranker(tmp_path, "reranker-1")
    for top_k in (-1, "3"):
        with pytest.raises(Error, match="top_k is"):
            one.rank("a", ["b"], top_k=top_k)  # type: ignore[arg-type]
    with pytest.raises(Error, match="documents are of type str"):
        one.rank("a", "b")
    with pytest.raises(Error, match="predict does nothing with convert_to_tensor"):
        one.predict(PAIRS, convert_to_tensor=True)
    with pytest.raises(Error, match="holds no head for rerank"):
        Reranker.from_pretrained(ROOT / "xlm-roberta")
    with pytest.raises(Error, match="there is no folder"):
        Reranker.from_pretrained("/absent/folder")
    with pytest.raises(Error, match="ForSequenceClassification"):
        Reranker(tinyroberta.load(ROOT / "roberta"), one.tokenizer)
    assert "1 label, pairs of at most 64 tokens, activation sigmoid" in repr(one)
