"""Generation, surgery and the encoder-decoder against transformers, where it and torch are installed."""

import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import pytest

import tinyroberta
from tinyroberta import EncoderDecoderModel, Error, RobertaPreLayerNormConfig
from tinyroberta.generation import Choice, narrow, penalise

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.live

SIZES = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 64,
    "type_vocab_size": 1,
    "is_decoder": True,
}
IDS = np.array([[0, 9, 17, 5, 30], [0, 21, 8, 33, 12], [0, 6, 7, 6, 7]])
PADDED = np.array([[1, 1, 0, 9, 17], [0, 21, 8, 33, 12], [1, 1, 1, 0, 7]])


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own advice about generate
        yield


def shaken(model, seed: int = 0, spread: float = 0.4):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    return model.eval()


@pytest.fixture
def pair(tmp_path: Path):
    """The same decoder there and here, in float64."""
    theirs = shaken(transformers.RobertaPreLayerNormForCausalLM(transformers.RobertaPreLayerNormConfig(**SIZES)))
    theirs.save_pretrained(tmp_path)
    return theirs.double(), tinyroberta.load(tmp_path, dtype="float64")


WAYS = {
    "greedy": {},
    "greedy, one end": {"eos_token_id": 3},
    "repetition": {"repetition_penalty": 1.7},
    "n-grams": {"no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": [[5], [9, 12], [30, 2, 7]]},
    "least length": {"min_length": 12, "eos_token_id": [2, 8, 14, 20, 26]},
    "least new": {"min_new_tokens": 4, "eos_token_id": [2, 8, 14, 20, 26]},
    "beams": {"num_beams": 3},
    "beams, many ends": {"num_beams": 4, "eos_token_id": [2, 8, 14, 20, 26], "num_return_sequences": 3},
    "beams, early": {"num_beams": 3, "early_stopping": True, "eos_token_id": [2, 8, 14, 20, 26, 31, 5]},
    "beams, never": {"num_beams": 3, "early_stopping": "never", "length_penalty": 2.0, "eos_token_id": [2, 8, 14]},
    "beams, short": {"num_beams": 3, "length_penalty": -1.5, "eos_token_id": [2, 8, 14]},
    "beams, all": {"num_beams": 2, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "num_return_sequences": 2},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("prompts", [IDS, PADDED], ids=["even", "left-padded"])
def test_token_for_token(pair, way: dict, prompts: np.ndarray) -> None:
    theirs, ours = pair
    mask = (prompts != 1).astype(int)
    wanted = theirs.generate(torch.tensor(prompts), attention_mask=torch.tensor(mask), max_length=18, pad_token_id=1, **way)
    for use_cache in (True, False):
        given = {"max_length": 18, "first_position": 0, "use_cache": use_cache, "pad_token_id": 1} | way
        np.testing.assert_array_equal(ours.generate(prompts, mask, **given), wanted.numpy())


@pytest.mark.parametrize("lengths", [(5, 5), (5, 3), (2, 6)])
def test_positions_are_the_forward_passes(pair, lengths: tuple[int, int]) -> None:
    """Held against a plain loop over transformers' forward, which counts positions from pad_token_id + 1."""
    theirs, ours = pair
    random = np.random.default_rng()
    prompts = [np.concatenate([[0], random.integers(4, 40, length - 1)]) for length in lengths]
    for prompt in prompts:
        ids = torch.tensor(prompt[None])
        for _ in range(9):
            with torch.no_grad():
                ids = torch.cat([ids, theirs(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        np.testing.assert_array_equal(ours.generate(prompt[None], max_new_tokens=9, eos_token_id=[]), ids.numpy())
    longest = max(lengths)
    for side in ("left", "right"):
        room = [(longest - len(p), 0) if side == "left" else (0, longest - len(p)) for p in prompts]
        padded = np.stack([np.pad(p, r, constant_values=1) for p, r in zip(prompts, room, strict=True)])
        together = ours.generate(padded, max_new_tokens=9, eos_token_id=[])
        for row, prompt in enumerate(prompts):
            alone = ours.generate(prompt[None], max_new_tokens=9, eos_token_id=[])
            np.testing.assert_array_equal(together[row, longest:], alone[0, len(prompt) :])
            np.testing.assert_array_equal(together[row, :longest], padded[row])


def test_processors_give_the_same_scores() -> None:
    random = np.random.default_rng(3)
    L = transformers.generation.logits_process
    eos = torch.tensor([2, 5])
    cases = [
        ({"repetition_penalty": 1.4}, [L.RepetitionPenaltyLogitsProcessor(1.4)], []),
        ({"no_repeat_ngram_size": 3}, [L.NoRepeatNGramLogitsProcessor(3)], []),
        ({"no_repeat_ngram_size": 1}, [L.NoRepeatNGramLogitsProcessor(1)], []),
        ({"bad_words_ids": [[4], [6, 7], [2]]}, [L.NoBadWordsLogitsProcessor([[4], [6, 7], [2]], eos)], []),
        ({"min_length": 30}, [L.MinLengthLogitsProcessor(30, eos)], []),
        ({"temperature": 0.6}, [], [L.TemperatureLogitsWarper(0.6)]),
        ({"top_k": 5}, [], [L.TopKLogitsWarper(5)]),
        ({"top_p": 0.7}, [], [L.TopPLogitsWarper(0.7)]),
        ({"top_p": 0.0}, [], [L.TopPLogitsWarper(0.0)]),
        ({"min_p": 0.2}, [], [L.MinPLogitsWarper(0.2)]),
        ({"typical_p": 0.4}, [], [L.TypicalLogitsWarper(0.4)]),
        ({"top_k": 9, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.8, "temperature": 1.3},
         [], [L.TemperatureLogitsWarper(1.3), L.TopKLogitsWarper(9), L.TopPLogitsWarper(0.9), L.MinPLogitsWarper(0.05),
              L.TypicalLogitsWarper(0.8)]),
        ({"num_beams": 2, "top_k": 1, "top_p": 0.01, "min_p": 0.99, "typical_p": 0.01},
         [], [L.TopKLogitsWarper(1, min_tokens_to_keep=3), L.TopPLogitsWarper(0.01, min_tokens_to_keep=3),
              L.MinPLogitsWarper(0.99, min_tokens_to_keep=3), L.TypicalLogitsWarper(0.01, min_tokens_to_keep=3)]),
    ]  # fmt: skip
    for given, before, after in cases:
        for _ in range(20):
            ids = random.integers(0, 12, (4, 15))
            scores = random.standard_normal((4, 12)) * 3
            wanted = torch.tensor(scores)
            for processor in [*before, *after]:
                wanted = processor(torch.tensor(ids), wanted)
            choice = Choice(**{"top_k": 0, "eos_token_ids": (2, 5)} | given, do_sample=True)
            ours = narrow(penalise(ids, scores, choice, prompt=3), choice)
            np.testing.assert_allclose(ours, wanted.numpy(), rtol=1e-6, atol=1e-6, err_msg=str(given))


def test_sampling_draws_what_the_scores_say(pair) -> None:
    _, ours = pair
    given = {
        "do_sample": True,
        "top_k": 6,
        "temperature": 1.5,
        "max_new_tokens": 1,
        "eos_token_id": [],
        "num_return_sequences": 4000,
    }
    output = ours.generate(IDS[:1], seed=11, return_dict_in_generate=True, **given)
    p = np.exp(output.scores[0][0] - output.scores[0][0].max())
    p /= p.sum()
    counts = np.bincount(output.sequences[:, -1], minlength=40)
    assert (counts > 0).sum() <= 6
    # each count is binomial: five standard deviations
    assert (np.abs(counts - 4000 * p) <= 5 * np.sqrt(4000 * p * (1 - p)) + 1e-9).all()
    again = ours.generate(IDS[:1], seed=11, **given)
    np.testing.assert_array_equal(again, output.sequences)
    assert not np.array_equal(ours.generate(IDS[:1], seed=12, **given), again)


@pytest.mark.parametrize("type_", ["absolute", "relative_key", "relative_key_query"])
def test_pruned_heads(tmp_path: Path, type_: str) -> None:
    if int(transformers.__version__.split(".")[0]) >= 5:
        pytest.skip("transformers 5 cannot prune")
    config = transformers.RobertaPreLayerNormConfig(**SIZES | {"is_decoder": False}, position_embedding_type=type_)
    theirs = shaken(transformers.RobertaPreLayerNormModel(config))
    theirs.save_pretrained(tmp_path / "whole")
    ours = tinyroberta.load(tmp_path / "whole", dtype="float64")
    for heads in ({0: [1], 1: [0, 2]}, {0: [1, 2]}):
        theirs.prune_heads(heads)
        ours.prune_heads(heads)
        wanted = transformers_float64(theirs, tmp_path / "theirs")(torch.tensor(IDS)).last_hidden_state.detach().numpy()
        np.testing.assert_allclose(ours(IDS).last_hidden_state, wanted, rtol=1e-11, atol=1e-12)
        ours.save_pretrained(tmp_path / "ours")
        again = tinyroberta.load(tmp_path / "ours", dtype="float64")
        np.testing.assert_array_equal(again(IDS).last_hidden_state, ours(IDS).last_hidden_state)
        loaded = tinyroberta.load(tmp_path / "theirs", dtype="float64")
        np.testing.assert_array_equal(loaded(IDS).last_hidden_state, ours(IDS).last_hidden_state)
        back = type(theirs).from_pretrained(tmp_path / "ours").double().eval()
        np.testing.assert_allclose(back(torch.tensor(IDS)).last_hidden_state.detach().numpy(), wanted, rtol=1e-11, atol=1e-12)
    assert ours.config.pruned_heads == {0: [1, 2], 1: [0, 2]}


def transformers_float64(model, folder: Path):
    """Reloaded, since a pruned model's new layers are in the default dtype."""
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder).double().eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("count", "multiple"), [(47, None), (31, None), (41, 16)])
def test_resized_vocabulary(tmp_path: Path, tied: bool, count: int, multiple: int | None) -> None:
    config = transformers.RobertaPreLayerNormConfig(**SIZES | {"is_decoder": False}, tie_word_embeddings=tied)
    theirs = shaken(transformers.RobertaPreLayerNormForMaskedLM(config))
    theirs.save_pretrained(tmp_path / "whole")
    ours = tinyroberta.load(tmp_path / "whole", dtype="float64")
    theirs.resize_token_embeddings(count, pad_to_multiple_of=multiple)
    ours.resize_token_embeddings(count, pad_to_multiple_of=multiple)
    ids = np.minimum(IDS, 30)
    wanted = theirs.double()(torch.tensor(ids)).logits.detach().numpy()
    logits = ours(ids).logits
    assert logits.shape == wanted.shape
    assert ours.config.vocab_size == theirs.config.vocab_size
    both = min(40, wanted.shape[2])
    np.testing.assert_allclose(logits[:, :, :both], wanted[:, :, :both], rtol=1e-11, atol=1e-12)
    if wanted.shape[2] > 40:  # new rows: the mean with a little noise, of another generator
        np.testing.assert_allclose(logits[:, :, 40:], wanted[:, :, 40:], rtol=0.02, atol=0.02)
    ours.save_pretrained(tmp_path / "ours")
    np.testing.assert_array_equal(tinyroberta.load(tmp_path / "ours", dtype="float64")(ids).logits, logits)
    back = type(theirs).from_pretrained(tmp_path / "ours").double().eval()
    np.testing.assert_allclose(back(torch.tensor(ids)).logits.detach().numpy(), logits, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("widths", [(24, 24), (16, 24)])
def test_encoder_decoder(tmp_path: Path, widths: tuple[int, int]) -> None:
    E = transformers.RobertaPreLayerNormConfig(
        **SIZES | {"is_decoder": False, "hidden_size": widths[0], "num_attention_heads": 2}
    )
    D = transformers.RobertaPreLayerNormConfig(**SIZES | {"hidden_size": widths[1], "vocab_size": 50}, add_cross_attention=True)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        E, D, decoder_start_token_id=0, pad_token_id=1, eos_token_id=2
    )
    theirs = shaken(transformers.EncoderDecoderModel(config))
    if int(transformers.__version__.split(".")[0]) >= 5:  # which gives no attentions otherwise
        theirs.encoder.set_attn_implementation("eager")
        theirs.decoder.set_attn_implementation("eager")
    theirs.save_pretrained(tmp_path / "theirs")
    ours = EncoderDecoderModel.from_pretrained(tmp_path / "theirs", dtype="float64")
    theirs = theirs.double()
    mask = (PADDED != 1).astype(int)
    labels = np.random.default_rng(1).integers(3, 50, (3, 6))
    labels[0, 4:] = -100
    given = {"input_ids": PADDED, "attention_mask": mask}
    wanted = theirs(**{k: torch.tensor(v) for k, v in given.items()}, decoder_input_ids=torch.tensor(labels.clip(0)),
                    output_hidden_states=True, output_attentions=True)  # fmt: skip
    output = ours(**given, decoder_input_ids=labels.clip(0), output_hidden_states=True, output_attentions=True, padding="compute")
    for name in ("logits", "encoder_last_hidden_state", "cross_attentions", "decoder_attentions", "encoder_attentions"):
        for a, b in zip(wanted[name], output[name], strict=True):
            np.testing.assert_allclose(b, a.detach().numpy(), rtol=1e-10, atol=1e-12, err_msg=name)
    loss = theirs(**{k: torch.tensor(v) for k, v in given.items()}, labels=torch.tensor(labels)).loss
    np.testing.assert_allclose(ours(**given, labels=labels).loss, loss.item(), rtol=1e-6)
    for way in ({}, {"num_beams": 3, "eos_token_id": [2, 7, 11]}):
        tokens = theirs.generate(**{k: torch.tensor(v) for k, v in given.items()}, max_length=12, **way).numpy()
        np.testing.assert_array_equal(ours.generate(PADDED, mask, max_length=12, **way), tokens)
    ours.save_pretrained(tmp_path / "ours")
    again = EncoderDecoderModel.from_pretrained(tmp_path / "ours", dtype="float64")
    np.testing.assert_array_equal(again(**given, labels=labels).logits, ours(**given, labels=labels).logits)
    back = transformers.EncoderDecoderModel.from_pretrained(tmp_path / "ours").double().eval()
    again = back(**{k: torch.tensor(v) for k, v in given.items()}, decoder_input_ids=torch.tensor(labels.clip(0))).logits
    np.testing.assert_allclose(again.detach().numpy(), wanted.logits.detach().numpy(), rtol=1e-11, atol=1e-12)


def test_pair_refusals() -> None:
    base = RobertaPreLayerNormConfig(**SIZES | {"is_decoder": False})
    encoder = tinyroberta.RobertaPreLayerNormModel(base)
    with pytest.raises(Error, match="cannot read"):
        EncoderDecoderModel(encoder, tinyroberta.RobertaPreLayerNormForCausalLM(dataclasses.replace(base, is_decoder=True)))


def test_a_pair_of_another_family(tmp_path: Path) -> None:
    sizes = SIZES | {"is_decoder": False}
    E = transformers.XLMRobertaConfig(**sizes)
    D = transformers.RobertaConfig(**SIZES, add_cross_attention=True)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(E, D, decoder_start_token_id=0, pad_token_id=1)
    theirs = shaken(transformers.EncoderDecoderModel(config))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = tinyroberta.load(tmp_path / "theirs", dtype="float64")
    wanted = theirs.double()(torch.tensor(IDS), decoder_input_ids=torch.tensor(IDS)).logits.detach().numpy()
    np.testing.assert_allclose(ours(IDS, decoder_input_ids=IDS).logits, wanted, rtol=1e-10, atol=1e-12)
    ours.save_pretrained(tmp_path / "ours")
    np.testing.assert_allclose(
        tinyroberta.load(tmp_path / "ours", dtype="float64")(IDS, decoder_input_ids=IDS).logits, wanted, rtol=1e-10
    )


OLD = int(transformers.__version__.split(".")[0]) < 5
ENDS = [2, 8, 14, 20, 26]
SUMMARISER = {"max_length": 14, "min_length": 6, "num_beams": 4, "length_penalty": 2.0, "early_stopping": True}
SAID = {
    "a summariser": SUMMARISER | {"no_repeat_ngram_size": 3},
    "ends": {"eos_token_id": ENDS, "max_length": 12},
    "new tokens": {"max_new_tokens": 7, "min_new_tokens": 4, "eos_token_id": ENDS, "repetition_penalty": 1.3},
    "no end": {"max_length": 10, "eos_token_id": None, "bad_words_ids": [[5], [9, 12]]},
    "neutral": {"max_length": 10, "num_beam_groups": 1, "diversity_penalty": 0.0, "top_p": 0.9, "do_sample": False},
}


@pytest.mark.parametrize("where", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("said", SAID.values(), ids=list(SAID))
def test_a_checkpoints_own_settings(tmp_path: Path, said: dict, where: str) -> None:
    shaken(transformers.RobertaPreLayerNormForCausalLM(transformers.RobertaPreLayerNormConfig(**SIZES))).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    tokens = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    content = json.loads((tmp_path / where).read_text()) if where == "config.json" else tokens
    (tmp_path / where).write_text(json.dumps(content | said))
    theirs = transformers.RobertaPreLayerNormForCausalLM.from_pretrained(tmp_path).double().eval()
    ours = tinyroberta.load(tmp_path, dtype="float64")
    for given in ({}, {"max_length": 16}, {"max_new_tokens": 9, "num_beams": 2}):
        if "max_length" in given and "max_new_tokens" in said:
            continue  # there transformers lets the checkpoint win
        wanted = theirs.generate(torch.tensor(IDS), **given).numpy()
        np.testing.assert_array_equal(ours.generate(IDS, first_position=0, **given), wanted)


@pytest.mark.parametrize("place", ["pair", "decoder", "generation_config.json"])
def test_a_pairs_own_settings_and_mask(tmp_path: Path, place: str) -> None:
    E = transformers.RobertaConfig(**SIZES | {"is_decoder": False})
    D = transformers.RobertaConfig(**SIZES, add_cross_attention=True)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(E, D)
    shaken(transformers.EncoderDecoderModel(config)).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    said = SAID["a summariser"] | {"decoder_start_token_id": 5, "pad_token_id": 1, "eos_token_id": 2}
    content = json.loads((tmp_path / "config.json").read_text())
    if place == "generation_config.json":
        (tmp_path / place).write_text(json.dumps(said))
    else:
        (content if place == "pair" else content["decoder"]).update(said)
        (tmp_path / "config.json").write_text(json.dumps(content))
    theirs = transformers.EncoderDecoderModel.from_pretrained(tmp_path).double().eval()
    ours = tinyroberta.load(tmp_path, dtype="float64")
    texts = np.sort(PADDED, 1)[:, ::-1].copy()  # padding on the right
    for ids in (texts, PADDED, IDS):
        for given in ({}, {"num_beams": 1, "max_length": 9, "pad_token_id": 9}):
            wanted = theirs.generate(torch.tensor(ids), use_cache=False, **given).numpy()
            assert (wanted[:, 0] == 5).all()
            np.testing.assert_array_equal(ours.generate(ids, **given), wanted)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("stem", ["Roberta", "RobertaPreLayerNorm", "XLMRobertaXL"])
def test_a_tied_pair(tmp_path: Path, stem: str, safe: bool) -> None:
    if not OLD:
        pytest.skip("transformers 5 ties no encoder to a decoder")
    kind = getattr(transformers, f"{stem}Config")
    parts = kind(**SIZES | {"is_decoder": False}), kind(**SIZES, add_cross_attention=True)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*parts, tie_encoder_decoder=True, pad_token_id=1)
    theirs = shaken(transformers.EncoderDecoderModel(config=config))
    theirs.save_pretrained(tmp_path / "theirs", safe_serialization=safe)
    ours = tinyroberta.load(tmp_path / "theirs", dtype="float64")

    def logits(model: object) -> np.ndarray:
        return model.double()(torch.tensor(IDS), decoder_input_ids=torch.tensor(IDS)).logits.detach().numpy()

    wanted = logits(theirs)
    np.testing.assert_allclose(ours(IDS, decoder_input_ids=IDS).logits, wanted, rtol=1e-10, atol=1e-12)
    ours.save_pretrained(tmp_path / "ours")
    back = transformers.EncoderDecoderModel.from_pretrained(tmp_path / "ours").eval()
    np.testing.assert_allclose(logits(back), wanted, rtol=1e-11, atol=1e-12)
    again = tinyroberta.load(tmp_path / "ours", dtype="float64")
    np.testing.assert_array_equal(again(IDS, decoder_input_ids=IDS).logits, ours(IDS, decoder_input_ids=IDS).logits)
