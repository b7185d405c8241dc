"""Generation and the encoder-decoder against what transformers gave (tools/make_golden_generation.py), without torch."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from models_for_tests import TOLERANCE, relative_error, skip_without

import tinyroberta
from tinyroberta import EncoderDecoderModel
from tinyroberta.generation import Choice, narrow, penalise

FOLDER = Path(__file__).parent / "golden_generation"
CONTENT = json.loads((FOLDER / "generation.json").read_text())
WAYS = {"greedy": {}, "beams": {"num_beams": 3, "eos_token_id": [2, 7, 11]}}


@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("case", CONTENT["generated"], ids=lambda case: case["name"])
def test_token_for_token(case: dict, use_cache: bool) -> None:
    model = tinyroberta.load(FOLDER.parent / "golden" / "causal_lm", dtype="float64")
    ids = np.array(case["ids"])
    tokens = model.generate(ids, (ids != 1).astype(int), use_cache=use_cache, **case["arguments"])
    np.testing.assert_array_equal(tokens, case["tokens"])


@pytest.mark.parametrize("case", CONTENT["processed"], ids=lambda case: "-".join(case["choice"]))
def test_scores_after_the_processors(case: dict) -> None:
    choice = Choice(**{"top_k": 0, "eos_token_ids": (2, 5)} | case["choice"], do_sample=True)
    scores = narrow(penalise(np.array(case["ids"]), np.array(case["scores"]), choice, prompt=3), choice)
    wanted = np.array([[-np.inf if x is None else x for x in row] for row in case["after"]])
    np.testing.assert_allclose(scores, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("backend", "dtype"), [("numpy", "float64"), ("numpy", "float32"), ("cpu", "float32")])
def test_encoder_decoder(backend: str, dtype: str) -> None:
    skip_without(backend)
    folder = FOLDER / "encoder_decoder"
    golden = safetensors.numpy.load_file(folder / "golden.safetensors")
    model = EncoderDecoderModel.from_pretrained(folder, backend=backend, dtype=dtype)
    given = {"input_ids": golden["input_input_ids"], "attention_mask": golden["input_attention_mask"]}
    asked = {"output_attentions": True, "output_hidden_states": True, "padding": "compute"}
    output = model(**given, labels=golden["input_labels"], **asked)
    for name in ("loss", "logits", "encoder_last_hidden_state", "decoder_attentions", "cross_attentions", "encoder_attentions"):
        wanted, found = golden[name], np.stack(output[name]) if name.endswith("attentions") else output[name]
        assert relative_error(found, wanted) <= TOLERANCE[dtype], name
    for way, arguments in WAYS.items():
        tokens = model.generate(**given, max_length=10, **arguments)
        np.testing.assert_array_equal(tokens, golden[f"tokens_{way}"])


def test_padding_inside_the_labels_counts_as_it_does_there() -> None:
    model = EncoderDecoderModel.from_pretrained(FOLDER / "encoder_decoder", dtype="float64")
    for labels in ([[5, -100, 7, 9]], [[-100, 4, 5, 2]], [[5, 6, -100, -100]]):
        skipped, computed = (model([[0, 9, 2]], labels=labels, padding=padding).loss for padding in ("skip", "compute"))
        assert skipped == computed


def test_a_reloaded_pair_gives_the_same_bits(tmp_path: Path) -> None:
    model = EncoderDecoderModel.from_pretrained(FOLDER / "encoder_decoder")
    ids, decoder_ids = [[0, 9, 17, 2]], [[0, 5, 6]]
    model.save_pretrained(tmp_path)
    again = tinyroberta.load(tmp_path)
    assert isinstance(again, EncoderDecoderModel)
    np.testing.assert_array_equal(
        again(ids, decoder_input_ids=decoder_ids).logits, model(ids, decoder_input_ids=decoder_ids).logits
    )


def test_a_pairs_hidden_states_are_those_of_the_version_asked_for() -> None:
    folder, given = FOLDER / "encoder_decoder", {"decoder_input_ids": [[0, 5, 6]], "output_hidden_states": True}
    five, four = (tinyroberta.load(folder, transformers_version=version)([[0, 9, 17, 2]], **given) for version in (5, 4))
    for states in ("encoder_hidden_states", "decoder_hidden_states"):
        last, before = five[states][-1], four[states][-1]
        assert not np.array_equal(last, before)
        assert all(np.array_equal(x, y) for x, y in zip(five[states][:-1], four[states][:-1], strict=True))
    np.testing.assert_array_equal(five.logits, four.logits)


def test_what_a_pair_needs() -> None:
    model = EncoderDecoderModel.from_pretrained(FOLDER / "encoder_decoder")
    with pytest.raises(tinyroberta.Error, match="enc_to_dec_proj"):
        EncoderDecoderModel(model.encoder, model.decoder)
    with pytest.raises(tinyroberta.Error, match="cannot read"):
        EncoderDecoderModel(model.encoder, tinyroberta.load(FOLDER.parent / "golden" / "causal_lm"))
    with pytest.raises(tinyroberta.Error, match="model_type"):
        EncoderDecoderModel.from_pretrained(FOLDER.parent / "golden" / "causal_lm")
    with pytest.raises(tinyroberta.Error, match="two vocabularies"):
        model.resize_token_embeddings(50)
    with pytest.raises(tinyroberta.Error, match="exactly one"):
        model([[0, 2]])
