"""text/: folders as people have them give the ids of transformers' fast tokenizers, stored and live."""

import json
import random
import re
import struct
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tokenizer_folders import (
    ANSWERS,
    FOLDERS,
    NAMES,
    OLD_BERT,
    TEXTS,
    TRAINED,
    XLM,
    Files,
    field,
    flags,
    lowercased,
    one_file,
    own_tokens,
    prefix_space,
    sentencepiece,
    two_files,
    unigram,
    varint,
    whole_words,
    write,
)  # fmt: skip

from tinyroberta import Error
from tinyroberta.tasks.sentencepiece import read_sentencepiece
from tinyroberta.tasks.special_tokens import KINDS
from tinyroberta.tasks.tokenizer import load_tokenizer, tokenize

pytest.importorskip("tokenizers")


def ours(folder: Path) -> dict[str, Any]:
    tokenizer = load_tokenizer(folder)
    ids = [tokenizer.encode(text).ids for text in TEXTS]
    return {
        "mask_token": tokenizer.mask_token,
        "ids": ids,
        "decoded": [tokenizer.decode(row, skip_special_tokens=False) for row in ids],
        "without_special": [tokenizer.decode(row) for row in ids],
    }


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_gives_the_stored_answers(name: str, tmp_path: Path) -> None:
    stored = json.loads(ANSWERS.read_text(encoding="utf-8"))
    assert stored.keys() == FOLDERS.keys()
    assert ours(write(tmp_path, FOLDERS[name]())) == stored[name]


