"""From texts to ids and back, by the tokenizers package, from whichever files a checkpoint's folder has."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config import RobertaPreLayerNormConfig
from ..errors import Error
from ..weights.files import read_json, refuse_pointer
from ..weights.hub import VOCABULARIES
from .sentencepiece import CONTROL, USER_DEFINED, read_sentencepiece
from .special_tokens import KINDS, NOT_USED, ROBERTA, Tokens, add_tokens, class_of, content_of, read_optional, read_tokens

Array = np.ndarray[Any, np.dtype[Any]]
BYTE_LEVEL = ("RobertaTokenizer", "LongformerTokenizer", "BartTokenizer")
WORD_PIECE = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer")
WITH_TYPES = (*WORD_PIECE[:1], "ElectraTokenizer", "AlbertTokenizer")
PIECES = ("XLMRobertaTokenizer", "CamembertTokenizer")
SENTENCEPIECE_FILES = ("sentencepiece.bpe.model", "spiece.model")


def load_tokenizer(folder: str | Path) -> Any:
    """A checkpoint folder's tokenizers.Tokenizer, with what its other files say of it.

    Its attributes: `mask_token`, `unk_token`, `cls_token` and `pad_token`, the texts of these tokens, or None;
    `model_max_length`, how many tokens a text may have, or None; `truncation_side`, "right" or "left"; `gives_types`, whether
    the second text of a pair has a type of its own; `clean_up_tokenization_spaces`, whether decoding takes out spaces before
    punctuation. It gives the ids of transformers 4.57's fast tokenizers: tokenizer.json, or what the tokenizer's class makes of
    its vocabulary (vocab.json with merges.txt, a sentencepiece model, vocab.txt), with the tokens and settings of
    tokenizer_config.json, special_tokens_map.json and added_tokens.json. Raises Error on a folder without a tokenizer that is
    read here, or where the package is not installed.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise Error("reading text needs the tokenizers package: pip install 'tinyroberta[text]'") from error
    folder = Path(folder)
    folder = folder.parent if folder.is_file() else folder
    for name in ("tokenizer.json",) if (folder / "tokenizer.json").is_file() else VOCABULARIES:
        refuse_pointer(folder / name)
    with _one_error(f"{folder}: the tokenizer files are not valid"):
        settings = read_optional(folder / "tokenizer_config.json")
        kind = class_of(folder, settings)
        if (folder / "tokenizer.json").is_file():
            tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.no_padding()
            tokenizer.no_truncation()
            tokens = read_tokens(tokenizers, folder, settings, kind, tokenizer.get_added_tokens_decoder())
            tokens = _with_mask(tokenizers, tokens, kind)
        else:
            tokenizer, tokens = _from_vocabulary(tokenizers, folder, settings, kind)
        add_tokens(tokenizers, tokenizer, tokens)
        _set_up(tokenizers, tokenizer, settings, kind)
    for name in ("mask_token", "unk_token", "cls_token", "pad_token"):
        setattr(tokenizer, name, content_of(tokens.special[name]) if name in tokens.special else None)
    tokenizer.clean_up_tokenization_spaces = bool(settings.get("clean_up_tokenization_spaces"))
    longest = settings.get("model_max_length")
    tokenizer.model_max_length = longest if isinstance(longest, int) and longest > 0 else None
    tokenizer.truncation_side = "left" if settings.get("truncation_side") == "left" else "right"
    inputs = settings.get("model_input_names")
    tokenizer.gives_types = "token_type_ids" in inputs if isinstance(inputs, list) else kind in WITH_TYPES
    return tokenizer


def mask_token(tokenizer: Any) -> str:
    """The text of a tokenizer's mask: what its files name, else <mask> or [MASK]; raises Error where it has neither."""
    for token in (getattr(tokenizer, "mask_token", None), "<mask>", "[MASK]"):
        if token is not None and tokenizer.token_to_id(token) is not None:
            return str(token)
    raise Error("the tokenizer has no mask: its tokenizer_config.json must name a mask_token")


def _with_mask(tokenizers: Any, tokens: Tokens, kind: str | None, **flags: bool) -> Tokens:
    """A mask of which only the content is known is read as the tokenizer's class does: most take the space before it."""
    mask = tokens.special.get("mask_token")
    if kind in KINDS and KINDS[kind].mask and isinstance(mask, str):
        mask = tokenizers.AddedToken(mask, **{**KINDS[kind].mask, **flags})
        return tokens._replace(special={**tokens.special, "mask_token": mask})
    return tokens


