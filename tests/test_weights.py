"""weights/: files, names, ties, shards, refusals; and models.py's loading and saving of them."""

import contextlib
import dataclasses
import json
import struct
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tinyroberta
from tinyroberta import Error, RobertaPreLayerNormConfig, RobertaPreLayerNormForMaskedLM, RobertaPreLayerNormModel
from tinyroberta.models import CLASSES, RobertaPreLayerNormPreTrainedModel
from tinyroberta.tensors import check_layers
from tinyroberta.weights.checkpoint import Part
from tinyroberta.weights.hub import checkpoint_folder
from tinyroberta.weights.names import DECODER, PREFIX, WORDS, gather, stored_names
from tinyroberta.weights.safetensors import Tensors, open_tensors, save_tensors, shard_names, shards_beside, size_of

CONFIG = RobertaPreLayerNormConfig(
    vocab_size=30,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=20,
    type_vocab_size=1,
)
IDS = np.array([[0, 5, 6, 7, 2], [0, 9, 29, 2, 1]])
MASK = (IDS != 1).astype(int)


def shaken(name: str, config: RobertaPreLayerNormConfig = CONFIG, seed: int = 0, **running) -> RobertaPreLayerNormPreTrainedModel:
    """A small model with every tensor random, biases and gains too."""
    model = CLASSES[name](config, seed=seed, **running)
    random = np.random.default_rng(seed)
    drawn: dict[int, np.ndarray] = {}
    for value in model.tensors.values():
        drawn.setdefault(id(value), random.standard_normal(value.shape, np.float32))
    model._adopt(config, {key: drawn[id(value)] for key, value in model.tensors.items()})
    return model


def values(output) -> list[np.ndarray]:
    return [np.asarray(value) for value in output.values() if isinstance(value, np.ndarray)]


def flat(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "model.safetensors")


