"""What a command reads: arguments, the lines of files, the lines of standard input."""

import codecs
import io
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from ..errors import Error


def texts_of(given: Sequence[str]) -> Iterator[str]:
    """Each text that is given, and the lines of each file and, for "-" or where nothing is given, of standard input."""
    if sys.stdin is None and (not given or "-" in given):
        raise Error("standard input is closed: give a sentence with <mask>, or a file of them, one a line")
    if not given and sys.stdin.isatty():
        raise Error("give a sentence with <mask>, a file of them, or sentences on standard input, one a line")
    return (line for text in given or ["-"] for line in _lines(text))


def _lines(text: str) -> Iterator[str]:
    if text == "-":
        binary = getattr(sys.stdin, "buffer", None)
        encoding = None if binary is None or sys.stdin.isatty() else _encoding(binary, "standard input")
        if encoding is not None:
            sys.stdin.reconfigure(encoding=encoding)  # type: ignore[union-attr]
        yield from _full(sys.stdin)
    elif not _is_file(text):
        yield re.sub("[\ud800-\udfff]", "\ufffd", text).removeprefix("\ufeff")
    else:
        try:
            with Path(text).open("rb") as file:
                yield from _full(io.TextIOWrapper(file, _encoding(file, text) or "utf-8", "replace"))
        except OSError as error:
            raise Error(f"cannot read {text}: {error.strerror or error}") from error


def _full(lines: Iterable[str]) -> Iterator[str]:
    return (line.rstrip("\r\n") for line in lines if line.strip())


def _encoding(binary: BinaryIO, name: str) -> str | None:
    """What the byte order mark at a stream's start says, as Notepad and PowerShell write it; raises Error on what is no text."""
    start = binary.peek(256)  # type: ignore[attr-defined]
    marks = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
    encoding = next((encoding for mark, encoding in marks if start.startswith(mark)), None)
    if encoding is None and b"\0" in start:
        raise Error(f"{name} is no text: give a file of sentences, one a line")
    return encoding


def _is_file(text: str) -> bool:
    """Whether a text is the path of a file, which may be a pipe."""
    try:
        return Path(text).exists() and not Path(text).is_dir()
    except (OSError, ValueError):  # of too long a text, a zero byte
        return False