def _set_up(tokenizers: Any, tokenizer: Any, settings: Mapping[str, Any], kind: str | None) -> None:
    """The settings that transformers lays over what a tokenizer's own file says."""
    tokenizer.encode_special_tokens = bool(settings.get("split_special_tokens"))
    prefix = bool(settings.get("add_prefix_space"))
    before = tokenizer.pre_tokenizer
    if (
        isinstance(before, tokenizers.pre_tokenizers.ByteLevel)
        and before.add_prefix_space != prefix
        and (kind not in (None, "TokenizersBackend") or "add_prefix_space" in settings)  # version 5 leaves the file's as it is
    ):
        before.add_prefix_space = prefix
        tokenizer.pre_tokenizer = before
    if kind in WORD_PIECE and isinstance(tokenizer.normalizer, tokenizers.normalizers.BertNormalizer):
        tokenizer.normalizer = _bert_normalizer(tokenizers, settings, tokenizer.normalizer.clean_text)


def _from_vocabulary(tokenizers: Any, folder: Path, settings: Mapping[str, Any], kind: str | None) -> tuple[Any, Tokens]:
    """What transformers' slow tokenizers become as fast ones."""
    there = [name for name in VOCABULARIES if (folder / name).is_file()]
    byte_level = {"vocab.json", "merges.txt"} <= set(there) and kind in (None, *BYTE_LEVEL)
    kind = kind or ("RobertaTokenizer" if byte_level else None)
    tokens = read_tokens(tokenizers, folder, settings, kind, {})
    piece_files = [name for name in SENTENCEPIECE_FILES if name in there]
    if byte_level:
        tokens = _as_slow(tokenizers, _with_mask(tokenizers, tokens, kind), rest=True)
        return _byte_level(tokenizers, folder, tokens, bool(settings.get("add_prefix_space"))), tokens
    if piece_files and kind in PIECES:
        tokens = _as_slow(tokenizers, _with_mask(tokenizers, tokens, kind, special=True))
        return _unigram(tokenizers, folder / piece_files[0], kind, tokens), tokens
    if "vocab.txt" in there and kind in WORD_PIECE:
        tokens = _as_slow(tokenizers, tokens)
        return _word_piece(tokenizers, folder / "vocab.txt", settings, tokens), tokens
    raise Error(f"{folder} holds no tokenizer that is read here: {_what_to_do(there, kind)}")


def _what_to_do(there: list[str], kind: str | None) -> str:
    if not there:
        return "neither tokenizer.json, nor a vocabulary such as vocab.json with merges.txt"
    told = f"{' and '.join(there)} without a tokenizer.json"
    if "bpe.codes" in there:
        return f"it has {told}, which only transformers' Python code reads (PhobertTokenizer): make ids with that"
    told += f", for the tokenizer_class {kind}" if kind else ", and names no tokenizer_class in tokenizer_config.json"
    return f"it has {told}; transformers' AutoTokenizer.from_pretrained(folder).save_pretrained(folder) writes tokenizer.json"


def _as_slow(tokenizers: Any, tokens: Tokens, rest: bool = False) -> Tokens:
    """Special tokens as a slow tokenizer hands them on: flags that nobody gave are settled before the token becomes special."""

    def settled(name: str, token: Any) -> Any:
        if isinstance(token, list):
            return [settled(name, one) for one in token]
        if isinstance(token, str):
            return tokenizers.AddedToken(token, normalized=True) if rest and name in ROBERTA else token
        return tokenizers.AddedToken(**token.__getstate__())

    return tokens._replace(special={name: settled(name, token) for name, token in tokens.special.items()})


def _byte_level(tokenizers: Any, folder: Path, tokens: Tokens, add_prefix_space: bool) -> Any:
    """RoBERTa's byte-level BPE (transformers' RobertaTokenizer); merges.txt begins with its version and ends with a newline."""
    vocabulary = read_json(folder / "vocab.json")
    merges = [tuple(line.split()) for line in (folder / "merges.txt").read_text(encoding="utf-8").split("\n")[1:-1]]
    if not vocabulary:
        raise Error(f"{folder / 'vocab.json'} holds no words")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    separator, first = _with_ids(tokens, vocabulary, _ends(tokens))
    tokenizer.post_processor = tokenizers.processors.RobertaProcessing(separator, first, add_prefix_space=add_prefix_space)
    return tokenizer


