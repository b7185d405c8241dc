"""cli/, as people call it: a process with arguments, standard input and output."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from models_for_tests import skip_without

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


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
def test_a_model_by_path_answers_as_the_embedded_one(tmp_path: Path, backend: str) -> None:
    skip_without(backend)
    for path in FOLDER.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    text = "The <mask> is red."
    command = ("fill-mask", "--json", "--backend", backend, text)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        assert run(*command, "--model", str(path)).stdout == run(*command).stdout
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


LINE = "She opened the <mask> and looked out at the sea."


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tinyroberta", *arguments]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_lines_of_a_file_and_of_standard_input_with_a_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    """As Notepad and PowerShell write them; a file's path, "-" and nothing at all are asked the same."""
    written = (("\ufeff" if encoding[-3:] in ("-le", "-be") else "") + f"{LINE}\r\n\r\nA naïve <mask>.\r\n").encode(encoding)
    (tmp_path / "lines.txt").write_bytes(written)
    for arguments in ([], ["-"], [str(tmp_path / "lines.txt")], ["-", "One <mask>.", str(tmp_path / "lines.txt")]):
        done = subprocess.run(
            command("fill-mask", "--json", "--top-k", "1", *arguments),
            input=written, capture_output=True, timeout=120, check=False, env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, b"")
        texts = [json.loads(line)["text"] for line in done.stdout.splitlines()]
        once = [LINE, "A naïve <mask>."]
        assert texts == (once if len(arguments) < 2 else [*once, "One <mask>.", *once])


def test_what_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"PK\x03\x04" + bytes(200))
    for arguments, stdin in (([str(tmp_path / "model.bin")], None), ([], "a\0b")):
        done = run("fill-mask", *arguments, stdin=stdin)
        assert done.returncode == 1
        assert "is no text" in done.stderr
        assert done.stderr.count("\n") == 1
    assert "no <mask> in" in run("fill-mask", str(tmp_path)).stderr  # a folder is not read


@pytest.mark.parametrize("arguments", [("fill-mask", LINE), ("fill-mask", "A <mask> and a <mask>."), ("inspect", str(FOLDER))])
@pytest.mark.parametrize("columns", ["40", "100"])
def test_a_pipe_gets_no_padding_and_no_wrapping(arguments: tuple[str, ...], columns: str) -> None:
    narrow, wide = run(*arguments, COLUMNS=columns), run(*arguments, COLUMNS="300")
    assert narrow.returncode == 0
    assert narrow.stdout == wide.stdout
    assert not [line for line in narrow.stdout.splitlines() if line != line.rstrip()]


@pytest.mark.parametrize("columns", [24, 40, 60, 80, 120])
def test_a_terminal_of_few_columns(columns: int) -> None:
    """No line is longer than the terminal and no word is cut; the sentences are there where they have room."""
    for arguments in (("fill-mask", LINE), ("inspect", str(FOLDER))):
        shown = run(*arguments, FORCE_COLOR="1", COLUMNS=str(columns)).stdout
        lines = re.sub("\x1b\\[[0-9;]*m", "", shown).splitlines()
        assert max(map(len, lines)) <= columns
        assert "…" not in shown or columns < 40
        if arguments[0] == "fill-mask":
            assert any(re.fullmatch(" *52[.]5% .*door.*", line) for line in lines)
            assert ("sentence" in shown) == (columns >= 80)
            assert len(lines) < 14  # no sentence takes more than two


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("info >&-", 1, "standard output is closed"),
        (f"inspect {FOLDER} >&-", 1, "standard output is closed"),
        ("fill-mask 'A <mask>.' >&-", 1, "standard output is closed"),
        ("fill-mask <&-", 1, "standard input is closed"),
        ("fill-mask - <&-", 1, "standard input is closed"),
        ("fill-mask 'A <mask>.' <&-", 0, ""),
        ("fill-mask --json 'no mask' 2>&- | tail -n +2", 0, ""),  # what is told is told nowhere, not among the answers
        ("convert PLAIN MADE <&- >&- 2>&-", 0, ""),
        ("convert PLAIN MADE <&- >&-", 0, ""),
        ("info > /dev/full", 1, "No space left"),
        ("--help | true", 0, ""),
    ],
)
def test_streams_that_are_closed_or_full(line: str, status: int, said: str, tmp_path: Path) -> None:
    if "/dev/full" in line and not Path("/dev/full").exists():
        pytest.skip("no such device")
    plain = tmp_path / "plain"  # the embedded masked model, without the folders of what other tasks add to it
    plain.mkdir()
    for path in FOLDER.iterdir():
        if path.is_file():
            shutil.copy(path, plain)
    script = f"{sys.executable} -m tinyroberta {line}".replace("MADE", str(tmp_path / "made")).replace("PLAIN", str(plain))
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == bool(said)
    assert not done.stdout or "fill-mask 'A" in line or "--help" in line
    if "MADE" in line:
        assert tinyroberta.load(tmp_path / "made", backend="numpy").config.vocab_size == 8192


