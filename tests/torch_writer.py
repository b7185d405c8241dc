"""Torch files made by hand, opcode by opcode: what torch would write, and what it never would."""

import io
import struct
import zipfile
from typing import Any

import numpy as np

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
KINDS = {"float32": "FloatStorage", "float16": "HalfStorage", "float64": "DoubleStorage", "int64": "LongStorage"}


def name(text: str) -> bytes:
    """GLOBAL: "module name"."""
    module, attribute = text.split(" ")
    return f"c{module}\n{attribute}\n".encode()


def put(x: Any) -> bytes:
    """Opcodes that push a plain value; bytes are opcodes already."""
    if isinstance(x, bytes):
        return x
    if x is None or isinstance(x, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[x]
    if isinstance(x, int):
        size = (x.bit_length() + 8) // 8
        return b"\x8a" + bytes([size]) + x.to_bytes(size, "little", signed=True)
    if isinstance(x, float):
        return b"G" + struct.pack(">d", x)
    if isinstance(x, str):
        encoded = x.encode()
        return b"X" + struct.pack("<I", len(encoded)) + encoded
    if isinstance(x, tuple):
        return b"(" + b"".join(map(put, x)) + b"t"
    if isinstance(x, list):
        return b"](" + b"".join(map(put, x)) + b"e"
    assert isinstance(x, dict)
    return b"}(" + b"".join(put(part) for item in x.items() for part in item) + b"u"


def call(function: str, *args: Any) -> bytes:
    """REDUCE."""
    return name(function) + put(args) + b"R"


def storage(key: Any = "0", count: Any = 4, kind: str = "torch FloatStorage", place: Any = "cpu", *more: Any) -> bytes:
    """BINPERSID."""
    return put(("storage", name(kind), key, place, count, *more)) + b"Q"


def tensor(shape: Any = (4,), strides: Any = (1,), offset: Any = 0, stored: bytes | None = None) -> bytes:
    """A tensor as torch rebuilds it."""
    hooks = name("collections OrderedDict") + b")R"
    return call("torch._utils _rebuild_tensor_v2", storage() if stored is None else stored, offset, shape, strides, False, hooks)


def pickled(content: Any) -> bytes:
    return b"\x80\x02" + put(content) + b"."


def zipped(data: bytes, entries: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive with data.pkl, a storage "0" of 16 bytes unless others are given, and the version."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        for key, content in ({"data/0": bytes(16)} if entries is None else entries).items():
            archive.writestr(f"archive/{key}", content)
        archive.writestr("archive/version", b"3\n")
    return buffer.getvalue()


def legacy(data: bytes, keys: Any = ("0",), storages: bytes = struct.pack("<q", 4) + bytes(16), little: bool = True) -> bytes:
    """The five pickles, then the storages."""
    about = pickled({"protocol_version": 1001, "little_endian": little, "type_sizes": {"short": 2, "int": 4, "long": 4}})
    return MAGIC + about + data + pickled(list(keys)) + storages


def save(path: Any, arrays: dict[str, np.ndarray], layout: str = "zip") -> None:
    """A state dict as torch.save writes it, array by array."""
    described, view = {}, (None,) if layout == "legacy" else ()
    for key, (label, x) in enumerate(arrays.items()):
        strides = tuple(step // x.itemsize for step in x.strides)
        stored = storage(str(key), x.size, f"torch {KINDS[x.dtype.name]}", "cpu", *view)
        described[label] = tensor(x.shape, strides, 0, stored)
    if layout == "legacy":
        storages = b"".join(struct.pack("<q", x.size) + x.ravel(order="K").tobytes() for x in arrays.values())
        path.write_bytes(legacy(pickled(described), [str(key) for key in range(len(arrays))], storages))
        return
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled(described))
        archive.writestr("archive/version", b"3\n")
        for key, x in enumerate(arrays.values()):
            archive.writestr(f"archive/data/{key}", x.ravel(order="K").tobytes())