def _word_piece(tokenizers: Any, path: Path, settings: Mapping[str, Any], tokens: Tokens) -> Any:
    """BERT's word pieces around their list (transformers' BertTokenizer)."""
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    vocabulary = {word: number for number, word in enumerate(lines)}
    unknown = content_of(tokens.special.get("unk_token"))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token=unknown))
    tokenizer.normalizer = _bert_normalizer(tokenizers, settings, True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    separator, first = _with_ids(tokens, vocabulary, _ends(tokens))
    one = f"{first[0]}:0 $A:0 {separator[0]}:0"
    pair = f"{one} $B:1 {separator[0]}:1"
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(one, pair, [first, separator])
    return tokenizer


def _bert_normalizer(tokenizers: Any, settings: Mapping[str, Any], clean_text: bool) -> Any:
    return tokenizers.normalizers.BertNormalizer(
        clean_text=clean_text,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )


def _unigram(tokenizers: Any, path: Path, kind: str, tokens: Tokens) -> Any:
    """A unigram model of sentencepiece's pieces in fairseq's order (transformers' XLMRobertaTokenizer and CamembertTokenizer)."""
    try:
        model = read_sentencepiece(path.read_bytes())
    except Error as error:
        raise Error(f"{path} is not a sentencepiece model: {error}") from error
    pieces = [(text, score) for text, score, _ in model.pieces]
    if kind == "CamembertTokenizer":
        start, end, unknown = NOT_USED
        vocabulary = [(start, 0.0), ("<pad>", 0.0), (end, 0.0), ("<unk>", 0.0), (unknown, -100.0), *pieces[1:]]
    else:
        vocabulary = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces[3:]]
    vocabulary.append(("<mask>", 0.0))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, unk_id=3))
    tokenizer.add_tokens(
        [
            tokenizers.AddedToken(text, normalized=False, special=sort == CONTROL)
            for text, _, sort in model.pieces
            if sort in (CONTROL, USER_DEFINED)
        ]
    )
    steps = [
        tokenizers.normalizers.Strip(left=False, right=True),
        tokenizers.normalizers.Replace(tokenizers.Regex(" {2,}"), "▁"),
    ]
    if model.charsmap:
        steps.insert(0, tokenizers.normalizers.Precompiled(model.charsmap))
    tokenizer.normalizer = tokenizers.normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    ends = _with_ids(tokens, {text: number for number, (text, _) in enumerate(vocabulary)}, ("<s>", "</s>"))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> </s> $B </s>", ends)
    return tokenizer


def _ends(tokens: Tokens) -> list[str]:
    names = ("sep_token", "cls_token")
    if absent := [name for name in names if name not in tokens.special]:
        raise ValueError(f"there is no {' and no '.join(absent)}, with which every text ends and begins")
    return [content_of(tokens.special[name]) for name in names]


def _with_ids(tokens: Tokens, vocabulary: Mapping[str, int], contents: Sequence[str]) -> list[tuple[str, int]]:
    """Special tokens with their ids; those that the vocabulary lacks stand behind it, in order."""
    ids = {**vocabulary, **{token.content: index for index, token in tokens.added.items()}}
    for token in tokens.all_special():
        ids.setdefault(content_of(token), len(ids))
    return [(content, ids[content]) for content in contents]


@contextlib.contextmanager
def _one_error(told: str) -> Iterator[None]:
    """Whatever the tokenizers package raises becomes an Error: bare Exceptions, and what is no Exception where it panics."""
    try:
        yield
    except Error:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise Error(f"{told}: {error}") from error
        raise


def encode(tokenizer: Any, texts: Sequence[str], config: RobertaPreLayerNormConfig) -> tuple[Array, Array]:
    """Texts -> ids (B, S) int64, padded on the right, and the mask of real tokens (B, S) int64.

    Raises Error on no texts, a text that is no Unicode or longer than the model reads, or a tokenizer with more words than the
    model.
    """
    return stack(tokenize(tokenizer, texts), config)


def tokenize(tokenizer: Any, texts: Sequence[str], **how: Any) -> list[Any]:
    """Texts -> tokenizers.Encodings, one for each, by encode_batch's keywords; raises Error on no texts, or on no Unicode."""
    if not texts:
        raise Error("there is no text to read")
    for text in texts:
        check_text(text)
    with _one_error("the tokenizer cannot read the text"):
        return list(tokenizer.encode_batch(list(texts), **how))


def decode(tokenizer: Any, ids: Sequence[int], skip_special_tokens: bool = False, clean_up: bool | None = None) -> str:
    """The text of ids; clean_up takes out spaces before punctuation, where None as the tokenizer's files say (transformers')."""
    text = str(tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))
    if getattr(tokenizer, "clean_up_tokenization_spaces", False) if clean_up is None else clean_up:
        for spaced in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
            text = text.replace(spaced, spaced.strip())
    return text


