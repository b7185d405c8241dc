"""tinyroberta.trace: every name of every class on the CPU's backends and paths, and what a function puts in an array's place.

The names and numbers against transformers' own modules: test_live_tap.py. On a GPU's kernels: test_cupy_backend.py.
"""

import threading
from typing import Any

import numpy as np
import pytest
from models_for_tests import Arrays, assert_equal, assert_traced, host_arrays, new_model, relative_error

import tinyroberta
from tinyroberta import EncoderDecoderModel, Error, trace
from tinyroberta.backends import REPRODUCIBLE
from tinyroberta.backends import numpy as definition
from tinyroberta.config import CONFIGS
from tinyroberta.family import KIN
from tinyroberta.weights.names import FAMILIES

try:
    from tinyroberta.backends.numba import paths

    PATHS = tuple(path for path in paths.PATHS if paths.reason_against(path) is None)
except ImportError:
    PATHS = ()

SIZES = {
    "vocab_size": 50,
    "hidden_size": 48,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 70,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "num_labels": 2,
}
WAYS: list[dict[str, Any]] = [
    {"backend": "numpy", "dtype": "float64"},
    {"backend": "numpy"},
    {"backend": "numpy", "reproducible": True},
    *(
        {"backend": "cpu", "matmul_precision": precision, "reproducible": exact, "path": path}
        for path in PATHS
        for precision in ("highest", "high", "medium")
        for exact in (False, True)
    ),
]
FAR = {"highest": 2e-5, "high": 4e-3, "medium": 6e-2}  # from float64, of any one array of a random model


def name_of(way: dict[str, Any]) -> str:
    return "-".join(str(value) for name, value in way.items() if name != "reproducible" or value)


@pytest.fixture(params=WAYS, ids=name_of)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """How a model is run: every backend, path and precision that this machine has."""
    running = dict(request.param)
    if "path" in running:
        monkeypatch.setenv("TINYROBERTA_CPU", running.pop("path"))
    return running


def texts(classes: int = 1, seed: int = 0) -> Arrays:
    """Three texts of which two are padded, one on the left."""
    random = np.random.default_rng(seed)
    mask = np.ones((3, 9), np.int64)
    mask[1, 5:] = mask[2, :3] = 0
    ids = np.where(mask == 1, random.integers(3, 50, mask.shape), 1)
    if classes > 1:
        ids, mask = (np.stack([x] * classes, 1) for x in (ids, mask))
    return {"input_ids": ids, "attention_mask": mask}


def model_of(
    model_type: str = "roberta-prelayernorm", place: int = 2, running: dict[str, Any] | None = None, **config: Any
) -> Any:
    """A random model of a family, by the place of its class among the seven."""
    cls = list(KIN[model_type].values())[place]
    config = {"is_decoder": place == 1} | config
    return new_model(cls, CONFIGS[model_type](**SIZES | config), **(running or {"backend": "numpy"}))


def pair(running: dict[str, Any]) -> EncoderDecoderModel:
    """An encoder and a decoder of another width."""
    encoder = model_of("roberta", 0, running)
    decoder = model_of(place=1, running=running, add_cross_attention=True, hidden_size=24, num_attention_heads=2)
    random = np.random.default_rng(1)
    projection = {"weight": random.standard_normal((24, 48), np.float32), "bias": random.standard_normal(24, np.float32)}
    return EncoderDecoderModel(encoder, decoder, projection)


# What passes.


@pytest.mark.parametrize("model_type", ["roberta-prelayernorm", "roberta", "xlm-roberta-xl"])
def test_a_trace_changes_no_bit_and_holds_what_the_outputs_hold(way: dict[str, Any], model_type: str) -> None:
    seen = assert_traced(model_of(model_type, running=way), texts())
    definition = model_of(model_type, running={"backend": "numpy", "dtype": "float64"})
    with trace(definition) as exact:
        definition(**texts())
    assert list(seen) == list(exact)
    for name in exact:
        assert seen[name].dtype == way.get("dtype", "float32")
        assert relative_error(seen[name], exact[name]) < FAR[way.get("matmul_precision", "highest")], name


@pytest.mark.parametrize("place", range(7))
@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_class(model_type: str, place: int) -> None:
    seen = assert_traced(model_of(model_type, place), texts(1 + (place == 4)))
    first = seen.calls[0]
    assert len(seen.calls) == 1
    for name in seen:
        computed = len(texts()["input_ids"]) if name.startswith(("pooler", "classifier")) and place in (0, 3, 4) else None
        computed = 6 if computed and place == 4 else computed
        assert len(seen[name]) == (computed or first.rows.sequences.query_start[-1]), name


