"""Texts of any lengths, without padding, have the padded call's bits; first rows are right wherever padding stands."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models_for_tests import new_model, skip_without

from tinyroberta import Error, RobertaPreLayerNormConfig
from tinyroberta.call import Given, prepare
from tinyroberta.config import CONFIGS
from tinyroberta.family import KIN
from tinyroberta.heads import HEADS
from tinyroberta.inputs import arrange, packed_position_ids, position_ids_of, ragged

SIZES = {"vocab_size": 30, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 40}
CONFIG = RobertaPreLayerNormConfig(**SIZES, max_position_embeddings=40, initializer_range=0.2)
PAD = 1
LENGTHS = [[1], [7], [5, 5, 5], [3, 9, 1, 20]]
RUNNING = [
    {"backend": "numpy", "dtype": "float64"},
    {"backend": "numpy", "reproducible": True},
    *({"backend": "cpu", "matmul_precision": precision} for precision in ("highest", "medium")),
    {"backend": "cpu", "reproducible": True},
]
some = settings(max_examples=60, deadline=None, derandomize=True)


def texts_of(lengths: list[int]) -> list[list[int]]:
    random = np.random.default_rng(len(lengths))
    texts = [random.integers(2, 30, length).tolist() for length in lengths]
    texts[-1][len(texts[-1]) // 2] = PAD  # a pad token that the mask attends to
    return texts


def padded(texts: list[list[int]], left: bool = False) -> tuple[Any, Any]:
    length = max(map(len, texts))
    ids, mask = np.full((len(texts), length), PAD), np.zeros((len(texts), length), int)
    for b, text in enumerate(texts):
        place = slice(length - len(text), length) if left else slice(0, len(text))
        ids[b, place], mask[b, place] = text, 1
    return ids, mask


def assert_same_bits(model: Any, texts: list[list[int]]) -> None:
    ids, mask = padded(texts)
    wanted = model(ids, mask, use_cache=False).last_hidden_state
    encoded = model._encode_ragged(texts)
    assert np.array_equal(encoded.rows.unpack(encoded.last), wanted)
    assert np.array_equal(encoded.first(), wanted[:, 0])


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("running", RUNNING, ids=lambda running: "-".join(map(str, running.values())))
def test_texts_without_padding_have_the_padded_calls_bits(running: dict[str, Any], lengths: list[int]) -> None:
    skip_without(running["backend"])
    assert_same_bits(new_model(KIN["roberta-prelayernorm"]["Model"], CONFIG, **running), texts_of(lengths))


@pytest.mark.parametrize(
    "change",
    [
        {"is_decoder": True},
        {"position_embedding_type": "relative_key"},
        {"chunk_size_feed_forward": 5},
        {"hidden_act": np.tanh},
        {"output_hidden_states": True, "output_attentions": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("model_type", CONFIGS)
def test_whatever_the_configuration_says(model_type: str, change: dict[str, Any]) -> None:
    fields = {**SIZES, "max_position_embeddings": 40, "initializer_range": 0.2, **change}
    model = new_model(KIN[model_type]["Model"], CONFIGS[model_type](**fields), backend="numpy")
    assert_same_bits(model, texts_of([3, 10, 1, 20]))


@some
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), causal=st.booleans(), data=st.data())
def test_rows_and_positions_are_those_of_the_padded_texts(lengths: list[int], causal: bool, data: st.DataObject) -> None:
    texts = [data.draw(st.lists(st.integers(0, 5), min_size=length, max_size=length)) for length in lengths]
    ids, mask = padded(texts)
    wanted = arrange(mask, mask.shape, None, causal=causal, whole=False, skip=True, dtype=np.float64)
    found = ragged(np.array(lengths), causal)
    for name, expected in wanted._asdict().items():
        value = getattr(found, name)
        if name == "sequences":
            assert all(
                np.array_equal(x, y) and np.asarray(x).dtype == np.asarray(y).dtype for x, y in zip(value, expected, strict=True)
            )
        else:
            assert np.array_equal(value, expected), name
    flat = np.concatenate(texts)
    assert np.array_equal(wanted.pack(ids), flat)
    positions = wanted.pack(position_ids_of(None, ids, mask.shape, 0, CONFIG))
    assert np.array_equal(packed_position_ids(flat, np.array(lengths), CONFIG), positions)


@some
@given(data=st.data(), whole=st.booleans(), skip=st.booleans(), fractional=st.booleans())
def test_what_is_packed_unpacks_and_first_rows_are_of_position_0(
    data: st.DataObject, whole: bool, skip: bool, fractional: bool
) -> None:
    """Padding on the left, on the right and in holes."""
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 6)))
    tokens = st.lists(st.sampled_from([0, 1]), min_size=shape[1], max_size=shape[1])
    mask = np.array(data.draw(st.lists(tokens, min_size=shape[0], max_size=shape[0])))
    x = np.random.default_rng(0).standard_normal((*shape, 3))
    rows = arrange(mask * 0.5 if fractional else mask, shape, None, causal=False, whole=whole, skip=skip, dtype=np.float64)
    assert np.array_equal(rows.unpack(rows.pack(x))[mask == 1], x[mask == 1])
    assert np.array_equal(rows.first(rows.pack(x)), x[:, 0])


@pytest.mark.parametrize("reproducible", [False, True])
def test_a_texts_rows_do_not_depend_on_its_padding(reproducible: bool) -> None:
    config = dataclasses.replace(CONFIG, pad_token_id=PAD)
    model = new_model(KIN["roberta-prelayernorm"]["Model"], config, backend="numpy", reproducible=reproducible)
    texts = texts_of([3, 9, 1, 6])
    alone = np.concatenate([model._encode_ragged([text]).last for text in texts])
    for left in (False, True):
        ids, mask = padded(texts, left)
        given = Given(ids, mask, None, None, None, None)
        ready = prepare(model.config, model.ops, np.dtype("float32"), given, {}, False)
        assert bool((ready.rows.attended is not None) == left)
        found = ready.rows.unpack(model._encode(model.ops, ready).last)[mask == 1]
        np.testing.assert_allclose(found, alone, rtol=1e-5, atol=1e-6)
        assert not reproducible or np.array_equal(found, alone)


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ([], "at least one text"),
        ([[5], []], r"the texts have \[1, 0\] tokens"),
        ([[5], [30]], "input_ids holds 30; this model allows 0 to 29"),
        ([[5], [0.5]], "text 1 has dtype float64"),
        ([[5], [[6]]], r"text 1 has shape \(1, 1\)"),
        ([[5], [6] * 39], "a text has 39 tokens; this model reads at most 38"),
    ],
)
def test_what_is_no_text_is_told(texts: list[Any], told: str) -> None:
    model = new_model(KIN["roberta-prelayernorm"]["Model"], CONFIG, backend="numpy")
    with pytest.raises(Error, match=told):
        model._encode_ragged(texts)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("running", RUNNING, ids=lambda running: "-".join(map(str, running.values())))
@pytest.mark.parametrize("head", HEADS)
def test_every_head_gives_packed_what_a_call_gives(head: str, running: dict[str, Any], relative: bool) -> None:
    pytest.importorskip(running["backend"])
    more = {"position_embedding_type": "relative_key_query"} if relative else {}
    config = dataclasses.replace(CONFIG, type_vocab_size=2, is_decoder=head == "ForCausalLM", num_labels=2, **more)
    model = new_model(KIN["roberta-prelayernorm"][head], config, **running)
    texts = texts_of([3, 9, 1, 20])
    types = [(np.arange(len(text)) % 2).tolist() for text in texts]
    ids, mask = padded(texts)
    whole_types = np.zeros_like(ids)
    whole_types[mask == 1] = np.concatenate(types)
    inputs = [ids, mask, whole_types]
    if head == "ForMultipleChoice":
        inputs = [ids[:, None], whole_types[:, None], mask[:, None]]
    wanted = dict(model(*inputs, **({"use_cache": False} if config.is_decoder else {})).items())
    found = dict(model.packed(texts, types).items())
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        by_token = name in ("last_hidden_state", "start_logits", "end_logits") or value.shape[0] == sum(map(len, texts))
        expected = wanted[name][mask == 1] if by_token else wanted[name]
        assert np.array_equal(value, expected), name


@pytest.mark.parametrize("relative", [False, True])
def test_a_language_model_scores_the_places_asked_for(relative: bool) -> None:
    more = {"position_embedding_type": "relative_key"} if relative else {}
    config = dataclasses.replace(CONFIG, **more)
    model = new_model(KIN["roberta-prelayernorm"]["ForMaskedLM"], config, backend="numpy", reproducible=True)
    texts = texts_of([3, 9, 1])
    ids, mask = padded(texts)
    wanted = model(ids, mask).logits[mask == 1]
    assert np.array_equal(model.packed(texts, places=np.array([0, 4, 12])).logits, wanted[[0, 4, 12]])


def test_token_types_that_do_not_fit_are_told() -> None:
    model = new_model(KIN["roberta-prelayernorm"]["Model"], CONFIG, backend="numpy")
    with pytest.raises(Error, match="a number for every token"):
        model.packed([[5, 6]], [[0]])
    with pytest.raises(Error, match="token_type_ids holds 2; this model allows 0 to 1"):
        model.packed([[5, 6]], [[0, 2]])
