"""tasks/embed.py and tasks/sentence_transformers.py: sentence-transformers' vectors, a text's own bits, and what is refused."""

import json
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from embed_folders import CASES, PROMPTS, ROOT, TEXTS, laid_over
from models_for_tests import relative_error

from tinyroberta import Error
from tinyroberta.tasks.embed import Embedder, similarity
from tinyroberta.tasks.sentence_transformers import Dense

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


def test_any_iterable_is_taken_and_one_string_is_one_vector(tmp_path: Path) -> None:
    model = embedder(tmp_path, "xlm-mean")
    found = model.encode(TEXTS)
    assert np.array_equal(model.encode(np.array(TEXTS)), found)
    assert np.array_equal(model.encode(text for text in TEXTS), found)
    assert np.array_equal(model.encode(tuple(TEXTS)), found)
    assert model.encode(TEXTS[0]).shape == (16,)
    for none in ([], iter([])):
        empty = model.encode(none)
        assert (empty.shape, empty.dtype) == ((0, 16), np.float32)
    many = model.encode((f"text {n}" for n in range(700)), batch_tokens=500)
    assert np.array_equal(many[699], model.encode("text 699"))


def test_a_stream_has_the_vectors_of_a_list_and_loses_nothing_to_a_bad_text(tmp_path: Path) -> None:
    model = embedder(tmp_path, "xlm-mean")
    found = list(model.stream(iter(TEXTS), prompt_name="query"))
    assert np.array_equal(found, model.encode(TEXTS, prompt_name="query"))
    assert all(vector.base is None for vector in found)  # none keeps the memory of others
    mixed = list(model.stream(["a", "\ud800", None, "b"], keep_errors=True))
    assert [isinstance(one, Error) for one in mixed] == [False, True, True, False]
    assert np.array_equal(mixed[3], model.encode("b"))
    stream = model.stream(["a", "\ud800", "b"])
    assert np.array_equal(next(stream), model.encode("a"))
    with pytest.raises(Error, match="surrogate"):
        next(stream)


def test_long_texts_are_cut_and_counted_once_or_refused_or_read_in_windows(tmp_path: Path) -> None:
    model = embedder(tmp_path, "roberta-mean")
    long = "a boat and a train and a sea " * 3000
    assert len(long) > 80_000
    with pytest.warns(UserWarning, match="^2 texts were longer than 64 tokens, and cut$") as told:
        found = model.encode([long, "short", long])
    assert len(told) == 1
    assert np.array_equal(found[0], found[2])
    with pytest.raises(Error, match=r'a text has .* tokens; this model reads at most 64, .*long="truncate"'):
        model.encode([long], long="error")
    with pytest.raises(Error, match="max_length is 65"):
        model.encode(["a"], max_length=65)
    with pytest.raises(Error, match="long is 'cut'"):
        model.encode(["a"], long="cut")  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="longer than 12 tokens"):
        assert np.array_equal(
            model.encode([long], max_length=12), model.encode(["a boat and a train and a sea a"], max_length=12)
        )


def test_windows_are_averaged_each_as_often_as_it_has_tokens(tmp_path: Path) -> None:
    text = "a boat and a train and a sea " * 20
    for name in ("roberta-mean", "roberta-cls", "roberta-dense"):
        model = embedder(tmp_path, name)
        tokens = model.encode(text, long="window", output_value="token_embeddings")
        model.tokenizer.enable_truncation(64)
        first = model.tokenizer.encode(text)
        model.tokenizer.no_truncation()
        lengths = [64, *map(len, first.overflowing)]
        assert len(tokens) == sum(lengths) > 64 * 3
        parts = np.split(tokens, np.cumsum(lengths)[:-1])
        pooled = [part[0] if name == "roberta-cls" else part.mean(0) for part in parts]
        x = np.average(pooled, axis=0, weights=lengths)
        for step in model.recipe.after:
            if not isinstance(step, Dense):
                x = x / np.linalg.norm(x)
            else:
                x = step.weight @ x + (0 if step.bias is None else step.bias)
                x = np.tanh(x) if step.activation == "tanh" else x
        assert relative_error(model.encode(text, long="window"), x) < TOLERANCE
        short = model.encode("a boat")
        assert np.array_equal(model.encode("a boat", long="window"), short)