def rewrite(folder: Path, change, metadata: dict | None = None) -> None:
    tensors = flat(folder)
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"} | (metadata or {}))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    shaken("RobertaPreLayerNormForMaskedLM").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("shard_size", [10**9, 900])
def test_every_class_saves_and_loads_the_same_bits(tmp_path: Path, name: str, shard_size: int) -> None:
    model = shaken(name)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors").exists() == (shard_size == 10**9)
    again = tinyroberta.load(tmp_path)
    assert type(again).__name__ == name
    assert again.config.architectures == [name]
    ids = IDS[None].repeat(2, 0) if name.endswith("MultipleChoice") else IDS
    for ours, theirs in zip(values(model(input_ids=ids)), values(again(input_ids=ids)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not list(tmp_path.glob(".*"))


def test_saving_over_another_layout_leaves_one_checkpoint(tmp_path: Path) -> None:
    first, second = (shaken("RobertaPreLayerNormForMaskedLM", seed=seed) for seed in (1, 2))
    first.save_pretrained(tmp_path, max_shard_size=900)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    second.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]
    np.testing.assert_array_equal(tinyroberta.load(tmp_path)(IDS).logits, second(IDS).logits)
    first.save_pretrained(tmp_path, max_shard_size=900)
    np.testing.assert_array_equal(tinyroberta.load(tmp_path)(IDS).logits, first(IDS).logits)
    tinyroberta.load(tmp_path).save_pretrained(tmp_path)  # over the very files that are mapped
    np.testing.assert_array_equal(tinyroberta.load(tmp_path)(IDS).logits, first(IDS).logits)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_stored_dtypes(saved: Path, dtype: type) -> None:
    rewrite(saved, lambda t: t.update({name: value.astype(dtype) for name, value in t.items()}))
    model = tinyroberta.load(saved)
    assert {value.dtype for value in model.tensors.values()} == {np.dtype(dtype)}
    rounded = shaken("RobertaPreLayerNormForMaskedLM")
    rounded._adopt(CONFIG, {name: value.astype(dtype).astype(np.float32) for name, value in rounded.tensors.items()})
    np.testing.assert_array_equal(model(IDS).logits, rounded(IDS).logits)


def test_tied_weights_are_stored_once(saved: Path) -> None:
    stored = flat(saved)
    assert "lm_head.bias" in stored
    assert not {"lm_head.decoder.weight", "lm_head.decoder.bias"} & set(stored)
    assert all(name.startswith((PREFIX, "lm_head.")) for name in stored)
    model = tinyroberta.load(saved, backend="numpy")
    assert model.tensors["lm_head.decoder.weight"] is model.tensors[WORDS]
    decoder, words = model.weights["lm_head"]["decoder"], model.weights["embeddings"]["word_embeddings"]
    assert np.shares_memory(decoder["weight"], words["weight"])


def moved(old: str, new: str):
    return lambda t: t.update({new: t.pop(old)})


ACCEPTED = {
    "without the prefix": lambda t: [t.update({k.removeprefix(PREFIX): t.pop(k)}) for k in list(t)],
    "only the decoder's weight": moved(PREFIX + WORDS, "lm_head.decoder.weight"),
    "the decoder's bias": moved("lm_head.bias", "lm_head.decoder.bias"),
    "both weights, equal": lambda t: t.update({"lm_head.decoder.weight": t[PREFIX + WORDS].copy()}),
    "both biases": lambda t: t.update({"lm_head.decoder.bias": t["lm_head.bias"].copy()}),
    "position_ids": lambda t: t.update({PREFIX + "embeddings.position_ids": np.arange(20)[None]}),
    "a pooler": lambda t: t.update({PREFIX + "pooler.dense.weight": np.ones((8, 8), np.float32)}),
    "another head": lambda t: t.update({"classifier.weight": np.ones((2, 8), np.float32)}),
    "gamma and beta": lambda t: [
        t.update({k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t.pop(k)})
        for k in list(t)
        if "LayerNorm" in k
    ],
}


@pytest.mark.parametrize("change", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_names_that_files_have(saved: Path, change) -> None:
    expected = tinyroberta.load(saved)(IDS).logits
    rewrite(saved, change)
    np.testing.assert_array_equal(tinyroberta.load(saved)(IDS).logits, expected)


def test_an_alias_in_the_metadata(saved: Path) -> None:
    expected = tinyroberta.load(saved)(IDS).logits
    rewrite(saved, moved(PREFIX + WORDS, "lm_head.decoder.weight"), {PREFIX + WORDS: "lm_head.decoder.weight"})
    config = json.loads((saved / "config.json").read_text()) | {"tie_word_embeddings": False}
    (saved / "config.json").write_text(json.dumps(config))
    np.testing.assert_array_equal(tinyroberta.load(saved)(IDS).logits, expected)


def test_a_part_has_its_own_names_and_aliases(tmp_path: Path) -> None:
    aliases = {"one.b": "one.a", "two.b": "two.a", "two.shared": "one.a", "loose": "one.a", "b": "one.a"}
    tensors = {"one.a": np.ones(2, np.float32), "two.a": np.zeros(3, np.float32), "twofold.a": np.ones(1, np.float32)}
    safetensors.numpy.save_file(tensors, tmp_path / "x", aliases)
    stored = Tensors([tmp_path / "x"])
    one, two = Part(stored, "one"), Part(stored, "two")
    assert (list(one), one.aliases) == (["a"], {"b": "a"})
    assert (list(two), two.aliases) == (["a", "shared"], {"b": "a"})
    assert (len(two), two.shape("shared"), two["shared"].tolist()) == (2, (2,), [1, 1])


def test_untied_weights(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, tie_word_embeddings=False)
    model = shaken("RobertaPreLayerNormForMaskedLM", config)
    assert model.tensors["lm_head.decoder.weight"] is not model.tensors[WORDS]
    model.save_pretrained(tmp_path)
    assert {"lm_head.bias", "lm_head.decoder.bias", "lm_head.decoder.weight"} <= set(flat(tmp_path))
    expected = model(IDS).logits
    np.testing.assert_array_equal(tinyroberta.load(tmp_path)(IDS).logits, expected)
    rewrite(tmp_path, lambda t: t.pop("lm_head.decoder.bias"))  # as 4.x writes it
    np.testing.assert_array_equal(tinyroberta.load(tmp_path)(IDS).logits, expected)
    rewrite(tmp_path, lambda t: t.pop("lm_head.bias"))
    bias = model.tensors["lm_head.decoder.bias"]
    np.testing.assert_allclose(tinyroberta.load(tmp_path)(IDS).logits, expected - bias, atol=1e-5)


def test_one_array_of_an_untied_model_is_stored_under_both_names(tmp_path: Path) -> None:
    """As a .bin of an untied model whose tensors share their storage gives it."""
    config = dataclasses.replace(CONFIG, tie_word_embeddings=False)
    tensors = dict(shaken("RobertaPreLayerNormForMaskedLM").tensors)
    assert tensors[DECODER] is tensors[WORDS]
    assert DECODER not in stored_names(tensors, True)
    save_tensors(tmp_path, stored_names(tensors, True, tied=False))
    cls = RobertaPreLayerNormForMaskedLM
    found = gather(open_tensors(tmp_path), cls.encoder_shapes(config), cls.head_shapes(config), False, "the file")
    assert set(found) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(found[name], value)


def test_tied_weights_that_differ_are_both_used(saved: Path) -> None:
    random = np.random.default_rng(1).standard_normal((30, 8)).astype(np.float32)
    rewrite(saved, lambda t: t.update({"lm_head.decoder.weight": random}))
    model = tinyroberta.load(saved)
    hidden = model.tensors[WORDS]
    assert not np.array_equal(model.tensors["lm_head.decoder.weight"], hidden)
    np.testing.assert_array_equal(model.tensors["lm_head.decoder.weight"], random)
    older = tinyroberta.load(saved, transformers_version=4)
    np.testing.assert_array_equal(older.tensors["lm_head.decoder.weight"], hidden)
    with pytest.raises(Error, match="version"):
        tinyroberta.load(saved, transformers_version=3)


def test_tied_weights_that_differ_as_each_transformers_has_them(saved: Path) -> None:
    random = np.random.default_rng(1).standard_normal((30, 8)).astype(np.float32)
    rewrite(saved, lambda t: t.update({DECODER: random}))
    stored, cls = open_tensors(saved), RobertaPreLayerNormForMaskedLM
    shapes = cls.encoder_shapes(CONFIG), cls.head_shapes(CONFIG)
    five, four = (gather(stored, *shapes, True, "the file", version=version) for version in (5, 4))
    np.testing.assert_array_equal(five[DECODER], random)
    assert four[DECODER] is four[WORDS]
    np.testing.assert_array_equal(four[WORDS], five[WORDS])
    untied = gather(stored, *shapes, False, "the file", version=4)
    np.testing.assert_array_equal(untied[DECODER], random)
    with pytest.raises(Error, match="version is 3"):
        gather(stored, *shapes, True, "the file", version=3)


def test_a_base_model_from_a_headed_file_and_back(saved: Path, tmp_path: Path) -> None:
    base = RobertaPreLayerNormModel.from_pretrained(saved)
    output = base(IDS, attention_mask=MASK)
    assert output.pooler_output is None
    assert "pooler_output" not in output
    base.save_pretrained(tmp_path / "base")
    assert not any(name.startswith(PREFIX) for name in flat(tmp_path / "base"))
    with pytest.raises(Error, match=r"missing: lm_head\.dense\.weight"):
        RobertaPreLayerNormForMaskedLM.from_pretrained(tmp_path / "base")


def test_multiple_choice_cannot_do_without_its_pooler(tmp_path: Path) -> None:
    shaken("RobertaPreLayerNormForMultipleChoice").save_pretrained(tmp_path)
    rewrite(tmp_path, lambda t: [t.pop(PREFIX + f"pooler.dense.{leaf}") for leaf in ("weight", "bias")])
    with pytest.raises(Error, match=r"2 missing: pooler\.dense\.weight"):
        tinyroberta.load(tmp_path)


def test_a_wrong_file_is_told_whole(saved: Path) -> None:
    def spoil(tensors: dict) -> None:
        tensors.pop(PREFIX + "encoder.layer.1.output.dense.bias")
        tensors["stranger"] = np.ones(3, np.float32)
        tensors[PREFIX + "LayerNorm.weight"] = np.ones(9, np.float32)

    rewrite(saved, spoil)
    with pytest.raises(Error) as told:
        tinyroberta.load(saved)
    message = str(told.value)
    assert "1 missing: encoder.layer.1.output.dense.bias" in message
    assert "1 unexpected: stranger" in message
    assert f"1 mis-shaped: {PREFIX}LayerNorm.weight is (9,), not (8,)" in message


def test_plain_roberta_is_not_taken_for_prelayernorm(saved: Path) -> None:
    content = json.loads((saved / "config.json").read_text()) | {"model_type": "bert"}
    (saved / "config.json").write_text(json.dumps(content))
    with pytest.raises(Error, match="model_type"):
        tinyroberta.load(saved)


def test_a_config_of_more_layers_than_the_file_could_hold(saved: Path) -> None:
    content = json.loads((saved / "config.json").read_text()) | {"num_hidden_layers": 10**9}
    (saved / "config.json").write_text(json.dumps(content))
    with pytest.raises(Error, match="layers"):
        tinyroberta.load(saved)


def test_layers_are_counted_before_they_are_named(saved: Path) -> None:
    stored = open_tensors(saved)
    check_layers(dataclasses.replace(CONFIG, num_hidden_layers=len(stored)), stored, "the file")
    with pytest.raises(Error, match=f"the file: config.json says {len(stored) + 1} layers, the weights are only {len(stored)}"):
        check_layers(dataclasses.replace(CONFIG, num_hidden_layers=len(stored) + 1), stored, "the file")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architectures": ["BertModel"]}, "BertModel"),
        ({"vocab_size": 31}, "mis-shaped"),
        ({"num_hidden_layers": 3}, "layers|missing"),
    ],
)
def test_a_config_that_does_not_fit(saved: Path, change: dict, said: str) -> None:
    content = json.loads((saved / "config.json").read_text()) | change
    (saved / "config.json").write_text(json.dumps(content))
    with pytest.raises(Error, match=said):
        tinyroberta.load(saved)


