"""generation.py without torch: against plain loops over our own forward, and what cannot be asked."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import tinyroberta
from tinyroberta import EncoderDecoderModel, Error, RobertaPreLayerNormConfig, RobertaPreLayerNormForCausalLM
from tinyroberta.demo import FOLDER
from tinyroberta.generation import KEPT, Choice, settings
from tinyroberta.generation import REFUSED as NOT_DONE

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


# What a checkpoint says of generation.


def checkpoint(folder: Path, where: str, said: dict) -> RobertaPreLayerNormForCausalLM:
    """A saved model whose config.json or generation_config.json says something more."""
    shaken().save_pretrained(folder)
    content = (
        json.loads((folder / "config.json").read_text()) if where == "config.json" else {"eos_token_id": 2, "pad_token_id": 1}
    )
    (folder / where).write_text(json.dumps(content | said))
    return tinyroberta.load(folder, dtype="float64")


@pytest.mark.parametrize("where", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "said",
    [
        {"max_length": 11},
        {"max_new_tokens": 3},
        {"max_length": 30, "num_beams": 3, "no_repeat_ngram_size": 2, "length_penalty": 2.0, "early_stopping": True},
        {"repetition_penalty": 1.7, "bad_words_ids": [[5]], "max_length": 12},
        {"min_length": 9, "eos_token_id": [2, 23]},
        {"num_beams": 4, "num_return_sequences": 2},
    ],
    ids=str,
)
def test_a_checkpoints_settings_are_the_defaults(tmp_path: Path, model, where: str, said: dict) -> None:
    loaded = checkpoint(tmp_path, where, said | {"transformers_version": "4.12.5", "temperature": None})
    wanted = model.generate(IDS, **said)
    assert wanted.shape != model.generate(IDS).shape or (wanted != model.generate(IDS)).any()
    np.testing.assert_array_equal(loaded.generate(IDS), wanted)
    loaded.save_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(tinyroberta.load(tmp_path / "again", dtype="float64").generate(IDS), wanted)


def test_generation_config_stands_before_config(tmp_path: Path, model) -> None:
    loaded = checkpoint(tmp_path, "config.json", {"max_length": 12, "num_beams": 3})
    assert loaded.generate(IDS).shape[1] == 12
    (tmp_path / "generation_config.json").write_text(json.dumps({"max_new_tokens": 5}))
    loaded = tinyroberta.load(tmp_path, dtype="float64")
    np.testing.assert_array_equal(loaded.generate(IDS), model.generate(IDS, max_new_tokens=5, eos_token_id=[]))
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(Error, match=r"generation_config\.json is not valid JSON"):
        tinyroberta.load(tmp_path)


@pytest.mark.parametrize(
    ("said", "given", "followed"),
    [
        ({"max_length": 30}, {"max_new_tokens": 3}, {"max_new_tokens": 3}),
        ({"max_new_tokens": 30}, {"max_length": 9}, {"max_length": 9}),
        ({"max_new_tokens": 30}, {"max_length": None}, {"max_new_tokens": 30}),
        ({"min_length": 9, "min_new_tokens": 2}, {}, {"min_new_tokens": 2}),
        ({"min_length": 9}, {"min_new_tokens": 2}, {"min_new_tokens": 2}),
        ({"temperature": 0.0, "top_p": 0.5}, {}, {}),
        ({"temperature": 0.5}, {"do_sample": True}, {"temperature": 0.5, "do_sample": True}),
        ({"do_sample": True, "top_k": 5}, {"do_sample": False}, {"do_sample": False}),
        ({"do_sample": True, "top_k": 5}, {"top_k": 0}, {"do_sample": True, "top_k": 0}),
        ({"num_beams": 4, "early_stopping": True}, {"num_beams": 1}, {"num_beams": 1, "early_stopping": True}),
        ({"forced_bos_token_id": 0}, {"forced_bos_token_id": None}, {}),
        ({"diversity_penalty": 0.0, "num_beam_groups": 1, "suppress_tokens": []}, {}, {}),
        ({"transformers_version": "4", "top_p": None, "unknown": 5}, {"own": 5}, {"own": 5}),
    ],
    ids=str,
)
def test_what_is_given_stands_before_what_is_stored(said: dict, given: dict, followed: dict) -> None:
    assert settings(None, given, said) == followed
    assert settings(said | {"eos_token_id": 2, "pad_token_id": 1}, given) == followed | {"eos_token_id": 2, "pad_token_id": 1}


def test_a_later_configuration_stands_before_an_earlier_where_it_says_something() -> None:
    decoder, pair = (
        {"max_length": 142, "num_beams": 1, "eos_token_id": 2},
        {"max_length": 20, "num_beams": 4, "eos_token_id": None},
    )
    assert settings(None, {}, decoder, pair) == {"max_length": 142, "num_beams": 4, "eos_token_id": 2}


def test_without_a_token_that_ends_texts_none_does() -> None:
    assert settings({}, {}) == {"eos_token_id": ()}
    assert settings({}, {"eos_token_id": [7, 8]}) == {"eos_token_id": [7, 8], "pad_token_id": 7}


def test_the_names_are_all_of_generates() -> None:
    assert set(Choice.__dataclass_fields__) - {"eos_token_ids"} <= set(KEPT)
    assert not set(KEPT) & set(NOT_DONE)


@pytest.mark.parametrize(
    ("name", "value"),
    [("forced_eos_token_id", 2), ("num_beam_groups", 3), ("encoder_no_repeat_ngram_size", 3), ("max_time", 2.0)],
)
def test_settings_that_are_not_done_are_named(tmp_path: Path, model, name: str, value: object) -> None:
    loaded = checkpoint(tmp_path, "config.json", {name: value})
    with pytest.raises(Error, match=f"the checkpoint's generation settings say {name} is {value!r}, which .* goes without it"):
        loaded.generate(IDS)
    np.testing.assert_array_equal(loaded.generate(IDS, **{name: NOT_DONE[name]}), model.generate(IDS))
    with pytest.raises(Error, match=f"^{name} is {value!r}"):
        model.generate(IDS, **{name: value})


HOSTILE = [
    ("max_length", "x"),
    ("num_beams", []),
    ("eos_token_id", "x"),
    ("pad_token_id", {}),
    ("bad_words_ids", 5),
    ("top_k", [1]),
]


@pytest.mark.parametrize(("name", "value"), HOSTILE)
def test_settings_that_make_no_sense_are_one_error(tmp_path: Path, name: str, value: object) -> None:
    loaded = checkpoint(tmp_path, "generation_config.json", {name: value, "do_sample": True})
    with pytest.raises(Error, match=name):
        loaded.generate(IDS)


# An encoder-decoder's.


def pair(**extra: object) -> EncoderDecoderModel:
    reading = shaken(dataclasses.replace(CONFIG, add_cross_attention=True), dtype="float64")
    encoder = tinyroberta.RobertaPreLayerNormModel(dataclasses.replace(CONFIG, is_decoder=False), seed=2, dtype="float64")
    return EncoderDecoderModel(encoder, reading, extra={"decoder_start_token_id": 0, **extra})


TEXTS = np.array([[0, 9, 17, 5, 30, 2], [0, 21, 8, 2, 1, 1]])


@pytest.mark.parametrize("pad", [1, 5, None])
def test_a_pairs_mask_is_where_its_texts_are_not_padding(pad: int | None) -> None:
    model = pair(**{} if pad is None else {"pad_token_id": pad})
    mask = ((pad or 1) != TEXTS).astype(int)
    wanted = model.generate(TEXTS, mask)
    np.testing.assert_array_equal(model.generate(TEXTS), wanted)
    assert (wanted != model.generate(TEXTS, np.ones_like(TEXTS))).any()
    np.testing.assert_array_equal(
        model.generate(TEXTS, pad_token_id=39, eos_token_id=2), model.generate(TEXTS, np.ones_like(TEXTS), pad_token_id=39)
    )
    ends = {"eos_token_id": [2, pad or 1]}  # padding that also ends texts is none
    np.testing.assert_array_equal(model.generate(TEXTS, **ends), model.generate(TEXTS, np.ones_like(TEXTS), **ends))


@pytest.mark.parametrize("where", ["pair", "decoder", "generation_config.json"])
def test_where_a_pairs_settings_are(tmp_path: Path, where: str) -> None:
    model, said = pair(), {"max_length": 9, "num_beams": 2, "decoder_start_token_id": 4, "bos_token_id": 3}
    wanted = model.generate(TEXTS, **said)
    assert (wanted[:, 0] == 4).all()
    model.extra.pop("decoder_start_token_id")
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    if where == "generation_config.json":
        (tmp_path / where).write_text(json.dumps(said | {"eos_token_id": 2, "pad_token_id": 1}))
    else:
        (content if where == "pair" else content["decoder"]).update(said)
        (tmp_path / "config.json").write_text(json.dumps(content))
    loaded = tinyroberta.load(tmp_path, dtype="float64")
    np.testing.assert_array_equal(loaded.generate(TEXTS), wanted)
    loaded.save_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(tinyroberta.load(tmp_path / "again", dtype="float64").generate(TEXTS), wanted)
    assert (loaded.generate(TEXTS, decoder_start_token_id=7)[:, 0] == 7).all()
    for start in ("x", 99):
        with pytest.raises(Error):
            loaded.generate(TEXTS, decoder_start_token_id=start)
