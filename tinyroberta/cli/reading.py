"""What a command reads: arguments, standard input, and files of lines, of JSON objects, of columns.

Texts come in lists, as they arrive: what a program writes into the pipe is answered before it writes more, and a file of any
length is never held whole.
"""

import argparse
import codecs
import csv
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..columns import column_of, import_arrow, names_of
from ..errors import Error

CHARACTERS = 2**17  # of a list
ITEMS = 1024  # of a list
JSON_LINES, TABLES, PARQUET = (".jsonl", ".ndjson"), (".csv", ".tsv"), (".parquet",)


class Item(NamedTuple):
    """A text with the record that it stands in and where that is; or the Error that the place deserves."""

    text: Any
    record: dict[str, Any]
    where: str = ""
    error: Error | None = None


def add_sources(parser: argparse.ArgumentParser, what: str) -> None:
    """The arguments that say where texts come from."""
    parser.add_argument("texts", nargs="*", metavar="TEXT", help=f"{what}, or a file of them; - or none: standard input")
    add_fields(parser)


def add_fields(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which part of a file's records is the text."""
    parser.add_argument("--field", metavar="NAME", help="of JSON lines: the field that holds the text")
    parser.add_argument("--column", metavar="NAME", help="of CSV or Parquet: the column that holds the text")


def items_of(given: Sequence[str], what: str, field: str | None = None, column: str | None = None) -> Iterator[list[Item]]:
    """Each text that is given, and those of each file and, for "-" or where nothing is given, of standard input, in lists.

    A file is what its name says (.jsonl, .csv, .tsv, .parquet), or what `field` (JSON lines) or `column` (CSV) says it is; else
    its lines are texts, the empty ones left out. Raises Error on what cannot be read.
    """
    if field is not None and column is not None:
        raise Error("--field is of JSON lines and --column of CSV or Parquet: give one of them")
    if sys.stdin is None and (not given or "-" in given):
        raise Error(f"standard input is closed: give {what}, or a file of them, one a line")
    if not given and sys.stdin.isatty():
        raise Error(f"give {what}, a file of them, or texts on standard input, one a line")
    return (items for name in given or ["-"] for items in _source(name, field, column))


def begun(lists: Iterator[list[Item]]) -> Iterator[list[Item]]:
    """The same lists, the first of them read now: what cannot be read is told before a model is loaded."""
    first = next(lists, None)
    return iter(()) if first is None else chain([first], lists)


def whole_text(given: str) -> str:
    """A text that is given, or all that a file or, for "-", standard input holds; raises Error on what is no text."""
    if given == "-":
        if sys.stdin is None:
            raise Error("standard input is closed: give a text, or a file")
        return "".join(line for lines in _arriving() for line in lines)
    if not is_file(given):
        return as_text(given)
    try:
        with Path(given).open("rb") as binary, io.TextIOWrapper(binary, _encoding(binary, given) or "utf-8", "replace") as file:
            return file.read()
    except OSError as error:
        raise Error(f"cannot read {given}: {error.strerror or error}") from error


def as_text(given: str) -> str:
    """An argument as a text: bytes that are no UTF-8 are U+FFFD."""
    return re.sub("[\ud800-\udfff]", "\ufffd", given).removeprefix("\ufeff")


def is_file(text: str) -> bool:
    """Whether a text is the path of a file, which may be a pipe."""
    try:
        return Path(text).exists() and not Path(text).is_dir()
    except (OSError, ValueError):  # of too long a text, a zero byte
        return False


def _source(name: str, field: str | None, column: str | None) -> Iterator[list[Item]]:
    suffix = Path(name).suffix.lower() if name != "-" and is_file(name) else None
    if name == "-":
        yield from _standard_input(field, column)
    elif suffix is None:
        if Path(name).suffix.lower() in (*JSON_LINES, *TABLES, *PARQUET) and not re.search(r"\s", name):
            raise Error(f"there is no file {name}")
        yield [Item(as_text(name), {"text": as_text(name)})]
    elif suffix in PARQUET:
        yield from _listed(_parquet(name, column))
    else:
        try:
            with Path(name).open("rb") as binary:
                encoding = _encoding(binary, name) or "utf-8"
                with io.TextIOWrapper(binary, encoding, "replace", newline="") as lines:
                    yield from _listed(_records(lines, name, suffix, field, column))
        except OSError as error:
            raise Error(f"cannot read {name}: {error.strerror or error}") from error


def _records(lines: Iterable[str], name: str, suffix: str, field: str | None, column: str | None) -> Iterator[Item]:
    if suffix in TABLES or (column is not None and suffix not in JSON_LINES):
        return _table(lines, name, "\t" if suffix == ".tsv" else ",", column)
    if suffix in JSON_LINES or field is not None:
        return _objects(lines, name, field)
    return _lines(lines, name)


def _standard_input(field: str | None, column: str | None) -> Iterator[list[Item]]:
    name, number = "standard input", 0
    if column is not None:
        yield from _listed(_table((line for lines in _arriving() for line in lines), name, ",", column))
        return
    for lines in _arriving():
        items = list(_lines(lines, name, number) if field is None else _objects(lines, name, field, number))
        number += len(lines)
        if items:
            yield items


def _arriving() -> Iterator[list[str]]:
    """The lines of standard input, in lists as they arrive."""
    try:
        number = sys.stdin.buffer.fileno()
    except (AttributeError, OSError, ValueError):  # what stands for it in a test has no number
        yield from ([line] for line in sys.stdin)
        return
    binary: Any = sys.stdin.buffer
    encoding = None if sys.stdin.isatty() else _encoding(binary, "standard input")
    decoder = codecs.getincrementaldecoder(encoding or sys.stdin.encoding or "utf-8")("replace")
    held, rest = binary.peek(1) if encoding is not None or not sys.stdin.isatty() else b"", ""
    binary.read(len(held))
    while True:
        arrived = held or os.read(number, 2**16)
        held = b""
        *lines, rest = (rest + decoder.decode(arrived, final=not arrived)).split("\n")
        if lines:
            yield [f"{line}\n" for line in lines]
        if not arrived:
            if rest:
                yield [rest]
            return


def _listed(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Items in lists of bounded length."""
    found: list[Item] = []
    length = 0
    for item in items:
        found.append(item)
        length += len(item.text) if isinstance(item.text, str) else 1
        if length >= CHARACTERS or len(found) >= ITEMS:
            yield found
            found, length = [], 0
    if found:
        yield found


def _lines(lines: Iterable[str], name: str, before: int = 0) -> Iterator[Item]:
    for number, line in enumerate(lines, before + 1):
        if line.strip():
            text = line.rstrip("\r\n")
            yield Item(text, {"text": text}, f"line {number} of {name}")


def _objects(lines: Iterable[str], name: str, field: str | None, before: int = 0) -> Iterator[Item]:
    """A text of each JSON object, or each JSON string where no field is named."""
    for number, line in enumerate(lines, before + 1):
        if not line.strip():
            continue
        where = f"line {number} of {name}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            yield Item(None, {}, where, Error("it is no JSON"))
            continue
        yield _item(value, field, where)


def _item(value: Any, field: str | None, where: str) -> Item:
    record = value if isinstance(value, dict) else {"text": value}
    if field is None and isinstance(value, dict):
        told = f"--field must name the text's: there are {names_of(record)}"
        return Item(None, record, where, Error(told))
    name = field if field is not None else "text"
    if name not in record:
        return Item(None, record, where, Error(f"it has no field {name}: there are {names_of(record)}"))
    if not isinstance(record[name], str):
        kind = "null" if record[name] is None else type(record[name]).__name__
        return Item(None, record, where, Error(f"its field {name} holds {kind}, and not a text"))
    return Item(record[name], record, where)


def _table(lines: Iterable[str], name: str, delimiter: str, column: str | None) -> Iterator[Item]:
    csv.field_size_limit(2**31 - 1)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = next(rows, None)
        if header is None:
            raise Error(f"{name} is empty: its first line must name the columns")
        place = header.index(_column(header, column, name))
        for row in rows:
            where = f"line {rows.line_num} of {name}"
            if not row:
                continue
            record = dict(zip(header, row, strict=False))
            if len(row) <= place:
                yield Item(None, record, where, Error(f"it has no column {header[place]}"))
            else:
                yield Item(row[place], record, where)
    except csv.Error as error:
        raise Error(f"line {rows.line_num} of {name} is no CSV: {error}") from error


def _parquet(name: str, column: str | None) -> Iterator[Item]:
    arrow = import_arrow()
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(name, memory_map=True) as file:
            texts = _column(file.schema_arrow.names, column, name)
            number = 0
            for batch in file.iter_batches(ITEMS):
                for record in batch.to_pylist():
                    number += 1
                    yield _item(record, texts, f"row {number} of {name}")
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise Error(f"cannot read {name}: {str(error).partition(chr(10))[0]}") from error


def _column(names: Sequence[str], column: str | None, name: str) -> str:
    """The column that holds the texts; raises Error where it is not there, or none is named and there are several."""
    if column is None and len(names) != 1:
        raise Error(f"--column must name the text's of {name}: there are {names_of(names)}")
    return column_of(names, names[0] if column is None else column, name)


def _encoding(binary: BinaryIO, name: str) -> str | None:
    """What the byte order mark at a stream's start says, as Notepad and PowerShell write it; raises Error on what is no text."""
    start = binary.peek(256)  # type: ignore[attr-defined]
    marks = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
    encoding = next((encoding for mark, encoding in marks if start.startswith(mark)), None)
    if encoding is None and b"\0" in start:
        raise Error(f"{name} is no text: give a file of texts, one a line")
    return encoding
