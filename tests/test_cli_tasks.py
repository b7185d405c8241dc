"""embed, rerank, classify, tag, answer, choose and generate, as people call them: processes, files, pipes, Ctrl-C, kill -9."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyroberta.demo import FOLDER

pytest.importorskip("tokenizers")
pytest.importorskip("rich")

COMMANDS: dict[str, list[str]] = {
    "embed": ["Tea is served.", "Dinner is ready."],
    "classify": ["What a wonderful film!", "The room was dirty and cold."],
    "tag": ["Mr. Darcy went to London with Elizabeth."],
    "answer": ["For how many people?", "A table for four people at eight, please."],
    "choose": ["She opened the door.", "She walked out into the rain.", "The tax is paid in March."],
    "generate": ["The old man", "--max-new-tokens", "5"],
    "fill-mask": ["She opened the <mask>."],
}


def run(*arguments: str, stdin: bytes | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "tinyroberta", *arguments],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        timeout=120,
        check=False,
        env=os.environ | {"COLUMNS": "100", "PYTHONIOENCODING": "utf-8"} | environment,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def rows(done: subprocess.CompletedProcess[str]) -> list[Any]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("columns", ["40", "120"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_prints_a_table_that_fits(command: str, columns: str) -> None:
    from rich.cells import cell_len

    done = run(command, *COMMANDS[command], COLUMNS=columns, FORCE_COLOR="1", TERM="xterm-256color")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).splitlines()
    assert COMMANDS[command][0][:12] in done.stdout
    assert command == "generate" or max(map(cell_len, lines)) <= int(columns)


def test_what_the_embedded_model_answers() -> None:
    good, bad = rows(run("classify", "--json", *COMMANDS["classify"]))
    assert [answer["labels"][0]["label"] for answer in (good, bad)] == ["POSITIVE", "NEGATIVE"]
    assert sum(label["score"] for label in good["labels"]) == pytest.approx(1)
    (tagged,) = rows(run("tag", "--json", *COMMANDS["tag"]))
    assert "London" in [tagged["text"][entity["start"] : entity["end"]].strip() for entity in tagged["entities"]]
    (answered,) = rows(run("answer", "--json", *COMMANDS["answer"]))
    assert "four" in answered["answers"][0]["answer"]
    (chosen,) = rows(run("choose", "--json", *COMMANDS["choose"]))
    assert chosen["choices"][0]["choice"] == COMMANDS["choose"][1]
    (generated,) = rows(run("generate", "--json", *COMMANDS["generate"]))
    assert generated["text"] == "The old man"
    assert len(generated["generated_text"]) > 3
    near, far = rows(run("embed", "--json", "The cat sat on the mat.", "A cat was sitting on a mat."))
    assert np.dot(near["embedding"], far["embedding"]) > 0.5


def test_generated_text_is_the_same_streamed_and_whole() -> None:
    how = ["The old man", "--max-new-tokens", "12", "--temperature", "0.8", "--seed", "3"]
    (answer,) = rows(run("generate", "--json", *how))
    assert run("generate", *how).stdout == f"The old man{answer['generated_text']}\n"


def test_records_keep_their_fields(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 7, "body": "What a wonderful film!"}\n{"id": 8}\n{"id": 9, "body": "Awful."}\n')
    done = run("classify", "--json", "--field", "body", "--top-k", "1", str(path))
    assert done.returncode == 1
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["id"] for answer in answers] == [7, 8, 9]
    assert ["labels" in answer for answer in answers] == [True, False, True]
    assert done.stderr == f"tinyroberta: line 2 of {path}: it has no field body: there are id\n"
    done = run("classify", "--field", "body", str(path), "--out", str(tmp_path / "b.jsonl"))
    assert done.returncode == 1
    assert "it has no field body" in done.stderr
    assert "1 answers are kept in" in done.stderr
    path.write_text(path.read_text().replace('{"id": 8}', '{"id": 8, "body": ""}'))
    done = run("classify", "--field", "body", str(path), "--out", str(tmp_path / "b.jsonl"))
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["id"] for line in (tmp_path / "b.jsonl").read_text().splitlines()] == [7, 8, 9]


def test_questions_and_prompts_from_files(tmp_path: Path) -> None:
    asked = {"question": COMMANDS["answer"][0], "context": COMMANDS["answer"][1], "id": 1}
    (tmp_path / "q.jsonl").write_text(json.dumps(asked) + "\n" + json.dumps({"question": "Who?"}) + "\n")
    done = run("answer", "--json", "--pairs", str(tmp_path / "q.jsonl"))
    assert done.returncode == 1
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert first["id"] == 1
    assert "four" in first["answers"][0]["answer"]
    assert second["error"] == "it has no context that is a text"
    (tmp_path / "context.txt").write_text("The sea was calm. " * 200 + COMMANDS["answer"][1] + " The sea was calm." * 200)
    (answer,) = rows(run("answer", "--json", COMMANDS["answer"][0], str(tmp_path / "context.txt")))
    assert answer["answers"][0]["start"] < len(answer["context"])
    prompt, *choices = COMMANDS["choose"]
    (tmp_path / "c.jsonl").write_text(json.dumps({"prompt": prompt, "choices": choices}) + '\n{"prompt": "x", "choices": 3}\n')
    done = run("choose", "--json", "--pairs", str(tmp_path / "c.jsonl"))
    assert done.returncode == 1
    assert "choices" in json.loads(done.stdout.splitlines()[0])
    assert "error" in json.loads(done.stdout.splitlines()[1])


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one label: the embedded model's weights below a head that is drawn."""
    import shutil

    import tinyroberta
    from tinyroberta.family import KIN

    base = tinyroberta.load(FOLDER, backend="numpy")
    cls = KIN["roberta-prelayernorm"]["ForSequenceClassification"]
    config = type(base.config).from_dict(base.config.to_dict() | {"id2label": {0: "LABEL_0"}, "initializer_range": 0.3})
    drawn = cls(config, backend="numpy")
    tensors = {name: base.tensors.get(name, value) for name, value in drawn.tensors.items()}
    folder = tmp_path_factory.mktemp("reranker")
    cls(config, tensors, backend="numpy").save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(FOLDER / name, folder)
    return folder