def test_norms_whose_gains_the_weights_took_in_are_shown_as_the_checkpoint_has_them(way: dict[str, Any]) -> None:
    model = model_of(running=way)
    tensors = dict(model.tensors)
    for norm in ("encoder.layer.1.attention.LayerNorm", "encoder.layer.0.intermediate.LayerNorm", "lm_head.layer_norm"):
        tensors[f"{norm}.weight"] = tensors[f"{norm}.weight"].copy()
        tensors[f"{norm}.weight"][[3, 7]] = 60, -40
        tensors[f"{norm}.bias"] = tensors[f"{norm}.bias"].copy()
        tensors[f"{norm}.bias"][11], tensors[f"{norm}.weight"][11] = 50, 0
    kind, config = type(model), model.config
    seen = assert_traced(kind(config, tensors, **way), texts())
    with trace(exact := kind(config, tensors, backend="numpy", dtype="float64")) as expected:
        exact(**texts())
    for name in expected:
        error = np.linalg.norm(seen[name] - expected[name], axis=0) / (1 + np.linalg.norm(expected[name], axis=0))
        assert error.max() < 10 * FAR[way.get("matmul_precision", "highest")], name


def test_layers_that_share_their_weights_have_their_own_names(way: dict[str, Any]) -> None:
    model = model_of(running=way)
    shared = {name: model.tensors[name.replace("layer.1.", "layer.0.")] for name in model.tensors}
    seen = assert_traced(type(model)(model.config, shared, **way), texts())
    assert list(seen) == model.tap_names()
    assert not np.array_equal(seen["encoder.layer.0.output.dense"], seen["encoder.layer.1.output.dense"])


def test_relative_positions_chunks_and_masks_of_heads(way: dict[str, Any]) -> None:
    ids, heads = {"input_ids": texts()["input_ids"]}, np.array([[1, 0.5, 0], [0, 1, 1]])
    relative = {"position_embedding_type": "relative_key_query"}
    assert_traced(model_of(running=way, **relative), texts(), head_mask=heads)
    chunked = assert_traced(model_of(running=way, chunk_size_feed_forward=3), ids)
    assert {len(chunked[name]) for name in chunked} == {27}
    assert_traced(model_of(running=way), texts(), head_mask=heads, padding="compute")


def test_a_pair(way: dict[str, Any]) -> None:
    model = pair(way)
    seen = assert_traced(model, {**texts(), "decoder_input_ids": np.arange(12).reshape(3, 4) + 3})
    assert [call.part for call in seen.calls] == ["encoder.", "decoder."]
    assert "enc_to_dec_proj" in seen.calls[0].arrays
    assert seen["decoder.encoder.layer.1.crossattention.self.key"].shape == (27, 24)
    with trace(model.decoder) as own:
        model(**texts(), decoder_input_ids=[[3]] * 3)
    assert [call.part for call in own.calls] == [""]
    assert own["encoder.layer.1"].shape == (3, 24)
    given = model.encoder(**texts())
    with trace(model) as without:
        for _ in range(2):
            model(encoder_outputs=given, decoder_input_ids=[[3]] * 3)
    assert [call.part for call in without.calls] == ["encoder.", "decoder."] * 2
    assert all(call.rows is None and list(call.arrays) == ["enc_to_dec_proj"] for call in without.calls[::2])


def test_generation_is_a_call_a_step(way: dict[str, Any]) -> None:
    model, ids = model_of(place=1, running=way), texts()["input_ids"][:1]
    written = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
    with trace(model) as seen:
        assert np.array_equal(model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None), written)
    assert [len(call.arrays["encoder.layer.1"]) for call in seen.calls] == [9, 1, 1, 1]
    assert [call.arrays["encoder.layer.0.attention.self.probs"].shape for call in seen.calls] == [
        (9, 3, 9), (1, 3, 10), (1, 3, 11), (1, 3, 12)
    ]  # fmt: skip
    past = None
    for start, end, call in zip((0, 9, 10, 11), (9, 10, 11, 12), seen.calls, strict=True):
        output = model(written[:, start:end], past_key_values=past, use_cache=True, logits_to_keep=1)
        past = output.past_key_values
        assert_equal({"": call.arrays["lm_head"]}, {"": np.asarray(output.logits[0])})
        assert np.argmax(call.arrays["lm_head"][-1]) == written[0, end]


def test_names_choose_what_is_recorded() -> None:
    model = model_of()
    with trace(model, "encoder.layer.*.output") as some:
        model(**texts())
    layers = [f"encoder.layer.{index}.{name}" for index in (0, 1) for name in ("attention.output", "output")]
    assert list(some) == list(some.names) == layers
    with trace(model, ["LayerNorm", "embeddings"]) as two, trace(model, "lm_head") as inner:
        model(**texts())
    assert (list(two), list(inner)) == (["embeddings", "LayerNorm"], ["lm_head"])
    with pytest.raises(ValueError, match="read-only"):
        two["LayerNorm"][0] = 0
    with pytest.raises(Error, match=r"encoder\.layer\.0 is not recorded"):
        two["encoder.layer.0"]
    with trace(model) as none, pytest.raises(Error, match="LayerNorm has not passed"):
        none["LayerNorm"]


