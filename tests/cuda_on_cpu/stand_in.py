"""A stand-in for the part of CuPy that the backend uses: arrays are NumPy arrays that refuse to be used as such, and launches
run in the emulator. Stricter than CuPy wherever a GPU would go wrong in silence.
"""

import collections
import contextlib
import ctypes
import hashlib
import json
import sys
import time
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from . import emulator

GUARD = 256  # bytes; 0 for AddressSanitizer, which has its own around every allocation
DEFAULT_SHARED = 48 * 1024
DTYPES = {"f4": np.float32, "f8": np.float64, "b2": ml_dtypes.bfloat16, "h2": np.float16, "i1": np.int8, "i4": np.int32,
          "i8": np.int64}  # fmt: skip
FUNCTIONS = {np.concatenate, np.zeros_like, np.empty_like, np.einsum, np.repeat, np.broadcast_to, np.shape}

live: weakref.WeakSet["Block"] = weakref.WeakSet()
streams: list["Stream"] = []
launched: list[str] = []  # names, in order, since the test cleared it
order = "forward"  # the threads' order in every launch
sanitizer = ""  # of emulator.SANITIZERS


class Block:
    """Memory between guard bands; it and they are filled with a pattern that is NaN in every type."""

    def __init__(self, size: int, pool: "MemoryPool | None") -> None:
        raw = np.full(size + 2 * GUARD + GUARD, 0xFF, np.uint8)
        start = -raw.ctypes.data % 256 if GUARD else 0  # cudaMalloc aligns to 256 bytes
        self.all = raw[start : start + size + 2 * GUARD]
        self.memory = self.all[GUARD : GUARD + size]
        self.pool = None if pool is None else weakref.ref(pool)
        live.add(self)

    def holds(self, address: int) -> bool:
        return 0 <= address - self.memory.ctypes.data < max(1, self.memory.size)

    def intact(self) -> bool:
        bands = self.all[:GUARD], self.all[GUARD + self.memory.size :]
        whole = all((band == 0xFF).all() for band in bands)
        for band in bands:
            band[:] = 0xFF  # so that one fault is told once
        return whole


class MemoryPool:
    """It holds on to what was given back to it, for the stream that gave it back alone."""

    def __init__(self) -> None:
        self.used: collections.Counter[int] = collections.Counter()  # bytes, by stream
        self.most: dict[int, int] = {}

    def malloc(self, size: int) -> Block:
        stream, block = streams[-1].ptr if streams else 0, Block(size, self)
        self.used[stream] += size
        self.most[stream] = max(self.used[stream], self.most.get(stream, 0))
        weakref.finalize(block, self.used.subtract, {stream: size})  # which does not hold the pool
        return block

    def total_bytes(self) -> int:
        return sum(self.most.values())


allocators: list[Callable[[int], Block]] = [lambda size: Block(size, None)]


@contextlib.contextmanager
def using_allocator(allocator: Callable[[int], Block]) -> Iterator[None]:
    allocators.append(allocator)
    try:
        yield
    finally:
        allocators.pop()