def test_a_model_that_cannot_fill_masks_and_a_revision_of_nothing(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = tinyroberta.RobertaConfig(vocab_size=8192, **sizes, max_position_embeddings=40)
    for cls in (tinyroberta.RobertaForSequenceClassification, tinyroberta.RobertaModel):
        cls(config).save_pretrained(tmp_path / cls.__name__)
        (tmp_path / cls.__name__ / "tokenizer.json").write_bytes((FOLDER / "tokenizer.json").read_bytes())
        done = run("fill-mask", "--model", str(tmp_path / cls.__name__), "A <mask>.")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "holds no head for fill-mask" in done.stderr
        assert cls.__name__ in done.stderr
    assert "name it with --model" in run("fill-mask", "--revision", "v1", "A <mask>.").stderr
    made, folder = str(tmp_path / "made"), str(FOLDER)
    for arguments in (("fill-mask", "A <mask>.", "--model", folder), ("inspect", folder), ("convert", folder, made)):
        assert "leave out 'v1'" in run(*arguments, "--revision", "v1").stderr


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(
    "arguments", [("info",), ("fill-mask", "-"), ("fill-mask", "--backend", "cpu", "-"), ("warmup",)], ids=str
)
def test_ctrl_c_at_any_moment(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """Of the imports, of the work, of compiling: one line and 130, and no half of a file."""
    for after in (0.05, 0.15, 0.3, 0.6, 1.2, 2.5):
        process = subprocess.Popen(
            [sys.executable, "-c", SIGNALLED, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / str(after))},
        )  # fmt: skip
        try:
            assert process.stdout.readline() == "started\n"
            time.sleep(after)
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=60)
        finally:
            process.kill()
        lines = [line for line in told.splitlines() if "compiling" not in line]
        if process.returncode == 0:  # it was faster
            assert lines in ([], ["tinyroberta: interrupted"])
        else:
            assert (process.returncode, lines) == (130, ["tinyroberta: interrupted"])
        assert not list(tmp_path.rglob("*.part"))


SIGNALLED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started with it ignored
sys.argv[0] = "tinyroberta"

def first(number, handler):  # before it, a busy machine may still be looking for the package
    signal.signal = plain
    before = plain(number, handler)
    print("started", flush=True)
    return before

plain, signal.signal = signal.signal, first
from tinyroberta.cli import command
command()
"""


def test_ctrl_c_where_no_exception_can_come_out(tmp_path: Path) -> None:
    """In a finalizer Python says "Exception ignored" and goes on; the command ends all the same."""
    code = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv[0] = "tinyroberta"
from tinyroberta import terminal
class Slow:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
def main():
    Slow()
    time.sleep(20)
    return 0
sys.exit(terminal.guarded(main))
"""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
                          env=os.environ | {"PYTHONPATH": str(Path(tinyroberta.__file__).parents[1])})  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "tinyroberta: interrupted\n")
    assert time.monotonic() - start < 15


def test_version() -> None:
    assert run("--version").stdout.strip() == f"tinyroberta {tinyroberta.__version__}"


def test_a_reader_that_stops_early() -> None:
    script = f'{sys.executable} -m tinyroberta fill-mask --json "A <mask>." "B <mask>." | true'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr
