"""tasks/bge_m3.py: the three outputs and their scores, against the recipe in NumPy, and live in torch on transformers' model."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from embed_folders import ROOT, TEXTS, laid_over
from models_for_tests import relative_error
from torch_writer import save

from tinyroberta import Embedder, Error
from tinyroberta.config import XLMRobertaConfig
from tinyroberta.family import KIN
from tinyroberta.tasks import bge_m3

pytest.importorskip("tokenizers")
TOLERANCE = 1e-6
WIDTH, COLBERT = 16, 12
UNUSED = {0, 1, 2, 3}
SHORT = [text for text in TEXTS if len(text) < 60]
BITS = [{"backend": "numba"}, {"backend": "numba", "reproducible": True}, {"backend": "numpy", "reproducible": True}]


def layers() -> dict[str, dict[str, np.ndarray]]:
    random = np.random.default_rng(3)
    return {
        "sparse_linear": {"weight": random.standard_normal((1, WIDTH), np.float32), "bias": np.full(1, 0.1, np.float32)},
        "colbert_linear": {
            "weight": random.standard_normal((COLBERT, WIDTH), np.float32).astype(np.float16),
            "bias": random.standard_normal(COLBERT, np.float32).astype(np.float16),
        },
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny BGE-M3: the published one's files, cls pooling and Normalize, and the two layers as torch.save writes them."""
    laid_over(tmp_path / "m3", "xlm-cls")
    for name, tensors in layers().items():
        save(tmp_path / "m3" / f"{name}.pt", tensors)
    return tmp_path / "m3"


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def assert_recipe(model: Embedder, texts: list[str], found: dict[str, Any]) -> None:
    """The recipe in NumPy's float64, on the model's own last hidden states."""
    sparse, colbert = ({name: x.astype(np.float64) for name, x in layer.items()} for layer in layers().values())
    for n, text in enumerate(texts):
        states = model.encode(text, output_value="token_embeddings").astype(np.float64)
        ids = model.tokenizer.encode(text).ids
        assert relative_error(found["dense"][n], unit(states[0])) < TOLERANCE
        assert relative_error(found["colbert"][n], unit(states[1:] @ colbert["weight"].T + colbert["bias"])) < TOLERANCE
        weights = np.maximum(states @ sparse["weight"][0] + sparse["bias"], 0)
        expected: dict[int, float] = {}
        for token, weight in zip(ids, weights, strict=True):
            if token not in UNUSED and weight > expected.get(token, 0):
                expected[token] = weight
        assert list(found["sparse"][n]) == list(expected)
        assert np.allclose(list(found["sparse"][n].values()), list(expected.values()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_the_three_outputs_are_the_recipes(folder: Path, backend: str) -> None:
    pytest.importorskip(backend)
    model = Embedder.from_pretrained(folder, backend=backend)
    found = model.encode(SHORT, outputs=bge_m3.OUTPUTS)
    assert list(found) == ["dense", "sparse", "colbert"]
    assert found["dense"].dtype == np.float32
    assert {x.dtype for x in found["colbert"]} == {np.dtype(np.float32)}
    assert_recipe(model, SHORT, found)
    assert np.array_equal(model.encode(SHORT, outputs=["dense"])["dense"], found["dense"])
    one = model.encode(SHORT[0], outputs=["sparse", "colbert"])
    assert list(one["sparse"]) == list(found["sparse"][0])
    assert one["colbert"].shape == found["colbert"][0].shape
    assert model.encode([], outputs=bge_m3.OUTPUTS)["dense"].shape == (0, WIDTH)
    assert model.encode([], outputs=bge_m3.OUTPUTS)["sparse"] == []


@pytest.mark.parametrize("running", BITS, ids=lambda running: "-".join(map(str, running.values())))
def test_their_bits_depend_on_no_neighbour(folder: Path, running: dict[str, Any]) -> None:
    pytest.importorskip(running["backend"])
    model = Embedder.from_pretrained(folder, **running)
    alone = [model.encode(text, outputs=bge_m3.OUTPUTS) for text in SHORT]
    for budget in (1, 40, 10**6):
        found = model.encode(SHORT[::-1], outputs=bge_m3.OUTPUTS, batch_tokens=budget)
        for n, one in enumerate(reversed(alone)):
            assert found["sparse"][n] == one["sparse"]
            assert np.array_equal(found["dense"][n], one["dense"])
            assert np.array_equal(found["colbert"][n], one["colbert"])


def test_words_are_the_tokens_texts(folder: Path) -> None:
    model = Embedder.from_pretrained(folder)
    found = model.encode(SHORT, outputs=["sparse"])["sparse"]
    words = model.words(found)
    assert [model.words(one) for one in found] == words
    for one, sparse in zip(words, found, strict=True):
        assert set(one) == {model.tokenizer.decode([token]) for token in sparse}
        assert set(one.values()) <= set(sparse.values())


def test_scores_are_those_of_pairs(folder: Path) -> None:
    model = Embedder.from_pretrained(folder)
    pairs = list(zip(SHORT, SHORT[1:] + SHORT[:1], strict=True))
    a, b = (model.encode([pair[n] for pair in pairs], outputs=bge_m3.OUTPUTS) for n in (0, 1))
    found = model.compute_score(pairs, weights_for_different_modes=[0.4, 0.2, 0.4])
    dense = (a["dense"] * b["dense"]).sum(1)
    sparse = np.array([sum(w * y.get(t, 0) for t, w in x.items()) for x, y in zip(a["sparse"], b["sparse"], strict=True)])
    colbert = np.array([max_sim(x, y) for x, y in zip(a["colbert"], b["colbert"], strict=True)])
    expected = {"dense": dense, "sparse": sparse, "colbert": colbert, "sparse+dense": (0.4 * dense + 0.2 * sparse) / 0.6}
    expected["colbert+sparse+dense"] = 0.4 * dense + 0.2 * sparse + 0.4 * colbert
    assert found.keys() == expected.keys()
    for name, scores in expected.items():
        assert np.allclose(found[name], scores, rtol=1e-5, atol=1e-6), name
    one = model.compute_score(pairs[0])
    assert one["colbert+sparse+dense"] == pytest.approx((dense[0] + sparse[0] + colbert[0]) / 3, rel=1e-5)


def max_sim(query: np.ndarray, passage: np.ndarray) -> float:
    return float(np.mean([max(float(q @ p) for p in passage) for q in query]))


def test_layers_in_safetensors_are_read_too(folder: Path) -> None:
    found = Embedder.from_pretrained(folder).encode(SHORT, outputs=["colbert"])["colbert"]
    for name, tensors in layers().items():
        (folder / f"{name}.pt").unlink()
        safetensors.numpy.save_file(tensors, folder / f"{name}.safetensors")
    again = Embedder.from_pretrained(folder).encode(SHORT, outputs=["colbert"])["colbert"]
    assert all(np.array_equal(x, y) for x, y in zip(found, again, strict=True))


def test_windows_are_put_together(folder: Path) -> None:
    model = Embedder.from_pretrained(folder)
    text = "the sea was calm and the boats lay still " * 6
    found = model.encode(text, outputs=bge_m3.OUTPUTS, long="window", max_length=20)
    assert sum(map(len, model.words(found["sparse"]))) > 0
    tokens = len(model.tokenizer.encode(text)) - 2
    windows = -(-tokens // 18)
    assert len(found["colbert"]) == tokens + windows  # </s> of each


def test_what_is_wrong_is_one_sentence(folder: Path) -> None:
    model = Embedder.from_pretrained(folder)
    for outputs in ("dense", ["dense", "sparkling"], []):
        with pytest.raises(Error, match="outputs is"):
            model.encode(SHORT, outputs=outputs)
    with pytest.raises(Error, match="a pair is"):
        model.compute_score([("a", "b"), "c"])
    for weights in ([1, 2], [0, 0, 0], "abc"):
        with pytest.raises(Error, match="weights_for_different_modes"):
            model.compute_score(("a", "b"), weights_for_different_modes=weights)
    save(folder / "sparse_linear.pt", {"weight": np.ones((1, 9), np.float32), "bias": np.ones(1, np.float32)})
    with pytest.raises(Error, match=r"weight has shape \(1, 9\); it must be \(1, 16\)"):
        Embedder.from_pretrained(folder)
    (folder / "sparse_linear.pt").unlink()
    with pytest.raises(Error, match="has colbert_linear but not sparse_linear"):
        Embedder.from_pretrained(folder)
    (folder / "colbert_linear.pt").unlink()
    plain = Embedder.from_pretrained(folder)
    assert set(plain.encode(SHORT, outputs=["dense"])) == {"dense"}
    with pytest.raises(Error, match=r"is no BGE-M3 checkpoint: it has no sparse_linear.pt and no colbert_linear.pt"):
        plain.encode(SHORT, outputs=["sparse"])


def test_a_text_of_8192_tokens_needs_no_square_of_its_length(tmp_path: Path) -> None:
    """On numba a text's scores are never all there at once: 2 heads' would take 512 MiB."""
    pytest.importorskip("numba")
    laid_over(tmp_path / "m3", "xlm-cls")
    config = XLMRobertaConfig.from_dict(
        json.loads((ROOT / "xlm-roberta" / "config.json").read_text()) | {"max_position_embeddings": 8194}
    )
    KIN["xlm-roberta"]["Model"](config).save_pretrained(tmp_path / "m3")
    for file in ("sentence_bert_config.json", "tokenizer_config.json"):
        path = tmp_path / "m3" / file
        path.write_text(
            json.dumps({key: x for key, x in json.loads(path.read_text()).items() if "max" not in key and "Max" not in key})
        )
    for name, tensors in layers().items():
        save(tmp_path / "m3" / f"{name}.pt", tensors)
    model = Embedder.from_pretrained(tmp_path / "m3", backend="numba")
    assert model.max_seq_length == 8192
    model.encode("hello", outputs=bge_m3.OUTPUTS)
    tracemalloc.start()
    try:
        with pytest.warns(UserWarning, match="1 text was longer than 8192 tokens"):
            found = model.encode("the sea was calm " * 9000, outputs=bge_m3.OUTPUTS)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found["colbert"].shape == (8191, COLBERT)
    assert most < 64 * 2**20


@pytest.mark.live
def test_the_recipe_in_torch_on_transformers_model(folder: Path) -> None:
    """BGEM3FlagModel's forward pass (FlagEmbedding 1.3), written down again: padded batches, scatter, masks."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoder = transformers.XLMRobertaModel.from_pretrained(folder, add_pooling_layer=False).eval()
    linear = {}
    for name, tensors in layers().items():
        linear[name] = torch.nn.Linear(WIDTH, len(tensors["weight"]))
        linear[name].load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))

    def outputs(texts: list[str]) -> tuple[Any, Any, Any, Any, Any]:
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        states = encoder(**inputs).last_hidden_state
        normal = torch.nn.functional.normalize
        weights = torch.relu(linear["sparse_linear"](states)).squeeze(-1)
        spread = torch.zeros(len(texts), encoder.config.vocab_size).scatter_reduce(1, ids, weights, reduce="amax")
        spread[:, [tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id]] = 0
        vectors = linear["colbert_linear"](states[:, 1:]) * mask[:, 1:, None]
        return normal(states[:, 0], dim=-1), spread, normal(vectors, dim=-1), mask, ids

    model = Embedder.from_pretrained(folder)
    pairs = list(zip(SHORT, SHORT[1:] + SHORT[:1], strict=True))
    with torch.inference_mode():
        dense, sparse, colbert, mask, _ = outputs(SHORT)
        found = model.encode(SHORT, outputs=bge_m3.OUTPUTS)
        assert relative_error(found["dense"], dense.numpy()) < TOLERANCE
        for n, one in enumerate(found["sparse"]):
            expected = {int(token): float(sparse[n, token]) for token in sparse[n].nonzero()[:, 0]}
            assert one.keys() == expected.keys()
            assert all(one[token] == pytest.approx(weight, rel=1e-5, abs=1e-6) for token, weight in expected.items())
            assert relative_error(found["colbert"][n], colbert[n, : int(mask[n].sum()) - 1].numpy()) < TOLERANCE
        scores = model.compute_score(pairs)
        for n, (query, passage) in enumerate(pairs):  # pair by pair, so that no padding can win
            (a, b, c, m, _), (x, y, z, _, _) = outputs([query]), outputs([passage])
            late = torch.einsum("qin,pjn->qipj", c, z).max(-1).values.sum(1) / m[:, 1:].sum(-1, keepdim=True)
            three = [float((a @ x.T)[0, 0]), float((b @ y.T)[0, 0]), float(late[0, 0])]
            for name, expected in zip(("dense", "sparse", "colbert"), three, strict=True):
                assert scores[name][n] == pytest.approx(expected, rel=1e-5, abs=1e-5)
            assert scores["colbert+sparse+dense"][n] == pytest.approx(sum(three) / 3, rel=1e-5, abs=1e-5)
            assert scores["sparse+dense"][n] == pytest.approx(sum(three[:2]) / 2, rel=1e-5, abs=1e-5)
