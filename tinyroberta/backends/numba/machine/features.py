"""What the CPU has, as LLVM names it."""

import os

from llvmlite import binding

# What Numba compiles for: this machine, or what its variables say.
_asked = os.environ.get("NUMBA_CPU_FEATURES", "" if os.environ.get("NUMBA_CPU_NAME") == "generic" else None)
_flags = (binding.get_host_cpu_features().flatten() if _asked is None else _asked).split(",")
FEATURES = {flag[1:] for flag in _flags if flag.startswith("+")}
X86 = binding.get_process_triple().split("-")[0] in ("x86_64", "amd64")
BF16_DOTS = {"avx512f", "avx512bf16"} <= FEATURES  # with them come instructions that round to bf16
FUSED = "fma" in FEATURES or "neon" in FEATURES  # else llvm.fma is a call of the C library's
