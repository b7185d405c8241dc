"""Kernels, and where their machine code comes from: the wheel's library (shipped.py), or Numba, where no library fits.

Numba compiles a kernel when a machine first needs it; it is kept as an object file, and from then on loaded without Numba.
Importing Numba and reading its own cache take longer than loading a base model. So `njit`, `intrinsic` and the rest are promises
here, which the first compilation of a process turns into Numba's; llvmlite alone loads what is kept. A file is named by a hash of
this backend's sources, Numba, LLVM and the CPU, holds a checksum, and is written whole or not at all: an upgrade, another CPU or
a second process can never make it stale. Files are looked for where the package lies and in the user's cache, also where nothing
can be written (an image made by another user); NUMBA_CACHE_DIR names another folder for both.
"""

import ctypes
import hashlib
import importlib
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

from ...errors import Error
from ...progress import progress
from ...weights.files import write_atomically
from . import shipped
from .arguments import Fields

# Symbols that every process has; code that names others (Numba's runtime) is loaded after Numba itself.
C_LIBRARY = {"malloc", "free", "memset", "memcpy", "memmove", "sqrtf", "log1pf", "read", "write", "_read", "_write"}
C_LIBRARY |= {"sched_getcpu", "sched_getaffinity", "sched_setaffinity"}
UNUSED = "NRT_MemInfo_call_dtor"
ENTRY = "tinyroberta_kernel"
OTHERWISE = ("NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS")  # the variables of Numba's that change no code


class Promise:
    """What Numba will make of a function, or a thing of Numba's, once something is compiled."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.made = cache(make)


def njit(function: Any = None, **options: Any) -> Any:
    """numba.njit, promised."""
    if function is None:
        return lambda function: njit(function, **options)
    return Promise(lambda: _numba("njit")(**options)(_with_kept_promises(function)))


def _with_kept_promises(function: Any) -> Any:
    """A function, whose closure, and those of the functions in it, hold what their promises made."""
    for cell in function.__closure__ or ():
        if isinstance(cell.cell_contents, Promise):
            cell.cell_contents = cell.cell_contents.made()
        elif isinstance(cell.cell_contents, FunctionType):
            _with_kept_promises(cell.cell_contents)
    return function


def intrinsic(function: Any) -> Any:
    """numba.extending.intrinsic, promised."""
    return Promise(lambda: _numba("extending").intrinsic(_with_kept_promises(function)))


def _numba(name: str) -> Any:
    return getattr(importlib.import_module("numba"), name)


carray: Any = Promise(lambda: _numba("carray"))
types: Any = Promise(lambda: _numba("types"))
cgutils: Any = Promise(lambda: importlib.import_module("numba.core.cgutils"))
ir: Any = Promise(lambda: importlib.import_module("llvmlite.ir"))


def llvm(make: Callable[[Any], Any]) -> Any:
    """What is made of llvmlite.ir, promised."""
    return Promise(lambda: make(importlib.import_module("llvmlite.ir")))


def keep_promises() -> None:
    """Import Numba, and put what it makes where the modules of this backend hold its promises."""
    importlib.import_module("numba.extending")
    for name, module in list(sys.modules.items()):
        if name.startswith(f"{__package__}."):
            held = {key: value.made() for key, value in vars(module).items() if isinstance(value, Promise)}
            vars(module).update(held)


class Kernel:
    """A function of int64 numbers, void, as machine code: `address` is where it stands, a call runs it without Python's lock.

    A loop's kernel is kernel(given, block, worker): of `given`, which its fields declare, the address is passed.
    """

    every: "list[Kernel]" = []  # noqa: RUF012

    def __init__(self, function: Any, count: int = 3, fields: Fields | None = None) -> None:
        self.function, self.count, self.fields, self.name = function, count, fields, function.__name__.strip("_")
        self.missing: Callable[[], str | None] = lambda: None  # what the machine lacks for it
        self._loaded: Loaded | None = None
        Kernel.every.append(self)

    @property
    def address(self) -> int:
        """Where the machine code is; loaded, or compiled, when it is first asked for."""
        return (self._loaded or self._load()).address

    def __call__(self, *numbers: int) -> None:
        (self._loaded or self._load()).function(*numbers)

    def _load(self) -> "Loaded":
        with _compiling:
            if self._loaded is None:
                library = shipped.library()
                address = None if library is None else library.address(self.function)
                if address is None:
                    self._loaded = _load(_kept(self) or _made(self), self.count)
                else:
                    self._loaded = Loaded(library, address, _callable(address, self.count))
        return self._loaded

    @property
    def kept(self) -> bool:
        """Whether its machine code is in a file."""
        library = shipped.library()
        return (library is not None and library.address(self.function) is not None) or _kept(self) is not None


class Loaded(NamedTuple):
    """Machine code in this process: what holds it, where it stands, and the function for Python."""

    engine: Any
    address: int
    function: Any


_compiling = threading.RLock()


def _load(content: bytes, count: int) -> Loaded:
    """Object code, into this process."""
    if content[0]:
        keep_promises()
        importlib.import_module("numba.core.registry").cpu_target.target_context.refresh()
    binding = _binding()
    machine = binding.Target.from_default_triple().create_target_machine()
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    engine.add_object_file(binding.ObjectFileRef.from_data(content[1:]))
    engine.finalize_object()
    address = engine.get_function_address(ENTRY)
    return Loaded(engine, address, _callable(address, count))


def _callable(address: int, count: int) -> Any:
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * count)(address)


@cache
def _binding() -> Any:
    """llvmlite.binding, ready for this machine."""
    binding = importlib.import_module("llvmlite.binding")
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding


def _made(kernel: Kernel) -> bytes:
    """Object code, compiled and kept if it can be, or kept by another process that was compiling."""
    global _done
    with _alone(kernel) as kept:
        if kept is not None:
            return kept
        _announce()
        with progress(_most, "compiling", unit="kernels") as told:
            if _most:
                told(min(_done, _most - 1))
            content = _compile(kernel)
        _done += 1
        _keep(kernel, content)
    return content


@contextmanager
def _alone(kernel: Kernel) -> Iterator[bytes | None]:
    """Until the end no other process compiles for the same folder; None, or the object code if another has kept it by now.

    The lock is the system's, on the folder itself, so that it ends with the process. Where there is none (Windows, some network
    file systems), and with one who holds it for longer than PATIENCE, each process compiles for itself.
    """
    global _locked
    try:
        import fcntl

        handle = next((_opened(folder) for folder in _folders() if _writable(folder)), None)
    except (ImportError, OSError):
        handle = None
    if handle is None:
        yield None
        return
    try:
        _locked, start, told = handle, time.monotonic(), False
        while (content := _kept(kernel)) is None and time.monotonic() - start < PATIENCE:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told and time.monotonic() - start > 1:
                    told = True
                    _warn("tinyroberta: another process is compiling kernels for this CPU; waiting for them")
                time.sleep(0.02)
            except OSError:
                break
            else:
                content = _kept(kernel)
                break
        yield content
    finally:
        _locked = None
        os.close(handle)


def _opened(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY)


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _compile(kernel: Kernel) -> bytes:
    """Object code: a byte that says whether it needs Numba's runtime, then an object file."""
    library = finished(kernel, ENTRY)
    return bytes([not foreign(library) <= C_LIBRARY]) + bytes(library._get_compiled_object())


