"""Where answers go that are asked for with --out: a file that a command, killed at any moment and started again, finishes.

Answers are appended to FILE.part; FILE.part.log then says, a line at a time, how many texts they answer, at which byte they end
and the digest of those texts. The same command, given again, cuts FILE.part at the last line of the log that its bytes reach,
reads the same texts, compares the digest and goes on behind them. The whole file gets its name in one step, at the end.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..columns import import_arrow
from ..errors import Error
from ..weights.files import changed, lock
from .reading import Item

EVERY = 1.0  # seconds from one line of the log to the next
HEADER = 128  # bytes of an .npy file before its numbers: room for any count of rows
Pairs = Sequence[tuple[Item, Mapping[str, Any]]]  # texts and their answers


class Format(NamedTuple):
    """A kind of file: the bytes of some answers, of the first ones with what stands before them, and how a part becomes whole."""

    encode: Callable[[Pairs, bool], bytes]
    finish: Callable[[Path, int], Path]  # (part, how many answers) -> the file that gets the name


class Log(NamedTuple):
    """A line of the log."""

    answers: int
    bytes: int
    digest: str


def check_out(path: str | None, vectors: bool = False) -> Path | None:
    """The path of --out; raises Error on a kind of file that is not written, or a file that is there."""
    if path is None:
        return None
    kinds = [*([".npy"] if vectors else []), ".jsonl", ".parquet"]
    out = Path(path).expanduser()
    if out.suffix.lower() not in kinds:
        raise Error(f"--out {path}: its name must end in {' or '.join(kinds)}")
    if out.suffix.lower() == ".parquet":
        import_arrow()
    if out.exists() and not _log(out).exists():
        raise Error(f"{path} is there already: name another file, or delete it")
    if not out.parent.is_dir():
        raise Error(f"there is no folder {out.parent}")
    return out


def is_whole(out: Path) -> bool:
    """Whether a file got its name just before the command that wrote it was killed; its traces are removed then."""
    whole = out.exists() and _log(out).exists()
    if whole:
        _part(out).unlink(missing_ok=True)
        _log(out).unlink()
    return whole


class Writer:
    """A file of answers under way: `todo` leaves out the texts that it holds already, `write` appends, `finish` names it."""

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        """settings: what the answers depend on besides the texts; raises Error where a part was begun with others."""
        self.out, self.part, self.log = out, _part(out), _log(out)
        begun = self.log.read_text() if self.log.exists() else ""
        if not begun and self.part.exists() and self.part.stat().st_size:
            raise Error(f"{self.part} is there, and no part of {out}: move it away")
        self.digest, self.saved = hashlib.sha256(), time.monotonic()
        self.held = Log(0, 0, self.digest.hexdigest())
        told = json.dumps(settings, sort_keys=True, default=str)
        self.file = open(self.part, "ab")  # noqa: PTH123, SIM115 - for as long as the writer lives
        try:
            lock(self.file, self.part)
            self.format = format_of(out, self.part)
            if "\n" in begun:
                self._resume(begun, told)
            else:
                self.log.write_text(told + "\n")
        except BaseException:
            self.file.close()
            raise
        self.answers = self.held.answers

    def _resume(self, begun: str, told: str) -> None:
        first, *lines, _ = begun.split("\n")
        if first != told:
            which = changed(json.loads(first), json.loads(told))
            raise Error(f"{self.part} was begun with another {which}: give the same, or delete {self.part} and {self.log}")
        size = self.part.stat().st_size
        for line in lines:
            entry = Log(*json.loads(line))
            if entry.bytes <= size:
                self.held = entry
        self.file.truncate(self.held.bytes)
        self.file.seek(0, os.SEEK_END)

    def todo(self, lists: Iterator[list[Item]]) -> Iterator[list[Item]]:
        """The texts that are not answered yet; raises Error where those that are have changed."""
        left = self.held.answers
        for items in lists:
            for item in items[:left]:
                self._add(item)
            done, left = min(left, len(items)), max(0, left - len(items))
            if done and not left:
                self._check()
            if items[done:]:
                yield items[done:]
        if left:
            raise Error(f"{self.part} answers {self.held.answers} texts, and there are only {self.held.answers - left} now")

    def _check(self) -> None:
        if self.digest.hexdigest() != self.held.digest:
            told = f"{self.part} answers other texts than these: give the same, or delete it and {self.log}"
            raise Error(told)

    def _add(self, item: Item) -> None:
        self.digest.update(json.dumps([item.text, item.record], default=str).encode())

    def write(self, pairs: Pairs) -> None:
        """Append texts' answers."""
        if not pairs:
            return
        self.file.write(self.format.encode(pairs, self.file.tell() == 0))
        self.answers += len(pairs)
        for item, _ in pairs:
            self._add(item)
        if time.monotonic() - self.saved >= EVERY:
            self.save()

    def save(self) -> None:
        """Let what is written be found again."""
        self.file.flush()
        os.fsync(self.file.fileno())
        with self.log.open("a") as log:
            log.write(json.dumps(Log(self.answers, self.file.tell(), self.digest.hexdigest())) + "\n")
            log.flush()
            os.fsync(log.fileno())
        self.saved = time.monotonic()

    def finish(self) -> None:
        """The whole file, under its name."""
        if self.file.tell() == 0:
            self.file.write(self.format.encode([], True))
        self.save()
        self.file.close()
        self.format.finish(self.part, self.answers).replace(self.out)
        self.part.unlink(missing_ok=True)
        self.log.unlink()