def test_only_the_model_and_the_thread_that_are_traced() -> None:
    model, other = model_of(), model_of()
    with trace(model, "LayerNorm") as seen:
        other(**texts())
        thread = threading.Thread(target=lambda: model(**texts()))
        thread.start()
        thread.join()
        assert not seen.calls
        model.resize_token_embeddings(60)
        model(**texts())
    model(**texts())
    assert len(seen.calls) == 1
    assert seen["LayerNorm"].shape == (21, 48)
    with pytest.raises(RuntimeError, match="mine"), trace(model) as broken:
        raise RuntimeError("mine")
    model(**texts())
    assert not broken.calls


@pytest.mark.skipif(not PATHS, reason="no Numba here")
def test_recordings_are_not_played_and_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    from tinyroberta.backends.numba import recordings

    model = model_of(running={"backend": "cpu"})
    monkeypatch.setenv("TINYROBERTA_CPU", PATHS[0])
    outputs = [host_arrays(model, model(**texts())) for _ in range(3)]
    before = dict(model.weights.recordings)
    played: list[Any] = []
    play = recordings.Playable.play
    monkeypatch.setattr(recordings.Playable, "play", lambda self, rows: [played.append(self), play(self, rows)][1])
    with trace(model, "LayerNorm") as seen:
        assert_equal(host_arrays(model, model(**texts())), outputs[0])
    assert seen.calls
    assert not played
    assert list(model.weights.recordings.items()) == list(before.items())
    assert_equal(host_arrays(model, model(**texts())), outputs[0])
    assert len(played) == (PATHS[0] != "blas")