def finished(kernel: Kernel, entry_name: str) -> Any:
    """Numba's library of a kernel, compiled for the CPU that Numba compiles for; a function of this name is its entry."""
    keep_promises()
    lock = importlib.import_module("numba.core.compiler_lock").global_compiler_lock
    dispatcher, kinds = dispatcher_of(kernel)
    result = dispatcher.overloads[kinds]
    context = result.target_context
    library = context.codegen().create_library(kernel.name)
    library.enable_object_caching()
    module = library.create_ir_module(kernel.name)
    entry = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * kernel.count), entry_name)
    builder = ir.IRBuilder(entry.append_basic_block())
    native = ir.Function(module, context.call_conv.get_function_type(types.void, kinds), result.fndesc.llvm_func_name)
    given = list(entry.args)
    if kernel.fields is not None:
        given[0] = builder.inttoptr(given[0], context.get_argument_type(kinds[0]))
    context.call_conv.call_function(builder, native, types.void, kinds, given)
    builder.ret_void()
    if not foreign(result.library) - {*C_LIBRARY, UNUSED}:  # without arrays of Numba's own there are none to take down
        unused = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()]), UNUSED)
        ir.IRBuilder(unused.append_basic_block()).ret_void()
    library.add_ir_module(module)
    library.add_linking_library(result.library)
    with lock:
        library.finalize()
    return library


def _keep(kernel: Kernel, content: bytes) -> None:
    """Write object code into the first folder that takes it; says once in a process that none does."""
    global _lamented
    for folder in _folders():
        path = folder / _file(kernel)
        try:
            write_atomically(path, lambda part: part.write_bytes(hashlib.sha256(content).digest() + content))
        except Error:
            continue
        for other in folder.glob(_file(kernel, "*")):
            if other != path and folder.name == "__pycache__":  # of sources that are no more
                other.unlink(missing_ok=True)
        return
    if not _lamented:
        _lamented = True
        _warn(f"tinyroberta: {_unkept()}")


def _unkept() -> str:
    return f"compiled code cannot be kept: {' and '.join(map(str, _folders()))} cannot be written; set NUMBA_CACHE_DIR"


