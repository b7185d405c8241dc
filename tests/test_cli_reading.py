"""cli/reading.py: texts as arguments, lines, JSON lines, CSV and Parquet, and what is told of those that are none."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tinyroberta import Error
from tinyroberta.cli.reading import items_of, whole_text

QUOTED = 'text,id\n"one, two",1\n"three\nfour",2\n'


def flat(given: list[str], **how: Any) -> list[Any]:
    return [item.text if item.error is None else str(item.error) for items in items_of(given, "a text", **how) for item in items]


def test_arguments_and_files_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\n\r\n  \ntwo\x85 three\nlast".encode())
    assert flat(["zero", str(path)]) == ["zero", "one", "two\x85 three", "last"]


def test_json_lines_keep_their_records(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"id": 1, "text": "one"}, {"id": 2, "text": "two \ud800"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = [item for items in items_of([str(path)], "a text", "text") for item in items]
    assert [item.record for item in items] == rows
    assert [item.where for item in items] == [f"line 1 of {path}", f"line 2 of {path}"]
    path.write_text('"alone"\n{"a": 1}\n')
    assert flat([str(path)]) == ["alone", "--field must name the text's: there are a"]


def test_what_is_no_record_is_told_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_text('{"t": "one"}\n{"t": 3}\n{"t": null}\n{"u": ""}\n{"t"\n[1]\n' + "[" * 100_000 + '\n{"t": "two"}\n')
    told = flat([str(path)], field="t")
    assert [told[0], told[-1]] == ["one", "two"]
    assert told[1:-1] == [
        "its field t holds int, and not a text",
        "its field t holds null, and not a text",
        "it has no field t: there are u",
        "it is no JSON",
        "it has no field t: there are text",
        "it is no JSON",
    ]


def test_columns_of_csv_and_tsv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(QUOTED)
    assert flat([str(path)], column="text") == ["one, two", "three\nfour"]
    (tmp_path / "a.tsv").write_text("text\nalone\n\n")
    assert flat([str(tmp_path / "a.tsv")]) == ["alone"]
    (tmp_path / "noname").write_text(QUOTED + "short\n" + "only one,")
    assert flat([str(tmp_path / "noname")], column="id") == ["1", "2", "it has no column id", ""]
    path.write_text("x" * 200_000 + ",id\n" + "y" * 10**6 + ",1\n")
    assert flat([str(path)], column="id") == ["1"]


@pytest.mark.parametrize(
    ("name", "content", "how", "told"),
    [
        ("a.csv", b"text,id\n", {}, "--column must name the text's of .*: there are text, id"),
        ("a.csv", b"text,id\n", {"column": "body"}, "has no column body: there are text, id"),
        ("a.csv", b"", {"column": "body"}, "is empty: its first line must name the columns"),
        ("a.csv", b'text\n"open', {}, "is no CSV"),
        ("a.txt", b"\x00\x01binary", {}, "is no text"),
        ("a.parquet", b"PAR1 and no more", {}, "cannot read"),
        ("a.txt", b"x", {"field": "a", "column": "b"}, "give one of them"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(name: str, content: bytes, how: dict[str, str], told: str, tmp_path: Path) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Error, match=told):
        flat([str(tmp_path / name)], **how)


def test_a_file_that_is_not_there_is_told_and_a_sentence_is_a_sentence() -> None:
    with pytest.raises(Error, match=r"there is no file texts\.jsonl"):
        flat(["texts.jsonl"])
    assert flat(["We read texts.jsonl"]) == ["We read texts.jsonl"]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"id": [1, 2], "text": ["one", None]}), tmp_path / "a.parquet")
    assert flat([str(tmp_path / "a.parquet")], column="text") == ["one", "its field text holds null, and not a text"]


def test_a_whole_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\n")
    assert whole_text(str(tmp_path / "a.txt")) == "one\ntwo\n"
    assert whole_text("a text") == "a text"


ECHO = """
import sys
from tinyroberta.cli.reading import items_of
from tinyroberta import terminal
terminal.tolerate()
for items in items_of([], "a text", *eval(sys.argv[1])):
    print([item.text for item in items], flush=True)
"""


def test_standard_input_is_answered_as_it_arrives() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ECHO, "()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONUTF8": "1"}
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for sent, got in ((b"one\n", ["one"]), (b"t\xc3\xa9", None), (b"\xc3", None), (b"\xa9\r\n\nthree\n", ["téé", "three"])):
            process.stdin.write(sent)
            process.stdin.flush()
            if got is not None:
                assert eval(process.stdout.readline().decode()) == got
        process.stdin.write(b"last")
        process.stdin.close()
        assert eval(process.stdout.readline()) == ["last"]
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("how", "sent", "got"),
    [
        ('("t",)', b'\xef\xbb\xbf{"t": "one"}\n{"t": "two"}', [["one"], ["two"]]),
        ("()", "\ufeffone\ntwo\n".encode("utf-16-le"), [["one", "two"]]),
        ("()", b"caf\xe9\n", [["caf\ufffd"]]),
        ("()", b"", []),
        ('(None, "text")', QUOTED.encode(), [["one, two", "three\nfour"]]),
    ],
)
def test_standard_input_of_every_kind(how: str, sent: bytes, got: list[list[str]]) -> None:
    environment = os.environ | {"PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ECHO, how], input=sent, capture_output=True, check=True, env=environment, timeout=60
    )
    assert [eval(line) for line in done.stdout.decode().splitlines()] == got