def version_4(monkeypatch: pytest.MonkeyPatch) -> Any:
    """transformers 4.57, without the network; version 5 reads these files otherwise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        transformers = pytest.importorskip("transformers", minversion="4.57")
    if int(transformers.__version__.split(".")[0]) > 4:
        pytest.skip("version 5 reads these files otherwise")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers.logging.set_verbosity_error()
    return transformers


@pytest.mark.live
@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_gives_what_transformers_gives(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = version_4(monkeypatch)
    if "sentencepiece" in name:
        for needed in ("sentencepiece", "google.protobuf"):
            pytest.importorskip(needed)
    write(tmp_path, FOLDERS[name]())
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    answer = ours(tmp_path)
    for text, row, decoded, plain in zip(TEXTS, answer["ids"], answer["decoded"], answer["without_special"], strict=True):
        assert row == theirs(text).input_ids
        assert decoded == theirs.decode(row, clean_up_tokenization_spaces=False)
        assert plain == theirs.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def mixture(draw: random.Random) -> Files:
    """A folder whose files say things of the same tokens at random, in agreement or not."""
    contents = ["[X]", "[Y]", "[Z]", "<mask>", "[MASK]", "[CLS]", "[SEP]", "</s>", "cat", "the", "<unk>", "it"]

    def token(typed: bool) -> Any:
        content = draw.choice(contents)
        if draw.random() < 0.5:
            return content
        names = ("single_word", "lstrip", "rstrip", "normalized", "special")
        entry = {name: draw.random() < 0.5 for name in names if draw.random() < 0.7}
        return {"content": content} | entry | ({"__type": "AddedToken"} if typed else {})

    def named(typed: bool) -> dict[str, Any]:
        entries = {name: token(typed) for name in NAMES if draw.random() < 0.3}
        return entries | {"additional_special_tokens": [token(typed) for _ in range(draw.randrange(4))]}

    changes = [None, lowercased, own_tokens, prefix_space]
    whole = [partial(one_file, change) for change in changes] + [
        partial(whole_words, "WordPiece"),
        partial(whole_words, "WordLevel", False),
    ]
    files = draw.choice([two_files, two_files, *whole, unigram])()
    vocabulary = files.get("vocab.json") or files["tokenizer.json"]["model"]["vocab"]
    if isinstance(vocabulary, list):
        vocabulary = {word: number for number, (word, _) in enumerate(vocabulary)}
    ids = {content: vocabulary.get(content, len(vocabulary) + draw.randrange(20)) for content in draw.sample(contents, 4)}
    settings = named(True)
    if draw.random() < 0.3:
        flags_of = ("single_word", "lstrip", "rstrip", "normalized", "special")
        settings["added_tokens_decoder"] = {
            str(index): {"content": content} | {name: draw.random() < 0.5 for name in flags_of} for content, index in ids.items()
        }
    if draw.random() < 0.3:
        settings["add_prefix_space"] = draw.random() < 0.5
    if "tokenizer.json" in files and draw.random() < 0.5:
        settings["tokenizer_class"] = draw.choice([*KINDS, "PreTrainedTokenizer"]) + "Fast"
    older = draw.choice(({"added_tokens.json": ids}, {"special_tokens_map.json": named(False)}))  # together: transformers' bug
    return files | draw.choice(({}, {"tokenizer_config.json": settings})) | draw.choice(({}, older))


@pytest.mark.live
def test_mixtures_give_what_transformers_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = version_4(monkeypatch)
    compared = 0
    for seed in range(150):
        folder = write(tmp_path / str(seed), mixture(random.Random(seed)))
        try:
            theirs = transformers.AutoTokenizer.from_pretrained(folder)
            ids = [theirs(text).input_ids for text in TEXTS]
        except Exception:  # it cannot read every mixture: a null where it needs a token, a BertTokenizer without a normalizer
            continue
        answer = ours(folder)
        assert answer["ids"] == ids, seed
        assert answer["without_special"] == [
            theirs.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False) for row in ids
        ], seed
        compared += 1
    assert compared > 100


JUNK: list[tuple[str, Any]] = [
    ("tokenizer_config.json", "{"),
    ("tokenizer_config.json", "[]"),
    ("tokenizer_config.json", {"added_tokens_decoder": 3}),
    ("tokenizer_config.json", {"added_tokens_decoder": {"x": flags("[X]")}}),
    ("tokenizer_config.json", {"added_tokens_decoder": {"276": "[X]"}}),
    ("tokenizer_config.json", {"added_tokens_decoder": {"276": {"content": 3}}}),
    ("tokenizer_config.json", {"added_tokens_decoder": {"276": {"content": "[X]", "lstrip": "yes"}}}),
    ("tokenizer_config.json", {"mask_token": 3}),
    ("tokenizer_config.json", {"mask_token": {"lstrip": True}}),
    ("tokenizer_config.json", {"additional_special_tokens": 3}),
    ("tokenizer_config.json", {"additional_special_tokens": [None]}),
    ("tokenizer_config.json", {"cls_token": None}),
    ("special_tokens_map.json", "[]"),
    ("special_tokens_map.json", {"mask_token": ["<mask>"]}),
    ("added_tokens.json", "[]"),
    ("added_tokens.json", {"[X]": "here"}),
    ("added_tokens.json", {"[X]": None}),
    ("vocab.json", {"a": "b"}),
    ("vocab.json", {"a": -1}),
    ("vocab.json", {}),
    ("merges.txt", "#version\nt h e\n"),
    ("merges.txt", "#version\nt zz\n"),
    ("merges.txt", b"\xff"),
    ("config.json", "{"),
]


@pytest.mark.parametrize(("name", "content"), JUNK)
def test_a_file_of_junk_is_one_error(name: str, content: Any, tmp_path: Path) -> None:
    with pytest.raises(Error, match=re.escape(str(tmp_path))):
        load_tokenizer(write(tmp_path, two_files() | {name: content}))


UNREAD: list[tuple[Files, str]] = [
    (
        {"sentencepiece.bpe.model": sentencepiece()},
        "sentencepiece.bpe.model without a tokenizer.json.*tokenizer_class RobertaTokenizer",
    ),
    (
        {"spiece.model": sentencepiece(), "tokenizer_config.json": {"tokenizer_class": "T5Tokenizer"}},
        "spiece.model .*T5Tokenizer",
    ),
    ({"config.json": {}, "spiece.model": b""}, "spiece.model .*names no tokenizer_class"),
    ({"vocab.txt": "the 3\n", "bpe.codes": "t h 5\n"}, "vocab.txt and bpe.codes .*make ids"),
    (two_files() | {"tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer"}}, "vocab.json and merges.txt .*CLIPTokenizer"),
    (OLD_BERT, "vocab.txt without"),
    ({"vocab.json": {}}, "vocab.json without"),
    ({}, "neither tokenizer.json"),
]


@pytest.mark.parametrize(("files", "told"), UNREAD)
def test_what_is_not_read_is_named(files: Files, told: str, tmp_path: Path) -> None:
    with pytest.raises(Error, match=f"holds no tokenizer that is read here: .*{told}"):
        load_tokenizer(write(tmp_path, files))


@pytest.mark.parametrize(
    ("name", "between", "types"),
    [("vocab.txt", 1, [0, 1]), ("sentencepiece, XLM-RoBERTa", 2, [0, 0]), ("sentencepiece, CamemBERT", 2, [0, 0])],
)
def test_a_pair_of_texts_has_its_ends_between_them(name: str, between: int, types: list[int], tmp_path: Path) -> None:
    """As transformers 4.57's BertConverter, XLMRobertaConverter and CamembertConverter have it."""
    tokenizer = load_tokenizer(write(tmp_path, FOLDERS[name]()))
    first, second = (tokenizer.encode(text).ids for text in ("the cat", "sits"))
    pair = tokenizer.encode("the cat", "sits")
    assert pair.ids == first + [first[-1]] * (between - 1) + second[1:]
    assert pair.type_ids == [types[0]] * (len(first) + between - 1) + [types[1]] * (len(second) - 1)


