"""Embedder and Reranker beside sentence-transformers, on random folders, where that is installed."""

import json
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embed_folders import EVERY, PAIRS, PROMPTS, TEXTS, laid_over
from models_for_tests import relative_error

from tinyroberta import Embedder, Reranker

pytestmark = pytest.mark.live
TOLERANCE = 1e-6
ACTIVATIONS = ("Tanh", "Sigmoid", "ReLU", "GELU", "SiLU", "LeakyReLU", "Mish", "Hardswish", "ReLU6", "Identity")


@pytest.fixture
def peer() -> Any:
    """sentence-transformers, whose own warnings and those of what it imports are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("sentence_transformers.models")
        yield pytest.importorskip("sentence_transformers")


@pytest.mark.parametrize("seed", range(12))
def test_random_folders_give_its_vectors(peer: Any, tmp_path: Path, seed: int) -> None:
    torch = pytest.importorskip("torch")
    draw = random.Random(seed)
    torch.manual_seed(seed)
    base = draw.choice(["roberta-mean", "xlm-mean"])
    folder = laid_over(tmp_path / "folder", base)
    transformer, modes = peer.models.Transformer(str(folder)), draw.sample(EVERY, draw.randint(1, 4))
    modules = [transformer, peer.models.Pooling(16, modes, include_prompt=draw.random() < 0.5)]
    width = 16 * len(modes)
    for _ in range(draw.randint(0, 2)):
        size, activation = draw.randint(1, 40), getattr(torch.nn, draw.choice(ACTIVATIONS))()
        modules.append(peer.models.Dense(width, size, bias=draw.random() < 0.7, activation_function=activation))
        width = size
    if draw.random() < 0.5:
        modules.append(peer.models.Normalize())
    made = peer.SentenceTransformer(modules=modules, prompts=PROMPTS, device="cpu")
    made.save(str(tmp_path / "made"), create_model_card=False, safe_serialization=draw.random() < 0.5)
    theirs = peer.SentenceTransformer(str(tmp_path / "made"), device="cpu").double()
    ours = Embedder.from_pretrained(tmp_path / "made")
    texts = [*TEXTS, *(" ".join(draw.choices([*TEXTS[1].split(), "猫", "</s>"], k=draw.randint(1, 90))) for _ in range(10))]
    for prompt in (None, *PROMPTS):
        assert relative_error(ours.encode(texts, prompt_name=prompt), theirs.encode(texts, prompt_name=prompt)) < TOLERANCE
    for name in ("cosine", "dot", "euclidean", "manhattan"):
        theirs.similarity_fn_name = ours.similarity_fn_name = name
        x = ours.encode(TEXTS)
        expected = theirs.similarity(x.astype(np.float64), x.astype(np.float64)).numpy()
        assert np.abs(ours.similarity(x, x) - expected).max() < 2e-6 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("base", ["roberta", "xlm-roberta"])
def test_a_saved_cross_encoder_gives_its_scores(peer: Any, tmp_path: Path, base: str, labels: int) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(labels)
    folder = laid_over(tmp_path / "folder", "roberta-mean" if base == "roberta" else "xlm-mean")
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (folder / name).unlink()
    made = peer.CrossEncoder(str(folder), num_labels=labels, device="cpu", activation_fn=torch.nn.Tanh() if labels > 1 else None)
    with torch.no_grad():
        for parameter in made.model.classifier.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    made.save_pretrained(str(tmp_path / "made"))
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert config["architectures"][0].endswith("ForSequenceClassification")
    theirs, ours = peer.CrossEncoder(str(tmp_path / "made"), device="cpu"), Reranker.from_pretrained(tmp_path / "made")
    assert relative_error(ours.predict(PAIRS), theirs.double().predict(PAIRS)) < TOLERANCE
    if labels == 1:
        documents = [pair[1] for pair in PAIRS]
        expected = theirs.rank("a boat", documents, top_k=4, return_documents=True)
        found = ours.rank("a boat", documents, top_k=4, return_documents=True)
        assert [(one["corpus_id"], one["text"]) for one in found] == [(one["corpus_id"], one["text"]) for one in expected]
        assert relative_error([one["score"] for one in found], [one["score"] for one in expected]) < TOLERANCE
