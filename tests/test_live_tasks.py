"""The tasks beside transformers' pipelines on random models, texts and arguments, where both are installed."""

import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tasks_for_tests import MODELS, ROOT, same

import tinyroberta

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytestmark = pytest.mark.live

WORDS = [
    *("Anna", "Smith's", "cat", ",", "and", "the", "café.", "lives", "in", "Berlin!", "didn't", "日本", "の猫", "🙂", "naïve"),
    *("<mask>", "</s>", "\t", "O'Neil;", "1987", "a", "b", "c", "Ж", "ЖЖ"),
]


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def text(draw: random.Random, most: int, least: int = 0) -> str:
    return "".join(draw.choice(WORDS) + draw.choice(["", " ", " ", " ", "  "]) for _ in range(draw.randint(least, most)))


def both(task: str, folder: Path, name: str, seed: int, **fields: Any) -> tuple[Any, Any]:
    """The pipeline and the task of a new model of one of golden_tasks' kinds, in float64: what differs is no rounding."""
    family, head, kind, own = MODELS[name]
    tokenizer = transformers.AutoTokenizer.from_pretrained(ROOT / kind)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer), hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20,
        max_position_embeddings=50, type_vocab_size=1, pad_token_id=1, **{**own, **fields},
    )  # fmt: skip
    model = getattr(transformers, f"{family}{head}")(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            gain = float(parameter.ndim == 1 and bool((parameter == 1).all()))
            parameter.copy_(gain + torch.randn(parameter.shape, generator=generator) * 0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    theirs = transformers.pipeline(task, model=str(folder), device="cpu", dtype=torch.float64)
    return theirs, tinyroberta.task(task, folder, long="truncate", dtype="float64")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["labels", "several_labels", "number"])
def test_text_classification(tmp_path: Path, name: str, seed: int) -> None:
    draw = random.Random(seed)
    kind = draw.choice([None, "single_label_classification", "multi_label_classification", "regression"])
    theirs, ours = both("text-classification", tmp_path, name, seed, problem_type=kind)
    for _ in range(6):
        given = [{"text": text(draw, 6), "text_pair": text(draw, 6)} for _ in range(3)]
        given += [{"text": text(draw, 9)} for _ in range(3)]
        how = draw.choice([{}, {"top_k": draw.choice([None, 1, 2, 9])}])
        how |= draw.choice([{}, {"function_to_apply": draw.choice(["none", "sigmoid", "softmax"])}])
        assert same(ours(given, **how), theirs(given, truncation=True, **how)), (given, how)
        one = text(draw, 60)
        assert same(ours(one, **how), theirs(one, truncation=True, **how)), (one, how)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["entities", "entities_unigram"])
def test_token_classification(tmp_path: Path, name: str, seed: int) -> None:
    draw = random.Random(seed)
    theirs, ours = both("token-classification", tmp_path, name, seed)
    for _ in range(10):
        strategy = draw.choice(["none", "simple", "first", "average", "max"])
        how: dict[str, Any] = {"aggregation_strategy": strategy}
        if draw.random() < 0.5:
            how["ignore_labels"] = draw.sample(["O", "B-PER", "PER", "LOC", "I-LOC"], draw.randint(0, 3))
        given = [text(draw, 12) for _ in range(3)]
        if strategy != "none" and draw.random() < 0.5:
            how["stride"], given = draw.randint(0, 45), [text(draw, 80) for _ in range(2)]
        read = {"long": "window"} if "stride" in how else {}
        wanted = theirs(given, **how)
        if read:  # where the first entity is of no character transformers gives it twice
            twice = [len(found) > 1 and found[0] is found[1] for found in wanted]
            wanted = [found[1:] if again else found for found, again in zip(wanted, twice, strict=True)]
        assert same(ours(given, **how, **read), wanted), (given, how)
    if name == "entities_unigram":
        words = [text(draw, 12, 1).split() or ["a"] for _ in range(3)]
        how = {"is_split_into_words": True, "aggregation_strategy": draw.choice(["none", "simple", "max"])}
        assert same(ours(words, **how), theirs(words, **how)), words


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", ["answers", "answers_unigram"])
def test_question_answering(tmp_path: Path, name: str, seed: int) -> None:
    draw = random.Random(seed)
    theirs, ours = both("question-answering", tmp_path, name, seed)
    for _ in range(10):
        asked = {"question": text(draw, 4, 1), "context": text(draw, draw.choice([3, 12, 60]), 1)}
        how: dict[str, Any] = {"top_k": draw.choice([1, 2, 5]), "max_answer_len": draw.choice([1, 4, 15])}
        how |= {"handle_impossible_answer": draw.random() < 0.5, "align_to_words": draw.random() < 0.7}
        how |= draw.choice([{}, {"doc_stride": draw.randint(0, 12)}])
        assert same(ours(**asked, **how), theirs(**asked, **how)), (asked, how)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["words", "words_unigram"])
def test_fill_mask(tmp_path: Path, name: str, seed: int) -> None:
    draw = random.Random(seed)
    theirs, ours = both("fill-mask", tmp_path, name, seed)
    for _ in range(8):
        given = [text(draw, 5) + "<mask>" + text(draw, 5) for _ in range(draw.randint(1, 3))]
        how: dict[str, Any] = draw.choice([{}, {"top_k": draw.randint(1, 9)}, {"targets": draw.sample(["a", "e", "the"], 2)}])
        assert same(ours(given, **how), theirs(given, **how)), (given, how)


@pytest.mark.parametrize("seed", range(4))
def test_feature_extraction(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    theirs, ours = both("feature-extraction", tmp_path, "bare", seed)
    given = [text(draw, 9) for _ in range(4)]
    for found, wanted in zip(ours(given, return_tensors=True), theirs(given, return_tensors=True), strict=True):
        assert np.allclose(found, wanted.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_text_generation(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    theirs, ours = both("text-generation", tmp_path, "causal", seed)
    for _ in range(5):
        given, how = [text(draw, 3, 1) for _ in range(2)], {"do_sample": False, "max_new_tokens": draw.randint(1, 20)}
        how |= draw.choice([{}, {"num_beams": 3}, {"repetition_penalty": 1.3}, {"return_full_text": False}])
        how |= {"clean_up_tokenization_spaces": draw.random() < 0.5, "skip_special_tokens": draw.random() < 0.5}
        for special in (True, False):
            found = ours(given, add_special_tokens=special, first_position=0, **how)
            assert same(found, theirs(given, add_special_tokens=special, **how)), (given, how)
