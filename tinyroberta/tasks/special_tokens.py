"""Which tokens a checkpoint's small files add to a tokenizer, and what each is for: the precedence of transformers 4.57."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..weights.files import read_json

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token", "additional_special_tokens")
FLAGS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
ROBERTA = {
    "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>", "pad_token": "<pad>",
    "cls_token": "<s>", "mask_token": "<mask>",
}  # fmt: skip
BERT = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}
NOT_USED = ["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"]


class Kind(NamedTuple):
    """What a tokenizer class of transformers names where the files do not, and how its mask is read where it is but a string."""

    tokens: Mapping[str, Any]
    mask: Mapping[str, bool] = {}


KINDS = {
    "RobertaTokenizer": Kind(ROBERTA, {"lstrip": True, "normalized": False}),
    "LongformerTokenizer": Kind(ROBERTA, {"lstrip": True, "normalized": False}),
    "BartTokenizer": Kind(ROBERTA, {"lstrip": True, "normalized": True, "special": True}),
    "XLMRobertaTokenizer": Kind(ROBERTA, {"lstrip": True}),
    "CamembertTokenizer": Kind({**ROBERTA, "additional_special_tokens": NOT_USED}, {"lstrip": True, "special": True}),
    "BertTokenizer": Kind(BERT),
    "DistilBertTokenizer": Kind(BERT),
    "ElectraTokenizer": Kind(BERT),
    "AlbertTokenizer": Kind(
        {**BERT, "bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "<unk>", "pad_token": "<pad>"},
        {"lstrip": True, "normalized": False},
    ),
    "GPT2Tokenizer": Kind(dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")),
}
CLASS_OF_MODEL = {
    "roberta": "RobertaTokenizer",
    "roberta-prelayernorm": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "xlm-roberta-xl": "XLMRobertaTokenizer",
    "camembert": "CamembertTokenizer",
    "bert": "BertTokenizer",
}
CLASS_OF_ARCHITECTURE = {"XLMRoberta": "XLMRobertaTokenizer", "Roberta": "RobertaTokenizer", "Camembert": "CamembertTokenizer"}


class Tokens(NamedTuple):
    """Added tokens by the ids that the files give them, and special tokens by what they are for: strings or AddedTokens."""

    added: dict[int, Any]
    special: dict[str, Any]

    def all_special(self) -> list[Any]:
        """Each special token once, in the order in which they are added."""
        several: list[Any] = []
        for value in self.special.values():
            seen = {content_of(token) for token in several}
            several += [token for token in (value if isinstance(value, list) else [value]) if content_of(token) not in seen]
        return several


def class_of(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The tokenizer class, without "Fast", that tokenizer_config.json, config.json or the type of model names; or None."""
    named = settings.get("tokenizer_class")
    if not named:
        config = read_optional(folder / "config.json")
        inner = config["encoder"] if isinstance(config.get("encoder"), dict) else config
        named = config.get("tokenizer_class") or CLASS_OF_MODEL.get(str(inner.get("model_type")))
        if not named and isinstance(inner.get("architectures"), list):
            models = [str(name) for name in inner["architectures"]]
            named = next(
                (kind for start, kind in CLASS_OF_ARCHITECTURE.items() for name in models if name.startswith(start)), None
            )
    return str(named).removesuffix("Fast") if named else None


def read_tokens(tokenizers: Any, folder: Path, settings: Mapping[str, Any], kind: str | None, own: Mapping[int, Any]) -> Tokens:
    """What the files say, `own` being tokenizer.json's added tokens by id.

    An `added_tokens_decoder` in tokenizer_config.json is all there is. Else special_tokens_map.json goes before
    tokenizer_config.json, and tokenizer.json's tokens before added_tokens.json's. A special token that the files only call by
    its content has the flags with which it is added (transformers takes another's where added_tokens.json lies beside an
    additional special token that is the mask too: it keeps a name from a loop before). Raises ValueError on tokens that are none.
    """
    given = {name: settings[name] for name in NAMES if name in settings}
    added: dict[int, Any] = {}
    if (decoder := settings.get("added_tokens_decoder")) is not None:
        added = {int(index): as_token(tokenizers, token) for index, token in decoder.items()}
        flags = {token.content: token for token in added.values()}
    else:
        for name, value in read_optional(folder / "special_tokens_map.json").items():
            if isinstance(value, dict):
                given[name] = as_token(tokenizers, {**value, "special": True})
            elif name == "additional_special_tokens" and isinstance(value, list):
                several = list(given.get(name) or [])
                for token in value:
                    special = as_token(tokenizers, {**token, "special": True}) if isinstance(token, dict) else token
                    if special not in several:
                        several.append(special)
                given[name] = several
            else:
                given[name] = value
        names = {content_of(token) for value in given.values() for token in (value if isinstance(value, list) else [value])}
        for content, index in read_optional(folder / "added_tokens.json").items():
            added[int(index)] = tokenizers.AddedToken(content, normalized=content not in names, special=content in names)
        added |= own
        flags = {token.content: token for token in own.values()}
    special = dict(KINDS[kind].tokens) if kind in KINDS else {}
    for name in NAMES:
        if name not in given:
            continue
        value = given[name]
        if name == "additional_special_tokens":
            special[name] = [as_named(tokenizers, token) for token in value or []]
        elif value is not None:
            token = as_named(tokenizers, value)
            special[name] = flags.get(content_of(token), token)
        else:
            special.pop(name, None)
    extra = settings.get("extra_special_tokens")  # by name; transformers 5 writes its additional_special_tokens there
    if isinstance(extra, list) and "additional_special_tokens" not in given:
        special["additional_special_tokens"] = [as_named(tokenizers, token) for token in extra]
    ordered = {name: special[name] for name in NAMES if name in special}
    if isinstance(extra, dict):
        ordered |= {name: as_named(tokenizers, token) for name, token in extra.items() if name not in ordered}
    return Tokens(added, ordered)


def add_tokens(tokenizers: Any, tokenizer: Any, tokens: Tokens) -> None:
    """Add what is asked for; a token that the tokenizer has gets the flags, and is special where it is named so."""
    special = tokens.all_special()
    missing = [token for _, token in sorted(tokens.added.items())]
    contents = {token.content for token in [*tokenizer.get_added_tokens_decoder().values(), *missing]}
    missing += [token for token in special if token not in missing and not (isinstance(token, str) and token in contents)]
    names = {content_of(token) for token in special}
    for number, token in enumerate(missing):
        if isinstance(token, str):
            missing[number] = tokenizers.AddedToken(token, special=True)
        else:
            token.special = token.special or token.content in names
    tokenizer.add_tokens(missing)


def as_token(tokenizers: Any, token: Any) -> Any:
    """An AddedToken of the flags that a file gives; raises ValueError on anything else."""
    if not isinstance(token, dict) or not isinstance(token.get("content"), str):
        raise ValueError(f"an added token is {token!r}; it must have a content and flags")
    return tokenizers.AddedToken(**{name: token[name] for name in FLAGS if token.get(name) is not None})


def as_named(tokenizers: Any, token: Any) -> Any:
    """A special token as it is named: a string, or an AddedToken where there are flags."""
    return token if isinstance(token, str | tokenizers.AddedToken) else as_token(tokenizers, token)


def content_of(token: Any) -> str:
    return str(getattr(token, "content", token))


def read_optional(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is no file."""
    return read_json(path) if path.is_file() else {}
