"""tasks/: tokenizers in both layouts, encoding, filling masks with the embedded model."""

import json
from pathlib import Path

import numpy as np
import pytest

import tinyroberta
from tinyroberta import Error
from tinyroberta.demo import FOLDER
from tinyroberta.models import RobertaPreLayerNormForMaskedLM
from tinyroberta.tasks.fill_mask import fill_mask
from tinyroberta.tasks.tokenizer import encode, load_tokenizer

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(FOLDER)


@pytest.fixture(scope="module")
def model() -> RobertaPreLayerNormForMaskedLM:
    return tinyroberta.load(FOLDER)


def test_vocabulary_and_merges_read_as_tokenizer_json_does(tokenizer, tmp_path: Path) -> None:
    content = json.loads((FOLDER / "tokenizer.json").read_text())
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    vocabulary = content["model"]["vocab"] | {entry["content"]: entry["id"] for entry in content["added_tokens"]}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    other = load_tokenizer(tmp_path)
    for text in ("Hello, world!", "  A <mask> of\ttea\n", "naïve 日本 🙂 <s> x</s>", "", "<mask>", "it's 1929"):
        assert other.encode(text).ids == tokenizer.encode(text).ids
        assert other.decode(other.encode(text).ids) == tokenizer.decode(tokenizer.encode(text).ids)


def test_a_sentencepiece_tokenizer_comes_as_tokenizer_json(tmp_path: Path) -> None:
    """A unigram model with metaspaces, as XLM-RoBERTa and CamemBERT have: the spaces of a filled sentence are right."""
    import tokenizers

    words = ["<s>", "<pad>", "</s>", "<unk>", "▁the", "▁cat", "▁s", "at", ".", "▁", "a", "c", "t", "<mask>"]
    other = tokenizers.Tokenizer(tokenizers.models.Unigram([(word, -float(i)) for i, word in enumerate(words)], unk_id=3))
    other.pre_tokenizer, other.decoder = tokenizers.pre_tokenizers.Metaspace(), tokenizers.decoders.Metaspace()
    other.post_processor = tokenizers.processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    other.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", tokenizers.AddedToken("<mask>", lstrip=True)])
    other.save(str(tmp_path / "tokenizer.json"))
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = tinyroberta.RobertaConfig(vocab_size=len(words), **sizes, max_position_embeddings=20)
    model = tinyroberta.RobertaForMaskedLM(config, seed=1)
    (candidates,) = fill_mask(model, load_tokenizer(tmp_path), ["the <mask>at."], top_k=len(words))
    sentences = {c.token: c.sentence for c in candidates}
    assert sentences[" cat"] == "the catat."
    assert sentences[" s"] == "the sat."
    assert sentences["at"] == "theatat."


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(Error, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(Error, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(Error, match="holds no words"):
        load_tokenizer(tmp_path)
    for junk in ("", "{}", '{"model": 3}', "\0\xff"):
        (tmp_path / "tokenizer.json").write_text(junk)
        with pytest.raises(Error, match="not valid"):
            load_tokenizer(tmp_path)


def test_encode_pads_on_the_right(tokenizer, model) -> None:
    ids, mask = encode(tokenizer, ["A short one.", "A text that is a little longer than the first."], model.config)
    assert ids.shape == mask.shape
    for row, kept in zip(ids, mask, strict=True):
        length = kept.sum()
        assert row[0] == 0
        assert row[length - 1] == 2
        assert (row[length:] == model.config.pad_token_id).all()
        assert not kept[length:].any()


def test_a_text_that_is_too_long_says_the_usable_length(tokenizer, model) -> None:
    usable = model.config.usable_length
    word = tokenizer.encode(" the", add_special_tokens=False).ids
    assert len(word) == 1
    fits = "The" + " the" * (usable - 3)
    ids, _ = encode(tokenizer, [fits], model.config)
    assert ids.shape == (1, usable)
    assert np.isfinite(model(ids).logits).all()
    with pytest.raises(Error, match=f"at most {usable}"):
        encode(tokenizer, [fits + " the"], model.config)
    with pytest.raises(Error, match="no text"):
        encode(tokenizer, [], model.config)


def test_a_tokenizer_of_another_model(tokenizer) -> None:
    small = tinyroberta.RobertaPreLayerNormConfig(vocab_size=100)
    with pytest.raises(Error, match="do not belong together"):
        encode(tokenizer, ["Hippopotamus"], small)


def test_fill_mask_is_the_softmax_at_the_mask(tokenizer, model) -> None:
    text = "He shut the <mask> behind him."
    ids, mask = encode(tokenizer, [text], model.config)
    logits = model(ids, attention_mask=mask).logits[0].astype(np.float64)
    (place,) = np.flatnonzero(ids[0] == tokenizer.token_to_id("<mask>"))
    probabilities = np.exp(logits[place]) / np.exp(logits[place]).sum()
    (candidates,) = fill_mask(model, tokenizer, [text], top_k=7)
    assert [c.probability for c in candidates] == pytest.approx(sorted(probabilities)[::-1][:7], rel=1e-5)
    assert [c.token for c in candidates] == [tokenizer.decode([i]) for i in np.argsort(-probabilities)[:7]]
    assert all(c.sentence == f"He shut the{c.token} behind him." for c in candidates)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("He opened the <mask> and walked out of the house.", "door"),
        ("The sun was shining in the <mask> sky.", "blue"),
        ("She was the mother of two <mask>.", "children"),
        ("I do not <mask> what you mean.", "know"),
    ],
)
def test_the_embedded_model_knows_english(tokenizer, model, text: str, word: str) -> None:
    (candidates,) = fill_mask(model, tokenizer, [text], top_k=5)
    assert word in [c.token.strip() for c in candidates]
    assert text.replace("<mask>", word) in [c.sentence for c in candidates]


