"""The embedded model's heads: each of its class, with an answer that makes sense, in the room that was given to them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinyroberta
from tinyroberta import demo

Tokenizer = pytest.importorskip("tokenizers").Tokenizer

CLASS_OF = {
    "fill-mask": "ForMaskedLM",
    "text-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
    "multiple-choice": "ForMultipleChoice",
    "feature-extraction": "Model",
    "embed": "Model",
    "text-generation": "ForCausalLM",
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return Tokenizer.from_file(str(demo.FOLDER / "tokenizer.json"))


def probabilities(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("task", demo.TASKS)
def test_each_task_has_its_class_and_the_same_answer_every_time(task: str) -> None:
    models = [demo.load(task, backend="numpy") for _ in range(2)]
    assert [type(model).__name__ for model in models] == [f"RobertaPreLayerNorm{CLASS_OF[task]}"] * 2
    ids = [[0, 713, 16, 10, 3645, 2]]
    ids = [ids] if task == "multiple-choice" else ids
    first, second = (model(ids).to_tuple()[0] for model in models)
    assert np.isfinite(first).all()
    assert np.array_equal(first, second)
    assert {value.dtype.name for value in models[0].tensors.values()} == {"bfloat16"}


def test_all_tasks_are_tested() -> None:
    assert set(CLASS_OF) == set(demo.TASKS)
    folders = {path.name for path in demo.FOLDER.iterdir() if (path / "config.json").is_file()}
    assert folders == {folder for folder in demo.TASKS.values() if folder}


def test_without_a_task_it_is_the_masked_language_model() -> None:
    assert type(demo.load(backend="numpy")).__name__ == "RobertaPreLayerNormForMaskedLM"


def test_another_task_is_refused_in_a_sentence() -> None:
    with pytest.raises(tinyroberta.Error, match=r"no task 'translation'; it knows fill-mask, .*: name a model for another"):
        demo.load("translation")


def test_settings_reach_the_model() -> None:
    assert demo.load("text-classification", backend="numpy", dtype="float64").settings.dtype == "float64"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("I love this film, it is wonderful and very funny!", "POSITIVE"),
        ("What a terrible, boring waste of time.", "NEGATIVE"),
    ],
)
def test_sentiment(tokenizer: Any, text: str, label: str) -> None:
    model = demo.load("text-classification")
    shares = probabilities(model([tokenizer.encode(text).ids]).logits[0])
    assert model.config.id2label[int(shares.argmax())] == label
    assert shares.max() > 0.6


def test_entities(tokenizer: Any) -> None:
    model = demo.load("token-classification")
    encoding = tokenizer.encode("I met John Smith in London yesterday")
    shares = probabilities(model([encoding.ids]).logits[0])
    tags = dict(zip(encoding.tokens, (model.config.id2label[int(best)] for best in shares.argmax(-1)), strict=True))
    assert tags["ĠJohn"] == "B-person"
    assert tags["ĠSmith"] == "I-person"
    assert tags["Ġmet"] == tags["Ġyesterday"] == "O"


@pytest.mark.parametrize(
    ("question", "context", "answer"),
    [
        ("How many people?", "I would like a table for six people at half past seven on Friday.", "six people"),
        ("At what time?", "A table for four people at eight, please.", "eight"),
        (
            "Who wrote the letter?",
            "The rain had stopped at last. Mary wrote the letter to her brother. He was in London.",
            "Mary",
        ),
    ],
)
def test_answers(tokenizer: Any, question: str, context: str, answer: str) -> None:
    model = demo.load("question-answering")
    encoding = tokenizer.encode(question, context)
    output = model([encoding.ids])
    readable = np.array([place for place, sequence in enumerate(encoding.sequence_ids) if sequence == 1])
    scores = output.start_logits[0][readable][:, None] + output.end_logits[0][readable][None, :]
    shares = probabilities(np.where(np.tri(len(readable)).T > 0, scores, -np.inf).ravel())
    first, last = np.unravel_index(shares.argmax(), scores.shape)
    found = context[encoding.offsets[readable[first]][0] : encoding.offsets[readable[last]][1]]
    assert found == answer
    assert shares.max() > 0.3


def test_choices(tokenizer: Any) -> None:
    model = demo.load("multiple-choice")
    context = '"Where have you been all night?" asked her mother.'
    candidates = [
        '"I was at the ball, mother," she answered.',
        "The mountains of that country are covered with snow.",
        "The government of the province was given to his brother.",
        "Iron is melted in a furnace.",
    ]
    rows = [tokenizer.encode(context, candidate).ids for candidate in candidates]
    longest = max(map(len, rows))
    ids = [[row + [1] * (longest - len(row)) for row in rows]]
    mask = [[[1] * len(row) + [0] * (longest - len(row)) for row in rows]]
    assert probabilities(model(ids, attention_mask=mask).logits[0])[0] > 0.5


def test_sentence_vectors(tokenizer: Any) -> None:
    model = demo.load("feature-extraction")

    def vector(text: str) -> np.ndarray:
        mean = model([tokenizer.encode(text).ids]).last_hidden_state[0].mean(0)
        return mean / np.linalg.norm(mean)

    ship = vector("The ship was lost in a storm at sea.")
    assert ship @ vector("The sailors and their captain were drowned.") > 0.2 + ship @ vector("She played the piano very well.")


def test_the_causal_model_writes(tokenizer: Any) -> None:
    model = demo.load("text-generation")
    ids = tokenizer.encode("The old man looked at").ids[:-1]
    shares = probabilities(model([ids]).logits[0, -1])
    assert (
        shares[tokenizer.token_to_id("Ġthe")] + shares[tokenizer.token_to_id("Ġhim")] + shares[tokenizer.token_to_id("Ġher")]
        > 0.3
    )
    written = np.asarray(model.generate([ids], max_new_tokens=12))[0]
    assert written[: len(ids)].tolist() == ids
    assert len(set(written[len(ids) :].tolist())) > 3


def test_a_task_reads_as_what_its_files_say() -> None:
    """The matrices of a task are the base's + B A, all else its own where it has it."""
    base, model = demo.load(backend="numpy").tensors, demo.load("text-classification", backend="numpy").tensors
    name = "encoder.layer.2.intermediate.dense"
    update = tinyroberta.weights.checkpoint.open_checkpoint(demo.FOLDER / "sentiment" / "update.safetensors")
    down, up = (update[f"roberta_prelayernorm.{name}.{part}.weight"].astype(np.float64) for part in ("lora_A", "lora_B"))
    wanted = base[f"{name}.weight"].astype(np.float64) + np.einsum("or,ri->oi", up, down)
    assert np.array_equal(model[f"{name}.weight"], wanted.astype(base[f"{name}.weight"].dtype))
    assert np.array_equal(model[f"{name}.bias"], update[f"roberta_prelayernorm.{name}.bias"])
    assert np.array_equal(model["embeddings.word_embeddings.weight"], base["embeddings.word_embeddings.weight"])


