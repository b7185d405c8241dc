"""text/: folders as people have them give the ids of transformers' fast tokenizers, stored and live."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from tokenizer_folders import ANSWERS, FOLDERS, TEXTS, write

from tinyroberta.text.tokenizer import load_tokenizer

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


@pytest.mark.live
@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_gives_what_transformers_gives(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        transformers = pytest.importorskip("transformers", minversion="4.57.6")
    if int(transformers.__version__.split(".")[0]) > 4:
        pytest.skip("version 5 reads these files otherwise")
    if "sentencepiece" in name:
        for needed in ("sentencepiece", "google.protobuf"):
            pytest.importorskip(needed)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write(tmp_path, FOLDERS[name]())
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    answer = ours(tmp_path)
    for text, row, decoded, plain in zip(TEXTS, answer["ids"], answer["decoded"], answer["without_special"], strict=True):
        assert row == theirs(text).input_ids
        assert decoded == theirs.decode(row, clean_up_tokenization_spaces=False)
        assert plain == theirs.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False)
