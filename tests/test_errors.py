"""Every input a user can get wrong gets one tinyroberta.Error, of one sentence, and out-of-range ids an IndexError too."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import tinyroberta
from tinyroberta import Error, RobertaPreLayerNormConfig
from tinyroberta.models import CLASSES

CONFIG = RobertaPreLayerNormConfig(
    vocab_size=40,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
    max_position_embeddings=20,
    type_vocab_size=2,
)
DECODER = dataclasses.replace(CONFIG, is_decoder=True)
CROSS = dataclasses.replace(DECODER, add_cross_attention=True)
IDS = np.array([[0, 9, 17, 5, 2], [0, 21, 8, 33, 2]])
STATES = np.zeros((2, 7, 24), np.float32)
Base = tinyroberta.RobertaPreLayerNormModel

WRONG = [
    (CONFIG, {}, "exactly one of input_ids and inputs_embeds", ValueError),
    (CONFIG, {"input_ids": IDS, "inputs_embeds": STATES}, "exactly one", ValueError),
    (CONFIG, {"input_ids": [[0, 40]]}, "input_ids holds 40; this model allows 0 to 39", IndexError),
    (CONFIG, {"input_ids": [[0, -1]]}, "input_ids holds -1", IndexError),
    (CONFIG, {"input_ids": [[0.0, 1.0]]}, "integers", ValueError),
    (CONFIG, {"input_ids": [["a"]]}, "integers", ValueError),
    (CONFIG, {"input_ids": [[0, 1], [0]]}, "ragged", ValueError),
    (CONFIG, {"input_ids": [0, 1]}, "batch, tokens", ValueError),
    (CONFIG, {"input_ids": IDS[None]}, "batch, tokens", ValueError),
    (CONFIG, {"input_ids": np.zeros((2, 0), int)}, "at least one", ValueError),
    (CONFIG, {"input_ids": np.zeros((0, 2), int)}, "at least one", ValueError),
    (CONFIG, {"input_ids": np.full((1, 19), 5)}, "19 tokens; this model reads at most 18", IndexError),
    (CONFIG, {"inputs_embeds": np.zeros((1, 19, 24))}, "19 tokens; this model reads at most 18", IndexError),
    (CONFIG, {"inputs_embeds": STATES[:, :, :5]}, "24", ValueError),
    (CONFIG, {"inputs_embeds": STATES[0]}, "inputs_embeds", ValueError),
    (CONFIG, {"input_ids": IDS, "token_type_ids": IDS * 0 + 2}, "token_type_ids holds 2", IndexError),
    (CONFIG, {"input_ids": IDS, "token_type_ids": [[0, 0]]}, "token_type_ids", ValueError),
    (CONFIG, {"input_ids": IDS, "position_ids": IDS * 0 + 20}, "position_ids holds 20", IndexError),
    (CONFIG, {"input_ids": IDS, "position_ids": [[1, 2]]}, "position_ids", ValueError),
    (CONFIG, {"input_ids": IDS, "position_ids": IDS * 0.5}, "position_ids", ValueError),
    (CONFIG, {"input_ids": IDS, "attention_mask": np.ones(5)}, "attention_mask", ValueError),
    (CONFIG, {"input_ids": IDS, "attention_mask": np.ones((2, 1, 1, 5))}, "attention_mask", ValueError),
    (CONFIG, {"input_ids": IDS, "attention_mask": np.ones((2, 4))}, "attention_mask", ValueError),
    (CONFIG, {"input_ids": IDS, "attention_mask": [["x"] * 5] * 2}, "attention_mask", ValueError),
    (CONFIG, {"input_ids": IDS, "head_mask": np.ones(4)}, "head_mask", ValueError),
    (CONFIG, {"input_ids": IDS, "head_mask": np.ones((1, 3))}, "head_mask", ValueError),
    (CONFIG, {"input_ids": IDS, "head_mask": np.ones((2, 2, 3))}, "head_mask", ValueError),
    (CONFIG, {"input_ids": IDS, "padding": "drop"}, "padding", ValueError),
    (CONFIG, {"input_ids": IDS, "attention_maks": IDS}, "attention_maks", ValueError),
    (dataclasses.replace(CONFIG, chunk_size_feed_forward=3), {"input_ids": IDS}, "multiple", ValueError),
    (dataclasses.replace(CONFIG, pad_token_id=None), {"input_ids": IDS}, "pad_token_id", ValueError),
    (dataclasses.replace(CONFIG, position_embedding_type="relative_key"), {"inputs_embeds": np.zeros((1, 21, 24)),
     "position_ids": np.zeros((1, 21), int)}, "relative positions reach 20", ValueError),
    (DECODER, {"input_ids": IDS, "encoder_hidden_states": STATES}, "cross-attention", ValueError),
    (CROSS, {"input_ids": IDS, "encoder_hidden_states": STATES[:1]}, "batch", ValueError),
    (CROSS, {"input_ids": IDS, "encoder_hidden_states": STATES[:, :, :3]}, "24", ValueError),
    (CROSS, {"input_ids": IDS, "encoder_hidden_states": STATES, "encoder_attention_mask": np.ones(7)}, "encoder_att", ValueError),
    (DECODER, {"input_ids": IDS, "past_key_values": [(1, 2)]}, "layers", ValueError),
    (DECODER, {"input_ids": IDS, "past_key_values": [(np.zeros((2, 3, 4)),) * 2] * 2}, "past_key_values", ValueError),
    (DECODER, {"input_ids": IDS, "past_key_values": [(np.zeros((3, 3, 2, 8)),) * 2] * 2}, "batch", ValueError),
    (DECODER, {"input_ids": IDS, "past_key_values": [(np.zeros((2, 4, 2, 8)),) * 2] * 2}, "past_key_values", ValueError),
]  # fmt: skip


@pytest.mark.parametrize(("config", "given", "said", "kind"), WRONG, ids=[str(case[2]) + str(i) for i, case in enumerate(WRONG)])
def test_one_sentence(config: RobertaPreLayerNormConfig, given: dict, said: str, kind: type) -> None:
    with pytest.raises(Error, match=said) as told:
        Base(config)(**given)
    assert isinstance(told.value, ValueError)
    assert isinstance(told.value, kind)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("longest", [18, 19])
def test_the_longest_usable_text(longest: int) -> None:
    ids = np.full((1, longest), 5)
    if longest == 18:
        assert np.isfinite(Base(CONFIG)(ids).last_hidden_state).all()
    else:
        with pytest.raises(IndexError):
            Base(CONFIG)(ids)


def test_an_encoder_that_is_given_a_source_says_that_it_ignores_it() -> None:
    with pytest.warns(UserWarning, match="ignored"):
        output = Base(CONFIG)(IDS, encoder_hidden_states=STATES)
    np.testing.assert_array_equal(output.last_hidden_state, Base(CONFIG)(IDS).last_hidden_state)


LABELS = [
    ("ForMaskedLM", {"labels": IDS[:, :3]}),
    ("ForMaskedLM", {"labels": IDS * 0 + 40}),
    ("ForMaskedLM", {"labels": IDS * 1.5}),
    ("ForCausalLM", {"labels": IDS[:1]}),
    ("ForCausalLM", {"logits_to_keep": -1}),
    ("ForCausalLM", {"logits_to_keep": np.array([9])}),
    ("ForCausalLM", {"logits_to_keep": np.array([[True, False], [True, True]])}),
    ("ForTokenClassification", {"labels": IDS}),
    ("ForSequenceClassification", {"labels": np.array([0, 2])}),
    ("ForSequenceClassification", {"labels": np.array([0, 1, 1])}),
    ("ForSequenceClassification", {"labels": np.array([0.5, 1.0, 1.0])}),
    ("ForQuestionAnswering", {"start_positions": [1], "end_positions": [1, 2]}),
]


@pytest.mark.parametrize(("name", "given"), LABELS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(LABELS)])
def test_labels_that_do_not_fit(name: str, given: dict) -> None:
    with pytest.raises(Error):
        CLASSES["RobertaPreLayerNorm" + name](CONFIG)(IDS, **given)


def test_multiple_choice_reads_three_axes() -> None:
    for given in ({"input_ids": IDS}, {}, {"inputs_embeds": STATES}):
        with pytest.raises(Error, match="choices"):
            tinyroberta.RobertaPreLayerNormForMultipleChoice(CONFIG)(**given)


def test_question_answering_has_two_labels() -> None:
    with pytest.raises(Error, match="num_labels is 3"):
        tinyroberta.RobertaPreLayerNormForQuestionAnswering(dataclasses.replace(CONFIG, num_labels=3))


HELD = [(np.zeros((2, 3, 2, 8), np.float32),) * 2] * 2
ODD = [
    (CONFIG, {"input_ids": IDS, "position_ids": [[1, 2], [3]]}, "position_ids"),
    (CONFIG, {"input_ids": IDS, "output_hidden_states": "all"}, "output_hidden_states"),
    (CONFIG, {"input_ids": IDS, "output_hidden_states": [99]}, "output_hidden_states"),
    (CONFIG, {"input_ids": IDS, "head_mask": np.ones((2, 1, 3, 1, 4))}, "head_mask"),
    (CONFIG, {"input_ids": IDS, "head_mask": np.ones((2, 3, 3, 1, 1))}, "head_mask"),
    (CROSS, {"input_ids": IDS, "encoder_hidden_states": STATES[:, :0]}, "no token"),
    (DECODER, {"input_ids": IDS, "past_key_values": 7}, "past_key_values"),
    (DECODER, {"input_ids": IDS, "past_key_values": [None, None]}, "past_key_values"),
    (DECODER, {"input_ids": IDS, "past_key_values": "ab"}, "past_key_values"),
    (DECODER, {"input_ids": IDS, "past_key_values": [HELD[0], (np.zeros((2, 3, 4, 8), np.float32),) * 2]}, "every layer"),
    (DECODER, {"input_ids": IDS, "past_key_values": [(np.zeros((2, 3, 2, 8), int),) * 2] * 2}, "floats"),
]


@pytest.mark.parametrize(("config", "given", "said"), ODD, ids=[f"{case[2]}{i}" for i, case in enumerate(ODD)])
def test_odder_things(config: RobertaPreLayerNormConfig, given: dict, said: str) -> None:
    with pytest.raises(Error, match=said):
        Base(config)(**given)


def test_a_cache_of_another_source() -> None:
    model = tinyroberta.RobertaPreLayerNormForCausalLM(CROSS)
    past = model(IDS, encoder_hidden_states=STATES).past_key_values
    again = model(IDS[:, :1], encoder_hidden_states=STATES, past_key_values=past)
    assert np.isfinite(again.logits).all()
    with pytest.raises(Error, match="cross-attention to 7"):
        model(IDS[:, :1], encoder_hidden_states=STATES[:, :5], past_key_values=past)


def test_a_call_that_fails_leaves_the_cache_as_it_was() -> None:
    model = tinyroberta.RobertaPreLayerNormForCausalLM(DECODER)
    past = model(IDS).past_key_values
    for wrong in ({"labels": IDS[:1]}, {"labels": IDS * 0.5}, {"logits_to_keep": [9]}, {"logits_to_keep": "x"}):
        with pytest.raises(Error):
            model(IDS, past_key_values=past, **wrong)
        assert past.length == 5


def test_tuples_take_the_models_dtype() -> None:
    past = [tuple(x.astype(np.float16) for x in pair) for pair in HELD]
    output = tinyroberta.RobertaPreLayerNormForCausalLM(DECODER)(IDS, past_key_values=past, output_attentions=True)
    assert {x.dtype for x in (output.logits, *output.attentions, *output.past_key_values[0])} == {np.dtype(np.float32)}


def test_heads_masked_by_key_are_computed_whole() -> None:
    model, mask = Base(CONFIG), np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    head_mask = np.ones((2, 1, 3, 1, 5))
    plain = model(IDS, attention_mask=mask).last_hidden_state
    np.testing.assert_allclose(model(IDS, attention_mask=mask, head_mask=head_mask).last_hidden_state, plain, atol=1e-6)


def test_pruned_heads_and_a_head_mask() -> None:
    model = Base(CROSS)
    model.prune_heads({0: [1], 1: [0]})
    assert np.isfinite(model(IDS, head_mask=[1.0, 0.0]).last_hidden_state).all()
    with pytest.raises(Error, match="head_mask"):
        model(IDS, head_mask=[1.0, 0.0], encoder_hidden_states=STATES)
    model.prune_heads({0: [0]})
    with pytest.raises(Error, match="different heads"):
        model(IDS, head_mask=[1.0, 0.0])


def test_tensors_that_do_not_fit_a_configuration() -> None:
    tensors = Base(CONFIG).tensors
    for wrong in ({}, {k: v for k, v in tensors.items() if "LayerNorm" not in k}, tensors | {"LayerNorm.bias": np.zeros(3)}):
        with pytest.raises(Error, match="do not fit"):
            Base(CONFIG, wrong)


def test_a_model_can_be_copied_and_pickled() -> None:
    import copy
    import pickle

    model = Base(CONFIG)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other(IDS).last_hidden_state, model(IDS).last_hidden_state)


def test_surgery_that_cannot_be() -> None:
    model = tinyroberta.RobertaPreLayerNormForMaskedLM(CONFIG)
    before = model(IDS).logits
    for heads, kind in (({2: [0]}, IndexError), ({0: [3]}, IndexError), ({0: [0, 1, 2]}, ValueError)):
        with pytest.raises(kind):
            model.prune_heads(heads)
    for given in ((1.5,), (0,), (1,), (50, 1.3), (50, 0)):
        with pytest.raises(Error):
            model.resize_token_embeddings(*given)
    for weight in (np.zeros((40, 3), np.float32), np.zeros(24, np.float32), np.zeros((40, 24), int)):
        with pytest.raises(Error):
            model.set_input_embeddings(weight)
    with pytest.raises(Error, match="output embeddings"):
        Base(CONFIG).set_output_embeddings(np.zeros((40, 24), np.float32))
    np.testing.assert_array_equal(model(IDS).logits, before)


def test_embeddings_set_and_tied() -> None:
    model = tinyroberta.RobertaPreLayerNormForMaskedLM(CONFIG, dtype="float64")
    words = np.random.default_rng(0).standard_normal((40, 24))
    model.set_input_embeddings(words)
    assert model.get_output_embeddings() is model.get_input_embeddings()
    tied = model(IDS).logits
    model.set_output_embeddings(words * 2)
    np.testing.assert_allclose(model(IDS).logits, 2 * tied, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(model.get_input_embeddings(), words)
    model.tie_weights()
    np.testing.assert_array_equal(model(IDS).logits, tied)
    assert Base(CONFIG).get_output_embeddings() is None


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 453634720\n"
LOADED = ("model.safetensors", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "model.pt", "config.json",
          "model.safetensors.index.json", "pytorch_model.bin.index.json")  # fmt: skip


@pytest.mark.parametrize("name", [*LOADED, "tokenizer.json", "vocab.json", "merges.txt"])
def test_a_git_lfs_pointer_is_named_and_so_is_the_way_out(name: str, tmp_path: Path) -> None:
    from tinyroberta.inspect import inspect

    Base(CONFIG, backend="numpy").save_pretrained(tmp_path)
    if name in LOADED and name != "config.json":
        (tmp_path / "model.safetensors").unlink()
    if name == "model.pt":
        (tmp_path / "config.json").unlink()
    (tmp_path / name).write_text(POINTER)
    calls = [lambda: tinyroberta.load(tmp_path, backend="numpy")]
    if name not in LOADED:
        pytest.importorskip("tokenizers")
        from tinyroberta.tasks.tokenizer import load_tokenizer

        (tmp_path / "merges.txt").touch()
        if name == "merges.txt":
            (tmp_path / "vocab.json").write_text("{}")
        calls = [lambda: load_tokenizer(tmp_path)]
    elif name != "config.json":  # of which inspect says that it is a problem
        calls.append(lambda: inspect(tmp_path))
    for call in calls:
        with pytest.raises(Error, match=rf"{name} is a Git LFS pointer.*git lfs pull") as told:
            call()
        assert "\n" not in str(told.value)


def test_a_pointer_beside_a_whole_tokenizer_hurts_nobody(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    from tinyroberta.demo import FOLDER
    from tinyroberta.tasks.tokenizer import load_tokenizer

    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    (tmp_path / "sentencepiece.bpe.model").write_text(POINTER)
    assert load_tokenizer(tmp_path).mask_token == "<mask>"


def test_a_pointer_beside_what_is_read_hurts_nobody(tmp_path: Path) -> None:
    model = Base(CONFIG, backend="numpy")
    model.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_text(POINTER)
    again = tinyroberta.load(tmp_path, backend="numpy")
    np.testing.assert_array_equal(again(IDS).last_hidden_state, model(IDS).last_hidden_state)


def test_a_config_that_notepad_wrote(tmp_path: Path) -> None:
    Base(CONFIG, backend="numpy").save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text, encoding="utf-8-sig")
    assert tinyroberta.load(tmp_path, backend="numpy").config.vocab_size == CONFIG.vocab_size


def test_every_kind_of_torch_tensor() -> None:
    """What holds numbers is taken, whatever else it is; what holds none is named."""
    torch = pytest.importorskip("torch")
    model = Base(CONFIG, backend="numpy")
    ids, states = torch.tensor(IDS), torch.randn(2, 7, 24)
    want, wide = model(IDS).last_hidden_state, model(inputs_embeds=states.numpy()).last_hidden_state
    for given in (
        ids,
        ids.int(),
        ids.byte(),
        ids.to_sparse(),
        ids.t().contiguous().t(),
        list(ids),
        tuple(ids),
        [list(row) for row in ids],
    ):
        np.testing.assert_array_equal(model(given).last_hidden_state, want)
    np.testing.assert_array_equal(model(ids, attention_mask=torch.ones(2, 5).bool()).last_hidden_state, want)
    parameter = torch.nn.Parameter(states)
    for given in (states, parameter, parameter * 1, states.to_sparse(), list(parameter), [list(row) for row in parameter]):
        np.testing.assert_array_equal(model(inputs_embeds=given).last_hidden_state, wide)
    eighths = torch.randint(-8, 8, (2, 7, 24)) / 8.0  # which all of these hold
    exact = model(inputs_embeds=eighths.numpy()).last_hidden_state
    for given in (eighths.bfloat16(), eighths.half(), eighths.to(torch.float8_e4m3fn), list(eighths.bfloat16())):
        np.testing.assert_array_equal(model(inputs_embeds=given).last_hidden_state, exact)
    model.set_input_embeddings(torch.nn.Parameter(torch.tensor(model.get_input_embeddings())))
    np.testing.assert_array_equal(model(IDS).last_hidden_state, want)
    for given, said in ((states.to("meta"), "on the device meta"), ([states[0].to("meta")], "on the device meta"),
                        (torch.nested.nested_tensor([states[0], states[1][:3]], layout=torch.jagged), "nested torch tensor"),
                        (states * 1j, "complex")):  # fmt: skip
        with pytest.raises(Error, match=f"inputs_embeds.*{said}") as told:
            model(inputs_embeds=given)
        assert "ragged" not in str(told.value)
    with pytest.raises(Error, match="ragged"):
        model([ids[0], ids[1][:3]])


def test_only_what_is_ragged_is_called_so() -> None:
    for given in ([[0, 1], [0]], [[0, 1], 2], [[[0], [1, 2]]]):
        with pytest.raises(Error, match="ragged"):
            Base(CONFIG)(given)
    for given in ([[object()]], {"input_ids": IDS}, "text"):
        with pytest.raises(Error) as told:
            Base(CONFIG)(given)
        assert "ragged" not in str(told.value)


@pytest.mark.parametrize("name", ["Model", "ForMaskedLM"])
def test_a_source_that_an_encoder_does_not_read_is_told_where_the_model_is_called(name: str) -> None:
    model = CLASSES["RobertaPreLayerNorm" + name](CONFIG)
    with pytest.warns(UserWarning, match="config.is_decoder is false") as told:
        model(IDS, encoder_hidden_states=np.zeros((1, 1, 1)))
    assert [warning.filename for warning in told] == [__file__]
