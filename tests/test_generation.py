"""generation.py without torch: against plain loops over our own forward, and what cannot be asked."""

import dataclasses

import numpy as np
import pytest

from tinyroberta import Error, RobertaPreLayerNormConfig, RobertaPreLayerNormForCausalLM
from tinyroberta.demo import FOLDER

CONFIG = RobertaPreLayerNormConfig(
    vocab_size=40,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
    max_position_embeddings=64,
    type_vocab_size=1,
    is_decoder=True,
)
IDS = np.array([[0, 9, 17, 5], [0, 21, 8, 33]])


def shaken(config: RobertaPreLayerNormConfig = CONFIG, **running) -> RobertaPreLayerNormForCausalLM:
    model = RobertaPreLayerNormForCausalLM(config, **running)
    random = np.random.default_rng(4)
    drawn = {id(value): random.standard_normal(value.shape, np.float32) * 0.4 for value in model.tensors.values()}
    model._adopt(config, {name: drawn[id(value)] for name, value in model.tensors.items()})
    return model


@pytest.fixture(scope="module")
def model() -> RobertaPreLayerNormForCausalLM:
    return shaken(dtype="float64")


def by_hand(model, prompt: np.ndarray, count: int) -> np.ndarray:
    ids = prompt[None]
    for _ in range(count):
        ids = np.concatenate([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return ids[0]


@pytest.mark.parametrize("type_", ["absolute", "relative_key", "relative_key_query"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_is_a_loop_over_the_forward_pass(type_: str, use_cache: bool) -> None:
    model = shaken(dataclasses.replace(CONFIG, position_embedding_type=type_), dtype="float64")
    for prompt in IDS:
        wanted = by_hand(model, prompt, 12)
        np.testing.assert_array_equal(
            model.generate(prompt[None], max_new_tokens=12, eos_token_id=[], use_cache=use_cache)[0], wanted
        )


@pytest.mark.parametrize("type_", ["relative_key", "relative_key_query"])
def test_relative_positions_reach_as_far_as_they_say(type_: str) -> None:
    model = shaken(dataclasses.replace(CONFIG, position_embedding_type=type_, max_position_embeddings=12), dtype="float64")
    assert np.isfinite(model(np.full((1, 12), 5)).logits).all()
    assert model.generate(IDS, max_length=13, eos_token_id=[]).shape == (2, 13)
    for call in (lambda: model(np.full((1, 13), 5)), lambda: model.generate(IDS, max_length=14, eos_token_id=[])):
        with pytest.raises(Error, match="reach 12"):
            call()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(model, side: str) -> None:
    room = (2, 0) if side == "left" else (0, 2)
    padded = np.stack([np.pad(IDS[0, :2], room, constant_values=1), IDS[1]])
    mask = np.stack([np.pad([1, 1], room), [1, 1, 1, 1]])
    for given in ({}, {"attention_mask": mask}):
        together = model.generate(padded, **given, max_new_tokens=8, eos_token_id=[])
        np.testing.assert_array_equal(together[:, :4], padded)
        np.testing.assert_array_equal(together[0, 4:], by_hand(model, IDS[0, :2], 8)[2:])
        np.testing.assert_array_equal(together[1], by_hand(model, IDS[1], 8))


def test_a_sequence_that_ended_goes_on_with_padding(model) -> None:
    free = model.generate(IDS, max_new_tokens=10, eos_token_id=[])
    eos = int(free[0, 6])
    ended = model.generate(IDS, max_new_tokens=10, eos_token_id=eos)
    for row, wanted in zip(ended, free, strict=True):
        stops = np.flatnonzero(wanted[4:] == eos)
        end = 4 + stops[0] + 1 if len(stops) else len(row)
        np.testing.assert_array_equal(row[:end], wanted[:end][: len(row)])
        assert (row[end:] == 1).all()


def test_one_beam_of_width_one_is_greedy_and_more_beams_find_likelier(model) -> None:
    def likelihood(ids: np.ndarray) -> np.ndarray:
        logits = model(ids, use_cache=False).logits
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return np.take_along_axis(log_p[:, 3:-1], ids[:, 4:, None], 2).sum((1, 2))

    greedy = model.generate(IDS, max_new_tokens=6, eos_token_id=[])
    output = model.generate(IDS, max_new_tokens=6, eos_token_id=[], num_beams=5, return_dict_in_generate=True)
    found = likelihood(output.sequences)
    assert (found >= likelihood(greedy) - 1e-9).all()
    np.testing.assert_allclose(output.sequences_scores, found / 6, rtol=1e-9)


def test_streamer_sees_every_step(model) -> None:
    seen = []
    ids = model.generate(IDS, max_new_tokens=5, eos_token_id=[], streamer=lambda tokens: seen.append(tokens.copy()))
    np.testing.assert_array_equal(np.stack(seen, 1), ids[:, 4:])


def test_stop_strings(model) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    free = model.generate(IDS[:1], max_new_tokens=12, eos_token_id=[])
    text = tokenizer.decode(free[0, 6:9].tolist())
    stopped = model.generate(IDS[:1], max_new_tokens=12, eos_token_id=[], stop_strings=text, tokenizer=tokenizer)
    assert text in tokenizer.decode(stopped[0, 4:].tolist())
    assert text not in tokenizer.decode(stopped[0, 4:-1].tolist())
    assert stopped.shape[1] <= 9
    with pytest.raises(Error, match="tokenizer"):
        model.generate(IDS, stop_strings=["x"])


def test_an_encoder_recomputes_both_ways() -> None:
    model = shaken(dataclasses.replace(CONFIG, is_decoder=False), dtype="float64")
    np.testing.assert_array_equal(model.generate(IDS[:1], max_new_tokens=6, eos_token_id=[])[0], by_hand(model, IDS[0], 6))


def test_a_step_costs_a_token(model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step after the first hands the layers one row for each sequence, however many came before."""
    rows = []
    layer_norm = model.ops.layer_norm
    monkeypatch.setattr(model.ops, "layer_norm", lambda x, *a, **k: rows.append(len(x)) or layer_norm(x, *a, **k))
    model.generate(IDS, max_new_tokens=30, eos_token_id=[])
    per_step = len(rows) // 30
    assert set(rows[per_step:]) == {2}


def test_a_cache_copies_itself_seldom(model) -> None:
    cache = model(IDS).past_key_values
    buffers = set()
    for _ in range(40):
        model(IDS[:, :1], past_key_values=cache)
        buffers.add(cache.layer(0)[0].keys.ctypes.data)
    assert cache.length == 44
    assert len(buffers) <= 3  # 16, 32, 64


def test_positions_do_not_count_pad_tokens_that_are_read(model) -> None:
    """As in one forward pass: a pad token that is attended stands at the padding position and those after it do not move on."""
    prompt = np.array([0, 9, 1, 7])
    tokens = model.generate(prompt[None], np.ones((1, 4)), max_new_tokens=6, eos_token_id=[], use_cache=False)
    np.testing.assert_array_equal(tokens[0], by_hand(model, prompt, 6))
    np.testing.assert_array_equal(model.generate(prompt[None], np.ones((1, 4)), max_new_tokens=6, eos_token_id=[]), tokens)


def test_narrow_integers_do_not_wrap() -> None:
    model = shaken(dataclasses.replace(CONFIG, vocab_size=700), dtype="float64")
    wide = model.generate(IDS, max_new_tokens=8, eos_token_id=[])
    assert wide.max() > 255
    np.testing.assert_array_equal(model.generate(IDS.astype(np.uint8), max_new_tokens=8, eos_token_id=[]), wide)


def test_ends_come_as_any_integers(model) -> None:
    wanted = model.generate(IDS, eos_token_id=[5, 8])
    np.testing.assert_array_equal(model.generate(IDS, eos_token_id=np.array([5, 8]), top_k=np.int64(3)), wanted)


REFUSED = [
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": None}, "top_p"),
    ({"length_penalty": "x"}, "length_penalty"),
    ({"num_beams": True}, "num_beams"),
    ({"eos_token_id": "x"}, "eos_token_id"),
    ({"eos_token_ids": (2,)}, "eos_token_ids"),
    ({"pad_token_id": 99}, "pad_token_id"),
    ({"first_position": "a"}, "first_position"),
    ({"bad_words_ids": [5]}, "bad_words_ids"),
    ({"bad_words_ids": [["a"]]}, "bad_words_ids"),
    ({"bad_words_ids": [[i] for i in range(40)], "eos_token_id": []}, "no token is left"),
    ({"stop_strings": [""]}, "stop_strings"),
    ({"stop_strings": [5]}, "stop_strings"),
    ({"stop_strings": "x", "tokenizer": 5}, "tokenizer"),
    ({"streamer": 5}, "streamer"),
    ({"max_length": 4}, "max_length"),
    ({"max_new_tokens": 0}, "max_new_tokens"),
    ({"max_new_tokens": 80}, "positions"),
    ({"temperature": 0.0}, "temperature"),
    ({"repetition_penalty": -1.0}, "repetition_penalty"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_k": -1}, "top_k"),
    ({"num_beams": 0}, "num_beams"),
    ({"num_return_sequences": 3}, "greedy"),
    ({"num_beams": 2, "num_return_sequences": 3}, "beams"),
    ({"num_beams": 2, "streamer": print}, "streamer"),
    ({"early_stopping": "often"}, "early_stopping"),
    ({"bad_words_ids": [[]]}, "empty"),
    ({"bad_words_ids": [[99]]}, "bad_words_ids"),
    ({"penalty_alpha": 0.5}, "penalty_alpha"),
    ({"attention_mask": [[1, 1, 1, 1], [0, 0, 0, 0]]}, "padding"),
    ({"attention_mask": [[1, 1], [1, 1]]}, "shape"),
]


@pytest.mark.parametrize(("wrong", "said"), REFUSED, ids=lambda x: str(x)[:50])
def test_what_cannot_be_asked(model, wrong: dict, said: str) -> None:
    with pytest.raises(Error, match=said):
        model.generate(IDS, **wrong)


@pytest.mark.parametrize("ids", [[], [[]], [[0, 40]], [[0.5]], [0, 1], [[0], [0, 1]]], ids=str)
def test_prompts_that_are_none(model, ids: list) -> None:
    with pytest.raises(Error):
        model.generate(ids)
