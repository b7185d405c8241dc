"""The machine code that comes in the wheel: all kernels, compiled ahead for five kinds of x86-64 CPUs, a shared library each.

tools/build_libraries.py makes the libraries, and a manifest that says from which sources, with the SHA-256 of each. What is not
exactly that is refused and never loaded: a damaged or foreign file, and libraries beside other sources than those that they were
made of. Which library runs is decided by what the CPU says of itself (its instruction cpuid, in a library of its own).
"""

import ctypes
import hashlib
import json
import os
import platform
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent / "libraries"
PREFIX = "tinyroberta"
X86 = platform.machine() in ("x86_64", "AMD64") and sys.maxsize > 2**32


class Target(NamedTuple):
    """A kind of CPU: the name that LLVM compiles and schedules for, and all that the CPU must have, as LLVM names it."""

    cpu: str
    features: tuple[str, ...]


_V2 = ("cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3")
_V3 = (*_V2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe")
_V4 = (*_V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
_VNNI = (*_V4, "avx512vnni")
_BF16 = (*_VNNI, "avx512bf16")

# Each has all that the one before it has; the last one that a CPU can run is the best for it.
TARGETS = {
    "avx2": Target("x86-64-v3", _V3),
    "avx512": Target("x86-64-v4", _V4),
    "vnni": Target("x86-64-v4", _VNNI),
    "bf16": Target("x86-64-v4", _BF16),
    "amx": Target("x86-64-v4", (*_BF16, "amx-bf16", "amx-int8", "amx-tile")),
}
IDENTIFY = "cpuid"  # the library of that name has functions cpuid(leaf, subleaf, four int32) and xgetbv(), an int64

# Where cpuid says what a CPU has (Intel's manual, volume 2A): leaf, subleaf, which of EAX, EBX, ECX, EDX, the bit.
_BITS = {
    "sse3": (1, 0, 2, 0), "ssse3": (1, 0, 2, 9), "fma": (1, 0, 2, 12), "cx16": (1, 0, 2, 13), "sse4.1": (1, 0, 2, 19),
    "sse4.2": (1, 0, 2, 20), "movbe": (1, 0, 2, 22), "popcnt": (1, 0, 2, 23), "avx": (1, 0, 2, 28), "f16c": (1, 0, 2, 29),
    "bmi": (7, 0, 1, 3), "avx2": (7, 0, 1, 5), "bmi2": (7, 0, 1, 8), "avx512f": (7, 0, 1, 16), "avx512dq": (7, 0, 1, 17),
    "avx512cd": (7, 0, 1, 28), "avx512bw": (7, 0, 1, 30), "avx512vl": (7, 0, 1, 31), "avx512vnni": (7, 0, 2, 11),
    "amx-bf16": (7, 0, 3, 22), "amx-tile": (7, 0, 3, 24), "amx-int8": (7, 0, 3, 25), "avx512bf16": (7, 1, 0, 5),
    "sahf": (0x80000001, 0, 2, 0), "lzcnt": (0x80000001, 0, 2, 5),
}  # fmt: skip
_OSXSAVE = (1, 0, 2, 27)
# Which registers the system must save for what (XCR0): those of AVX, of AVX-512, and tiles.
_SAVED = dict.fromkeys(("avx", "avx2", "fma", "f16c"), 0x6)
_SAVED |= dict.fromkeys([name for name in _BITS if name.startswith("avx512")], 0xE6)
_SAVED |= dict.fromkeys([name for name in _BITS if name.startswith("amx")], 0x60000)


class Library(NamedTuple):
    """A library in this process, and the kind of CPU that it is for."""

    name: str
    target: Target
    code: ctypes.CDLL
    made_by: str

    def address(self, function: Any) -> int | None:
        """Where a kernel's machine code is; None of a function that is none of this backend's."""
        name = symbol(function)
        return None if name is None else ctypes.cast(getattr(self.code, name), ctypes.c_void_p).value


class Unfit(Exception):
    """Why libraries that are there are not for this machine."""


class Refused(Exception):
    """Why libraries that are there are not what was made."""


@cache
def library() -> Library | None:
    """The best library for this CPU, loaded; None where there is none, and where what is there is refused, with a warning."""
    return _library()[0]


def reason_against() -> str | None:
    """Why no library runs, in words; None where one does."""
    return _library()[1]


@cache
def _library() -> tuple[Library | None, str | None]:
    try:
        manifest = json.loads((FOLDER / "manifest.json").read_bytes())
    except OSError:
        return None, "no compiled kernels came with this package"
    except ValueError:
        manifest = {}
    try:
        return _best(manifest), None
    except Unfit as unfit:
        return None, str(unfit)
    except Refused as refused:
        import logging

        told = f"the compiled kernels in {FOLDER} are not run: {refused}; install tinyroberta anew"
        logging.getLogger("tinyroberta").warning("tinyroberta: %s", told)
        return None, told


def _best(manifest: dict[str, Any]) -> Library:
    if (sys.platform, X86) != ("linux", True):
        raise Unfit(f"the compiled kernels are for Linux on x86-64, this is {platform.system()} on {platform.machine()}")
    try:
        made_here = isinstance(manifest, dict) and manifest.get("sources") == sources()
    except OSError as error:
        raise Refused(f"the sources that they were made from cannot be read ({error})") from error
    if not made_here:
        raise Refused("they were made from other sources than the ones beside them")
    has = features(_opened(IDENTIFY, manifest))
    name = next((name for name in reversed(TARGETS) if has.issuperset(TARGETS[name].features)), None)
    if name is None:
        missing = sorted(set(next(iter(TARGETS.values())).features) - has)
        raise Unfit(f"the compiled kernels are for CPUs with AVX2, and this one has no {', '.join(missing)}")
    return Library(name, TARGETS[name], _opened(name, manifest), str(manifest.get("made_by")))


def _opened(name: str, manifest: dict[str, Any]) -> ctypes.CDLL:
    path = FOLDER / file_name(name)
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != manifest.get("sha256", {}).get(name):
            raise Refused(f"{path.name} is damaged, or another file: its SHA-256 is not the manifest's")
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise Refused(f"{path.name} cannot be loaded ({error})") from error


def file_name(name: str) -> str:
    """A library's file."""
    return f"{PREFIX}-{name}.so"


def symbol(function: Any) -> str | None:
    """A kernel's name in a library; None of a function that is none of this backend's."""
    outside, package, module = function.__module__.rpartition(f"{__package__}.")
    return f"{PREFIX}_{module.replace('.', '_')}_{function.__name__.strip('_')}" if package and not outside else None


def asked() -> set[str] | None:
    """The CPU's features that Numba's variables name, which Numba takes for its own; None where they name none."""
    given = os.environ.get("NUMBA_CPU_FEATURES", "" if os.environ.get("NUMBA_CPU_NAME") == "generic" else None)
    return None if given is None else {flag[1:] for flag in given.split(",") if flag.startswith("+")}


def features(code: ctypes.CDLL) -> set[str]:
    """What the CPU has and the system lets it use, or what is asked for."""
    if (given := asked()) is not None:
        return given
    code.xgetbv.restype = ctypes.c_int64

    @cache
    def leaf(number: int, under: int) -> list[int]:
        if number == 7 and leaf(0, 0)[0] < 7:
            return [0] * 4  # asked for a leaf beyond its last one, a CPU gives the last one
        words = (ctypes.c_uint32 * 4)()
        code.cpuid(ctypes.c_int64(number), ctypes.c_int64(under), words)
        return list(words)

    def there(number: int, under: int, register: int, bit: int) -> bool:
        return bool(leaf(number, under)[register] >> bit & 1)

    saved = code.xgetbv() if there(*_OSXSAVE) else 0
    return {name for name, place in _BITS.items() if there(*place) and saved & (needs := _SAVED.get(name, 0)) == needs}


@cache
def sources() -> str:
    """A hash of the sources that decide on the code."""
    files = [*sorted(Path(__file__).parent.rglob("*.py")), Path(__file__).parents[1] / "bitwise.py"]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:16]


def describe() -> list[str]:
    """Which library runs and why, a line each."""
    chosen = library()
    if chosen is None:
        return [f"machine code: compiled on this machine by Numba, since {reason_against()}"]
    lines = [f"machine code: the library {chosen.name} of {', '.join(TARGETS)} that came with this package ({chosen.made_by})"]
    better = list(TARGETS)[list(TARGETS).index(chosen.name) + 1 :]
    has = set(chosen.target.features)
    return lines + [f"  not {name}: the CPU has no {', '.join(sorted(set(TARGETS[name].features) - has))}" for name in better]
