"""Write tests/golden_tokenizers: what transformers' fast tokenizers make of the folders in tests/tokenizer_folders.py.

    pip install transformers==4.57.6 sentencepiece protobuf && python tools/make_golden_tokenizers.py

The sentencepiece model is trained here, on a few sentences, with rules of normalization of its own.
"""

import io
import json
import sys
import tempfile
from pathlib import Path

import sentencepiece
import transformers
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from tokenizer_folders import ANSWERS, FOLDERS, ROOT, TEXTS, TRAINED, write

SENTENCES = [
    f"the {a} {b} on the {c}." for a in ("cat", "naïve cat", "猫") for b in ("sits", "sat", "is") for c in ("mat", "cats", "ﬁt")
]


def train() -> bytes:
    """A unigram model that reads ﬁ as fi and H as h."""
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder, "rules.tsv")
        rules.write_text("FB01\t66 69\n48\t68\nFF21\t61\n", encoding="utf-8")
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES * 4), model_writer=model, vocab_size=22, normalization_rule_tsv=str(rules),
            character_coverage=1.0, minloglevel=2,
        )  # fmt: skip
        return model.getvalue()


def main() -> None:
    assert transformers.__version__ == "4.57.6"
    ROOT.mkdir(exist_ok=True)
    if not TRAINED.exists():
        TRAINED.write_bytes(train())
    answers = {}
    for name, files in FOLDERS.items():
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = AutoTokenizer.from_pretrained(write(Path(folder), files()))
            assert tokenizer.is_fast, name
            ids = [tokenizer(text).input_ids for text in TEXTS]
            answers[name] = {
                "mask_token": tokenizer._special_tokens_map["mask_token"] and tokenizer.mask_token,
                "ids": ids,
                "decoded": [tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in ids],
                "without_special": [
                    tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False) for row in ids
                ],
            }
    lines = [f"{json.dumps(name)}: {json.dumps(answer, ensure_ascii=False)}" for name, answer in answers.items()]
    ANSWERS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{len(answers)} folders")


if __name__ == "__main__":
    main()
