"""The tiny sentence-transformers folders of tests/golden_embed: a base's files, and laid over them what a case has of its own."""

import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent / "golden_embed"
BASES = ("roberta", "xlm-roberta")
SENTENCES = [
    "The sea was calm, and the boats lay still.",
    "Hello, world! Where does the train to Łódź leave from?",
    "query: a naïve question",
    "passage: an answer of several words, and one more sentence behind it",
    "ＡＢＣ 123 猫 🙂 ﬁne",
]
TEXTS = [
    "hello",
    " The sea was calm,  and Nobody spoke. ",
    "",
    "   ",
    "naïve 猫🙂\u0301\n\ttabs",
    "THE TRAIN </s> LEFT <mask>",
    "a sentence that is said again and again, " * 5,
    "one",
]
EVERY = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
PROMPTS = {"query": "query: ", "passage": "passage: "}
TANH, PLAIN, CURVED = (12, "Tanh", {}), (20, "Identity", {"bias": False}), (12, "GELU", {})
WITHOUT = {"prompts": PROMPTS, "include_prompt": False}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"roberta-{mode}": ("roberta", {"modes": [mode]}) for mode in EVERY},
    "roberta-every": ("roberta", {"modes": EVERY, **WITHOUT, "old": True}),
    "roberta-reordered": ("roberta", {"modes": ["lasttoken", "mean", "cls"], **WITHOUT, "default_prompt_name": "query"}),
    "roberta-dense": (
        "roberta", {"modes": ["mean"], "dense": [PLAIN, TANH], "normalize": True, "old": True, "similarity": "dot"},
    ),
    "roberta-lower": ("roberta", {"modes": ["max"], "lower": True, "max_seq_length": 9, "old": True, "similarity": "manhattan"}),
    "xlm-mean": ("xlm-roberta", {"modes": ["mean"], "prompts": PROMPTS, "normalize": True}),
    "xlm-cls": ("xlm-roberta", {"modes": ["cls"], "normalize": True, "old": True, "max_seq_length": 64}),
    "xlm-every": ("xlm-roberta", {"modes": EVERY, "dense": [CURVED], "max_seq_length": 20, "similarity": "euclidean"}),
}  # fmt: skip
PAIRS = [(a, b) for a, b in zip(TEXTS, [*TEXTS[1:], TEXTS[0]], strict=True)]
IDENTITY = "torch.nn.modules.linear.Identity"
RERANKERS: dict[str, tuple[str, dict[str, Any]]] = {
    "reranker-1": ("roberta", {"labels": 1}),
    "reranker-old": ("xlm-roberta", {"labels": 1, "config": {"sbert_ce_default_activation_function": IDENTITY}}),
    "reranker-new": ("xlm-roberta", {"labels": 1, "config": {"sentence_transformers": {"activation_fn": IDENTITY}}}),
    "reranker-3": ("roberta", {"labels": 3}),
    "reranker-3-relu": (
        "xlm-roberta", {"labels": 3, "config": {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.ReLU"}}},
    ),
}  # fmt: skip


def laid_over(folder: Path, name: str) -> Path:
    """A case's whole folder."""
    base = (CASES | RERANKERS)[name][0]
    shutil.copytree(ROOT / base, folder, dirs_exist_ok=True)
    shutil.copytree(ROOT / name, folder, dirs_exist_ok=True)
    return folder
