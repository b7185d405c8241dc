"""Which unit multiplies: tiles, dot products, float32 fused multiply-adds, or NumPy's BLAS.

TINYROBERTA_CPU=amx|vnni|fma|blas forces a path. amx is tiles for every precision. vnni is dot products for the precisions whose
row in products/levels.py says that they are faster than multiply-adds.
"""

import os
import platform

from ...errors import Error
from . import shipped
from .compiled import Kernel
from .machine import amx
from .machine.features import BF16_DOTS, FEATURES, FUSED
from .threads import allowed_threads

PATHS = ("amx", "vnni", "fma", "blas")
UNITS = {
    "amx": "tiles of 8-bit integers and bf16 (AMX)",
    "vnni": f"float32 multiply-adds for highest, dot products of bytes{' (high) and bf16 (medium)' if BF16_DOTS else ' else'}",
    "fma": f"float32 multiply-adds, {16 if 'avx512f' in FEATURES else 8} at a time",
    "blas": "NumPy's BLAS",
}


def reason_against(path: str) -> str | None:
    """Why this machine cannot take a path, in words; None where it can."""
    if path == "amx":
        return amx.missing()
    if path == "vnni" and not {"avx512f", "avx512bw", "avx512vnni"} <= FEATURES:
        return "the CPU has no AVX-512 with dot products of bytes (VNNI)"
    if path == "fma" and not (FUSED and "avx2" in FEATURES):
        return f"no AVX2 with fused multiply-add on this {platform.machine()}"
    return None


def missing_dots(bf16: bool) -> str | None:
    """Why this machine cannot run dot products of bf16, or of bytes; None where it can."""
    return reason_against("vnni") or ("the CPU has no dot products of bf16" if bf16 and not BF16_DOTS else None)


def chosen_path() -> str:
    """The path that TINYROBERTA_CPU names, else the first that the machine can take; raises Error where the named one cannot."""
    asked = os.environ.get("TINYROBERTA_CPU", "")
    if not asked:
        return next(path for path in PATHS if reason_against(path) is None)
    if asked not in PATHS:
        raise Error(f"TINYROBERTA_CPU is {asked!r}; this version has {', '.join(PATHS)}")
    against = reason_against(asked)
    if against is not None:
        raise Error(f"TINYROBERTA_CPU={asked} cannot run here: {against}")
    return asked


def describe() -> list[str]:
    """What runs on this machine and why, a line each."""
    path = chosen_path()
    lines = [f"matrix products: {path}, {UNITS[path]}"]
    if os.environ.get("TINYROBERTA_CPU"):
        lines.append(f"  as TINYROBERTA_CPU={path} asks")
    else:
        lines += [f"  not {other}: {reason_against(other)}" for other in PATHS[: PATHS.index(path)]]
    lines.append(f"threads: {allowed_threads()} of {os.cpu_count()} CPUs")
    lines += shipped.describe()
    if shipped.library() is None:
        kernels = [kernel for kernel in Kernel.every if kernel.missing() is None]
        lines.append(
            f"compiled: {sum(kernel.kept for kernel in kernels)} of {len(kernels)} kernels; `tinyroberta warmup` does all"
        )
    return lines
