"""Folders as people have them: a vocabulary in each layout, and what lies beside it. Read by the tests and by their tool."""

import json
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent / "golden_tokenizers"
ANSWERS, TRAINED = ROOT / "answers.json", ROOT / "trained.model"

TEXTS = (
    "the cat <mask> sit",
    " the <mask>  cat [X]sit",
    "[X] the  [Y] cat<mask>.",
    "the [MASK] cat[MASK]",
    "a [CLS] the [x] cat [SEP]",
    "Hello THE ﬁ naïve 猫は走る 🙂\n the",
    "<s>the</s> <mask> <pad> <unk>",
    "thecat[X][Y] it[Y]it  [Z] cat<s>NOTUSED",
    "",
)
EXTRA = ("th", "the", "Ġt", "Ġth", "Ġthe", "ca", "cat", "Ġc", "Ġca", "Ġcat", "si", "it", "Ġs", "Ġsi", "Ġsit")
MERGES = (
    "t h", "th e", "Ġ t", "Ġt h", "Ġth e", "c a", "ca t", "Ġ c", "Ġc a", "Ġca t", "s i", "i t", "Ġ s", "Ġs i", "Ġsi t",
)  # fmt: skip
NAMES = {
    "bos_token": "[CLS]", "cls_token": "[CLS]", "eos_token": "[SEP]", "sep_token": "[SEP]", "pad_token": "[PAD]",
    "unk_token": "[UNK]", "mask_token": "[MASK]",
}  # fmt: skip
Files = dict[str, Any]  # by name: an object for JSON, a string or bytes for the rest


def flags(content: str, **others: bool) -> dict[str, Any]:
    """An added token as JSON."""
    return {"content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True} | others


def typed(content: str, **others: bool) -> dict[str, Any]:
    """An added token as tokenizer_config.json has it."""
    return {"__type": "AddedToken", **flags(content, **others)}


def words_of(*more: str, letters: Callable[[str], bool] | None = None) -> dict[str, int]:
    """A small byte-level vocabulary."""
    from tokenizers.pre_tokenizers import ByteLevel

    words = ["<s>", "<pad>", "</s>", "<unk>", *filter(letters, sorted(ByteLevel.alphabet())), *EXTRA, *more, "<mask>"]
    return {word: number for number, word in enumerate(words)}


def two_files(words: dict[str, int] | None = None, merges: tuple[str, ...] = MERGES) -> Files:
    return {"vocab.json": words or words_of(), "merges.txt": "#version: 0.2\n" + "\n".join(merges) + "\n"}


def one_file(change: Callable[[Any, Any], object] | None = None, mask: bool = True) -> Files:
    """tokenizer.json of the same vocabulary, with RoBERTa's special tokens."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(words_of(), [tuple(pair.split()) for pair in MERGES]))
    tokenizer.pre_tokenizer, tokenizer.decoder = tokenizers.pre_tokenizers.ByteLevel(False), tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", tokenizers.AddedToken("<mask>", lstrip=mask, special=True)])
    tokenizer.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    if change is not None:
        change(tokenizers, tokenizer)
    return {"tokenizer.json": json.loads(tokenizer.to_str())}


def whole_words(kind: str, names: bool = True, decoder: bool = True) -> Files:
    """tokenizer.json of whole words or pieces of them, with BERT's names or RoBERTa's."""
    import tokenizers

    ends = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"] if names else ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    words = {word: i for i, word in enumerate([*ends, "the", "THE", "cat", "##s", "##it", "s", "は", "走", "##る", ".", "猫"])}
    tokenizer = tokenizers.Tokenizer(getattr(tokenizers.models, kind)(words, unk_token=ends[3]))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    if decoder:
        tokenizer.decoder = tokenizers.decoders.WordPiece()
    tokenizer.add_special_tokens(ends)
    template = f"{ends[0]} $A {ends[2]}"
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(template, special_tokens=[(ends[0], 0), (ends[2], 2)])
    return {"tokenizer.json": json.loads(tokenizer.to_str())}


PIECES = ("▁", "▁the", "▁cat", "▁s", "it", "s", "i", "t", "h", "e", "c", "a", ".", "猫", "は", "走", "▁[X]", "[", "]", "X")


def unigram() -> Files:
    """tokenizer.json of a unigram model with spaces as pieces, in fairseq's order."""
    import tokenizers

    words = [(word, -float(i)) for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *PIECES, "<mask>"])]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(words, unk_id=3))
    tokenizer.pre_tokenizer, tokenizer.decoder = tokenizers.pre_tokenizers.Metaspace(), tokenizers.decoders.Metaspace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", tokenizers.AddedToken("<mask>", lstrip=True)])
    return {"tokenizer.json": json.loads(tokenizer.to_str())}