def test_a_card_in_each_folder_has_scores_beside_a_baseline_and_a_licence() -> None:
    for folder in filter(None, demo.TASKS.values()):
        card = (demo.FOLDER / folder / "README.md").read_text()
        assert "| on held-out texts | this model | beside it |" in card
        assert "**Not for** facts" in card
        assert f"license: {'cc-by-sa-4.0' if folder == 'answers' else 'apache-2.0'}" in card


def test_they_are_small() -> None:
    files = [path for path in demo.FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= (10.9 + 12) * 10**6


@pytest.mark.live
@pytest.mark.parametrize("task", [task for task in demo.TASKS if task != "embed"])
def test_what_is_saved_transformers_loads_with_equal_outputs(task: str, tmp_path: Path, tokenizer: Any) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = demo.load(task, dtype="float64")
    model.save_pretrained(tmp_path)
    theirs = getattr(transformers, type(model).__name__).from_pretrained(tmp_path, dtype=torch.float64).eval()
    ids = [tokenizer.encode("A table for two, please.", "At nine o'clock.").ids]
    ids = [ids] if task == "multiple-choice" else ids
    with torch.no_grad():
        wanted = theirs(torch.tensor(ids))
    found = model(ids)
    names = ("start_logits", "end_logits") if task == "question-answering" else (next(iter(wanted)),)
    for name in names:
        assert np.abs(found[name] - wanted[name].numpy()).max() < 1e-9