def check_text(text: Any) -> None:
    """Raise Error where a text is no string of Unicode."""
    if not isinstance(text, str):
        raise Error(f"a text is of type {type(text).__name__}; it must be a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        told = "holds half of a surrogate pair, which is no character: read its bytes as UTF-8"
        raise Error(f"the text {text[:80]!r} {told}") from error


def read_texts(
    tokenizer: Any,
    texts: Sequence[Any],
    config: RobertaPreLayerNormConfig,
    longest: int,
    long: str = "error",
    max_length: int | None = None,
    stride: int = 0,
    strategy: str = "longest_first",
    is_split_into_words: bool = False,
) -> list[list[Any] | Error]:
    """Texts, pairs of texts or lists of words -> for each the windows (tokenizers.Encodings) that a model reads, or an Error.

    An Error may stand in a text's place, and is its reading.

    A text of at most `max_length` tokens (`longest`, which the model reads, where that is None) is one window. A longer one is
    refused, cut, or read in windows that share `stride` tokens, as `long` says. Leaves the tokenizer's own truncation off. Raises
    Error on a max_length or stride that cannot be.
    """
    length = longest if max_length is None else max_length
    if not 1 <= length <= longest:
        raise Error(f"max_length is {length}; this model reads at least 1 token and at most {longest}")
    try:
        if long == "error":
            tokenizer.no_truncation()
        else:
            side = getattr(tokenizer, "truncation_side", "right")
            tokenizer.enable_truncation(length, stride=stride, strategy=strategy, direction=side)
    except (ValueError, TypeError, OverflowError) as error:
        raise Error(f"texts cannot be cut to {length} tokens with a stride of {stride}: {error}") from error
    readings: list[list[Any] | Error] = [_checked(text) for text in texts]
    fine = [number for number, reading in enumerate(readings) if not isinstance(reading, Error)]
    encodings = _encodings(tokenizer, [texts[number] for number in fine], is_split_into_words)
    for number, encoding in zip(fine, encodings, strict=True):
        readings[number] = encoding if isinstance(encoding, Error) else _windows(encoding, config, length, long)
    tokenizer.no_truncation()
    return readings


def _checked(text: Any) -> list[Any] | Error:
    if isinstance(text, Error):
        return text
    try:
        for part in text if isinstance(text, tuple | list) else (text,):
            check_text(part)
    except Error as error:
        return error
    return []


def _encodings(tokenizer: Any, texts: list[Any], words: bool) -> list[Any]:
    """Encodings, and an Error for each text that the tokenizer cannot read."""
    try:
        with _one_error("the tokenizer cannot read the text"):
            return list(tokenizer.encode_batch(texts, is_pretokenized=words))
    except Error as error:
        return [error] if len(texts) == 1 else [one for text in texts for one in _encodings(tokenizer, [text], words)]


def _windows(encoding: Any, config: RobertaPreLayerNormConfig, length: int, long: str) -> list[Any] | Error:
    windows = [encoding, *(encoding.overflowing if long == "window" else ())]
    if len(encoding) > length:
        told = f"a text has {len(encoding)} tokens; this model reads at most {length}, <s> and </s> among them"
        return Error(f'{told}: cut it, or ask for long="truncate" or long="window"')
    if not len(encoding):
        return Error("a text has no tokens")
    most = max(max(window.ids) for window in windows)
    if most >= config.vocab_size:
        return Error(f"the tokenizer gave id {most}, the model has {config.vocab_size} words: they do not belong together")
    return windows


def stack(encodings: Sequence[Any], config: RobertaPreLayerNormConfig) -> tuple[Array, Array]:
    """Encodings -> ids (B, S) int64 and mask (B, S) int64; raises Error where the model cannot read them."""
    rows = [encoding.ids for encoding in encodings]
    longest = max(map(len, rows))
    if longest > config.usable_length:
        raise Error(
            f"a text has {longest} tokens; this model reads at most {config.usable_length}, <s> and </s> among them: cut it"
        )
    if longest == 0:
        raise Error("a text has no tokens")
    ids = np.full((len(rows), longest), config.pad_token_id or 0, np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    if ids.max() >= config.vocab_size:
        raise Error(f"the tokenizer gave id {ids.max()}, the model has {config.vocab_size} words: they do not belong together")
    return ids, mask