def test_a_prompt_left_out_is_left_out_of_the_first_window_alone(tmp_path: Path) -> None:
    model = embedder(tmp_path, "roberta-reordered")
    text, prompt = "a boat and a train and a sea " * 20, "passage: "
    size = model.recipe.width(16) // 3
    tokens = model.encode(prompt + text, prompt="", long="window", output_value="token_embeddings")
    model.tokenizer.enable_truncation(64)
    first = model.tokenizer.encode(prompt + text)
    model.tokenizer.no_truncation()
    lengths = [64, *map(len, first.overflowing)]
    parts = np.split(tokens, np.cumsum(lengths)[:-1])
    left_out = len(model.tokenizer.encode(prompt)) - 1
    parts[0] = parts[0][left_out:]
    mean = np.average([part.mean(0) for part in parts], axis=0, weights=lengths)
    assert relative_error(model.encode(text, prompt=prompt, long="window")[size : 2 * size], mean) < TOLERANCE


def test_normalize_and_truncate_dim(tmp_path: Path) -> None:
    model = embedder(tmp_path, "xlm-mean")
    plain = model.encode(TEXTS, normalize=False)
    assert not np.allclose(np.linalg.norm(plain, axis=1), 1)
    assert np.allclose(plain / np.linalg.norm(plain, axis=1, keepdims=True), model.encode(TEXTS), atol=1e-6)
    assert np.array_equal(model.encode(TEXTS, truncate_dim=7), model.encode(TEXTS)[:, :7])
    assert model.encode(TEXTS, truncate_dim=99).shape == (len(TEXTS), 16)
    for wrong in (0, -1, "3", 2.0):
        with pytest.raises(Error, match="truncate_dim is"):
            model.encode(TEXTS, truncate_dim=wrong)


def test_sentence_transformers_keywords(tmp_path: Path) -> None:
    model = embedder(tmp_path, "xlm-mean")
    found = model.encode(TEXTS)
    given = {
        "batch_size": 2,
        "show_progress_bar": False,
        "convert_to_numpy": True,
        "normalize_embeddings": False,
        "device": "cpu",
    }
    assert np.array_equal(model.encode(TEXTS, **given), found)
    assert np.array_equal(model.encode(TEXTS, None, "query: "), model.encode(TEXTS, prompt_name="query"))
    assert np.array_equal(model.encode_query(TEXTS), model.encode(TEXTS, "query"))
    assert np.array_equal(model.encode_document(TEXTS), found)  # whose prompt is "" in what sentence-transformers saves
    del model.prompts["document"]
    assert np.array_equal(model.encode_document(TEXTS), model.encode(TEXTS, "passage"))
    tokens = model.encode(TEXTS, output_value="token_embeddings")
    assert [len(x) for x in tokens] == [min(64, len(model.tokenizer.encode(text))) for text in TEXTS]
    every = model.encode(TEXTS, output_value=None)
    assert all(np.array_equal(one["sentence_embedding"], x) for one, x in zip(every, found, strict=True))
    assert all(np.array_equal(one["token_embeddings"], x) for one, x in zip(every, tokens, strict=True))
    bits = model.encode(TEXTS, precision="ubinary")
    assert np.array_equal(bits, np.packbits(found > 0, axis=-1))
    assert np.array_equal(model.encode(TEXTS, precision="binary"), (bits.astype(np.int16) - 128).astype(np.int8))
    for wrong, told in [
        ({"precision": "int8"}, "precision is 'int8'.*float32, binary, ubinary"),
        ({"device": "cuda"}, r'encode does nothing with device \(cuda\).*backend="cupy"'),
        ({"convert_to_numpy": False}, "encode does nothing with convert_to_numpy"),
        ({"pool": {"processes": []}}, "encode does nothing with pool"),
        ({"colour": "red"}, "encode does not know colour"),
        ({"output_value": "logits"}, "output_value is 'logits'"),
        ({"prompt_name": "question"}, "prompt_name is 'question'; this model's prompts are passage, query"),
        ({"prompt": 3}, "prompt is of type int"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
    ]:
        with pytest.raises(Error, match=told):
            model.encode(TEXTS, **wrong)


def test_a_tensor_where_torch_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = embedder(tmp_path, "xlm-mean")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "torch", None)
        with pytest.raises(Error, match="convert_to_tensor needs torch"):
            model.encode(TEXTS, convert_to_tensor=True)
    torch = pytest.importorskip("torch")
    assert torch.equal(model.encode(TEXTS, convert_to_tensor=True), torch.from_numpy(model.encode(TEXTS)))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, "a text is of type NoneType"),
        (b"bytes", "a text is of type bytes"),
        (5, "a text is of type int"),
        ({"a": 1}, "a text is of type dict"),
        ([None], "a text is of type NoneType"),
        ([b"bytes"], "a text is of type bytes"),
        (["fine", "\ud800"], "half of a surrogate pair"),
        ("\udfff", "half of a surrogate pair"),
        ([["a", "list"]], "a text is of type list"),
    ],
)
def test_what_is_no_text_is_one_sentence(tmp_path: Path, given: Any, told: str) -> None:
    model = embedder(tmp_path, "xlm-mean")
    for how in ({}, {"prompt_name": "query"}):
        with pytest.raises(Error, match=told):
            model.encode(given, **how)