class ndarray(NDArrayOperatorsMixin):
    """An array of the device. Anything that would copy it to the host unasked is a TypeError, as in CuPy."""

    def __init__(self, numbers: np.ndarray, block: Block) -> None:
        self.numbers, self.block = numbers, block

    shape = property(lambda self: self.numbers.shape)
    dtype = property(lambda self: self.numbers.dtype)
    size = property(lambda self: self.numbers.size)
    ndim = property(lambda self: self.numbers.ndim)
    nbytes = property(lambda self: self.numbers.nbytes)
    itemsize = property(lambda self: self.numbers.itemsize)
    strides = property(lambda self: self.numbers.strides)
    flags = property(lambda self: self.numbers.flags)
    data = property(lambda self: types.SimpleNamespace(ptr=self.numbers.ctypes.data))
    __cuda_array_interface__ = property(lambda self: {"shape": self.shape, "version": 3})

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct it explicitly.")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        refuse_while_capturing(f"numpy.{ufunc.__name__}")
        out = kwargs.pop("out", None)
        result = getattr(ufunc, method)(*map(unwrap, inputs), **kwargs)
        if out is None:
            return wrap(result)
        out[0].numbers[...] = result
        return out[0]

    def __array_function__(self, function: Any, _: Any, args: Any, kwargs: Any) -> Any:
        if function not in FUNCTIONS:
            raise TypeError(f"the stand-in has no {function.__name__}")
        refuse_while_capturing(f"numpy.{function.__name__}")
        return wrap(function(*map(unwrap, args), **{name: unwrap(value) for name, value in kwargs.items()}))

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> "ndarray":
        part = self.numbers[plain_index(index)]
        if np.shares_memory(part, self.numbers) and isinstance(part, np.ndarray):
            return ndarray(part, self.block)
        refuse_while_capturing("indexing by arrays")
        return wrap(np.asarray(part))

    def __setitem__(self, index: Any, value: Any) -> None:
        refuse_while_capturing("an assignment")
        self.numbers[plain_index(index)] = unwrap(value)

    def reshape(self, *shape: Any) -> "ndarray":
        changed = self.numbers.reshape(*shape)
        return ndarray(changed, self.block) if np.shares_memory(changed, self.numbers) else wrap(changed)

    def transpose(self, *axes: Any) -> "ndarray":
        return ndarray(self.numbers.transpose(*axes), self.block)

    def view(self, dtype: Any) -> "ndarray":
        return ndarray(self.numbers.view(dtype), self.block)

    def astype(self, dtype: Any, copy: bool = True) -> "ndarray":
        if not copy and self.dtype == dtype:
            return self
        refuse_while_capturing("astype")
        return wrap(self.numbers.astype(dtype))

    def copy(self) -> "ndarray":
        refuse_while_capturing("a copy")
        return wrap(self.numbers.copy())

    def get(self) -> np.ndarray:
        refuse_while_capturing("a copy to the host")
        return self.numbers.copy()

    def item(self) -> Any:
        return self.get().item()

    def set(self, numbers: np.ndarray) -> None:
        refuse_while_capturing("a copy from the host")
        if numbers.shape != self.shape or numbers.dtype != self.dtype:
            raise ValueError(f"set: {numbers.dtype} of {numbers.shape} into {self.dtype} of {self.shape}")
        self.numbers[...] = numbers

    def fill(self, value: Any) -> None:
        refuse_while_capturing("fill")
        self.numbers.fill(value)


def unwrap(x: Any) -> Any:
    if isinstance(x, ndarray):
        return x.numbers
    if isinstance(x, np.ndarray) and x.ndim:
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return type(x)(map(unwrap, x)) if isinstance(x, list | tuple) else x


def plain_index(index: Any) -> Any:
    """CuPy takes NumPy arrays as indices, and its own."""
    parts = index if isinstance(index, tuple) else (index,)
    return tuple(part.numbers if isinstance(part, ndarray) else part for part in parts)


def wrap(x: Any) -> Any:
    if isinstance(x, list):
        return [wrap(part) for part in x]
    if not isinstance(x, np.ndarray | np.generic):
        return x
    array = empty(np.shape(x), x.dtype)
    array.numbers[...] = x
    return array