def dispatcher_of(kernel: Kernel) -> tuple[Any, tuple[Any, ...]]:
    """A kernel's function in Numba's hands, and the types of what it is given."""
    keep_promises()
    kinds = (types.int64,) * kernel.count
    if kernel.fields is not None:
        kinds = (_numba("from_dtype")(kernel.fields.dtype), *kinds[1:])
    options = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    dispatcher = _numba("njit")(**options)(kernel.function)
    dispatcher.compile(types.void(*kinds))
    return dispatcher, kinds


def foreign(library: Any) -> set[str]:
    """The symbols that compiled code looks for elsewhere."""
    functions = library._final_module.functions
    return {function.name for function in functions if function.is_declaration and not function.name.startswith("llvm.")}


def _kept(kernel: Kernel) -> bytes | None:
    for folder in _folders():
        try:
            content = (folder / _file(kernel)).read_bytes()
        except OSError:
            continue
        if hashlib.sha256(content[32:]).digest() == content[:32]:
            return content[32:]
    return None


def _folders() -> list[Path]:
    """Where object files are looked for, and written in the first that takes them."""
    if os.environ.get("NUMBA_CACHE_DIR"):
        return [Path(os.environ["NUMBA_CACHE_DIR"]) / "tinyroberta"]
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.home() raises where there is none
    user = {"win32": os.environ.get("LOCALAPPDATA"), "darwin": home / "Library" / "Caches"}
    own = Path(user.get(sys.platform) or os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return [Path(__file__).parent / "__pycache__", *([own / "tinyroberta"] if own.is_absolute() else [])]


def _file(kernel: Kernel, sources: str = "") -> str:
    return f"{kernel.function.__module__.rpartition('.')[2]}.{kernel.name}.{sources or shipped.sources()}.{_machine()}.o"


@cache
def _machine() -> str:
    """A hash of what else decides on the code: LLVM, Numba and its variables, the CPU."""
    variables = sorted(item for item in os.environ.items() if item[0].startswith("NUMBA_") and item[0] not in OTHERWISE)
    binding = _binding()
    cpu = (binding.get_process_triple(), binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten())
    told = (importlib.import_module("llvmlite").__version__, (_numba_folder() / "_version.py").read_bytes(), cpu, variables)
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def lacking() -> list[Kernel]:
    """The kernels that this machine can run and has no code of."""
    return [kernel for kernel in Kernel.every if kernel.missing() is None and not kernel.kept]


def warmup(tell: Callable[[str], object] = lambda _: None) -> None:
    """Compile every kernel that this machine can run and has no code of, telling of each, or that there is none.

    Raises Error where none can be kept.
    """
    global _announced, _lamented
    _announced, _lamented, kernels = True, True, lacking()
    if not kernels:
        all_of = sum(kernel.missing() is None for kernel in Kernel.every)
        library = shipped.library()
        where = "are kept already" if library is None else f"came with the package, in its library {library.name}"
        tell(f"nothing to compile: all {all_of} kernels for this CPU {where}")
    for number, kernel in enumerate(kernels, 1):
        tell(f"compiling {number} of {len(kernels)}: {kernel.name.replace('_', ' ')}")
        kernel.address  # noqa: B018
        if not kernel.kept:
            raise Error(_unkept())


PATIENCE = 120.0  # seconds; a kernel takes about one
_announced = _lamented = False
_done = _most = 0  # kernels that this process has compiled, and how many it may have to; 0: no bar
_locked: int | None = None


def _announce() -> None:
    """Say once in a process what takes so long; `logging` shows a warning on standard error unless it is told otherwise."""
    global _announced, _most
    if not _announced:
        _announced, _most = True, len(lacking())
        once = f"compiling up to {_most} kernels for this CPU, once, about a second each"
        _warn(f"tinyroberta: {once}; `tinyroberta warmup` does it ahead")


def _warn(told: str) -> None:
    import logging

    logging.getLogger("tinyroberta").warning("%s", told)


def _forget() -> None:
    """In a forked child: the locks may be held by a thread that is not there, and by the parent."""
    global _compiling, _locked
    _compiling = threading.RLock()
    if _locked is not None:
        os.close(_locked)
        _locked = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _numba_folder() -> Path:
    """Numba's, which is not imported; raises ModuleNotFoundError where it is not installed."""
    found = importlib.util.find_spec("numba")
    if found is None or found.origin is None:
        why = "Numba is not installed" if shipped.library() else f"{shipped.reason_against()}, and Numba is not installed"
        raise ModuleNotFoundError(why, name="numba")
    return Path(found.origin).parent


if shipped.library() is None:
    _numba_folder()  # without it there is no machine code