def varint(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def field(number: int, content: bytes | int) -> bytes:
    """A field of a protobuf message: a varint, or bytes with their length."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def sentencepiece(*more: tuple[str, float, int], pieces: tuple[str, ...] = PIECES, kind: int = 1) -> bytes:
    """A sentencepiece model of these pieces, after its unknown and control pieces."""
    several = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *((word, -float(i + 1), 1) for i, word in enumerate(pieces))]
    messages = [
        field(1, field(1, word.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score) + field(3, sort))
        for word, score, sort in [*several, *more]
    ]
    return b"".join(messages) + field(2, field(3, kind)) + field(3, field(1, b"identity") + field(3, 1) + field(4, 1))


def no_post_processor(tokenizers: Any, tokenizer: Any) -> None:
    tokenizer.post_processor = tokenizers.processors.ByteLevel()


def prefix_space(tokenizers: Any, tokenizer: Any) -> None:
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)


def padded_and_cut(_: Any, tokenizer: Any) -> None:
    tokenizer.enable_padding(length=20)
    tokenizer.enable_truncation(4)


def lowercased(tokenizers: Any, tokenizer: Any) -> None:
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()


def own_tokens(tokenizers: Any, tokenizer: Any) -> None:
    tokenizer.add_tokens(["[X]", tokenizers.AddedToken("[Y]", rstrip=True)])


N = 4 + 256 + len(EXTRA) + 1
DECODER = {str(N): flags("[X]", lstrip=True), str(N + 1): flags("[Y]", rstrip=True, normalized=False, special=True)}
BESIDE: dict[str, Files] = {  # beside RoBERTa's vocabulary, in both layouts
    "nothing": {},
    "added_tokens.json": {"added_tokens.json": {"[X]": N, "[Y]": N + 1}},
    "added tokens in no order, with a gap": {"added_tokens.json": {"[Y]": N + 5, "[X]": N}},
    "added tokens that are special": {
        "added_tokens.json": {"[X]": N, "[Y]": N + 1},
        "special_tokens_map.json": {"additional_special_tokens": ["[X]"], "mask_token": "<mask>"},
    },
    "added tokens that tokenizer_config.json calls special": {
        "added_tokens.json": {"[X]": N},
        "tokenizer_config.json": {"additional_special_tokens": ["[X]"]},
    },
    "a mask with other flags": {
        "special_tokens_map.json": {"mask_token": flags("<mask>", rstrip=True), "bos_token": flags("<s>", lstrip=True)}
    },
    "an added_tokens_decoder": {
        "tokenizer_config.json": {"tokenizer_class": "RobertaTokenizer", "added_tokens_decoder": DECODER}
    },
    "an added_tokens_decoder against the older files": {
        "tokenizer_config.json": {
            "added_tokens_decoder": DECODER | {str(N - 1): flags("<mask>", rstrip=True, special=True)},
            "mask_token": "<mask>",
        },
        "special_tokens_map.json": {"mask_token": "[MASK]", "additional_special_tokens": ["[Z]"]},
        "added_tokens.json": {"[Q]": N + 3},
    },
    "single words only": {
        "tokenizer_config.json": {"added_tokens_decoder": {str(N): flags("[X]", single_word=True), str(N + 1): flags("cat")}}
    },
    "an empty added_tokens_decoder": {
        "tokenizer_config.json": {"added_tokens_decoder": {}},
        "added_tokens.json": {"[X]": N},
    },
    "add_prefix_space": {"tokenizer_config.json": {"add_prefix_space": True, "tokenizer_class": "RobertaTokenizerFast"}},
    "additional_special_tokens": {"tokenizer_config.json": {"additional_special_tokens": ["[X]", typed("[Y]", lstrip=True)]}},
    "additional_special_tokens in two files": {
        "tokenizer_config.json": {"additional_special_tokens": ["[Z]", "[X]"]},
        "special_tokens_map.json": {"additional_special_tokens": ["[X]", flags("[Y]", rstrip=True)]},
    },
    "a mask with its flags in tokenizer_config.json": {"tokenizer_config.json": {"mask_token": typed("<mask>", lstrip=False)}},
    "a mask of another name": {"tokenizer_config.json": {"mask_token": "[MASK]"}},
    "names as BERT has them": {"tokenizer_config.json": NAMES, "special_tokens_map.json": NAMES},
    "names as BERT has them, in special_tokens_map.json": {"special_tokens_map.json": {k: flags(v) for k, v in NAMES.items()}},
    "no mask": {"tokenizer_config.json": {"mask_token": None}},
    "no bos": {"special_tokens_map.json": {"bos_token": None, "mask_token": "<mask>"}},
    "special tokens that are split": {"tokenizer_config.json": {"split_special_tokens": True}},
    "extra_special_tokens": {"tokenizer_config.json": {"extra_special_tokens": {"x_token": "[X]"}}},
    "settings without a class": {"tokenizer_config.json": {"model_max_length": 512, "errors": "replace"}},
}
PRE_LAYER_NORM = {"config.json": {"model_type": "roberta-prelayernorm"}}
XLM = {"config.json": {"model_type": "xlm-roberta"}}
CAMEMBERT = {"config.json": {"model_type": "camembert"}}
OLD_BERT = {
    "vocab.txt": "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "##it", "s", "猫", "."]) + "\n"
}
AS_BERT = {"tokenizer_config.json": {"tokenizer_class": "BertTokenizer"}}

FOLDERS: dict[str, Callable[[], Files]] = {
    **{f"vocab.json, {name}": partial(lambda files: two_files() | files, files) for name, files in BESIDE.items()},
    **{f"tokenizer.json, {name}": partial(lambda files: one_file() | files, files) for name, files in BESIDE.items()},
    "vocab.json, merges without a version": lambda: two_files() | {"merges.txt": "\n".join(MERGES)},
    "vocab.json, capitals only": lambda: two_files(words_of("TH", "THE", letters=lambda c: not c.islower()), ("T H", "TH E")),
    "vocab.json, without bytes": lambda: two_files(words_of(letters=str.isalnum)),
    "vocab.json, words of several names": lambda: two_files(words_of(*NAMES.values())) | BESIDE["names as BERT has them"],
    "vocab.json, Longformer": lambda: (
        two_files() | {"config.json": {"model_type": "roberta", "tokenizer_class": "LongformerTokenizer"}}
    ),
    "vocab.json, Bart": lambda: two_files() | {"tokenizer_config.json": {"tokenizer_class": "BartTokenizer"}},
    "tokenizer.json, no class's names": lambda: (
        one_file() | {"tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "mask_token": "<mask>"}}
    ),
    "tokenizer.json, no post-processor": lambda: one_file(no_post_processor),
    "tokenizer.json, a space before that no file asks for": lambda: one_file(prefix_space),
    "tokenizer.json, a space before that a file asks for": lambda: one_file(prefix_space) | BESIDE["add_prefix_space"],
    "tokenizer.json, padded and cut": lambda: one_file(padded_and_cut),
    "tokenizer.json, lowercased": lambda: one_file(lowercased) | {"added_tokens.json": {"[x]": N}},
    "tokenizer.json, lowercased, with an added_tokens_decoder": lambda: (
        one_file(lowercased) | {"tokenizer_config.json": {"added_tokens_decoder": DECODER | {str(N): flags("[x]", lstrip=True)}}}
    ),
    "tokenizer.json, a mask that leaves its space": lambda: one_file(mask=False),
    "tokenizer.json, a mask that leaves its space, named": lambda: (
        one_file(mask=False) | {"special_tokens_map.json": {"mask_token": "<mask>"}}
    ),
    "tokenizer.json, its own tokens": lambda: one_file(own_tokens),
    "tokenizer.json, its own tokens against added_tokens.json": lambda: (
        one_file(own_tokens)
        | {"added_tokens.json": {"[Y]": N, "[Z]": N + 7}, "special_tokens_map.json": {"additional_special_tokens": ["[Y]"]}}
    ),
    "tokenizer.json, its own tokens against an added_tokens_decoder": lambda: (
        one_file(own_tokens) | BESIDE["an added_tokens_decoder"]
    ),
    "tokenizer.json, of an encoder-decoder": lambda: (
        one_file()
        | {
            "config.json": {
                "model_type": "encoder-decoder",
                "encoder": {"model_type": "roberta"},
                "decoder": {"model_type": "roberta"},
            }
        }
    ),
    "pieces of words": lambda: (
        whole_words("WordPiece") | {"tokenizer_config.json": {"tokenizer_class": "BertTokenizerFast"} | NAMES}
    ),
    "pieces of words, cased": lambda: (
        whole_words("WordPiece")
        | {"tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "tokenize_chinese_chars": False}}
    ),
    "pieces of words, no class's names": lambda: (
        whole_words("WordPiece")
        | {"tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"}, "special_tokens_map.json": NAMES}
    ),
    "pieces of words, read as RoBERTa": lambda: whole_words("WordPiece"),
    "whole words": lambda: whole_words("WordLevel", names=False),
    "whole words, no decoder": lambda: whole_words("WordLevel", names=False, decoder=False),
    "unigram, XLM-RoBERTa": lambda: unigram() | XLM,
    "unigram, XLM-RoBERTa, added tokens": lambda: unigram() | XLM | {"added_tokens.json": {"[X]": 25, "[Y]": 26}},
    "unigram, XLM-RoBERTa, a mask of another name": lambda: unigram() | XLM | {"tokenizer_config.json": {"mask_token": "[MASK]"}},
    "unigram, CamemBERT": lambda: unigram() | CAMEMBERT,
    "unigram, ALBERT": lambda: unigram() | {"tokenizer_config.json": {"tokenizer_class": "AlbertTokenizer"}},
    "vocab.txt": lambda: OLD_BERT | AS_BERT,
    "vocab.txt, cased, added tokens": lambda: (
        OLD_BERT
        | {
            "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "mask_token": "<mask>"},
            "added_tokens.json": {"[X]": 12, "<mask>": 13},
        }
    ),
    "vocab.txt, ELECTRA": lambda: (
        OLD_BERT | {"tokenizer_config.json": {"tokenizer_class": "ElectraTokenizer", "strip_accents": False}}
    ),
    "sentencepiece, XLM-RoBERTa": lambda: {"sentencepiece.bpe.model": sentencepiece()} | XLM,
    "sentencepiece, CamemBERT": lambda: {"sentencepiece.bpe.model": sentencepiece()} | CAMEMBERT,
    "sentencepiece, trained, XLM-RoBERTa": lambda: {"sentencepiece.bpe.model": TRAINED.read_bytes()} | XLM,
    "sentencepiece, trained, CamemBERT": lambda: {"sentencepiece.bpe.model": TRAINED.read_bytes()} | CAMEMBERT,
    "sentencepiece, a user's pieces": lambda: {"sentencepiece.bpe.model": sentencepiece(("[X]", 0.0, 4), ("[Y]", 0.0, 3))} | XLM,
    "sentencepiece, added tokens": lambda: (
        {
            "sentencepiece.bpe.model": sentencepiece(),
            "added_tokens.json": {"[X]": 25, "[Y]": 26},
            "special_tokens_map.json": {"additional_special_tokens": ["[Y]"], "mask_token": flags("<mask>", lstrip=True)},
        }
        | XLM
    ),
    "sentencepiece, a mask of another name": lambda: {
        "sentencepiece.bpe.model": sentencepiece(),
        "tokenizer_config.json": {"mask_token": "[MASK]", "tokenizer_class": "XLMRobertaTokenizer"},
    },
    "sentencepiece, an added_tokens_decoder": lambda: (
        {
            "sentencepiece.bpe.model": sentencepiece(),
            "tokenizer_config.json": {
                "added_tokens_decoder": {"25": flags("[X]", lstrip=True), "24": flags("<mask>", special=True)}
            },
        }
        | CAMEMBERT
    ),
}


def write(folder: Path, files: Files) -> Path:
    """Write a folder; a config.json of RoBERTa-PreLayerNorm goes with what names no model."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (PRE_LAYER_NORM | files).items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
            (folder / name).write_text(text, encoding="utf-8")
    return folder
