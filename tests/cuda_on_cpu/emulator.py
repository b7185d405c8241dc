"""Compile CUDA C++ with g++ against emulator.h, and launch its kernels through ctypes."""

import ctypes
import hashlib
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HEADER = Path(__file__).with_name("emulator.h")
CACHE = Path(tempfile.gettempdir()) / f"cuda_on_cpu-{os.getuid()}"
ORDERS = {"forward": 0, "reverse": 1, "random": 2}
DYNAMIC = re.compile(r"extern\s+__shared__\s+(?:__align__\(\d+\)\s*)?([\w:\s]+?)\s*\b(\w+)\s*\[\s*\]\s*;")
SANITIZERS = {
    "": ["-O2"],
    "undefined": ["-O1", "-fsanitize=alignment,bounds,null,shift,signed-integer-overflow", "-fno-sanitize-recover=all"],
    "address": ["-O1", "-fsanitize=address"],
}


class EmulatorError(RuntimeError):
    """What a kernel did wrong, with the block and thread that did it."""


class Kernel:
    """A compiled kernel; `signature` has a word for each parameter: "Pcf4" a const float*, "i4" an int."""

    def __init__(self, library: ctypes.CDLL, symbol: str, name: str, flush: bool) -> None:
        self.name, self.library, self.flush = name, library, flush
        self.launch = library[f"emulator_launch_{symbol}"]
        describe = library[f"emulator_sig_{symbol}"]
        describe.restype = ctypes.c_char_p
        self.signature: list[str] = describe().decode().split()

    def __call__(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        shared: int = 0,
        order: str = "forward",
        seed: int = 1,
    ) -> None:
        """Run it on ctypes values of the signature's types; raises EmulatorError on what a GPU would do wrong in silence."""
        sizes = [(ctypes.c_uint * 3)(*(*given, 1, 1)[:3]) for given in (grid, block)]
        pointers = (ctypes.c_void_p * max(1, len(args)))(*[ctypes.addressof(arg) for arg in args])
        if self.launch(*sizes, ctypes.c_size_t(shared), pointers, ORDERS[order], ctypes.c_uint(seed), int(self.flush)):
            raise EmulatorError(f"{self.name}: {self.library.emulator_error().decode()}")


def build(code: str, names: Sequence[str], sanitizer: str = "", flush: bool = False) -> dict[str, Kernel]:
    """The kernels of a source, its includes in place, by name expression; compiled once for a source, flags and header.

    `flush`: they take subnormal numbers for zeros, as under NVRTC's -ftz=true.
    """
    body = DYNAMIC.sub(r"\1* \2 = reinterpret_cast<\1*>(emulator::S.dyn);", code.replace("#pragma once", ""))
    body += "\n" + "\n".join(f"EMULATOR_EXPORT(k{i}, {name})" for i, name in enumerate(names)) + "\n"
    flags = ["-std=c++17", "-w", "-fPIC", "-shared", "-fno-strict-aliasing", "-ffp-contract=off", "-march=native"]
    library = compiled(body, [*flags, *SANITIZERS[sanitizer], "-include", str(HEADER)], HEADER.read_bytes())
    library.emulator_error.restype = ctypes.c_char_p
    return {name: Kernel(library, f"k{i}", name, flush) for i, name in enumerate(names)}


def compiled(code: str, flags: list[str], depends: bytes = b"") -> ctypes.CDLL:
    """A shared library of C++ source, from the cache or made."""
    command = [os.environ.get("CXX", "g++"), "-x", "c++", *flags]
    path = CACHE / f"{hashlib.sha256(repr((code, command)).encode() + depends).hexdigest()[:32]}.so"
    if not path.exists():
        CACHE.mkdir(mode=0o700, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        done = subprocess.run([*command, "-", "-o", str(part)], input=code, text=True, capture_output=True, check=False)
        if done.returncode:
            raise EmulatorError(done.stderr)
        part.replace(path)
    return ctypes.CDLL(str(path))