def test_a_sentencepiece_model_of_another_name(tmp_path: Path) -> None:
    first = load_tokenizer(write(tmp_path / "a", {"sentencepiece.bpe.model": sentencepiece()} | XLM))
    second = load_tokenizer(write(tmp_path / "b", {"spiece.model": sentencepiece()} | XLM))
    assert [first.encode(text).ids for text in TEXTS] == [second.encode(text).ids for text in TEXTS]


def test_a_folder_that_transformers_5_has_written(tmp_path: Path) -> None:
    """Its additional special tokens have another name, and its class is no class of version 4: the file is as it should be."""
    settings = {"tokenizer_class": "TokenizersBackend", "mask_token": "<mask>", "extra_special_tokens": ["[X]"]}
    tokenizer = load_tokenizer(write(tmp_path / "5", one_file(prefix_space) | {"tokenizer_config.json": settings}))
    older = {"add_prefix_space": True, "additional_special_tokens": ["[X]"]}
    as_before = load_tokenizer(write(tmp_path / "4", one_file(prefix_space) | {"tokenizer_config.json": older}))
    assert [tokenizer.encode(text).ids for text in TEXTS] == [as_before.encode(text).ids for text in TEXTS]
    assert tokenizer.mask_token == "<mask>"


@pytest.mark.parametrize(
    ("model", "folder"), [("XLMRoberta", "XLM-RoBERTa"), ("XLMRobertaXL", "XLM-RoBERTa"), ("Camembert", "CamemBERT")]
)
def test_a_model_that_only_its_architecture_names(model: str, folder: str, tmp_path: Path) -> None:
    files = FOLDERS[f"sentencepiece, {folder}"]() | {"config.json": {"architectures": [f"{model}ForMaskedLM"]}}
    assert ours(write(tmp_path, files)) == json.loads(ANSWERS.read_text(encoding="utf-8"))[f"sentencepiece, {folder}"]


def piece(*fields: bytes) -> bytes:
    return field(1, b"".join(fields))


HOSTILE = {
    "nothing": (b"", "0 pieces"),
    "another algorithm": (sentencepiece(kind=2), "no unigram model"),
    "a piece of no UTF-8": (sentencepiece() + piece(field(1, b"\xff")), "no UTF-8"),
    "a piece without a text": (sentencepiece() + piece(field(3, 1)), "without a text"),
    "a score that is no number": (sentencepiece() + piece(field(1, b"x") + varint(21) + b"\0\0\xc0\x7f"), "finite score"),
    "a score of eight bytes": (sentencepiece() + piece(field(1, b"x") + varint(17) + bytes(8)), "of another type"),
    "a piece that is a number": (sentencepiece() + field(1, 3), "a number where bytes belong"),
    "a group": (sentencepiece() + varint(11), "no protobuf"),
    "a length beyond the end": (sentencepiece() + varint(10) + varint(2**62), "cut short"),
    "a number without an end": (sentencepiece() + b"\xff" * 100, "no protobuf"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_sentencepiece_model(name: str, tmp_path: Path) -> None:
    content, told = HOSTILE[name]
    with pytest.raises(Error, match=f"sentencepiece.bpe.model is not a sentencepiece model: .*{told}"):
        load_tokenizer(write(tmp_path, {"sentencepiece.bpe.model": content} | XLM))


def test_a_sentencepiece_model_changed_at_random() -> None:
    """It is read or refused, whatever its bytes."""
    whole, draw, read = TRAINED.read_bytes(), random.Random(3), 0
    for _ in range(2000):
        content = bytearray(whole[: draw.choice((len(whole), draw.randrange(len(whole))))])
        for _ in range(draw.randrange(1, 4)):
            content[draw.randrange(len(content)) if content else 0 :][:1] = draw.randbytes(1)
            content[(at := draw.randrange(len(content) + 1)) : at + draw.randrange(2)] = draw.randbytes(draw.randrange(3))
        try:
            read += len(read_sentencepiece(bytes(content)).pieces) > 0
        except Error:
            continue
    assert read


def test_a_table_of_normalization_that_leads_nowhere(tmp_path: Path) -> None:
    """The tokenizers package panics, which is no Exception."""
    table = field(2, struct.pack("<I", 256 * 4) + b"\xff\xff\xff\x01" * 256 + b"x\0")
    content = sentencepiece().removesuffix(field(3, field(1, b"identity") + field(3, 1) + field(4, 1))) + field(3, table)
    with pytest.raises(Error, match=r"cannot read the text|not valid"):
        tokenize(load_tokenizer(write(tmp_path, {"sentencepiece.bpe.model": content} | XLM)), TEXTS)