def test_several_masks_and_several_texts(tokenizer, model) -> None:
    texts = ["<mask> is a dog.", "The <mask> sat on the <mask>.", "One  <mask>,and two."]
    answers = fill_mask(model, tokenizer, texts, top_k=3)
    assert [len(a) for a in answers] == [3, 6, 3]
    assert [c.mask for c in answers[1]] == [0, 0, 0, 1, 1, 1]
    for text, together in zip(texts, answers, strict=True):
        (alone,) = fill_mask(model, tokenizer, [text], top_k=3)
        assert [c.token for c in alone] == [c.token for c in together]
        assert [c.probability for c in alone] == pytest.approx([c.probability for c in together], rel=1e-4)
    first = answers[0][0]
    assert first.sentence == first.token.strip() + " is a dog."
    for c in answers[1]:
        filled = ["The <mask> sat on the <mask>.", "The <mask> sat on the <mask>."][c.mask]
        parts = filled.split("<mask>")
        before = "<mask>".join(parts[: c.mask + 1])
        assert c.sentence == before.rstrip() + c.token + "<mask>".join(parts[c.mask + 1 :])


def test_a_text_without_a_mask(tokenizer, model) -> None:
    with pytest.raises(Error, match="no <mask>"):
        fill_mask(model, tokenizer, ["One <mask>.", "Nothing here."])
    with pytest.raises(Error, match="top_k"):
        fill_mask(model, tokenizer, ["One <mask>."], top_k=0)


def test_more_candidates_than_words(tokenizer, model) -> None:
    (candidates,) = fill_mask(model, tokenizer, ["<mask>"], top_k=10**9)
    assert len(candidates) == model.config.vocab_size
    assert sum(c.probability for c in candidates) == pytest.approx(1)


@pytest.mark.parametrize("text", ["half \ud83d <mask>", "\udcff<mask>"], ids=ascii)
def test_half_a_character_is_refused(tokenizer, model, text: str) -> None:
    with pytest.raises(Error, match="surrogate"):
        encode(tokenizer, ["fine", text], model.config)
    with pytest.raises(Error, match="surrogate"):
        fill_mask(model, tokenizer, [text])


def test_a_text_is_a_string(tokenizer, model) -> None:
    with pytest.raises(Error, match="of type int"):
        encode(tokenizer, [5], model.config)


SENTENCES = {  # of each kind of vocabulary: its mask, a text, and what some tokens make of it
    "WordPiece": ("[MASK]", "the [MASK] sat", {" CAT": "the CAT sat", "S": "theS sat", ".": "the. sat"}),
    "WordLevel": ("[MASK]", "猫は[MASK]、 [MASK] ", {" CAT": "猫はCAT、 [MASK] ", " ##S": "猫は##S、 [MASK] "}),
    "Unigram": ("<mask>", "CAT <mask>!", {" CAT": "CAT CAT!", "S": "CATS!", " ": "CAT !"}),
    "BPE": ("<mask>", "<mask>  C <mask>.", {" T": "T  C <mask>.", "T": "T  C <mask>."}),
    "BPE with ends of words": ("<mask>", "T <mask>.", {" CT": "T CT.", " C": "T C."}),
}


