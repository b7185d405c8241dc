"""serve/: answers by text-embeddings-inference's and OpenAI's contracts, with the bits that the library gives a text alone."""

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embed_folders import laid_over

from tinyroberta.tasks.classify import TextClassification
from tinyroberta.tasks.embed import Embedder
from tinyroberta.tasks.rerank import Reranker

pytest.importorskip("tokenizers")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from server_process import Process, serving

from tinyroberta.serve.contracts import ROUTES, Limits, Refused
from tinyroberta.serve.kinds import Served, budget_of, open_served
from tinyroberta.serve.metrics import Metrics
from tinyroberta.serve.packing import Worker

TEXTS = ["The sea was calm.", "a cat", "The train left, and nobody spoke of it again. " * 9, "naïve 猫🙂", " "]


pytestmark = pytest.mark.filterwarnings(r"ignore:\d+ texts? (was|were) longer:UserWarning")


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with serving("-m", "tinyroberta", "serve", "--port", "0") as process:
        yield process
    assert process.errors == []


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.from_pretrained()


def float32(found: Any) -> Any:
    return np.array(found, np.float32)


def ask(served: Served, path: str, body: Any, **limits: Any) -> Any:
    """What a route answers, without HTTP."""
    plan = ROUTES[path](served, body, Limits(**limits))
    if plan.job is None:
        return json.loads(b"".join(plan.render(None)))
    worker = Worker(served.forward, budget_of(served), 1 << 20, Metrics())
    found = worker.submit(plan.job).future.result(30)
    worker.close()
    return json.loads(b"".join(plan.render(found)))


def refusal(served: Served, path: str, body: Any, **limits: Any) -> tuple[int, str]:
    with pytest.raises(Refused) as told:
        ask(served, path, body, **limits)
    return told.value.status, told.value.kind


# Vectors


def test_vectors_have_the_bits_that_the_library_gives(server: Process, embedder: Embedder) -> None:
    status, _, found = server.ask("/embed", {"inputs": TEXTS, "normalize": False})
    assert status == 200
    assert np.array_equal(float32(found), embedder.encode(TEXTS, normalize=False))
    one = server.ask("/embed", {"inputs": TEXTS[0]})[2]
    assert np.array_equal(float32(one), embedder.encode(TEXTS[:1], normalize=True))
    short = server.ask("/embed", {"inputs": TEXTS[0], "dimensions": 7})[2]
    assert np.array_equal(float32(short), embedder.encode(TEXTS[:1], normalize=True, truncate_dim=7))


def test_every_token(server: Process, embedder: Embedder) -> None:
    found = server.ask("/embed_all", {"inputs": TEXTS[:2]})[2]
    for rows, expected in zip(found, embedder.encode(TEXTS[:2], output_value="token_embeddings"), strict=True):
        assert np.array_equal(float32(rows), expected)


def test_tokens_and_back_and_ids_as_inputs(server: Process) -> None:
    tokens = server.ask("/tokenize", {"inputs": TEXTS[0]})[2]
    assert len(tokens) == 1
    assert tokens[0][0] == {"id": 0, "text": "<s>", "special": True, "start": None, "stop": None}
    assert all(TEXTS[0][token["start"] : token["stop"]] == token["text"] for token in tokens[0] if not token["special"])
    assert all(token["special"] is False for token in server.ask("/tokenize", {"inputs": "a", "add_special_tokens": False})[2][0])
    ids = [token["id"] for token in tokens[0]]
    assert server.ask("/decode", {"ids": ids})[2] == [TEXTS[0]]
    assert server.ask("/decode", {"ids": [ids, ids[1:3]], "skip_special_tokens": False})[2][0] == f"<s>{TEXTS[0]}</s>"
    vectors = server.ask("/embed", {"inputs": [TEXTS[0], ids]})[2]
    assert vectors[0] == vectors[1] == server.ask("/embed", {"inputs": ids})[2][0]


def test_similarity(server: Process, embedder: Embedder) -> None:
    body = {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS[1:4]}}
    vectors = embedder.encode(TEXTS[:4], normalize=True)
    expected = embedder.similarity(vectors[:1], vectors[1:])[0]
    for path in ("/similarity", "/"):
        assert np.array_equal(float32(server.ask(path, body)[2]), expected)