def empty(shape: Any, dtype: Any = np.float64) -> ndarray:
    shape = (shape,) if np.isscalar(shape) else tuple(shape)
    dtype = np.dtype(dtype)
    block = allocators[-1](int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
    return ndarray(block.memory.view(dtype).reshape(shape), block)


def zeros(shape: Any, dtype: Any = np.float64) -> ndarray:
    array = empty(shape, dtype)
    array.fill(0)
    return array


def asarray(x: Any, dtype: Any = None) -> ndarray:
    if isinstance(x, ndarray):
        return x if dtype is None else x.astype(dtype, copy=False)
    refuse_while_capturing("a copy from the host")
    return wrap(np.asarray(x, dtype))


def ascontiguousarray(x: ndarray) -> ndarray:
    return x if x.flags.c_contiguous else x.copy()


def capturing() -> "Stream | None":
    return streams[-1] if streams and streams[-1].nodes is not None else None


def refuse_while_capturing(what: str) -> None:
    if capturing():
        raise RuntimeError(f"the current stream is capturing, and {what} would not be in the graph")


def enqueue(run: Callable[[], None], addresses: Sequence[int | None]) -> None:
    """Run now, or put into the graph under way, which keeps addresses and not arrays."""
    stream = capturing()
    if stream is None:
        run()
        return
    assert stream.nodes is not None
    blocks = [block for block in live if any(address and block.holds(address) for address in addresses)]
    stream.nodes.append((run, [(weakref.ref(block), block.pool, block.all) for block in blocks]))


class Event:
    def __init__(self, **_: Any) -> None:
        self.time = 0.0

    def record(self, _: Any = None) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        refuse_while_capturing("a wait")


class Stream:
    null: "Stream"

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:  # noqa: ARG002
        self.ptr = 0 if null else id(self)
        self.nodes: list[Any] | None = None

    def __enter__(self) -> "Stream":
        streams.append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        streams.pop()

    def synchronize(self) -> None:
        refuse_while_capturing("a wait")

    def record(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record()
        return event

    def wait_event(self, event: Event) -> None:
        pass

    def begin_capture(self, mode: Any = None) -> None:  # noqa: ARG002
        if self.ptr == 0:
            raise RuntimeError("the default stream cannot be captured")
        self.nodes = []

    def end_capture(self) -> "Graph":
        nodes, self.nodes = self.nodes, None
        return Graph(nodes or [])

    def is_capturing(self) -> bool:
        return self.nodes is not None


class Graph:
    def __init__(self, nodes: list[Any]) -> None:
        self.nodes = nodes

    def launch(self, stream: Stream | None = None) -> None:  # noqa: ARG002
        for run, memory in self.nodes:
            for block, pool, _ in memory:
                if block() is None and (pool is None or pool() is None):
                    raise MemoryError("the graph uses memory that has gone back to a pool that others take from")
            run()

    def upload(self, stream: Stream | None = None) -> None:
        pass


class Function:
    def __init__(self, kernel: emulator.Kernel) -> None:
        self.kernel, self.max_dynamic_shared_size_bytes = kernel, DEFAULT_SHARED

    def __call__(self, grid: Any, block: Any, args: Sequence[Any], *, shared_mem: int = 0, stream: Any = None) -> None:  # noqa: ARG002
        kernel = self.kernel
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise RuntimeError(f"{kernel.name}: {shared_mem} bytes of shared memory: set max_dynamic_shared_size_bytes first")
        if not all(type(size) is int and size > 0 for size in (*grid, *block)):
            raise ValueError(f"{kernel.name}: grid {grid}, block {block}")
        if len(args) != len(kernel.signature):
            raise TypeError(f"{kernel.name} takes {len(kernel.signature)} arguments, not {len(args)}")
        given = [passed(f"{kernel.name}, argument {i}", *pair) for i, pair in enumerate(zip(args, kernel.signature, strict=True))]
        launched.append(kernel.name)

        def run() -> None:
            kernel(grid, block, given, shared_mem, order)
            for memory in list(live):
                if not memory.intact():
                    raise MemoryError(f"{kernel.name} wrote outside an array of {memory.memory.size} bytes")

        enqueue(run, [arg.data.ptr for arg in args if isinstance(arg, ndarray)])


def passed(where: str, arg: Any, word: str) -> Any:
    """An argument as the emulator takes it; raises where CuPy would pass on something that the kernel misreads."""
    if word[0] != "P":
        if not isinstance(arg, np.generic):
            raise TypeError(f"{where}: a NumPy scalar is needed, as CuPy passes a Python {type(arg).__name__} as 8 bytes")
        if arg.dtype != DTYPES[word]:
            raise TypeError(f"{where}: {arg.dtype} for {word}")
        return (ctypes.c_char * arg.nbytes).from_buffer_copy(arg.tobytes())
    if isinstance(arg, np.uint64) and not arg:
        return ctypes.c_void_p(0)
    if not isinstance(arg, ndarray):
        raise TypeError(f"{where}: an array of the device is needed, not {type(arg).__name__}")
    if arg.dtype != DTYPES[word.lstrip("Pc")]:
        raise TypeError(f"{where}: {arg.dtype} for {word}")
    if arg.ndim and arg.strides[-1] != arg.itemsize and arg.shape[-1] > 1:
        raise ValueError(f"{where}: the numbers of a row are not neighbours")
    return ctypes.c_void_p(arg.data.ptr)


class RawModule:
    """From a source, with the flag that CuPy adds of its own; or from the file of one that was compiled before, by NVRTC."""

    def __init__(self, *, code: str = "", path: str = "", name_expressions: Sequence[str] = ()) -> None:
        names, options = name_expressions, ["-ftz=true"]
        if path:
            code, names, options = json.loads(Path(path).read_bytes())
        self.kernels = emulator.build(code, names, sanitizer, flush=options[-1:] == ["-ftz=true"])

    def get_function(self, name: str) -> Function:
        return Function(self.kernels[name.removeprefix("lowered ")])


class NVRTC:
    """NVRTC's calls, as the backend makes them; the machine code is the source, its names, and the last word on subnormals."""

    def __init__(self) -> None:
        self.programs: dict[int | None, Any] = {}

    def nvrtcVersion(self, major: Any, minor: Any) -> None:
        major._obj.value, minor._obj.value = 0, int(hashlib.sha256(emulator.HEADER.read_bytes()).hexdigest()[:7], 16)

    def nvrtcGetNumSupportedArchs(self, count: Any) -> None:
        count._obj.value = 3

    def nvrtcGetSupportedArchs(self, known: Any) -> None:
        known[:] = 80, 86, 90

    def nvrtcCreateProgram(self, program: Any, code: bytes, *_: Any) -> None:
        program._obj.value = len(self.programs) + 1
        self.programs[program._obj.value] = [code.decode(), [], []]

    def nvrtcAddNameExpression(self, program: Any, name: bytes) -> None:
        self.programs[program.value][1].append(name.decode())

    def nvrtcCompileProgram(self, program: Any, count: int, options: Any) -> int:
        given = [option.decode() for option in options]
        assert len(given) == count
        assert any(option.startswith("-arch=sm_") for option in given)
        self.programs[program.value][2] = [option for option in given if option.startswith("-ftz=")]
        return 0

    def nvrtcGetProgramLogSize(self, _: Any, size: Any) -> None:
        size._obj.value = 1

    def nvrtcGetProgramLog(self, _: Any, log: Any) -> None:
        log.value = b""

    def nvrtcGetCUBINSize(self, program: Any, size: Any) -> None:
        size._obj.value = len(json.dumps(self.programs[program.value]))

    def nvrtcGetCUBIN(self, program: Any, cubin: Any) -> None:
        cubin.raw = json.dumps(self.programs[program.value]).encode()

    def nvrtcGetLoweredName(self, _: Any, name: bytes, symbol: Any) -> None:
        symbol._obj.value = b"lowered " + name

    def nvrtcDestroyProgram(self, program: Any) -> None:
        pass


class CUDARuntimeError(RuntimeError):
    pass


class Device:
    def __init__(self, number: int = 0) -> None:
        self.id = number

    compute_capability = "90"
    attributes = property(lambda _: {"MultiProcessorCount": 4})

    def synchronize(self) -> None:
        refuse_while_capturing("a wait")


def module() -> types.ModuleType:
    """The stand-in as a module to be put at sys.modules["cupy"]."""
    cupy, cuda, runtime = (types.ModuleType(name) for name in ("cupy", "cupy.cuda", "cupy.cuda.runtime"))
    Stream.null = Stream(null=True)
    runtime.getDeviceCount = lambda: 1
    runtime.runtimeGetVersion = lambda: 13000
    runtime.getDeviceProperties = lambda _: {"name": b"stand-in"}
    runtime.CUDARuntimeError = CUDARuntimeError
    cuda.runtime, cuda.Device, cuda.Event, cuda.Stream, cuda.Graph = runtime, Device, Event, Stream, Graph
    cuda.MemoryPool, cuda.using_allocator = MemoryPool, using_allocator
    cuda.get_cuda_path = lambda: None
    cuda.get_current_stream = lambda: streams[-1] if streams else Stream.null
    cuda.get_elapsed_time = lambda start, end: (end.time - start.time) * 1e3
    cupy.cuda, cupy.RawModule, cupy.ndarray, cupy.empty, cupy.zeros = cuda, RawModule, ndarray, empty, zeros
    cupy.asarray, cupy.ascontiguousarray, cupy.__version__ = asarray, ascontiguousarray, "14.0.0"
    return cupy


@contextlib.contextmanager
def installed() -> Iterator[types.ModuleType]:
    """Within, `import cupy` gives the stand-in, and the backend is imported anew; after, everything is as it was."""
    ours = [name for name in sys.modules if name.split(".")[0] == "cupy" or name.startswith("tinyroberta.backends.cupy")]
    kept = {name: sys.modules.pop(name) for name in ours}
    cupy = module()
    sys.modules |= {"cupy": cupy, "cupy.cuda": cupy.cuda}
    try:
        yield cupy
    finally:
        for name in [n for n in sys.modules if n.split(".")[0] == "cupy" or n.startswith("tinyroberta.backends.cupy")]:
            del sys.modules[name]
        sys.modules |= kept
