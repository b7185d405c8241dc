"""The tasks' use: iterables, long texts, bits, bad input, streaming, and finding one by its name."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tasks_for_tests import CONTEXT, FOLLOWED, LONG, MASKED, PAIRS, PROMPTS, QUESTIONS, TEXTS, assemble

import tinyroberta
from tinyroberta import Error
from tinyroberta.demo import FOLDER
from tinyroberta.tasks import ALIASES, TASKS
from tinyroberta.tasks.tokenizer import decode, load_tokenizer

pytest.importorskip("tokenizers")

MODEL_OF = {
    "text-classification": "labels",
    "token-classification": "entities",
    "question-answering": "answers",
    "multiple-choice": "choices",
    "fill-mask": "words",
    "feature-extraction": "bare",
    "text-generation": "causal",
}
PAIR = (PAIRS[0]["text"], PAIRS[0]["text_pair"])
ASKED = [(asked["question"], asked["context"]) for asked in QUESTIONS]
INPUTS: dict[str, list[Any]] = {
    "text-classification": [*TEXTS, PAIR, ""],
    "token-classification": [*TEXTS, "", LONG[:60]],
    "question-answering": ASKED,
    "multiple-choice": FOLLOWED,
    "fill-mask": MASKED,
    "feature-extraction": TEXTS,
    "text-generation": PROMPTS,
}
SHORT = {"text-generation": {"max_new_tokens": 6, "seed": 5}}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    made: dict[Any, Any] = {}

    def get(task: str, backend: str = "numpy") -> Any:
        if (task, backend) not in made:
            folder = assemble(MODEL_OF[task], tmp_path_factory.mktemp("task"))
            running = {"reproducible": True} if backend == "numpy" else {}  # else its bits depend on the neighbours
            made[task, backend] = tinyroberta.task(task, folder, backend=backend, **running)
        return made[task, backend]

    return get


@pytest.mark.parametrize("name", MODEL_OF)
def test_an_iterable_gives_a_generator_in_order_and_lazily(tasks, name: str) -> None:
    task, how, drawn = tasks(name), SHORT.get(name, {}), 0

    def without_end() -> Iterator[Any]:
        nonlocal drawn
        for given in itertools.cycle(INPUTS[name]):
            drawn += 1
            yield given

    found = task(without_end(), **how)
    several = [next(found) for _ in range(2 * len(INPUTS[name]))]
    found.close()
    assert several == 2 * list(task(INPUTS[name], **how))
    assert drawn < 10_000


@pytest.mark.parametrize("name", MODEL_OF)
def test_the_bits_of_a_result_depend_on_no_budget_and_no_neighbour(tasks, name: str) -> None:
    pytest.importorskip("numba")
    task, how = tasks(name, "numba"), SHORT.get(name, {})
    alone = [next(iter(task(iter([given]), **how))) for given in INPUTS[name]]
    assert task(INPUTS[name] * 2, **how) == alone * 2
    assert task(INPUTS[name][::-1], **how) == alone[::-1]
    if name != "text-generation":  # which has no budget: a prompt is computed by itself
        for budget in (1, 40, 10**6):
            assert task(INPUTS[name], **how, batch_tokens=budget) == alone


@pytest.mark.parametrize("name", MODEL_OF)
def test_a_bad_text_loses_nothing(tasks, name: str) -> None:
    task, how, good = tasks(name), SHORT.get(name, {}), INPUTS[name]
    for bad in ("half \ud800", None, b"bytes", ["a", "b", "c"], {"x": "y"}, 3):
        found = task(iter([*good, bad, *good]), **how)
        assert [next(found) for _ in good] == list(task(good, **how))
        with pytest.raises(Error) as caught:
            next(found)
        assert "\n" not in str(caught.value)
        results = task([*good, bad, *good], keep_errors=True, **how)
        assert [isinstance(result, Error) for result in results] == [False] * len(good) + [True] + [False] * len(good)
        assert results[: len(good)] == results[len(good) + 1 :] == list(task(good, **how))


LONG_INPUTS: dict[str, Any] = dict.fromkeys(MODEL_OF, "a " * 50000) | {
    "multiple-choice": ("a " * 50_000, ["b", "c"]),
    "question-answering": ("a " * 50_000, CONTEXT),
    "fill-mask": "a " * 20_000 + "<mask>",
}


@pytest.mark.parametrize("name", MODEL_OF)
def test_a_text_that_is_too_long_is_refused_and_told_what_to_ask_for(tasks, name: str) -> None:
    how = SHORT.get(name, {})
    said = "max_question_len" if name == "question-answering" else 'long="truncate"'
    with pytest.raises(Error, match=said):
        tasks(name)(LONG_INPUTS[name], **how)


@pytest.mark.parametrize("name", [name for name in MODEL_OF if name not in ("question-answering", "fill-mask")])
def test_a_text_that_is_too_long_is_cut_and_that_is_said(tasks, name: str) -> None:
    with pytest.warns(UserWarning, match="longer than 48 tokens, and cut"):
        cut = tasks(name)(LONG_INPUTS[name], long="truncate", **SHORT.get(name, {}))
    assert cut


def test_windows_of_a_text_have_the_mean_of_their_scores(tasks) -> None:
    task = tasks("text-classification")
    encoding = task.tokenizer.encode(LONG)
    inner = encoding.ids[1:-1]
    pieces = [inner[at : at + 46] for at in range(0, len(inner), 46)]
    assert len(pieces) > 1
    logits = np.stack([task.model([[0, *piece, 2]]).logits[0] for piece in pieces]).astype(np.float64)
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wanted = np.average(scores, axis=0, weights=[len(piece) for piece in pieces])
    found = task(LONG, long="window", top_k=None)
    assert [one["score"] for one in found] == pytest.approx(sorted(wanted)[::-1], rel=1e-5)
    assert [one["label"] for one in found] == [task.model.config.id2label[i] for i in np.argsort(-wanted)]
    assert len(task((LONG, LONG), long="window", top_k=None)) == 3


def test_windows_of_entities_reach_the_end_of_the_text(tasks) -> None:
    task, text = tasks("token-classification"), " ".join([LONG] * 5)
    spans = {(start, end) for start, end in task.tokenizer.encode(text).offsets if end > start}
    for stride in (None, 0, 11):
        found = task(text, long="window", ignore_labels=[], stride=stride)
        assert [one["start"] for one in found] == sorted(one["start"] for one in found)
        assert {(one["start"], one["end"]) for one in found} >= spans
    assert task(TEXTS[0], stride=5) == task(TEXTS[0])
    with pytest.raises(Error, match='long="window"'):
        task(text)


def test_windows_of_masks_and_vectors(tasks) -> None:
    fill, text = tasks("fill-mask"), f"{LONG} <mask> {LONG} <mask>"
    found = fill(text, long="window", top_k=2)
    assert [len(words) for words in found] == [2, 2]
    vectors = tasks("feature-extraction")(LONG, long="window", return_tensors=True)
    assert vectors.shape[0] == 1
    assert vectors.shape[1] > len(tasks("feature-extraction").tokenizer.encode(LONG).ids)
    short = tasks("feature-extraction")(TEXTS[0], return_tensors=True)
    assert short.dtype == np.float32
    assert short.tolist() == tasks("feature-extraction")(TEXTS[0])


def test_pairs_are_tuples_or_dictionaries(tasks) -> None:
    classify = tasks("text-classification")
    assert classify(PAIR) == classify(PAIRS[0])
    assert classify([PAIR, TEXTS[0]]) == [classify(PAIR), *classify(TEXTS[0])]
    assert classify(PAIR) != classify(PAIR[::-1])


def test_the_ways_to_ask_a_question(tasks) -> None:
    answer = tasks("question-answering")
    question, context = ASKED[0]
    wanted = answer(question=question, context=context, top_k=2)
    for given in ((question, context), {"question": question, "context": context}):
        assert answer(given, top_k=2) == answer([given], top_k=2) == wanted
    assert answer(question, context, top_k=2) == wanted
    several = answer(question=[question, "Who?"], context=context, top_k=2)
    assert several == answer(question=[question, "Who?"], context=[context, context], top_k=2)
    assert several[0] == wanted
    long = "Who, I ask, " * 30
    with pytest.raises(Error, match="max_question_len"):
        answer(long, context)
    assert answer(long, context, max_question_len=8)
    assert answer("Who, I ask, and where, and when?", "Anna, in Paris", max_seq_len=40)  # which leaves it room: nothing is cut


def test_the_ways_to_give_choices(tasks) -> None:
    choose = tasks("multiple-choice")
    prompt, choices = FOLLOWED[0]
    wanted = choose(prompt=prompt, choices=choices)
    assert choose(prompt, choices) == choose({"prompt": prompt, "choices": choices}) == choose((prompt, choices)) == wanted
    assert sum(one["score"] for one in wanted) == pytest.approx(1)
    assert choose(prompt, choices, top_k=1) == wanted[:1]


WRONG: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("text-classification", ("a",), {"top_k": 0}, "top_k is 0"),
    ("text-classification", ("a",), {"function_to_apply": "tanh"}, "sigmoid, softmax, none"),
    ("text-classification", ("a",), {"long": "cut"}, "error, truncate, window"),
    ("text-classification", ([["a", "b"]],), {}, "a pair of texts is a tuple"),
    ("text-classification", ({"text": "a", "pair": "b"},), {}, '"text_pair"'),
    ("token-classification", ("a",), {"aggregation_strategy": "mean"}, "none, simple, first, average, max"),
    ("token-classification", ("a",), {"ignore_labels": "O"}, "a list of labels"),
    ("token-classification", ("a",), {"stride": 3, "long": "truncate"}, "leave stride out"),
    ("token-classification", (LONG,), {"stride": 46}, "from 0 to 45"),
    ("token-classification", ("a b",), {"is_split_into_words": True}, "a list of words"),
    ("question-answering", ("", "a"), {}, "question is empty"),
    ("question-answering", ("a", ""), {}, "context is empty"),
    ("question-answering", ("a",), {}, "dictionary of question and context"),
    ("question-answering", (), {"question": "a"}, "give a question and a context"),
    ("question-answering", (), {"question": ["a"], "context": ["a", "b"]}, "1 questions and 2 contexts"),
    ("question-answering", ({"question": "a"},), {}, '"question" and "context"'),
    ("question-answering", ("a", "b"), {"max_seq_len": 49}, "at most 48"),
    ("question-answering", ("a", "b"), {"max_answer_len": 0}, "max_answer_len is 0"),
    ("question-answering", ("a", "b"), {"doc_stride": 49}, "doc_stride is 49"),
    ("multiple-choice", ("a", []), {}, "at least one text"),
    ("multiple-choice", ("a", "bc"), {}, "a list of at least one text"),
    ("multiple-choice", ("a", ["b", None]), {}, "type NoneType"),
    ("multiple-choice", (), {"prompt": "a"}, "give a prompt and its choices"),
    ("fill-mask", ("a",), {}, "no <mask> in 'a'"),
    ("fill-mask", ("",), {}, "no <mask>"),
    ("fill-mask", ("<mask>",), {"targets": []}, "at least one"),
    ("fill-mask", ("<mask>",), {"top_k": 0}, "top_k is 0"),
    ("text-generation", ("a",), {"warmth": 3}, "does not know warmth"),
    ("text-generation", ("a",), {"max_new_tokens": 48}, "48 more are to follow"),
    ("text-generation", ("",), {"add_special_tokens": False}, "no tokens"),
    ("text-generation", ("a",), {"long": "window"}, "reads a prompt at once"),
]


@pytest.mark.parametrize(("name", "given", "how", "said"), WRONG)
def test_what_cannot_be_asked_is_one_sentence(tasks, name: str, given: Any, how: dict[str, Any], said: str) -> None:
    with pytest.raises(Error) as caught:
        tasks(name)(*given, **how)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_target_that_is_no_token_stands_for_its_first(tasks) -> None:
    fill = tasks("fill-mask")
    with pytest.warns(UserWarning, match="'zebra' is no token"):
        (found,) = fill("The <mask> sat.", targets=["zebra"])
    assert found["token_str"] == "z"


class TestStreams:
    """TextGeneration.stream and the models' own."""

    @pytest.mark.parametrize("prompt", PROMPTS)
    @pytest.mark.parametrize("how", [{"do_sample": False}, {"seed": 3}, {"seed": 4, "temperature": 3.0}], ids=str)
    def test_joined_it_is_what_a_call_gives(self, tasks, prompt: str, how: dict[str, Any]) -> None:
        task, how = tasks("text-generation"), {"max_new_tokens": 25, **how}
        (whole,) = task(prompt, return_full_text=False, clean_up_tokenization_spaces=False, **how)
        pieces = list(task.stream(prompt, **how))
        assert "".join(pieces) == whole["generated_text"]
        assert all(pieces)

    def test_half_a_character_is_held_back(self, tasks, monkeypatch: pytest.MonkeyPatch) -> None:
        task = tasks("text-generation")
        ids = [one for text in ("🙂 a", "é", "日") for one in task.tokenizer.encode(text, add_special_tokens=False).ids]
        monkeypatch.setattr(type(task.model), "stream", lambda *_, **__: iter(np.array([[one] for one in ids])))
        pieces = list(task.stream("Anna"))
        assert "".join(pieces) == "🙂 aé日"
        assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces[:-1])
        assert len(pieces) < len(ids)
        monkeypatch.setattr(type(task.model), "stream", lambda *_, **__: iter(np.array([[one] for one in ids[:1]])))
        assert "".join(task.stream("Anna")) == task.tokenizer.decode(ids[:1])  # an end that is half is told at the end

    def test_nothing_is_computed_before_it_is_asked_for(self, tasks) -> None:
        task = tasks("text-generation")
        steps = task.model.stream([[0, 5, 6]], max_new_tokens=20, do_sample=True, seed=1)
        with tinyroberta.trace(task.model, "encoder.layer.0") as traced:
            first = [int(next(steps)[0]) for _ in range(3)]
        assert len(traced["encoder.layer.0"]) > 0
        whole = task.model.generate([[0, 5, 6]], max_new_tokens=20, do_sample=True, seed=1)[0, 3:].tolist()
        assert first == whole[:3]
        assert first + [int(step[0]) for step in steps] == whole

    def test_beams_and_several_texts_are_refused_at_once(self, tasks) -> None:
        task = tasks("text-generation")
        with pytest.raises(Error, match="beams"):
            task.stream("Anna", num_beams=2, max_new_tokens=3)
        with pytest.raises(Error, match="num_return_sequences is 2"):
            task.stream("Anna", num_return_sequences=2)
        with pytest.raises(Error, match="surrogate"):
            task.stream("\ud800")
        with pytest.raises(Error, match="beams"):
            task.model.stream([[0, 5]], num_beams=2)