def test_what_is_served(server: Process) -> None:
    info = server.ask("/info")[2]
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (info["model_id"], info["model_dtype"], info["max_input_length"]) == ("tinyroberta", "float32", 256)
    assert server.ask("/health")[0] == server.ask("/ping")[0] == 200
    assert server.ask("/v1/models")[2]["data"][0]["id"] == "tinyroberta"
    status, headers, page = server.ask("/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'te_request_count{method="/info"}' in page
    assert 'te_request_duration_bucket{le="+Inf"}' in page


def test_openai(server: Process, embedder: Embedder) -> None:
    body = {"input": TEXTS[:2], "model": "any", "user": "someone"}
    found = server.ask("/v1/embeddings", body)[2]
    expected = embedder.encode(TEXTS[:2], normalize=True)
    assert [entry["index"] for entry in found["data"]] == [0, 1]
    assert np.array_equal(float32([entry["embedding"] for entry in found["data"]]), expected)
    tokens = sum(len(embedder.tokenizer.encode(text)) for text in TEXTS[:2])
    assert found["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    packed = server.ask("/v1/embeddings", body | {"encoding_format": "base64", "dimensions": 5})[2]
    rows = [np.frombuffer(base64.b64decode(entry["embedding"]), "<f4") for entry in packed["data"]]
    assert np.array_equal(rows, embedder.encode(TEXTS[:2], normalize=True, truncate_dim=5))


def test_the_openai_client(server: Process, embedder: Embedder) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30) as client:
        for form in ("float", "base64"):
            found = client.embeddings.create(model="tinyroberta", input=TEXTS[:3], encoding_format=form)
            rows = [
                np.frombuffer(base64.b64decode(x.embedding), "<f4") if isinstance(x.embedding, str) else float32(x.embedding)
                for x in found.data
            ]
            assert np.array_equal(rows, embedder.encode(TEXTS[:3], normalize=True))
        ids = embedder.tokenizer.encode(TEXTS[0]).ids
        by_ids = client.embeddings.create(model="tinyroberta", input=[ids], dimensions=3)
        assert np.array_equal(float32(by_ids.data[0].embedding), embedder.encode(TEXTS[0], normalize=True, truncate_dim=3))
        assert by_ids.usage.prompt_tokens == len(ids)
        with pytest.raises(openai.BadRequestError, match="cannot be empty"):
            client.embeddings.create(model="tinyroberta", input=[])
        assert [model.id for model in client.models.list()] == ["tinyroberta"]


def test_the_hugging_face_client(server: Process, embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # which forbids loopback too
    client = hub.InferenceClient(model=server.url, timeout=30)
    found = client.feature_extraction(TEXTS[0], normalize=False, truncate=True, truncation_direction="Left")
    assert np.array_equal(found[0], embedder.encode(TEXTS[0], normalize=False))
    scores = client.sentence_similarity(TEXTS[0], TEXTS[1:3])
    vectors = embedder.encode(TEXTS[:3], normalize=True)
    assert np.array_equal(float32(scores), embedder.similarity(vectors[:1], vectors[1:])[0])


def test_a_text_has_the_same_bits_whoever_else_asks(server: Process, embedder: Embedder) -> None:
    draw = np.random.default_rng(0)
    words = ["the", "sea", "was", "calm", "and", "a", "train", "left", "while", "nobody", "spoke", "of", "boats"]
    requests = [[" ".join(draw.choice(words, draw.integers(1, 60))) for _ in range(draw.integers(1, 6))] for _ in range(60)]
    alone = [[embedder.encode(text, normalize=True) for text in texts] for texts in requests]
    before = server.metric("te_batch_next_size_count"), server.metric("te_batch_next_size_sum")
    with ThreadPoolExecutor(20) as clients:
        cut = [clients.submit(server.ask, "/embed", {"inputs": "sea " * 500, "truncate": True}) for _ in range(10)]
        found = list(clients.map(lambda texts: server.ask("/embed", {"inputs": texts})[2], requests))
    assert all(future.result()[:1] == (200,) and future.result()[2] == cut[0].result()[2] for future in cut)
    for vectors, expected in zip(found, alone, strict=True):
        assert np.array_equal(float32(vectors), expected)
    passes = server.metric("te_batch_next_size_count") - before[0]
    texts = server.metric("te_batch_next_size_sum") - before[1]
    assert texts == sum(map(len, requests)) + len(cut)
    assert passes < len(requests) + len(cut)  # or nothing was tested: several requests shared a pass


def test_texts_share_a_pass_only_where_that_changes_no_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert budget_of(open_served(None, backend="numpy")) == 1
    assert budget_of(open_served(None, backend="numpy", reproducible=True)) == 1024
    compiled = open_served(None, backend="cpu")
    monkeypatch.setenv("TINYROBERTA_CPU", "blas")
    assert budget_of(compiled) == 1


# What is refused


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/embed", b'{"inputs": ', 400, "Validation"),
        ("/embed", b"\xff\xfe\x00", 400, "Validation"),
        ("/embed", b"[" * 100_000, 400, "Validation"),
        ("/embed", b'{"inputs": [' + b"1" * 10_000 + b"]}", 400, "Validation"),
        ("/embed", b"[]", 422, "Validation"),
        ("/embed", {}, 422, "Validation"),
        ("/embed", {"inputs": 3}, 422, "Validation"),
        ("/embed", {"inputs": [True]}, 422, "Validation"),
        ("/embed", {"inputs": [[0, -1]]}, 422, "Validation"),
        ("/embed", {"inputs": [[0, 10**9]]}, 422, "Validation"),
        ("/embed", {"inputs": ["a", [0, "b"]]}, 422, "Validation"),
        ("/embed", {"inputs": "a", "truncate": "yes"}, 422, "Validation"),
        ("/embed", {"inputs": "a", "truncation_direction": "up"}, 422, "Validation"),
        ("/embed", {"inputs": "a", "dimensions": 0}, 422, "Validation"),
        ("/embed", {"inputs": "a", "dimensions": 10**6}, 422, "Validation"),
        ("/embed", {"inputs": "a", "prompt_name": "query"}, 422, "Validation"),
        ("/embed", {"inputs": []}, 400, "Empty"),
        ("/embed", {"inputs": ["a", ""]}, 400, "Empty"),
        ("/embed", {"inputs": [[]]}, 400, "Empty"),
        ("/embed", b'{"inputs": "half \\ud800"}', 422, "Tokenizer"),
        ("/tokenize", b'{"inputs": "half \\ud800"}', 422, "Tokenizer"),
        ("/embed", {"inputs": "sea " * 1000}, 413, "Validation"),
        ("/embed", {"inputs": ["a"] * 2049}, 413, "Validation"),
        ("/embed", {"inputs": ["sea " * 250] * 1100}, 413, "Validation"),
        ("/embed_all", {"inputs": ["sea " * 250] * 150}, 413, "Validation"),
        ("/decode", {"ids": []}, 400, "Empty"),
        ("/decode", {"ids": [[1], 2]}, 422, "Validation"),
        ("/similarity", {"inputs": "a"}, 422, "Validation"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, 400, "Empty"),
        ("/embed_sparse", {"inputs": "a"}, 424, "Backend"),
        ("/rerank", {"query": "a", "texts": ["b"]}, 424, "Backend"),
        ("/predict", {"inputs": "a"}, 424, "Backend"),
        ("/nowhere", {"inputs": "a"}, 404, "Validation"),
        ("/info", {"inputs": "a"}, 405, "Validation"),
    ],
)  # fmt: skip
def test_what_is_refused(server: Process, path: str, body: Any, status: int, kind: str) -> None:
    found, headers, told = server.ask(path, body)
    assert (found, told["error_type"]) == (status, kind), told
    assert headers["content-type"] == "application/json"
    assert set(told) == {"error", "error_type"}
    assert len(told["error"]) < 300