def test_similarity_is_by_name_and_of_vectors() -> None:
    a, b = np.eye(3, dtype=np.float32)[:2], np.array([[3.0, 4.0, 0.0]], np.float32)
    assert np.allclose(similarity(a, b), [[0.6], [0.8]])
    assert np.allclose(similarity(a, b, "dot"), [[3], [4]])
    assert np.allclose(similarity(a, b, "euclidean"), -np.sqrt([[4 + 16], [9 + 9]]))
    assert np.allclose(similarity(a, b, "manhattan"), [[-6], [-6]])
    assert similarity(a[0], a[1]).shape == (1, 1)
    for x, y, name, told in [
        (a, b[:, :2], "cosine", "cannot be compared"),
        (a, b, "angle", "similarity_fn_name is 'angle'"),
        (["a"], b, "dot", "a vector"),
    ]:
        with pytest.raises(Error, match=told):
            similarity(x, y, name)


def test_a_bare_checkpoint_is_mean_pooled_and_says_so(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "roberta", tmp_path / "bare")
    model = Embedder.from_pretrained(tmp_path / "bare")
    assert "mean pooling, since it has no modules.json" in repr(model)
    tokens = model.encode("a boat", output_value="token_embeddings")
    assert relative_error(model.encode("a boat"), tokens.mean(0)) < TOLERANCE
    weights = Embedder.from_pretrained(tmp_path / "bare" / "model.safetensors")
    assert np.array_equal(weights.encode("a boat"), model.encode("a boat"))
    assert repr(embedder(tmp_path, "roberta-dense")).startswith(
        "<Embedder: mean pooling, Dense(16, 20), Dense(20, 12), Normalize; "
    )


def test_a_residual_is_added(tmp_path: Path) -> None:
    """Dense's use_residual, of sentence-transformers 6: x itself, or a projection of it where sizes differ."""
    folder = laid_over(tmp_path / "folder", "xlm-mean")
    random = np.random.default_rng(0)
    for number, size in ((2, 16), (3, 5)):
        weights = {"linear.weight": random.standard_normal((size, 16), np.float32), "linear.bias": np.ones(size, np.float32)}
        if size != 16:
            weights["residual.weight"] = random.standard_normal((size, 16), np.float32)
        place = folder / f"{number}_Dense"
        place.mkdir(exist_ok=True)
        safetensors.numpy.save_file(weights, place / "model.safetensors")
        config = {"in_features": 16, "out_features": size, "activation_function": "torch.nn.modules.activation.ReLU"}
        (place / "config.json").write_text(json.dumps(config | {"use_residual": True}))
    kind = "sentence_transformers.base.modules.dense.Dense"
    modules = json.loads((folder / "modules.json").read_text())[:2]
    modules += [{"idx": n, "name": str(n), "path": f"{n}_Dense", "type": kind} for n in (2, 3)]
    (folder / "modules.json").write_text(json.dumps(modules))
    model = Embedder.from_pretrained(folder)
    x = model.encode(TEXTS[0], output_value="token_embeddings").mean(0)
    for step in model.recipe.after:
        added = x if step.residual is True else step.residual @ x
        x = np.maximum(step.weight @ x + step.bias, 0) + added
    assert relative_error(model.encode(TEXTS[0]), x) < TOLERANCE


Broken = Callable[[Path], object]


def rewritten(file: str, change: Callable[[Any], Any]) -> Broken:
    """What changes a folder's JSON file."""

    def broken(folder: Path) -> None:
        path = folder / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(change(json.loads(path.read_text()) if path.exists() else {})))

    return broken


def changed(file: str, **fields: Any) -> Broken:
    return rewritten(file, lambda content: content | fields)


def of_module(number: int, **fields: Any) -> Broken:
    return rewritten("modules.json", lambda modules: [m | fields if m["idx"] == number else m for m in modules])