def test_rerank(reranker: Path, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("id,body\n1,one\n2,two\n3,three\n")
    how = ["rerank", "numbers", str(tmp_path / "d.csv"), "--column", "body", "--model", str(reranker)]
    ranked = rows(run(*how, "--json"))
    assert sorted(row["id"] for row in ranked) == ["1", "2", "3"]
    scores = [row["score"] for row in ranked]
    assert scores == sorted(scores, reverse=True)
    assert rows(run(*how, "--json", "--top-k", "2")) == ranked[:2]
    out = tmp_path / "r.jsonl"
    assert run(*how, "--out", str(out)).returncode == 0
    assert [json.loads(line) for line in out.read_text().splitlines()] == ranked
    table = run(*how).stdout
    assert table.splitlines()[0].strip() == "numbers"
    assert "█" in table


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["classify", "--model", str(FOLDER), "a"], "holds no head for text-classification"),
        (["tag", "--model", str(FOLDER), "a"], "holds no head for token-classification"),
        (["rerank", "--model", str(FOLDER), "a", "b"], "holds no head for"),
        (["embed", "--model", "/no/such/folder", "a"], "there is no folder /no/such/folder"),
        (["embed", "--model", str(FOLDER.parent), "a"], "config.json"),
        (["embed", "texts.jsonl"], "there is no file texts.jsonl"),
        (["embed", "--field", "a", "--column", "b", "a"], "give one of them"),
        (["embed", "--out", "a.csv", "a"], "its name must end in .npy or .jsonl or .parquet"),
        (["classify", "--out", "a.npy", "a"], "its name must end in .jsonl or .parquet"),
        (["embed", "--prompt-name", "query", "a"], "query"),
        (["embed", "--revision", "main", "a"], "--revision main is of a Hub repository"),
        (["classify", "--long", "error", "word " * 20_000], "tokens; this model reads at most 256"),
        (["answer", "who"], "the context is empty"),
        (["answer", "", "context"], "the question is empty"),
        (["answer", "who", ""], "the context is empty"),
        (["answer"], "give a question"),
        (["choose", "a", "b"], "there must be two choices or more"),
        (["choose"], "give a text and two choices"),
        (["generate", "--temperature", "-1", "a"], "temperature"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(arguments: list[str], told: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tinyroberta", *arguments],
        capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path, stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(FOLDER.parents[1]), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    assert done.returncode == 1, done.stdout
    assert told in done.stderr
    assert done.stderr.startswith("tinyroberta: ")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["embed", "classify", "tag"])
def test_empty_long_and_broken_texts(command: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    texts = ["", "   ", "word " * 20_000, "\ud800", "fine"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    done = run(command, "--json", "--field", "text", "--long", "truncate", str(path))
    assert done.returncode == 1
    answers = [json.loads(line) for line in done.stdout.encode("utf-8", "surrogatepass").splitlines()]
    assert ["error" in answer for answer in answers] == [False, False, False, True, False]
    assert "half of a surrogate pair" in answers[3]["error"]


def test_a_binary_file_and_a_closed_pipe(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(range(256)))
    done = run("embed", str(tmp_path / "a.bin"))
    assert (done.returncode, done.stderr) == (
        1,
        f"tinyroberta: {tmp_path / 'a.bin'} is no text: give a file of texts, one a line\n",
    )
    command = f"{sys.executable} -m tinyroberta classify --json - | head -n 1"
    piped = subprocess.run(
        command, shell=True, input=b"What a wonderful film!\n" * 5000, capture_output=True, timeout=120, check=False
    )
    assert b"POSITIVE" in piped.stdout
    assert piped.stderr == b""


def file_of_texts(path: Path, count: int) -> Path:
    with path.open("w") as file:
        for number in range(count):
            text = f"{number} " + "the sea was calm and the wind was low " * (number % 9)
            file.write(json.dumps({"id": number, "text": text}) + "\n")
    return path


@pytest.mark.parametrize("suffix", [".npy", ".jsonl"])
def test_embed_killed_at_any_moment_and_started_again_finishes(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("numba")  # whose bits do not depend on where a run begins
    texts = file_of_texts(tmp_path / "texts.jsonl", 600)
    command = ["embed", str(texts), "--field", "text", "--model", str(FOLDER), "--backend", "numba", "--out"]
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    start = time.monotonic()
    assert run(*command, str(whole)).returncode == 0
    seconds = time.monotonic() - start
    killed = 0
    for part in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95):
        process = subprocess.Popen([sys.executable, "-m", "tinyroberta", *command, str(out)], stdout=subprocess.DEVNULL)
        try:
            process.wait(part * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
        if out.exists():
            break
    if not out.exists():
        assert run(*command, str(out)).returncode == 0
    assert killed
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([out.name, whole.name, texts.name])
    if suffix == ".npy":
        assert np.load(out).shape == (600, 256)


def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    texts, out = file_of_texts(tmp_path / "texts.jsonl", 12_000), tmp_path / "out.npy"
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a job in the background ignores it
    command = [
        sys.executable, "-c", f"{heard}; import runpy; runpy.run_module('tinyroberta', run_name='__main__', alter_sys=True)",
        "embed", str(texts), "--field", "text", "--backend", "numpy", "--model", str(FOLDER), "--out", str(out),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    part = tmp_path / "out.npy.part"
    while (not part.exists() or part.stat().st_size < 100_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (130, b"tinyroberta: interrupted\n")
    kept = json.loads((tmp_path / "out.npy.part.log").read_text().splitlines()[-1])
    assert kept[0] > 0
    assert part.stat().st_size == kept[1]