def test_integer_weights_are_refused(saved: Path) -> None:
    rewrite(saved, lambda t: t.update({"lm_head.bias": np.zeros(30, np.int64)}))
    with pytest.raises(Error, match=r"lm_head\.bias"):
        tinyroberta.load(saved)


def test_indexes_that_lie(tmp_path: Path) -> None:
    shaken("RobertaPreLayerNormForMaskedLM").save_pretrained(tmp_path, max_shard_size=900)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    for weight_map, said in (
        ({"a": "../secret.safetensors"}, "not a file beside it"),
        ({"a": 3}, "not a file beside it"),
        ({}, "weight_map"),
        ({"a": "absent.safetensors"}, "absent"),
        (content["weight_map"] | {"stranger": "model-00001-of-00002.safetensors"}, "model-|stranger"),
    ):
        index.write_text(json.dumps(content | {"weight_map": weight_map}))
        with pytest.raises(Error, match=said):
            open_tensors(tmp_path)
    index.unlink()
    with pytest.raises(Error, match=r"neither model\.safetensors nor"):
        tinyroberta.load(tmp_path)


def test_the_same_tensor_in_two_shards(tmp_path: Path) -> None:
    for name in ("a", "b"):
        safetensors.numpy.save_file({"x": np.ones(2, np.float32)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(Error, match="both hold x"):
        Tensors([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])


def test_nothing_is_read_before_it_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**32], "data_offsets": [0, 2**34]}}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 2**34)  # 16 GiB, none of them on the disk
    tensors = open_tensors(tmp_path)
    assert tensors.shape("x") == (2**32,)
    assert tensors["x"][:3].tolist() == [0, 0, 0]


