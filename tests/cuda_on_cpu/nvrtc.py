"""Compile kernels for real GPUs with NVRTC through ctypes: no driver, no GPU, no CuPy. Needs the wheel nvidia-cuda-nvrtc."""

import ctypes
import functools
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Resources(NamedTuple):
    """What a kernel takes of a GPU, by ptxas: registers a thread, bytes of stack and of spills a thread."""

    registers: int
    stack: int
    spills: int


@functools.cache
def library() -> Any | None:
    """NVRTC, or None where its wheel is not installed."""
    spec = importlib.util.find_spec("nvidia")
    for root in () if spec is None else map(Path, spec.submodule_search_locations or ()):
        for folder in (root / "cu13" / "lib", root / "cuda_nvrtc" / "lib"):
            for path in sorted(folder.glob("libnvrtc.so.*")):
                for builtins in folder.glob("libnvrtc-builtins.so.*"):  # else NVRTC looks on the loader's path alone
                    ctypes.CDLL(str(builtins))
                nvrtc = ctypes.CDLL(str(path))
                nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
                return nvrtc
    return None


def compiled(code: str, architecture: str, names: Sequence[str]) -> dict[str, Resources]:
    """Every kernel of a source, by name expression, compiled to machine code; raises RuntimeError with the compiler's log."""
    nvrtc, program = library(), ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"kernels.cu", 0, None, None)
    try:
        for name in names:
            nvrtc.nvrtcAddNameExpression(program, name.encode())
        options = [f"-arch={architecture}", "-std=c++17", "--ptxas-options=-v"]
        status = nvrtc.nvrtcCompileProgram(
            program, len(options), (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
        )
        size = ctypes.c_size_t()
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        if status:
            raise RuntimeError(f"{nvrtc.nvrtcGetErrorString(status).decode()}\n{log.value.decode()}")
        lowered = {}
        for name in names:
            symbol = ctypes.c_char_p()
            nvrtc.nvrtcGetLoweredName(program, name.encode(), ctypes.byref(symbol))
            lowered[name] = (symbol.value or b"").decode()
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    found = _resources(log.value.decode())
    return {name: found[symbol] for name, symbol in lowered.items()}


def _resources(log: str) -> dict[str, Resources]:
    found = {}
    for entry in log.split("Compiling entry function")[1:]:
        symbol = re.search(r"'(\w+)'", entry)
        memory = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", entry)
        registers = re.search(r"Used (\d+) registers", entry)
        if not (symbol and memory and registers):
            raise RuntimeError(entry)
        found[symbol[1]] = Resources(int(registers[1]), int(memory[1]), int(memory[2]) + int(memory[3]))
    return found