def test_openai_errors_are_what_its_clients_read(server: Process) -> None:
    status, _, told = server.ask("/v1/embeddings", {"input": "sea " * 1000})
    assert status == told["code"] == told["error"]["code"] == 413
    assert told["error"]["message"] == told["message"]
    assert told["error"]["type"] == told["error_type"] == "Validation"


def test_other_bodies_than_json_are_refused(server: Process) -> None:
    assert server.ask("/embed", b'{"inputs": "a"}', Content_Type="text/plain")[0] == 415


def test_long_texts_are_cut_where_that_is_asked_for(server: Process, embedder: Embedder) -> None:
    text = " ".join(f"sea{n}" for n in range(1000))
    body = {"inputs": text, "truncate": True}
    ids = embedder.tokenizer.encode(text).ids
    start, end = [*ids[:255], 2], [0, *ids[-255:]]
    assert server.ask("/embed", body)[2] == server.ask("/embed", {"inputs": [start]})[2]
    assert server.ask("/embed", body | {"truncation_direction": "Left"})[2] == server.ask("/embed", {"inputs": [end]})[2]
    assert server.ask("/embed", {"inputs": [ids], "truncate": True})[2] == server.ask("/embed", {"inputs": [ids[:256]]})[2]


# Other kinds of checkpoint


