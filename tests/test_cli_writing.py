"""cli/writing.py: a file that was cut off anywhere is finished by the same command, and nothing is lost or repeated."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyroberta import Error
from tinyroberta.cli import writing as module
from tinyroberta.cli.reading import Item
from tinyroberta.cli.writing import check_out, is_whole, writing

TEXTS = [f"text {n}" for n in range(23)]
SUFFIXES = [".npy", ".jsonl", ".parquet"]


class Killed(BaseException):
    pass


def lists(texts: list[str] = TEXTS) -> Iterator[list[Item]]:
    for start in range(0, len(texts), 5):
        yield [Item(text, {"text": text, "id": start}) for text in texts[start : start + 5]]


def answer(text: str) -> dict[str, Any]:
    return {"embedding": np.array([len(text), hash_of(text), -0.1], np.float32)}


def hash_of(text: str) -> float:
    return sum(map(ord, text)) / 7


def run(out: Path, stop: int = 10**6, settings: Any = None, texts: list[str] = TEXTS) -> list[str]:
    """Write the answers; killed as by SIGKILL, without a last line in the log, before the answer number `stop` of this run."""
    answered: list[str] = []
    writer = module.Writer(out, settings or {"model": "a"})
    try:
        for items in writer.todo(lists(texts)):
            for item in items:
                if len(answered) == stop:
                    raise Killed
                writer.write([(item, answer(item.text))])
                answered.append(item.text)
        writer.finish()
    finally:
        writer.file.close()
    return answered


def content(out: Path) -> Any:
    if out.suffix == ".npy":
        return np.load(out).tobytes()
    if out.suffix == ".jsonl":
        return out.read_bytes()
    from pyarrow import parquet

    return parquet.read_table(out).to_pylist()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("every", [0.0, 10.0])
def test_a_file_that_was_cut_off_is_finished(suffix: str, every: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    monkeypatch.setattr(module, "EVERY", every)
    whole = tmp_path / f"whole{suffix}"
    run(whole)
    if suffix == ".npy":
        assert np.load(whole).shape == (23, 3)
        assert np.array_equal(np.load(whole)[7], answer(TEXTS[7])["embedding"])
    stops = (0, 1, 5, 7, 13, 22, 23)
    for stop in stops:
        out = tmp_path / f"cut{stop}{suffix}"
        if stop < 23:
            with pytest.raises(Killed):
                run(out, stop)
            assert not out.exists()
            if stop in (1, 7):  # and killed once more
                with pytest.raises(Killed):
                    run(out, 1)
        rest = run(out)
        if every == 0:
            assert rest == (TEXTS if stop == 23 else TEXTS[stop + (stop in (1, 7)) :])
        assert content(out) == content(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["whole" + suffix, *(f"cut{n}{suffix}" for n in stops)])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_bytes_that_the_log_does_not_reach_are_cut(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    monkeypatch.setattr(module, "EVERY", 0.0)
    out, whole = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    run(whole)
    with pytest.raises(Killed):
        run(out, 9)
    part, log = tmp_path / f"a{suffix}.part", tmp_path / f"a{suffix}.part.log"
    with part.open("ab") as file:
        file.write(b"half an answer")
    with log.open("a") as file:
        file.write("[10, 99")
    assert run(out)[0] == TEXTS[9]
    assert content(out) == content(whole)


def test_every_step_of_the_end_can_be_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    for suffix in SUFFIXES:
        whole = tmp_path / f"whole{suffix}"
        run(whole)
        for step in ("replace", "unlink"):
            out = tmp_path / f"{step}{suffix}"
            real = getattr(Path, step)

            def killed(*_: Any, **__: Any) -> None:
                raise Killed

            monkeypatch.setattr(Path, step, killed)
            with pytest.raises(Killed):
                run(out)
            monkeypatch.setattr(Path, step, real)
            if is_whole(out):
                assert step == "unlink"
            else:
                assert run(out) == []
            assert content(out) == content(whole)
            assert [path.name for path in tmp_path.glob(f"{step}{suffix}*")] == [out.name]


def test_other_texts_or_settings_are_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    out = tmp_path / "a.npy"

    def failing() -> None:
        with writing(out, {"model": "a", "prompt": None}) as writer:
            for items in writer.todo(lists()):
                writer.write([(item, answer(item.text)) for item in items])
                if writer.answers == 15:
                    raise RuntimeError

    with pytest.raises(RuntimeError):
        failing()
    before = (tmp_path / "a.npy.part").read_bytes()
    for settings, texts, told in (
        ({"model": "b", "prompt": None}, TEXTS, "begun with another model: give the same"),
        (None, ["other", *TEXTS[1:]], "answers other texts than these"),
        (None, TEXTS[:5], "answers 15 texts, and there are only 5 now"),
    ):
        with pytest.raises(Error, match=told):
            run(out, 10**6, settings or {"model": "a", "prompt": None}, texts)
        assert (tmp_path / "a.npy.part").read_bytes() == before
    assert run(out, settings={"model": "a", "prompt": None}) == TEXTS[15:]


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with writing(tmp_path / "a.jsonl", {}) as writer:
        with pytest.raises(Error, match="another process writes"):
            module.Writer(tmp_path / "a.jsonl", {})
        for items in writer.todo(lists()):
            writer.write([(item, answer(item.text)) for item in items])
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 23


def test_no_text_at_all_makes_an_empty_file(tmp_path: Path) -> None:
    run(tmp_path / "a.npy", texts=[])
    assert np.load(tmp_path / "a.npy").shape == (0, 0)
    run(tmp_path / "a.jsonl", texts=[])
    assert (tmp_path / "a.jsonl").read_bytes() == b""


def test_what_is_no_place_for_answers_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "there.jsonl").write_text("mine")
    (tmp_path / "foreign.jsonl.part").write_text("mine")
    for name, told in (
        ("a.csv", "its name must end in .jsonl or .parquet"),
        ("a.npy", "its name must end in .jsonl or .parquet"),
        ("there.jsonl", "is there already"),
        ("no/a.jsonl", "there is no folder"),
    ):
        with pytest.raises(Error, match=told):
            check_out(str(tmp_path / name))
    with pytest.raises(Error, match="no part of"):
        module.Writer(tmp_path / "foreign.jsonl", {})
    assert (tmp_path / "foreign.jsonl.part").read_text() == "mine"


def test_rows_that_fit_no_table_are_told(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")

    def failing() -> None:
        with writing(tmp_path / "a.parquet", {}) as writer:
            writer.write([(Item("a", {"id": 1}), {"score": 0.5})])
            writer.write([(Item("b", {"id": "x"}, "line 2 of a"), {"score": 0.5})])

    with pytest.raises(Error, match="do not fit in one table"):
        failing()
    assert json.loads((tmp_path / "a.parquet.part.log").read_text().splitlines()[-1])[0] == 1