def test_a_prompt_is_begun_and_not_ended(tasks) -> None:
    task = tasks("text-generation")
    how = {"max_new_tokens": 1, "return_tensors": True, "do_sample": False}
    plain = task.tokenizer.encode("Anna", add_special_tokens=False).ids
    for special, wanted in ((None, [0, *plain]), (True, [0, *plain, 2]), (False, plain)):
        (found,) = task("Anna", add_special_tokens=special, **how)
        assert found["generated_token_ids"][:-1] == wanted
    (found,) = task("", **how)
    assert found["generated_token_ids"][:-1] == [0]


def test_the_settings_of_a_pipeline_where_nothing_says_otherwise(tasks) -> None:
    task = tasks("text-generation")
    (drawn,) = task("Anna", return_tensors=True, seed=7)
    assert len(drawn["generated_token_ids"]) == task.longest
    (same,) = task("Anna", return_tensors=True, seed=7, do_sample=True, temperature=0.7, max_new_tokens=256 - 210)
    assert drawn["generated_token_ids"][:40] == same["generated_token_ids"][:40]
    (short,) = task("Anna", return_tensors=True, max_length=9)
    assert len(short["generated_token_ids"]) <= 9


def test_a_task_by_its_name(tmp_path: Path) -> None:
    folder = assemble("labels", tmp_path)
    model, tokenizer = tinyroberta.load(folder), load_tokenizer(folder)
    for name in ("text-classification", "sentiment-analysis"):
        task = tinyroberta.task(name, model, tokenizer=tokenizer, long="truncate", batch_tokens=99)
        assert isinstance(task, tinyroberta.TextClassification)
        assert (task.model, task.long, task.batch_tokens) == (model, "truncate", 99)
        assert task(TEXTS[0]) == tinyroberta.TextClassification.from_pretrained(folder)(TEXTS[0])
    for name in ("no-such-task", None, 3):
        with pytest.raises(Error, match=r"no task .*text-classification.*sentiment-analysis, ner"):
            tinyroberta.task(name, folder)  # type: ignore[arg-type]
    with pytest.raises(Error, match="needs its tokenizer"):
        tinyroberta.task("text-classification", model)
    with pytest.raises(Error, match=r"give it to tinyroberta\.load"):
        tinyroberta.task("text-classification", model, tokenizer=tokenizer, backend="numpy")
    with pytest.raises(Error, match="read from its folder"):
        tinyroberta.task("text-classification", folder, tokenizer=tokenizer)
    with pytest.raises(Error, match="was given a"):
        tinyroberta.task("ner", model, tokenizer=tokenizer)
    with pytest.raises(Error, match="does not hold the weights of this model"):
        tinyroberta.task("ner", folder)
    with pytest.raises(Error):
        tinyroberta.task("ner", tmp_path / "nothing")
    assert set(ALIASES.values()) <= set(TASKS)
    for _, kind in TASKS.values():
        assert kind in tinyroberta.__all__
        assert getattr(tinyroberta, kind).__name__ == kind
    with pytest.raises(AttributeError):
        tinyroberta.NoSuchClass  # noqa: B018


