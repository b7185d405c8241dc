"""From texts to ids and back, by the tokenizers package: tokenizer.json, or vocab.json with merges.txt."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config import RobertaPreLayerNormConfig
from ..errors import Error
from ..weights.files import refuse_pointer

Array = np.ndarray[Any, np.dtype[Any]]
MASK = "<mask>"


def load_tokenizer(folder: str | Path) -> Any:
    """A checkpoint folder's tokenizers.Tokenizer; raises Error where the folder has none, or the package is not installed."""
    try:
        import tokenizers
    except ImportError as error:
        raise Error("reading text needs the tokenizers package: pip install 'tinyroberta[text]'") from error
    folder = Path(folder)
    whole, vocabulary, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    for path in (whole, vocabulary, merges):
        refuse_pointer(path)
    try:
        if whole.is_file():
            tokenizer = tokenizers.Tokenizer.from_file(str(whole))
            tokenizer.no_padding()
            tokenizer.no_truncation()
            return tokenizer
        if vocabulary.is_file() and merges.is_file():
            return _byte_level(tokenizers, str(vocabulary), str(merges))
    except Exception as error:  # the package raises bare Exceptions
        raise Error(f"{folder}: the tokenizer files are not valid: {error}") from error
    raise Error(f"{folder} holds no tokenizer: neither tokenizer.json, nor vocab.json with merges.txt")


def _byte_level(tokenizers: Any, vocabulary: str, merges: str) -> Any:
    """RoBERTa's own byte-level BPE around a vocabulary and its merges (transformers' RobertaTokenizerFast)."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(vocabulary, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    ids = {token: tokenizer.token_to_id(token) for token in ("<s>", "<pad>", "</s>", "<unk>", MASK)}
    if absent := [token for token, index in ids.items() if index is None]:
        raise Error(f"vocab.json lacks {', '.join(absent)}, which RoBERTa's tokenizer has")
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.add_special_tokens([tokenizers.AddedToken(MASK, lstrip=True, special=True)])
    ends = (("</s>", ids["</s>"]), ("<s>", ids["<s>"]))
    tokenizer.post_processor = tokenizers.processors.RobertaProcessing(*ends, add_prefix_space=False)
    return tokenizer


def encode(tokenizer: Any, texts: Sequence[str], config: RobertaPreLayerNormConfig) -> tuple[Array, Array]:
    """Texts -> ids (B, S) int64, padded on the right, and the mask of real tokens (B, S) int64.

    Raises Error on no texts, a text that is no Unicode or longer than the model reads, or a tokenizer with more words than the
    model.
    """
    if not texts:
        raise Error("there is no text to read")
    for text in texts:
        if not isinstance(text, str):
            raise Error(f"a text is of type {type(text).__name__}; it must be a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            told = "holds half of a surrogate pair, which is no character: read its bytes as UTF-8"
            raise Error(f"the text {text[:80]!r} {told}") from error
    encodings = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    longest = max(map(len, encodings))
    if longest > config.usable_length:
        raise Error(
            f"a text has {longest} tokens; this model reads at most {config.usable_length}, <s> and </s> among them: cut it"
        )
    if longest == 0:
        raise Error("a text has no tokens")
    ids = np.full((len(encodings), longest), config.pad_token_id or 0, np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(encodings):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    if ids.max() >= config.vocab_size:
        raise Error(f"the tokenizer gave id {ids.max()}, the model has {config.vocab_size} words: they do not belong together")
    return ids, mask