def test_a_reranker(tmp_path: Path) -> None:
    served = open_served(laid_over(tmp_path / "model", "reranker-1"), backend="numpy")
    assert served.kind == "reranker"
    expected = Reranker.from_pretrained(tmp_path / "model", backend="numpy").predict([("a sea", text) for text in TEXTS[:4]])
    body = {"query": "a sea", "texts": TEXTS[:4]}
    found = ask(served, "/rerank", body, auto_truncate=True)
    assert [entry["score"] for entry in found] == sorted((entry["score"] for entry in found), reverse=True)
    for entry in found:
        assert set(entry) == {"index", "score"}
        assert entry["score"] == pytest.approx(float(expected[entry["index"]]), rel=1e-6)
    raw = ask(served, "/", body | {"raw_scores": True, "return_text": True}, auto_truncate=True)
    assert [entry["index"] for entry in raw] == [entry["index"] for entry in found]
    assert all(entry["text"] == TEXTS[entry["index"]] for entry in raw)
    assert 1 / (1 + np.exp(-raw[0]["score"])) == pytest.approx(found[0]["score"], rel=1e-5)
    assert refusal(served, "/embed", {"inputs": "a"}) == (424, "Backend")
    assert refusal(served, "/rerank", {"query": "a", "texts": []}) == (400, "Empty")
    assert refusal(served, "/rerank", {"query": "", "texts": ["a"]}) == (400, "Empty")
    assert refusal(served, "/rerank", {"query": "a", "texts": "b"}) == (422, "Validation")
    assert refusal(served, "/rerank", {"texts": ["b"]}) == (422, "Validation")
    assert refusal(served, "/rerank", {"query": "a", "texts": ["sea " * 1000]}) == (413, "Validation")


def test_a_classifier(tmp_path: Path) -> None:
    served = open_served(laid_over(tmp_path / "model", "reranker-3"), backend="numpy")
    assert served.kind == "classifier"
    classify = TextClassification.from_pretrained(tmp_path / "model", backend="numpy")
    one = ask(served, "/predict", {"inputs": TEXTS[0]})
    assert one == [{"score": x["score"], "label": x["label"]} for x in classify(TEXTS[0], top_k=None)]
    assert ask(served, "/", {"inputs": TEXTS[0]}) == one
    both = ask(served, "/predict", {"inputs": [TEXTS[0], TEXTS[1]]})
    assert ask(served, "/predict", {"inputs": [[TEXTS[0]], [TEXTS[0], TEXTS[1]]]}) == [one, both]
    raw = ask(served, "/predict", {"inputs": TEXTS[0], "raw_scores": True})
    assert [x["label"] for x in raw] == [x["label"] for x in one]
    assert sum(x["score"] for x in one) == pytest.approx(1)
    assert refusal(served, "/rerank", {"query": "a", "texts": ["b"]}) == (424, "Backend")
    for inputs in (3, [["a", "b", "c"]], [3], {}, None, ["a", "b", "c"]):
        assert refusal(served, "/predict", {"inputs": inputs}) == (422, "Validation")
    for inputs in ([], "", ["a", ""], [[""]]):
        assert refusal(served, "/predict", {"inputs": inputs}) == (400, "Empty")


def test_prompts(tmp_path: Path) -> None:
    for name in ("xlm-mean", "roberta-every"):  # the second leaves prompts out of its pooling
        served = open_served(laid_over(tmp_path / name, name), backend="numpy")
        embedder = Embedder.from_pretrained(tmp_path / name, backend="numpy", batch_tokens=1)
        found = ask(served, "/embed", {"inputs": TEXTS[:2], "prompt_name": "query", "normalize": False})
        assert np.array_equal(float32(found), embedder.encode(TEXTS[:2], prompt_name="query", normalize=False))
        tokens = ask(served, "/tokenize", {"inputs": "a", "prompt_name": "query", "add_special_tokens": False})[0]
        assert tokens[-1]["stop"] == len("query: a")
        assert refusal(served, "/embed", {"inputs": "a", "prompt_name": "other"}) == (422, "Validation")
        assert refusal(served, "/embed", {"inputs": [[1]], "prompt_name": "query"}) == (422, "Validation")


def test_sparse_weights_of_bge_m3(tmp_path: Path) -> None:
    import safetensors.numpy

    folder = laid_over(tmp_path / "model", "xlm-cls")
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    draw = np.random.default_rng(0)
    for name, rows in (("sparse", 1), ("colbert", 5)):
        tensors = {"weight": draw.normal(size=(rows, width)).astype(np.float32), "bias": np.ones(rows, np.float32)}
        safetensors.numpy.save_file(tensors, folder / f"{name}_linear.safetensors")
    served = open_served(folder, backend="numpy")
    embedder = Embedder.from_pretrained(folder, backend="numpy", batch_tokens=1)
    expected = embedder.encode(TEXTS[:2], outputs=("sparse",))["sparse"]
    found = ask(served, "/embed_sparse", {"inputs": TEXTS[:2]})
    assert [{entry["index"]: entry["value"] for entry in text} for text in found] == expected
    assert len(found[0]) > 1
    dense = ask(served, "/embed", {"inputs": TEXTS[0]})
    assert np.array_equal(float32(dense[0]), embedder.encode(TEXTS[0]))
