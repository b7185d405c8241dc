"""What the machine code of this process may use, as LLVM names it: what its library was made for, or what LLVM compiles for."""

import os

from ..shipped import X86, library

__all__ = ["BF16_DOTS", "FEATURES", "FUSED", "X86"]


def _of_llvm() -> set[str]:
    """This machine's, or what Numba's variables say."""
    from llvmlite import binding

    asked = os.environ.get("NUMBA_CPU_FEATURES", "" if os.environ.get("NUMBA_CPU_NAME") == "generic" else None)
    flags = (binding.get_host_cpu_features().flatten() if asked is None else asked).split(",")
    return {flag[1:] for flag in flags if flag.startswith("+")}


_shipped = library()
FEATURES = _of_llvm() if _shipped is None else set(_shipped.target.features)
BF16_DOTS = {"avx512f", "avx512bf16"} <= FEATURES  # with them come instructions that round to bf16
FUSED = "fma" in FEATURES or "neon" in FEATURES  # else llvm.fma is a call of the C library's