@pytest.mark.skipif(not PATHS, reason="no Numba here")
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_no_product_is_computed_twice(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinyroberta.backends import numba

    model = model_of(running={"backend": "numba", "matmul_precision": precision})
    linear, counts = numba.linear, []
    monkeypatch.setattr(numba, "linear", lambda *given, **more: [counts.append(1), linear(*given, **more)][1])
    for names in ([], None):
        counts.clear()
        with trace(model, names):
            model(**texts())
        assert len(counts) == 2 * 4 + 2


def test_probabilities_of_one_text_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    model, kept = model_of(), []
    attention = definition.attention
    monkeypatch.setattr(definition, "attention", lambda *given: [out := attention(*given), kept.append(out[1])][0])
    with trace(model, "*.probs") as seen:
        model(input_ids=[[4, 5, 6]])
        assert np.shares_memory(seen["encoder.layer.1.attention.self.probs"], kept[1][0])
        output = model(input_ids=[[4, 5, 6]], output_attentions=True)  # which the caller may write to
    assert not np.shares_memory(seen["encoder.layer.1.attention.self.probs"], output.attentions[1])


# What is put in its place.


def test_a_layer_of_another_run_gives_that_runs_output(way: dict[str, Any]) -> None:
    model, one, other = model_of(running=way), texts(), texts(seed=5)
    expected = host_arrays(model, model(**other))
    with trace(model) as source:
        model(**other)
    for name in ("embeddings", "encoder.layer.0", "encoder.layer.1", "LayerNorm", "lm_head"):
        with trace(model, name, {name: lambda name, _: source[name]}) as seen:
            assert_equal(host_arrays(model, model(**one)), expected)
        assert_equal({"": seen[name]}, {"": source[name]})
    queries = {f"encoder.layer.0.attention.self.{part}": lambda name, _: source[name] for part in ("query", "key", "value")}
    with trace(model, replace=queries) as seen:
        model(**one)
    assert_equal(*({"": x["encoder.layer.0.attention.self"]} for x in (seen, source)))
    assert not np.array_equal(seen["encoder.layer.0"], source["encoder.layer.0"])


def test_every_name_replaced_is_what_follows_reads(way: dict[str, Any]) -> None:
    model = model_of(running=way)
    plain = model(**texts()).logits
    for name in model.tap_names():
        with trace(model, [name], {name: lambda _, x: 1.5 * x + 0.25 * np.arange(x.shape[-1]) ** 0.5}) as seen:
            changed = model(**texts()).logits
        assert not np.array_equal(changed, plain), name
        assert np.isfinite(changed).all(), name
        with trace(model, [], {name: lambda name, _, found=seen: found[name]}):  # as it was recorded
            again = model(**texts()).logits
        assert relative_error(again, changed) < (1e-2 if way.get("matmul_precision") == "medium" else 1e-4), name


def test_ablating_a_head(way: dict[str, Any]) -> None:
    model, heads = model_of(running=way), np.ones((2, 3))
    heads[0, 1] = 0
    expected = model(**texts(), head_mask=heads).logits

    def without(_: str, context: Any) -> Any:
        context[:, 16:32] = 0
        return context

    def unread(_: str, probs: Any) -> Any:
        probs[:, 1] = 0
        return probs

    with trace(model, [], {"encoder.layer.0.attention.self": without}):
        cut = model(**texts()).logits
    with trace(model, [], {"encoder.layer.0.attention.self.probs": unread}):
        kept = model(**texts(), output_attentions=True)
    medium = way.get("matmul_precision") == "medium" and not way.get("reproducible")
    assert relative_error(cut, expected) < (1e-2 if medium else 2e-5)
    assert relative_error(kept.logits, expected) < (1e-2 if medium else 2e-5)
    assert not kept.attentions[0][:, 1].any()
    assert kept.attentions[1][:, 1].any()
    if way["backend"] == "numpy":
        assert_equal({"": cut}, {"": expected})


def test_a_steering_vector(way: dict[str, Any]) -> None:
    model = model_of(place=0, running=way)
    vector = np.random.default_rng(2).standard_normal(48).astype(np.float32)
    with trace(model, ["encoder.layer.1", "LayerNorm"], {"encoder.layer.1": lambda _, x: x + 3 * vector}) as seen:
        output = model(**texts())
    with trace(model, "encoder.layer.1") as plain:
        model(**texts())
    assert_equal({"": seen["encoder.layer.1"]}, {"": plain["encoder.layer.1"] + 3 * vector})
    tensors = {name: model.tensors[f"LayerNorm.{name}"] for name in ("weight", "bias")}
    exact = definition.layer_norm(
        (plain["encoder.layer.1"] + 3 * vector).astype(float), **tensors, eps=model.config.layer_norm_eps
    )
    assert relative_error(seen["LayerNorm"], exact) < 1e-6
    assert_equal({"": seen.calls[0].rows.unpack(seen["LayerNorm"])}, {"": output.last_hidden_state})


def test_a_product_before_its_activation(way: dict[str, Any]) -> None:
    model = model_of(running=way)
    names = [f"encoder.layer.0.{name}" for name in ("intermediate", "output.dense", "output")]
    with trace(model, names, {"*.intermediate.dense": lambda _, x: 0 * x, "*.0.output.dense": lambda _, x: x + 1}) as seen:
        model(**texts())
    assert not seen[names[0]].any()
    bias = model.tensors["encoder.layer.0.output.dense.bias"]
    assert relative_error(seen[names[1]], np.broadcast_to(bias + 1, (21, 48))) < 1e-6


def test_functions_in_order_and_none_for_nothing() -> None:
    model = model_of()
    plain = model(**texts()).logits
    called: list[str] = []
    steps = {"LayerNorm": lambda _, x: 2 * x, "Layer*": lambda _, x: x + 1}
    with trace(model, "LayerNorm", steps) as seen:
        model(**texts())
    with trace(model, "LayerNorm") as untouched:
        model(**texts())
    assert_equal({"": seen["LayerNorm"]}, {"": 2 * untouched["LayerNorm"] + 1})
    with trace(model, [], {"encoder*": lambda name, _: called.append(name)}):
        assert_equal({"": model(**texts()).logits}, {"": plain})
    assert called == [name for name in model.tap_names() if name.startswith("encoder")]


@pytest.mark.parametrize(("given", "told"), [
    ({"names": "encoder.layer.2"}, "names: 'encoder.layer.2' is no name"),
    ({"names": ["LayerNorm", 3]}, "names: 3 is no name"),
    ({"replace": {"roberta.*": abs}}, r"replace: 'roberta\.\*' is no name"),
    ({"replace": {"LayerNorm": 0}}, "replace: 'LayerNorm' has a int; it must be a function"),
    ({"replace": {"LayerNorm": lambda _, x: x[1:]}}, r"gave an array of float32 and shape \(20, 48\); it must be .*\(21, 48\)"),
    ({"replace": {"LayerNorm": lambda *_: "a"}}, "LayerNorm gave an array of <U1"),
    ({"replace": {"LayerNorm": lambda *_: [[0], [0, 1]]}}, "what replaces LayerNorm is no array of numbers"),
])  # fmt: skip
def test_mistakes(given: dict[str, Any], told: str) -> None:
    model = model_of()
    with pytest.raises(Error, match=told), trace(model, **given):
        model(**texts())
    with pytest.raises(Error, match="was given a dict"), trace({}):
        pass


def test_every_reproducible_backend_is_tried() -> None:
    tried = {way["backend"] for way in WAYS if way.get("reproducible")}
    assert tried == set(REPRODUCIBLE) if PATHS else {"numpy"}
    assert hasattr(tinyroberta, "trace")
