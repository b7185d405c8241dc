"""Compile emulator.c, and say in which environment a process has its tiles."""

import functools
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("emulator.c")
CACHE = Path(tempfile.gettempdir()) / f"amx_on_cpu-{os.getuid() if hasattr(os, 'getuid') else 0}"
TILES = ("amx-tile", "amx-int8", "amx-bf16")


class EmulatorError(RuntimeError):
    """What the compiler said."""


def library() -> Path:
    """The emulator, compiled."""
    return compiled(SOURCE.read_text(), "c", "-O3", "-mavx2", "-mfma")


def compiled(code: str, language: str, *flags: str) -> Path:
    """A shared library of C or of assembly (`assembler`), from the cache or made."""
    command = [os.environ.get("CC", "gcc"), "-x", language, *flags, "-Wall", "-fPIC", "-shared"]
    path = CACHE / f"{hashlib.sha256(repr((code, command)).encode()).hexdigest()[:32]}.so"
    if not path.exists():
        CACHE.mkdir(mode=0o700, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        done = subprocess.run([*command, "-", "-o", str(part), "-ldl"], input=code, text=True, capture_output=True, check=False)
        if done.returncode:
            raise EmulatorError(done.stderr)
        part.replace(path)
    return path


def host_features() -> dict[str, bool]:
    """What the CPU of this machine has, by LLVM's names."""
    from llvmlite import binding

    return dict(binding.get_host_cpu_features())


@functools.cache
def reason_against_compiling() -> str | None:
    """Why no AMX instruction can be written here, in words; None where they can."""
    if not (sys.platform == "linux" and platform.machine() == "x86_64"):
        return f"AMX is for x86-64, and emulated on Linux; this is {platform.system()} on {platform.machine()}"
    try:
        compiled("tdpbf16ps %tmm0, %tmm1, %tmm2", "assembler")
    except (OSError, EmulatorError) as error:
        return f"no C compiler that knows AMX: {error}"
    return None


@functools.cache
def reason_against() -> str | None:
    """Why nothing can be emulated here, in words; None where it can."""
    features = {name for name, there in host_features().items() if there}
    if "amx-tile" in features:
        return "the CPU has AMX"
    if not {"avx2", "fma"} <= features:
        return "the emulator needs AVX2 and FMA"
    return reason_against_compiling()


def flags(changes: dict[str, bool]) -> str:
    """NUMBA_CPU_FEATURES: what this machine has, changed."""
    names = host_features() | changes
    return ",".join(("+" if there else "-") + name for name, there in sorted(names.items()))


def environment() -> dict[str, str]:
    """What a process needs to have tiles, its compiled code included."""
    preload = " ".join(filter(None, (str(library()), os.environ.get("LD_PRELOAD"))))
    # Not this CPU's name: LLVM renames registers after it has placed them for some CPUs (znver4), tiles in use among them.
    compiler = {"NUMBA_CPU_NAME": "sapphirerapids", "NUMBA_CPU_FEATURES": flags(dict.fromkeys(TILES, True))}
    return {"LD_PRELOAD": preload} | compiler