@pytest.mark.filterwarnings("ignore:.*left out here")  # a name may be what is damaged
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_corrupt_files_are_one_error(saved: Path, data: st.DataObject) -> None:
    path = saved / "model.safetensors"
    content = bytearray(path.read_bytes())
    length = 8 + struct.unpack("<Q", content[:8])[0]
    kind = data.draw(st.sampled_from(["cut", "flip", "junk"]))
    if kind == "cut":
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    elif kind == "flip":
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, length - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        content = bytearray(data.draw(st.binary(max_size=200)))
    broken = saved / "broken"
    broken.mkdir(exist_ok=True)
    (broken / "config.json").write_bytes((saved / "config.json").read_bytes())
    (broken / "model.safetensors").write_bytes(content)
    with contextlib.suppress(Error):  # and no other exception; a flip may leave a valid file
        tinyroberta.load(broken)


def test_a_save_that_fails_leaves_what_was_there(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def fail(path, *_) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tinyroberta.weights.safetensors, "stream", fail)
    with pytest.raises(Error, match="No space left"):
        save_tensors(saved, {"x": np.ones(3, np.float32)})
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_shard_names_are_files_beside_the_index(tmp_path: Path) -> None:
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"weight_map": {"a": "x", "b": "x", "c": "w"}}))
    assert shard_names(index) == ["w", "x"]


def test_every_shard_that_an_index_names_must_be_there(tmp_path: Path) -> None:
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"weight_map": {"a": "x", "b": "y"}}))
    (tmp_path / "x").touch()
    with pytest.raises(Error, match=r"index\.json names y, which .* does not hold"):
        shards_beside(index)
    (tmp_path / "y").touch()
    assert shards_beside(index) == [tmp_path / "x", tmp_path / "y"]