def small_tokenizer(kind: str):
    """A tokenizer of capitals, without a letter "a"."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    if kind in ("WordPiece", "WordLevel"):
        words = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]", "CAT", "##S", "猫", "は", "."]
        model = getattr(models, kind)({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        if kind == "WordPiece":
            tokenizer.decoder = decoders.WordPiece()
    elif kind == "Unigram":
        words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "▁", "▁CAT", "S", "!"]
        tokenizer = tokenizers.Tokenizer(models.Unigram([(word, -float(i)) for i, word in enumerate(words)], unk_id=3))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    elif kind == "BPE":
        words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", "C", "T", ".", "ĠT"]
        tokenizer = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [("Ġ", "T")]))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    else:
        words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "C", "T</w>", "C</w>", "CT</w>"]
        model = models.BPE(
            {word: i for i, word in enumerate(words)}, [("C", "T</w>")], unk_token="<unk>", end_of_word_suffix="</w>"
        )
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.WhitespaceSplit(), decoders.BPEDecoder()
    tokenizer.add_special_tokens([*words[:4], tokenizers.AddedToken(words[4], lstrip=kind != "WordLevel")])
    return tokenizer


def small_model(tokenizer, more: int = 0):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    words = tokenizer.get_vocab_size() + more
    return tinyroberta.RobertaForMaskedLM(
        tinyroberta.RobertaConfig(vocab_size=words, **sizes, max_position_embeddings=20), seed=1
    )


@pytest.mark.parametrize("kind", SENTENCES)
def test_a_vocabulary_that_lacks_letters(kind: str, tmp_path: Path) -> None:
    tokenizer = small_tokenizer(kind)
    mask, text, sentences = SENTENCES[kind]
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for one in (tokenizer, load_tokenizer(tmp_path)):
        (candidates,) = fill_mask(small_model(one), one, [text], top_k=99)
        first = [c for c in candidates if c.mask == 0]
        assert sorted(c.token_id for c in first) == list(range(one.get_vocab_size()))
        assert {c.token: c.sentence for c in first if c.token in sentences} == sentences
        for c in first:
            assert c.token.strip() in one.id_to_token(c.token_id)  # itself alone, with nothing of what stands before
        assert len(candidates) == text.count(mask) * one.get_vocab_size()


def test_a_mask_that_the_text_calls_otherwise(tokenizer, model) -> None:
    bert = small_tokenizer("WordPiece")
    with pytest.raises(Error, match=r"no \[MASK\] in 'the <mask> sat'"):
        fill_mask(small_model(bert), bert, ["the <mask> sat"])
    with pytest.raises(Error, match="no <mask>"):
        fill_mask(model, tokenizer, ["the [MASK] sat"])


def test_a_mask_that_is_named_otherwise(tmp_path: Path) -> None:
    """A tokenizer with two of them: the files say which is the mask."""
    small_tokenizer("Unigram").save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"mask_token": "S"}))
    other = load_tokenizer(tmp_path)
    assert other.mask_token == "S"
    (candidates,) = fill_mask(small_model(other), other, ["CATS <mask>"], top_k=1)
    assert candidates[0].sentence.endswith(" <mask>")


def test_a_tokenizer_without_a_mask(tmp_path: Path) -> None:
    import tokenizers

    other = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "the": 1}, unk_token="<unk>"))
    other.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).mask_token is None
    with pytest.raises(Error, match="no mask"):
        fill_mask(small_model(other), load_tokenizer(tmp_path), ["the <mask>"])


def test_a_mask_that_is_not_always_read() -> None:
    import tokenizers

    other = small_tokenizer("BPE")
    other.add_special_tokens([tokenizers.AddedToken("<mask>", single_word=True)])
    with pytest.raises(Error, match="does not read every <mask>"):
        fill_mask(small_model(other), other, ["C <mask> TT<mask>T"])


def test_a_model_with_more_words_than_its_tokenizer() -> None:
    other = small_tokenizer("BPE")
    (candidates,) = fill_mask(small_model(other, more=3), other, ["C <mask>"], top_k=99)
    beyond = [c for c in candidates if c.token_id >= other.get_vocab_size()]
    assert [c.token for c in beyond] == ["", "", ""]


def test_a_mask_takes_no_more_of_the_text_than_itself() -> None:
    import tokenizers

    other = small_tokenizer("BPE")
    other.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True, rstrip=True)])
    (candidates,) = fill_mask(small_model(other), other, ["C  <mask>  T <mask> "], top_k=99)
    filled = {c.token_id: c.sentence for c in candidates if c.mask == 0}
    assert filled[6] == "CC  T <mask> "
    assert filled[9] == "C T  T <mask> "
