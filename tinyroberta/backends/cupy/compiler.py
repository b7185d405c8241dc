"""NVRTC through ctypes: kernels to machine code, with our own flags, the same on a GPU and where there is none.

CuPy would compile them itself, but adds flags of its own after ours: its `-ftz=true` takes numbers below 2^-126 for zeros, which
have digits here (kernels/digits.cuh), and its targets have no Hopper instructions. Names and numbers are those of nvrtc.h.
"""

import ctypes
import functools
import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import Error
from ...weights.files import write_atomically

FLAGS = ("-std=c++17", "-default-device", "-ftz=false", "-prec-div=true", "-prec-sqrt=true", "-fmad=true")


class Compiled(NamedTuple):
    """A source's machine code, each kernel's symbol in it by name expression, and what the compiler said."""

    cubin: bytes
    symbols: dict[str, str]
    log: str


@functools.cache
def library() -> Any:
    """NVRTC, from its wheel, the CUDA toolkit or the loader's path; raises Error where it is in none of them."""
    spec = importlib.util.find_spec("nvidia")
    roots = [] if spec is None else [Path(root) for root in spec.submodule_search_locations or ()]
    folders = [root / part / "lib" for part in ("cu13", "cuda_nvrtc") for root in roots]
    toolkits = (os.environ.get("CUDA_PATH"), os.environ.get("CUDA_HOME"), "/usr/local/cuda")
    folders += [Path(root) / "lib64" for root in toolkits if root]
    found = [path for folder in folders for path in sorted(folder.glob("libnvrtc.so.*"), key=lambda path: len(path.name))]
    for name in (*map(str, found), "libnvrtc.so.13", "libnvrtc.so.12"):
        try:
            for builtins in Path(name).parent.glob("libnvrtc-builtins.so.*"):  # NVRTC looks on the loader's path alone
                ctypes.CDLL(str(builtins))
            nvrtc = ctypes.CDLL(name)
        except OSError:
            continue
        nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        return nvrtc
    raise Error("backend='cupy' needs NVRTC, CUDA's compiler, and it is not installed: pip install 'tinyroberta[cuda13]'")


def target(capability: int) -> str:
    """What to compile for on a GPU of this compute capability: its own architecture, or the next below that NVRTC knows."""
    nvrtc, count = library(), ctypes.c_int()
    nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    known = (ctypes.c_int * count.value)()
    nvrtc.nvrtcGetSupportedArchs(known)
    best = max((number for number in known if number <= capability and number // 10 == capability // 10), default=0)
    if not best:
        raise Error(f"the NVRTC installed here does not know GPUs of compute capability {capability / 10}: install a newer one")
    return "sm_90a" if best == 90 else f"sm_{best}"  # a: with wgmma, which no other GPU has


def compiled(code: str, architecture: str, names: Sequence[str], flags: Sequence[str] = ()) -> Compiled:
    """Every kernel of a source; raises Error with the compiler's log."""
    nvrtc, program = library(), ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"kernels.cu", 0, None, None)
    try:
        for name in names:
            nvrtc.nvrtcAddNameExpression(program, name.encode())
        options = [f"-arch={architecture}", *FLAGS, *flags]
        given = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
        status = nvrtc.nvrtcCompileProgram(program, len(options), given)
        log = _text(program, "ProgramLog").decode()
        if status:
            raise Error(f"{nvrtc.nvrtcGetErrorString(status).decode()}\n{log}")
        symbols = {}
        for name in names:
            symbol = ctypes.c_char_p()
            nvrtc.nvrtcGetLoweredName(program, name.encode(), ctypes.byref(symbol))
            symbols[name] = (symbol.value or b"").decode()
        return Compiled(_text(program, "CUBIN", end=0), symbols, log)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _text(program: ctypes.c_void_p, what: str, end: int = 1) -> bytes:
    nvrtc, size = library(), ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, text)
    return text.raw[: size.value - end]


def kept(code: str, architecture: str, names: Sequence[str]) -> tuple[Path, dict[str, str]]:
    """The file of a source's machine code and each kernel's symbol, from CuPy's cache folder or compiled into it."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    key = repr((code, architecture, list(names), FLAGS, major.value, minor.value)).encode()
    folder = Path(os.environ.get("CUPY_CACHE_DIR") or "~/.cupy/kernel_cache").expanduser()
    path = folder / f"tinyroberta-{hashlib.sha256(key).hexdigest()[:32]}.cubin"
    try:
        symbols = json.loads(path.with_suffix(".json").read_text())
        if symbols.keys() == set(names) and path.stat().st_size:
            return path, symbols
    except (OSError, ValueError, AttributeError):
        pass  # one of the two files is not there or is not what was written: both are made again
    made = compiled(code, architecture, names)
    try:
        _write(path, made)
    except Error:  # the folder takes no files: the code is for this process alone
        path = Path(tempfile.mkdtemp()) / path.name
        _write(path, made)
    return path, made.symbols


def _write(path: Path, made: Compiled) -> None:
    write_atomically(path, lambda part: part.write_bytes(made.cubin))
    write_atomically(path.with_suffix(".json"), lambda part: part.write_text(json.dumps(made.symbols)))
