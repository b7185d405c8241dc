"""cublaslt.cpp as the backend's wrapper opens cuBLASLt: a call made while a stream is captured goes into its graph."""

import ctypes
from pathlib import Path
from typing import Any

from . import emulator, stand_in

LAYOUTS = (2, 4, 7, 9)  # where cublasLtMatmul has them after its description


class Library:
    """Every function of the shared library, but that products obey capture."""

    def __init__(self) -> None:
        source = Path(__file__).with_suffix(".cpp").read_text()
        self.library = emulator.compiled(source, ["-std=c++17", "-O2", "-fPIC", "-shared", "-march=native"])
        self.library.snapshot.restype = self.library.snapshot_layout.restype = ctypes.c_void_p

    def __getattr__(self, name: str) -> Any:
        return getattr(self.library, name)

    def cublasLtMatmul(self, handle: Any, description: Any, *args: Any) -> int:
        stand_in.launched.append("cublasLtMatmul")
        if stand_in.capturing() is None:
            return int(self.library.cublasLtMatmul(handle, description, *args))
        kept = ctypes.c_void_p(self.library.snapshot(description))
        given = [ctypes.c_void_p(self.library.snapshot_layout(x)) if i in LAYOUTS else x for i, x in enumerate(args)]

        def run() -> None:
            assert not self.library.cublasLtMatmul(handle, kept, *given)

        stand_in.enqueue(run, [arg.value for arg in args if isinstance(arg, ctypes.c_void_p)])
        return 0