DENSE = Path("2_Dense", "pytorch_model.bin")
WRONG: dict[str, tuple[Broken, str]] = {
    "modules.json is cut": (lambda folder: (folder / "modules.json").write_text("[{"), "is not valid JSON"),
    "modules.json is an object": (rewritten("modules.json", lambda _: {}), "must hold a list of objects"),
    "modules.json is empty": (rewritten("modules.json", lambda _: []), "must hold a list of objects"),
    "a module without a type": (of_module(1, type=None), "a module without a type or a path"),
    "a path upwards": (of_module(1, path="../.."), r"names the folder '\.\./\.\.' .* not inside"),
    "a path upwards within": (of_module(1, path="1_Pooling/../../x"), "not inside"),
    "a path upwards on Windows": (of_module(1, path="..\\x"), "not inside"),
    "an absolute path": (of_module(1, path="/etc"), "not inside"),
    "a drive": (of_module(1, path="C:x"), "not inside"),
    "an unknown module": (of_module(2, type="sentence_transformers.models.LSTM"), "names the module LSTM, which is not"),
    "a LayerNorm": (of_module(2, type="sentence_transformers.models.LayerNorm"), "names the module LayerNorm"),
    "code of its own": (of_module(2, type="custom.MyPooling"), "custom.MyPooling, a class of its own: no code"),
    "no Transformer": (of_module(0, type="sentence_transformers.models.BoW"), "begins with BoW"),
    "no Pooling": (rewritten("modules.json", lambda modules: modules[:1]), "names no Pooling"),
    "two Poolings": (rewritten("modules.json", lambda modules: [*modules[:2], modules[1]]), "Pooling stands where it cannot"),
    "a reranker": (
        rewritten("sentence_bert_config.json", lambda _: {"transformer_task": "sequence-classification"}),
        r"tinyroberta\.Reranker reads rerankers",
    ),
    "max_seq_length": (rewritten("sentence_bert_config.json", lambda _: {"max_seq_length": "long"}), "max_seq_length is 'long'"),
    "no pooling folder": (of_module(1, path="9_Pooling"), "cannot read .*9_Pooling"),
    "an unknown mode": (changed("1_Pooling/config.json", pooling_mode="median"), "'median'; there are cls"),
    "modes of no kind": (changed("1_Pooling/config.json", pooling_mode=5), "pooling_mode is 5"),
    "another width": (changed("1_Pooling/config.json", word_embedding_dimension=8), "of 8 numbers"),
    "prompts": (rewritten("config_sentence_transformers.json", lambda _: {"prompts": ["a"]}), "prompts must be texts by name"),
    "a default prompt": (changed("config_sentence_transformers.json", default_prompt_name="x"), "default_prompt_name is 'x'"),
    "a similarity": (changed("config_sentence_transformers.json", similarity_fn_name="angle"), "similarity_fn_name is 'angle'"),
    "Dense of another width": (changed("2_Dense/config.json", in_features=9), "from 9 to 20"),
    "Dense of another shape": (changed("2_Dense/config.json", out_features=9), "has shape .*20, 16"),
    "Dense of tokens": (changed("2_Dense/config.json", module_input_name="token_embeddings"), "module_input_name"),
    "Normalize of tokens": (
        rewritten("4_Normalize/config.json", lambda _: {"module_input_name": "token_embeddings"}), "Normalize of sentence_emb",
    ),
    "Dense with an unknown activation": (
        changed("2_Dense/config.json", activation_function="torch.nn.modules.activation.PReLU"), "PReLU; there are GELU",
    ),
    "Dense without weights": (lambda folder: (folder / DENSE).unlink(), "holds neither model.safetensors"),
    "Dense with cut weights": (lambda folder: (folder / DENSE).write_bytes(b"PK\x03\x04"), "zip archive"),
    "no model": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_damaged_folder_is_one_sentence(tmp_path: Path, name: str) -> None:
    folder = laid_over(tmp_path / "folder", "roberta-dense")
    broken, told = WRONG[name]
    broken(folder)
    with pytest.raises(Error, match=told) as raised:
        Embedder.from_pretrained(folder)
    assert "\n" not in str(raised.value)


def test_an_activation_that_is_not_torchs_is_tanh_with_a_warning(tmp_path: Path) -> None:
    folder = laid_over(tmp_path / "folder", "roberta-dense")
    rewritten("3_Dense/config.json", lambda config: config | {"activation_function": "mine.Curve"})(folder)
    with pytest.warns(UserWarning, match=r"mine\.Curve, which is not torch's: tanh is taken instead"):
        model = Embedder.from_pretrained(folder)
    assert relative_error(model.encode(TEXTS), ANSWERS["roberta-dense"]) < TOLERANCE


@pytest.mark.parametrize(
    ("path", "told"),
    [("/absent/folder", "there is no folder"), (5, "a checkpoint is given as int"), (ROOT, "config.json"), (None, None)],
)
def test_what_is_no_checkpoint(path: Any, told: str | None) -> None:
    if told is None:
        with pytest.raises(Error, match="revision v1 is of a Hub repository"):
            Embedder.from_pretrained(revision="v1")
        return
    with pytest.raises(Error, match=told):
        Embedder.from_pretrained(path)


def test_the_embedded_models_vectors_have_length_1() -> None:
    try:
        model = Embedder.from_pretrained()
    except Error as error:
        pytest.skip(str(error))
    vectors = model.encode(["She opened the door.", "He closed the window.", ""])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