def test_the_embedded_model_fills_masks() -> None:
    found = tinyroberta.task("fill-mask")("She opened the <mask> and looked out at the sea.", top_k=3)
    assert "door" in [one["token_str"].strip() for one in found]
    assert found == tinyroberta.FillMask(tinyroberta.load(FOLDER), load_tokenizer(FOLDER))(
        ["She opened the <mask> and looked out at the sea."], top_k=3
    )


def test_what_a_tokenizers_files_say_of_its_tokens(tmp_path: Path) -> None:
    folder = assemble("words_unigram", tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    for clean in (True, False):
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"clean_up_tokenization_spaces": clean}))
        tokenizer = load_tokenizer(folder)
        assert [tokenizer.cls_token, tokenizer.pad_token, tokenizer.unk_token] == ["<s>", "<pad>", "<unk>"]
        ids = tokenizer.encode("Paris , Anna").ids
        assert decode(tokenizer, ids, skip_special_tokens=True) == ("Paris, Anna" if clean else "Paris , Anna")
        assert decode(tokenizer, ids, skip_special_tokens=True, clean_up=True) == "Paris, Anna"


def test_a_word_that_the_tokenizer_does_not_know_is_told_as_it_stands(tmp_path: Path) -> None:
    tag = tinyroberta.TokenClassification.from_pretrained(assemble("entities_unigram", tmp_path))
    found = tag("Anna Ж", ignore_labels=[])
    assert found[-1]["word"] == "Ж"
    assert (found[-1]["start"], found[-1]["end"]) == (5, 6)
