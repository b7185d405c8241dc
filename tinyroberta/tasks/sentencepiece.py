"""A sentencepiece model's pieces, read without its library: a protobuf message (sentencepiece_model.proto)."""

import math
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..errors import Error

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # types of pieces
UNIGRAM = 1  # a type of model
VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5  # wire types


class SentencePiece(NamedTuple):
    """Pieces (text, score, type) in the order of their ids, and the table by which texts are normalized first."""

    pieces: list[tuple[str, float, int]]
    charsmap: bytes


def read_sentencepiece(content: bytes) -> SentencePiece:
    """What a .model file holds; raises Error where it is not a unigram model or not whole."""
    pieces: list[tuple[str, float, int]] = []
    kind: int | bytes = UNIGRAM
    charsmap = b""
    for field, value in _fields(content):
        if field == 1:
            pieces.append(_piece(_message(value)))
        elif field == 2:
            kind = dict(_fields(_message(value))).get(3, UNIGRAM)
        elif field == 3:
            charsmap = _message(dict(_fields(_message(value))).get(2, b""))
    if kind != UNIGRAM:
        raise Error("it is no unigram model, which is the only kind that is read")
    if len(pieces) < 4:
        raise Error(f"it has {len(pieces)} pieces, fewer than four")
    return SentencePiece(pieces, charsmap)


def _piece(message: bytes) -> tuple[str, float, int]:
    fields = dict(_fields(message))
    text, score, kind = _message(fields.get(1, b"")), fields.get(2, bytes(4)), fields.get(3, 1)
    if not isinstance(score, bytes) or len(score) != 4 or not isinstance(kind, int):
        raise Error("it has a piece whose score or type is of another type")
    (number,) = struct.unpack("<f", score)
    try:
        word = text.decode()
    except UnicodeDecodeError as error:
        raise Error("it has a piece that is no UTF-8") from error
    if not word or not math.isfinite(number):
        raise Error("it has a piece without a text or a finite score")
    return word, number, kind


def _message(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise Error("it has a number where bytes belong")
    return value


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """A message's fields: numbers for varints, bytes for all else."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        wire = key & 7
        if wire == VARINT:
            number, at = _varint(content, at)
            yield key >> 3, number
            continue
        if wire == LENGTH:
            length, at = _varint(content, at)
        elif wire in (EIGHT_BYTES, FOUR_BYTES):
            length = 8 if wire == EIGHT_BYTES else 4
        else:
            raise Error("it is no protobuf message")
        if length > len(content) - at:
            raise Error("it is cut short, or no protobuf message")
        yield key >> 3, content[at : at + length]
        at += length


def _varint(content: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise Error("it is cut short, or no protobuf message")
        byte = content[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
    raise Error("it is no protobuf message")