@contextmanager
def writing(out: Path, settings: Mapping[str, Any]) -> Iterator[Writer]:
    """A Writer that names its file where all went well, and else keeps what it has for the next time."""
    writer = Writer(out, settings)
    try:
        yield writer
    except BaseException:
        if writer.answers > writer.held.answers:
            writer.save()
        writer.file.close()
        raise
    writer.finish()


def _part(out: Path) -> Path:
    return out.with_name(f"{out.name}.part")


def _log(out: Path) -> Path:
    return out.with_name(f"{out.name}.part.log")


# The kinds of files.


def format_of(out: Path, part: Path) -> Format:
    """What a file's name asks for."""
    suffix = out.suffix.lower()
    if suffix == ".npy":
        return Format(_rows, _with_header)
    return Format(_json_lines, lambda part, _: part) if suffix == ".jsonl" else _parquet(part)


def _rows(pairs: Pairs, start: bool) -> bytes:
    rows = [np.asarray(answer["embedding"], "<f4").tobytes() for _, answer in pairs]
    return b"".join([bytes(HEADER) if start else b"", *rows])


def _with_header(part: Path, count: int) -> Path:
    """An .npy file's first bytes, which say how many rows there are."""
    width = (part.stat().st_size - HEADER) // (4 * max(1, count))
    told = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({count}, {width}), }}"
    header = b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + told.ljust(HEADER - 11).encode() + b"\n"
    with part.open("r+b") as file:
        file.write(header)
        os.fsync(file.fileno())
    return part


def _json_lines(pairs: Pairs, start: bool) -> bytes:  # noqa: ARG001
    rows = ({**item.record, **plain(answer)} for item, answer in pairs)
    return "".join(f"{json.dumps(row, default=str)}\n" for row in rows).encode()


def plain(answer: Mapping[str, Any]) -> dict[str, Any]:
    """An answer as JSON has it: arrays are lists."""
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in answer.items()}


def _parquet(part: Path) -> Format:
    """The part is a stream of record batches, each whole in itself; at the end a Parquet file is made of it."""
    arrow = import_arrow()
    from pyarrow import ipc, parquet

    schema = None
    if part.stat().st_size:
        with ipc.open_stream(part) as stream:
            schema = stream.schema

    def encode(pairs: Pairs, start: bool) -> bytes:
        nonlocal schema
        rows = [{**item.record, **answer} for item, answer in pairs]
        try:
            if schema is None:
                found = arrow.Table.from_pylist(rows).schema
                text = [arrow.field(field.name, arrow.string()) for field in found if arrow.types.is_null(field.type)]
                for field in text:  # nothing is known of it yet
                    found = found.set(found.get_field_index(field.name), field)
                schema = found
            batch = arrow.RecordBatch.from_pylist(rows, schema=schema)
        except (arrow.ArrowException, TypeError, ValueError) as error:
            where = pairs[0][0].where or "the first text"
            raise Error(f"the fields from {where} on do not fit in one table: {error}; --out FILE.jsonl holds any") from error
        return (schema.serialize().to_pybytes() if start else b"") + batch.serialize().to_pybytes()

    def finish(part: Path, _: int) -> Path:
        whole = part.with_name(f"{part.name}.whole")
        with ipc.open_stream(part) as stream, parquet.ParquetWriter(whole, stream.schema) as writer:
            for batch in stream:
                writer.write_batch(batch)
        return whole

    return Format(encode, finish)
