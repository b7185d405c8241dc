"""What the machine code of this process may use, as LLVM names it: what its library was made for, or what LLVM compiles for."""

from ..shipped import X86, asked, library

__all__ = ["BF16_DOTS", "FEATURES", "FUSED", "X86"]


def _of_llvm() -> set[str]:
    """This machine's, or what is asked for."""
    from llvmlite import binding

    given = asked()
    return {name for name, there in binding.get_host_cpu_features().items() if there} if given is None else given


_shipped = library()
FEATURES = _of_llvm() if _shipped is None else set(_shipped.target.features)
BF16_DOTS = {"avx512f", "avx512bf16"} <= FEATURES  # with them come instructions that round to bf16
FUSED = "fma" in FEATURES or "neon" in FEATURES  # else llvm.fma is a call of the C library's
