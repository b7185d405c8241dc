"""surgery.py: new vocabularies, other embeddings, pruned heads, and what is refused."""

import dataclasses
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tinyroberta import Error, RobertaPreLayerNormConfig, RobertaPreLayerNormForMaskedLM, RobertaPreLayerNormModel, surgery
from tinyroberta.errors import RangeError
from tinyroberta.weights.names import DECODER, DECODER_BIAS, WORDS

CONFIG = RobertaPreLayerNormConfig(
    vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, max_position_embeddings=20
)
UNTIED = dataclasses.replace(CONFIG, tie_word_embeddings=False)
IDS = np.array([[0, 5, 6, 7, 2]])


def resized(config: RobertaPreLayerNormConfig, tensors: Any, count: Any, **given: Any) -> surgery.Surgery:
    return surgery.resize(
        config, tensors, count, *(given.get(n, d) for n, d in (("multiple", None), ("mean", True), ("seed", 0)))
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("mean", [True, False])
def test_new_rows_are_drawn_as_they_should(dtype: type, mean: bool) -> None:
    """Around the old mean with 1e-9 of the old covariance, or as for a new model; a large spread makes the covariance seen."""
    random = np.random.default_rng(0)
    table = (random.standard_normal((5000, 8)) @ random.standard_normal((8, 8)) + 3).astype(np.float32)
    table = (table * (1e4 if dtype == np.float32 else 1)).astype(dtype)
    _, changed = resized(CONFIG, {WORDS: table}, 30_000, mean=mean)
    words = changed[WORDS]
    assert words.dtype == dtype
    np.testing.assert_array_equal(words[:5000], table)
    old, new = table.astype(np.float64), words[5000:].astype(np.float64)
    if not mean:
        assert abs(new.std() / CONFIG.initializer_range - 1) < 0.02
        assert np.abs(new.mean(0)).max() < 1e-3
        return
    np.testing.assert_allclose(new.mean(0), old.mean(0), rtol=1e-4 if dtype == np.float32 else 1e-2)
    if dtype == np.float32:  # in the others the spread is below the last bit
        expected = np.cov(old.T, bias=True) * 1e-9
        assert np.abs(np.cov(new.T) - expected).max() < 0.05 * np.abs(expected).max()


def test_a_large_vocabulary_takes_little_beside_itself() -> None:
    """50,265 words to 100,000 at D = 1024 took (49735, 50265) float64, 20 GB; here at D = 256."""
    D = 256
    config = RobertaPreLayerNormConfig(hidden_size=D, num_attention_heads=4, num_hidden_layers=1)
    table = np.random.default_rng(0).standard_normal((50_265, D), np.float32)
    tracemalloc.start()
    try:
        new_config, changed = resized(config, {WORDS: table}, 100_000)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert new_config.vocab_size == len(changed[WORDS]) == 100_000
    assert most < changed[WORDS].nbytes + 40e6


def test_fewer_rows_than_columns() -> None:
    """A covariance without full rank has a factor too."""
    _, changed = resized(CONFIG, {WORDS: np.ones((3, 8), np.float32)}, 40)
    np.testing.assert_allclose(changed[WORDS], 1)


@pytest.mark.parametrize("count", [40, np.int64(40), np.uint8(40), np.array(40)], ids=repr)
def test_counts_are_whole_numbers_of_any_kind(count: Any) -> None:
    model = RobertaPreLayerNormForMaskedLM(CONFIG)
    config, changed = resized(CONFIG, model.tensors, count)
    assert (config.vocab_size, type(config.vocab_size)) == (40, int)
    assert changed[DECODER] is changed[WORDS]
    assert len(changed[DECODER_BIAS]) == 40
    assert resized(CONFIG, model.tensors, 33, multiple=np.int32(8))[0].vocab_size == 40


@pytest.mark.parametrize("count", [True, np.True_, 0, -1, 40.0, "40", [40]], ids=repr)
def test_counts_that_are_none(count: Any) -> None:
    tensors = RobertaPreLayerNormForMaskedLM(CONFIG).tensors
    with pytest.raises(Error, match=r"new_num_tokens is .* whole number of at least 1"):
        resized(CONFIG, tensors, count)
    with pytest.raises(Error, match="pad_to_multiple_of is"):
        resized(CONFIG, tensors, 40, multiple=count)


@pytest.mark.parametrize("seed", [-1, 1.5, None, "1", True, [1]], ids=repr)
def test_seeds_that_are_none(seed: Any) -> None:
    with pytest.raises(Error, match=r"seed is .* whole number of at least 0"):
        RobertaPreLayerNormForMaskedLM(CONFIG, seed=seed)
    with pytest.raises(Error, match="seed is"):
        resized(CONFIG, RobertaPreLayerNormForMaskedLM(CONFIG).tensors, 40, seed=seed)
    assert RobertaPreLayerNormForMaskedLM(CONFIG, seed=np.int64(3)).tensors


def test_untied_words_and_head_are_resized_each() -> None:
    tensors = dict(RobertaPreLayerNormForMaskedLM(UNTIED).tensors)
    tensors[DECODER] = tensors[WORDS]  # one array by chance, as a .bin of shared storage gives it
    config, changed = resized(UNTIED, tensors, 40)
    assert changed[DECODER] is not changed[WORDS]
    assert changed[DECODER].shape == changed[WORDS].shape == (40, 8)
    assert RobertaPreLayerNormForMaskedLM(config, changed)(IDS).logits.shape == (1, 5, 40)


def test_embeddings_are_copied() -> None:
    model, mine = RobertaPreLayerNormForMaskedLM(CONFIG), np.ones((35, 8), np.float32)
    model.set_input_embeddings(mine)
    before = model(IDS).logits
    mine[:] = 7
    assert (model.get_input_embeddings() == 1).all()
    np.testing.assert_array_equal(RobertaPreLayerNormForMaskedLM(model.config, model.tensors)(IDS).logits, before)
    assert model.get_output_embeddings() is model.get_input_embeddings()
    assert before.shape == (1, 5, 35)


@pytest.mark.parametrize("count", [25, 40])
def test_a_length_that_only_half_of_the_model_would_have(count: int) -> None:
    weight = np.ones((count, 8), np.float32)
    tied, untied = RobertaPreLayerNormForMaskedLM(CONFIG), RobertaPreLayerNormForMaskedLM(UNTIED)
    for change in (tied.set_output_embeddings, untied.set_output_embeddings, untied.set_input_embeddings):
        with pytest.raises(Error, match=f"these are {count} embeddings, the .* has 30 words: use resize_token_embeddings"):
            change(weight)
    untied.set_output_embeddings(weight[:1].repeat(30, 0))
    untied.set_input_embeddings(weight[:1].repeat(30, 0))
    bare = RobertaPreLayerNormModel(UNTIED)
    bare.set_input_embeddings(weight)
    assert bare.config.vocab_size == count


@pytest.mark.parametrize(
    "weight", [np.ones((30, 8), int), np.ones((30, 7)), np.ones(8), np.ones((30, 8), "V2")], ids=lambda x: x.dtype
)
def test_embeddings_that_are_none(weight: Any) -> None:
    with pytest.raises(Error, match="embeddings must be floats"):
        RobertaPreLayerNormForMaskedLM(CONFIG).set_input_embeddings(weight)


@pytest.mark.parametrize("heads", [[0], {0: 1}, {"a": [0]}, {0: ["a"]}, {0: None}, {0.5: [0]}, None, 3], ids=repr)
def test_heads_that_are_none(heads: Any) -> None:
    model = RobertaPreLayerNormModel(CONFIG)
    with pytest.raises(Error, match=r"heads_to_prune is .*; it must map layers to lists of heads"):
        model.prune_heads(heads)
    assert model.config.pruned_heads == {}


def test_heads_are_pruned_by_numbers_of_any_kind() -> None:
    model = RobertaPreLayerNormModel(CONFIG)
    model.prune_heads({np.int64(1): np.array([0])})
    assert model.config.pruned_heads == {1: [0]}
    assert model.config.to_dict()["pruned_heads"] == {"1": [0]}
    with pytest.raises(RangeError):
        model.prune_heads({2: [0]})
    with pytest.raises(RangeError):
        model.prune_heads({0: [2]})
    with pytest.raises(Error, match="all of its heads"):
        model.prune_heads({0: (0, 1)})
