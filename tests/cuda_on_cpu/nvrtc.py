"""What kernels take of a real GPU, by the backend's own compiler and without a GPU or CuPy. Needs the wheel nvidia-cuda-nvrtc."""

import functools
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tinyroberta


class Resources(NamedTuple):
    """What a kernel takes of a GPU, by ptxas: registers a thread, bytes of stack and of spills a thread."""

    registers: int
    stack: int
    spills: int


@functools.cache
def compiler() -> Any:
    """The backend's compiler.py on its own, since the backend needs CuPy to be imported."""
    path = Path(tinyroberta.__file__).parent / "backends" / "cupy" / "compiler.py"
    spec = importlib.util.spec_from_file_location("tinyroberta.backends.cupy.compiler", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def installed() -> bool:
    """Whether NVRTC is."""
    try:
        compiler().library()
    except tinyroberta.Error:
        return False
    return True


def compiled(code: str, architecture: str, names: Sequence[str]) -> dict[str, Resources]:
    """Every kernel of a source, by name expression, compiled to machine code; raises Error with the compiler's log."""
    made = compiler().compiled(code, architecture, names, ["--ptxas-options=-v"])
    found = _resources(made.log)
    return {name: found[symbol] for name, symbol in made.symbols.items()}


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
