"""cli.py, as people call it: a process with arguments, standard input and output."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tinyroberta
from tinyroberta.demo import FOLDER

pytest.importorskip("tokenizers")
pytest.importorskip("rich")


def run(*arguments: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tinyroberta", *arguments],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"COLUMNS": "100", "PYTHONIOENCODING": "utf-8"} | environment,
    )


def test_a_table_of_candidates() -> None:
    done = run("fill-mask", "He opened the <mask> and walked out.", "--top-k", "3")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].strip() == "He opened the <mask> and walked out."
    assert "probability" in lines[1]
    assert sum("%" in line for line in lines) == 3
    assert "He opened the door and walked out." in done.stdout


def test_json_lines() -> None:
    texts = ["The <mask> is red.", "A <mask> and a <mask>."]
    done = run("fill-mask", "--json", "--top-k", "2", *texts)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["text"] for answer in answers] == texts
    assert [set(c) for c in answers[0]["candidates"]] == [{"mask", "token", "token_id", "probability", "sentence"}] * 2
    assert answers[0]["candidates"][0]["sentence"] == f"The {answers[0]['candidates'][0]['token']} is red."
    assert [c["mask"] for c in answers[1]["candidates"]] == [0, 0, 1, 1]
    probabilities = [c["probability"] for c in answers[0]["candidates"]]
    assert probabilities == sorted(probabilities, reverse=True)


def test_sentences_on_standard_input() -> None:
    done = run("fill-mask", "--json", stdin="One <mask>.\n\nTwo <mask>.\r\n")
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["One <mask>.", "Two <mask>."]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "utf-8:strict", "latin-1:strict"])
def test_bytes_that_are_no_text_and_characters_that_cannot_be_written(encoding: str) -> None:
    """In standard input and in an argument; JSON stays JSON and says the same in any encoding."""
    word = "naïve 🙂".encode()
    command, environment = [sys.executable, "-m", "tinyroberta", "fill-mask"], os.environ | {"PYTHONIOENCODING": encoding}
    for options in (["--json"], []):
        for arguments, stdin in (([b"\xff " + word + b" <mask>"], b""), ([], b"\xff " + word + b" <mask>\n")):
            done = subprocess.run(
                [*command, *options, *arguments], input=stdin, capture_output=True, timeout=120, check=False, env=environment
            )
            assert (done.returncode, done.stderr) == (0, b"")
            shown = done.stdout.decode(encoding.partition(":")[0])
            assert "<mask>" in shown
            if not options:
                assert ("█" in shown) == ("utf" in encoding)
            elif arguments or "utf" in encoding:
                assert json.loads(shown)["text"].endswith(" naïve 🙂 <mask>")
                assert json.loads(shown)["text"].startswith("\ufffd ")
            else:
                assert json.loads(shown)["text"].endswith(" <mask>")


@pytest.mark.skipif(sys.platform != "linux", reason="a file system whose names are bytes")
def test_a_name_that_cannot_be_written(tmp_path: Path) -> None:
    """inspect names its source, whose bytes may be anything."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    for path in FOLDER.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    for options in (["--json"], []):
        for encoding in ("utf-8", "ascii"):
            done = subprocess.run(
                [sys.executable, "-m", "tinyroberta", "inspect", *options, str(folder)],
                capture_output=True, timeout=120, check=False, env=os.environ | {"PYTHONIOENCODING": encoding},
            )  # fmt: skip
            assert (done.returncode, done.stderr) == (0, b"")
            assert "caf\\udce9" in done.stdout.decode(encoding)


def test_one_bad_line_loses_nothing() -> None:
    done = run("fill-mask", "--json", stdin="One <mask>.\nnothing to fill\n" + "long " * 400 + "<mask>\nTwo <mask>.\n")
    assert done.returncode == 1
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert ["candidates" in answer for answer in answers] == [True, False, False, True]
    assert "no <mask>" in answers[1]["error"]
    assert "at most 256" in answers[2]["error"]
    assert done.stderr.count("tinyroberta: ") == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 2, "COMMAND"),
        (["fill-mask", "--top-k", "0", "x <mask>"], 2, "at least 1"),
        (["fill-mask", "--model", "/absent", "x <mask>"], 1, "there is no folder"),
        (["fill-mask", "--backend", "abacus", "x <mask>"], 1, "backend"),
        (["fill-mask", "--model", os.devnull, "x <mask>"], 1, "is a file"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments: list[str], status: int, said: str) -> None:
    done = run(*arguments)
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    if status == 1:
        assert done.stderr.startswith("tinyroberta: ")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_model_by_path_answers_as_the_embedded_one(tmp_path: Path, backend: str) -> None:
    pytest.importorskip(backend)
    for path in FOLDER.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    text = "The <mask> is red."
    command = ("fill-mask", "--json", "--backend", backend, text)
    assert run(*command, "--model", str(tmp_path)).stdout == run(*command).stdout
    (tmp_path / "tokenizer.json").unlink()
    assert "holds no tokenizer" in run("fill-mask", "--model", str(tmp_path), text).stderr


def test_another_family_fills_masks_too(tmp_path: Path) -> None:
    import numpy as np

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = tinyroberta.RobertaConfig(vocab_size=8192, **sizes, max_position_embeddings=40)
    tinyroberta.RobertaForMaskedLM(config).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((FOLDER / "tokenizer.json").read_bytes())
    done = run("fill-mask", "--json", "--model", str(tmp_path), "A <mask>.")
    assert done.returncode == 0, done.stderr
    assert np.isfinite([c["probability"] for c in json.loads(done.stdout)["candidates"]]).all()


def test_a_full_disk_and_names_that_steer_a_terminal() -> None:
    if Path("/dev/full").exists():
        command = f"{sys.executable} -m tinyroberta fill-mask --json 'A <mask>.' > /dev/full"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
        assert "Traceback" not in done.stderr
    done = run("inspect", "./\x1b[31mred")
    assert "\x1b" not in done.stderr
    assert done.returncode == 1


def test_version() -> None:
    assert run("--version").stdout.strip() == f"tinyroberta {tinyroberta.__version__}"


def test_a_reader_that_stops_early() -> None:
    script = f'{sys.executable} -m tinyroberta fill-mask --json "A <mask>." "B <mask>." | true'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr
