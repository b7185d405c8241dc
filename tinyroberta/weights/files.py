"""Reading and writing whole files so that nothing is half-written and every failure is one sentence."""

import json
import mmap
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import Error

JSON_LIMIT = 64 * 2**20
POINTER = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(path: Path) -> None:
    """Raise Error where a file is a Git LFS pointer: three lines of text that `git clone` leaves where the file should be."""
    try:
        with path.open("rb") as stream:
            start = stream.read(len(POINTER))
    except OSError:
        return  # whoever reads it says why it cannot be read
    if start == POINTER:
        raise Error(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` where it was cloned, or download it")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises Error where the file is missing, larger than 64 MiB, a Git LFS pointer, or holds anything but one JSON object.
    """
    content = read_json_value(path)
    if not isinstance(content, dict):
        raise Error(f"{path} holds a JSON {type(content).__name__}, not an object")
    return content


def read_json_value(path: Path) -> Any:
    """What a file of JSON holds, whatever it is; raises Error as read_json."""
    refuse_pointer(path)
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise Error(f"{path} is larger than {JSON_LIMIT >> 20} MiB, which no JSON file of a checkpoint is")
        return json.loads(path.read_text(encoding="utf-8-sig"))  # Notepad puts a mark first
    except OSError as error:
        raise Error(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, Error):
            raise
        raise Error(f"{path} is not valid JSON: {error}") from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path beside `path`, then rename: the file is whole or absent.

    Raises Error where the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")  # a name alone: it is there only inside `try`
        try:
            write(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise Error(f"cannot write {path}: {error.strerror or error}") from error


def release(x: np.ndarray[Any, np.dtype[Any]]) -> None:
    """Let go of the memory that mirrors a mapped array's part of its file; it is read again if it is looked at again."""
    whole: Any = x
    while isinstance(whole, np.ndarray | memoryview):
        whole = whole.base if isinstance(whole, np.ndarray) else whole.obj
    if (
        isinstance(whole, mmap.mmap)
        and hasattr(mmap, "MADV_DONTNEED")
        and x.nbytes
        and (x.flags.c_contiguous or x.flags.f_contiguous)
    ):
        start = x.ctypes.data - np.frombuffer(whole, np.uint8, 1).ctypes.data
        before = start % mmap.PAGESIZE
        whole.madvise(mmap.MADV_DONTNEED, start - before, x.nbytes + before)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object, indented by two, whole or not at all; raises Error on what JSON or UTF-8 cannot hold."""
    try:
        text = (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
    except (TypeError, ValueError, RecursionError) as error:  # ValueError: a circle, or half of a surrogate pair
        raise Error(f"cannot write {path}: it would hold what JSON cannot: {error}") from error
    write_atomically(path, lambda part: part.write_bytes(text))


def lock(file: BinaryIO, part: Path) -> None:
    """Let no second process write to the same part."""
    try:
        import fcntl
    except ImportError:  # Windows lets no second process rename what the first has open
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise Error(f"another process writes {part} now") from error


def changed(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The names of the settings that differ from those that a file was begun with."""
    return ", ".join(name for name in {**now, **was} if now.get(name) != was.get(name)) or "settings"
