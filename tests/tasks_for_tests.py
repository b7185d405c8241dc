"""What tools/make_golden_tasks.py and the tests of the tasks share: the models of tests/golden_tasks, and texts."""

import math
import shutil
from pathlib import Path
from typing import Any

CLOSE = 1e-5
ROOT = Path(__file__).parent / "golden_tasks"
ENTITIES = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC", 5: "PER"}
PRE, POST, XLM = "RobertaPreLayerNorm", "Roberta", "XLMRoberta"
MODELS: dict[str, tuple[str, str, str, dict[str, Any]]] = {  # a family, a head, a tokenizer, and fields of the configuration
    "labels": (PRE, "ForSequenceClassification", "byte_level", {"id2label": {0: "bad", 1: "so so", 2: "good"}}),
    "several_labels": (
        XLM,
        "ForSequenceClassification",
        "unigram",
        {"num_labels": 4, "problem_type": "multi_label_classification"},
    ),
    "number": (POST, "ForSequenceClassification", "byte_level", {"num_labels": 1, "problem_type": "regression"}),
    "entities": (POST, "ForTokenClassification", "byte_level", {"id2label": ENTITIES}),
    "entities_unigram": (XLM, "ForTokenClassification", "unigram", {"id2label": ENTITIES}),
    "answers": (PRE, "ForQuestionAnswering", "byte_level", {}),
    "answers_unigram": (XLM, "ForQuestionAnswering", "unigram", {}),
    "choices": (POST, "ForMultipleChoice", "byte_level", {}),
    "words": (PRE, "ForMaskedLM", "byte_level", {}),
    "words_unigram": (XLM, "ForMaskedLM", "unigram", {}),
    "bare": (XLM, "Model", "unigram", {}),
    "causal": (PRE, "ForCausalLM", "byte_level", {"is_decoder": True, "bos_token_id": 0, "eos_token_id": 2}),
}
TEXTS = [
    "Anna Smith lives in Berlin.",
    "The naïve café owner, Mr. O'Neil, didn't see it!",
    "  two  spaces\tand a\nnew line ",
    "日本の猫は café で",
    "🙂 smiles 🙃, and <mask> or </s> said",
]
LONG = (
    "Anna Smith went from Berlin to Paris by train, and there she met Mr. O'Neil, the owner of a café. They drank tea; it "
    "rained. Then they took the boat to London, where the naïve captain told them of 日本 and its cats."
)
CONTEXT = (
    "Mr. O'Neil owns a café in Paris. Anna lives in Berlin, and her cat sleeps on the mat. In the summer of 1987 the boat "
    "sank near London; nobody was hurt. 🙂 Everyone said that it was the captain's fault."
)
PAIRS = [
    {"text": "Where does Anna live?", "text_pair": "In Berlin."},
    {"text": "The café", "text_pair": "日本"},
    {"text": TEXTS[0]},
]
QUESTIONS = [
    {"question": "Where is it?", "context": CONTEXT},
    {"question": "Who?", "context": "Anna, of Berlin.  And the naïve\tcat."},
    {"question": "When?", "context": LONG},
]
MASKED = ["The <mask> sat on the mat.", "<mask>, in Paris", "A <mask> of <mask>.", " café  <mask> , didn't"]
PROMPTS = ["Anna Smith", "The café , in", "日本の"]
FOLLOWED = [
    ("Anna went to", ["Berlin.", "the naïve café owner", ""]),
    (TEXTS[1], ["日本", "two  spaces"]),
    ("One choice", ["alone"]),
]


def assemble(name: str, folder: Path) -> Path:
    """A model's folder as a checkpoint has it: its files beside those of its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in (ROOT / name, ROOT / MODELS[name][2]):
        for file in part.iterdir():
            shutil.copy(file, folder / file.name)
    return folder


def same(found: Any, expected: Any) -> bool:
    """The same structure, keys in the same order, the same texts and whole numbers, and other numbers close."""
    expected = expected.item() if hasattr(expected, "item") else expected
    if isinstance(expected, float):
        return isinstance(found, float) and math.isclose(found, expected, rel_tol=CLOSE, abs_tol=CLOSE)
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[key], value) for key, value in expected.items())
    if isinstance(expected, list):
        return isinstance(found, list) and len(found) == len(expected) and all(map(same, found, expected))
    return type(found) is type(expected) and found == expected