@pytest.mark.parametrize(
    ("size", "bytes_"),
    [(7, 7), ("7", 7), ("5GB", 5 * 10**9), ("500 MB", 5 * 10**8), ("1.5GB", 15 * 10**8), ("2KiB", 2048), ("1TB", 10**12)],
)
def test_sizes_as_hugging_face_spells_them(size: int | str, bytes_: int) -> None:
    assert size_of(size) == bytes_


@pytest.mark.parametrize("size", [0, -1, True, 1.5, None, "", "0", "0GB", "-1GB", "5gb", "GB", "5 gigabytes", "9" * 5000, b"5GB"])
def test_sizes_that_are_none(tmp_path: Path, size: object) -> None:
    with pytest.raises(Error, match="max_shard_size is"):
        save_tensors(tmp_path, {"x": np.ones(3, np.float32)}, size)
    assert not list(tmp_path.iterdir())


def test_a_shard_size_in_words(tmp_path: Path) -> None:
    save_tensors(tmp_path, {"x": np.ones(300, np.float32), "y": np.ones(300, np.float32)}, "2KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) == 2


@pytest.mark.parametrize(
    "given", ["a" * 5000, "a/" + "b" * 5000, "~nosuchuser/x", 5, None, b"x", b"a/b", ["x"], "a\0b", "~\0/x", "\ud800/x"]
)
def test_what_is_no_path(given: object) -> None:
    with pytest.raises(Error) as told:
        checkpoint_folder(given)
    assert len(str(told.value)) < 250


def test_a_new_model_is_drawn_with_its_seed() -> None:
    one, same, other = (RobertaPreLayerNormForMaskedLM(CONFIG, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one(IDS).logits, same(IDS).logits)
    assert not np.array_equal(one(IDS).logits, other(IDS).logits)
    wide = RobertaPreLayerNormForMaskedLM(dataclasses.replace(CONFIG, vocab_size=4000), seed=0)
    words = wide.tensors[WORDS]
    assert not words[CONFIG.pad_token_id].any()
    assert abs(words.std() / CONFIG.initializer_range - 1) < 5 / (2 * words.size) ** 0.5
    assert (wide.tensors["LayerNorm.weight"] == 1).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"dtype": "float16"},
        {"matmul_precision": "low"},
        {"threads": 0},
        {"threads": 1.5},
        {"backend": "abacus"},
        {"reproducible": True, "dtype": "float64"},
    ],
    ids=str,
)
def test_settings_that_cannot_be(saved: Path, wrong: dict) -> None:
    with pytest.raises(Error):
        tinyroberta.load(saved, **wrong)


def test_threads(saved: Path) -> None:
    pytest.importorskip("threadpoolctl")
    np.testing.assert_allclose(tinyroberta.load(saved, threads=1)(IDS).logits, tinyroberta.load(saved)(IDS).logits, rtol=1e-5)


def test_a_model_says_its_class_size_backend_and_precision(saved: Path) -> None:
    model = tinyroberta.load(saved, "numpy", "float64")
    size = f"{model.num_parameters:,} parameters, 2 layers of width 8"
    assert repr(model) == f"<RobertaPreLayerNormForMaskedLM: {size}; numpy, float64, highest>"
    exact = tinyroberta.load(saved, "numpy", matmul_precision="high", reproducible=True)
    assert repr(exact).endswith("; numpy, float32, high, reproducible>")
    decoding = dataclasses.replace(CONFIG, is_decoder=True, add_cross_attention=True)
    pair = tinyroberta.EncoderDecoderModel(shaken("RobertaPreLayerNormModel"), shaken("RobertaPreLayerNormForCausalLM", decoding))
    assert repr(pair) == f"<EncoderDecoderModel: encoder {pair.encoder!r}, decoder {pair.decoder!r}>"


def test_a_causal_model_that_is_none_warns(tmp_path: Path) -> None:
    shaken("RobertaPreLayerNormForCausalLM").save_pretrained(tmp_path / "encoder")
    shaken("RobertaPreLayerNormForCausalLM", dataclasses.replace(CONFIG, is_decoder=True)).save_pretrained(tmp_path / "decoder")
    with pytest.warns(UserWarning, match="is_decoder is false") as told:
        tinyroberta.load(tmp_path / "encoder")
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tinyroberta.load(tmp_path / "decoder")
