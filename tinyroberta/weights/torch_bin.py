"""Torch files without torch: the pickle read by a machine that can only build data, the tensors mapped, never copied.

A torch file is raw storages of numbers and a pickle that says which tensors lie in them. A pickle is a program: Python's own
reader calls whatever it names. The machine here runs the same opcodes, but imports nothing and calls nothing: a name is looked
up in ADMITTED or refused, and what is made is a number, a string, a list, a tuple, a dict, a Tensor (a place in a storage) or a
Record (a name and what was given to it, inert).

zip     (torch 1.6 and later)   one/data.pkl, and a stored, never compressed entry one/data/KEY for each storage
legacy  (earlier)               five pickles: magic number, version, machine, objects, keys; then each storage: size, bytes

What a file may claim is bounded by its size: every storage lies inside it, every tensor inside its storage, and all tensors
together hold at most MOST_TIMES its bytes (those of a tied encoder-decoder hold its words three times). The number of opcodes
is limited too.
"""

import mmap
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ..errors import Error
from .files import refuse_pointer
from .safetensors import Array, check_whole, files_of

SINGLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
MOST_OPCODES, LONGEST_TEXT, LONGEST_NAME, MOST_DIMENSIONS, MOST_TIMES = 2**20, 2**20, 256, 8, 4
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")  # under which training scripts keep a state dict beside others

STORAGES: dict[str, np.dtype[Any]] = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
    "torch.UntypedStorage": np.dtype(np.uint8),
    "torch.storage.UntypedStorage": np.dtype(np.uint8),
}
DTYPES = {
    "torch.float64": "torch.DoubleStorage",
    "torch.float32": "torch.FloatStorage",
    "torch.float16": "torch.HalfStorage",
    "torch.bfloat16": "torch.BFloat16Storage",
    "torch.int64": "torch.LongStorage",
    "torch.int32": "torch.IntStorage",
    "torch.int16": "torch.ShortStorage",
    "torch.int8": "torch.CharStorage",
    "torch.uint8": "torch.ByteStorage",
    "torch.bool": "torch.BoolStorage",
}
DICTS = ("collections.OrderedDict", "collections.defaultdict", "builtins.dict", "__builtin__.dict")
TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3")
PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
INERT = (
    "argparse.Namespace", "torch.Size", "torch.device", "typing.Any", "pathlib.PosixPath", "_codecs.encode",
    "numpy.dtype", "numpy.ndarray", "numpy.core.multiarray.scalar", "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar", "numpy._core.multiarray._reconstruct",
    *(f"{module}.{name}" for module in ("builtins", "__builtin__")
      for name in ("object", "str", "int", "float", "bool", "list", "tuple", "set", "bytes")),
)  # fmt: skip
INERT_PACKAGES = (  # whose configuration classes lie beside the tensors of fairseq's and of Lightning's checkpoints
    "omegaconf.", "fairseq.", "lightning.", "lightning_fabric.", "pytorch_lightning.",
)  # fmt: skip
ADMITTED = frozenset((*STORAGES, *DTYPES, *DICTS, *TENSORS, *PARAMETERS, *INERT))


class Name(NamedTuple):
    """An admitted name of the pickle."""

    text: str


class Record:
    """An object of a class that is not run: its name, what it was made of and the state it was given."""

    __slots__ = ("args", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...]) -> None:
        self.name, self.args, self.state = name, args, None

    def __repr__(self) -> str:
        return f"Record({self.name})"


class Storage(NamedTuple):
    """Numbers of one kind under a key; where they lie in the file is known once the file is read."""

    key: str
    kind: str  # of STORAGES
    numel: int


class Tensor(NamedTuple):
    """A place in a storage: first element, sizes and steps, counted in elements of `kind`."""

    storage: Storage
    kind: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchFile(NamedTuple):
    """A torch file that has been read: what its pickle built, with Tensors in it, and where the storages lie."""

    path: Path
    mapped: mmap.mmap
    content: Any
    starts: dict[str, int]  # storage key -> byte


class Arrays(dict[str, Array]):
    """Arrays by name as names.gather reads them; views of mapped files, so that nothing is read before it is looked at."""

    aliases: dict[str, str]

    def __init__(self, arrays: Mapping[str, Array] | Iterable[tuple[str, Array]] = ()) -> None:
        super().__init__(arrays)
        self.aliases = {}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self[name].shape


def open_torch(paths: Iterable[Path]) -> Arrays:
    """The tensors of one state dict, in one file or in shards.

    Raises Error where a file is corrupt, holds anything but tensors by name, or names what no such file needs.
    """
    arrays = Arrays()
    for path in paths:
        file = read_torch(path)
        found = named_arrays(file, state_dict(file.content))
        if not found:
            raise Error(f"{path} holds no state dict: no tensors by name")
        if twice := sorted(set(found) & set(arrays)):
            raise Error(f"{path} holds {twice[0]}, which another shard holds too")
        arrays.update(found)
    return arrays


def open_torch_path(path: Path) -> Arrays:
    """The tensors of a file, of an index's shards, or of the folder of pytorch_model.bin or its shards.

    Raises Error as open_torch, and where shards lack a name of the index.
    """
    files, index = files_of(path, SINGLE)
    arrays = open_torch(files)
    check_whole(index, arrays)
    return arrays


def state_dict(content: Any, depth: int = 3) -> dict[str, Tensor]:
    """The tensors among the entries of a pickle's dict, or of the one in it that WRAPPERS name; what is no tensor is left out."""
    if not isinstance(content, dict):
        return {}
    for wrapper in WRAPPERS if depth else ():
        if wrapped := state_dict(content.get(wrapper), depth - 1):
            return wrapped
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def named_arrays(file: TorchFile, tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    """Views of the mapped file; equal Tensors (tied weights) are one array.

    Raises Error where the tensors hold MOST_TIMES the bytes of their file, which no model's do.
    """
    room = MOST_TIMES * len(file.mapped)
    arrays: dict[Tensor, Array] = {}
    for name, tensor in tensors.items():
        size = STORAGES[tensor.kind].itemsize
        room -= size * _product(tensor.shape)
        if room < 0:
            told = f"{short(name)} and others before it hold more than {MOST_TIMES} times the bytes of the file"
            raise Error(f"{file.path}: {told}")
        if tensor not in arrays:
            start = file.starts[tensor.storage.key] + size * tensor.offset
            strides = [size * step for step in tensor.strides]
            try:
                arrays[tensor] = np.ndarray(tensor.shape, STORAGES[tensor.kind], file.mapped, start, strides)
            except (ValueError, OverflowError) as error:
                raise Error(f"{file.path}: {short(name)} has sizes that no array has") from error
    return {name: arrays[tensor] for name, tensor in tensors.items()}


def read_torch(path: Path) -> TorchFile:
    """Read the pickle of a torch file of either layout, and find its storages; raises Error where the file is not whole."""
    refuse_pointer(path)
    try:
        with path.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise Error(f"cannot read {path}: {error}") from error
    read = _read_zip if mapped[:4] == b"PK\x03\x04" else _read_legacy
    return TorchFile(path, mapped, *read(mapped, path))


# The two layouts.


def _read_zip(mapped: mmap.mmap, path: Path) -> tuple[Any, dict[str, int]]:
    entries = zip_entries(mapped, path)
    roots = [name.removesuffix("data.pkl") for name in entries if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(roots) != 1:
        raise Error(f"{path} is a zip archive with {len(roots)} entries */data.pkl; a torch file has one")
    root = roots[0]
    if f"{root}constants.pkl" in entries:
        raise Error(f"{path} is a TorchScript archive, a program; save the state dict instead")
    if f"{root}byteorder" in entries:
        start, size = entries[f"{root}byteorder"]
        if mapped[start : start + min(size, 8)] != b"little":
            raise Error(f"{path} was written in another byte order than little-endian; save it again on a common machine")
    start, size = entries[f"{root}data.pkl"]
    with memoryview(mapped) as whole, whole[start : start + size] as view:
        machine = Machine(view, path, len(mapped))
        content = machine.load()
    starts: dict[str, int] = {}
    for storage in machine.storages.values():
        start, size = entries.get(f"{root}data/{storage.key}", (0, -1))
        if size != _bytes(storage):
            raise Error(f"{path}: storage {short(storage.key)} has {_bytes(storage)} bytes, the file holds {max(size, 0)} of it")
        starts[storage.key] = start
    return content, starts


def _read_legacy(mapped: mmap.mmap, path: Path) -> tuple[Any, dict[str, int]]:
    if mapped[257:262] == b"ustar":
        raise Error(f"{path} is a tar archive of torch before 0.2; load and save it with a newer torch")
    with memoryview(mapped) as view:
        machine = Machine(view, path, len(mapped))
        if view[0] != 0x80 or machine.load() != MAGIC:
            raise Error(f"{path} is not a torch file: it begins with neither a zip archive nor the legacy magic number")
        if machine.load() != VERSION:
            raise Error(f"{path} is a legacy torch file of another version than {VERSION}")
        about = machine.load()
        if isinstance(about, dict) and about.get("little_endian") is not True:
            raise Error(f"{path} was written in another byte order than little-endian; save it again on a common machine")
        content = machine.load()
        keys = machine.load()
        position = machine.position
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Error(f"{path} has no list of storage keys after its objects")
    starts: dict[str, int] = {}
    for key in keys:
        storage = machine.storages.get(key)
        if storage is None or key in starts:
            raise Error(f"{path} lists the storage {short(key)}, which no tensor uses or which is listed before")
        count = int.from_bytes(mapped[position : position + 8], "little")
        if count != storage.numel or position + 8 + _bytes(storage) > len(mapped):
            raise Error(f"{path}: storage {short(key)} has {storage.numel} elements; the file says {count} or is cut off")
        starts[key] = position + 8
        position += 8 + _bytes(storage)
    if lacking := [key for key in machine.storages if key not in starts]:
        raise Error(f"{path} does not hold the storage {short(lacking[0])}")
    return content, starts


def zip_entries(mapped: mmap.mmap, path: Path) -> dict[str, tuple[int, int]]:
    """{name: (first byte, bytes)} of a zip archive's entries, from its central directory.

    Raises Error on compressed, encrypted, overlapping or doubled entries, and on an archive that is not whole.
    """
    broken = Error(f"{path} is not a whole zip archive: its directory does not describe it")
    try:
        count, position, stop = _zip_directory(mapped)
        if not 0 <= position <= stop <= len(mapped) or count > _allowance(len(mapped)):
            raise broken
        entries: dict[str, tuple[int, int]] = {}
        spans: list[tuple[int, int]] = []
        for _ in range(count):
            signature, flags, method, packed, size, names, extras, comments, header = struct.unpack_from(
                "<4s4xHH8xIIHHH8xI", mapped, position
            )
            if signature != b"PK\x01\x02":
                raise broken
            name = mapped[position + 46 : position + 46 + names].decode("utf-8")
            extra = mapped[position + 46 + names : position + 46 + names + extras]
            size, packed, header = _zip64([size, packed, header], extra)
            position += 46 + names + extras + comments
            if method or flags & 1 or packed != size:
                raise Error(f"{path}: entry {short(name)} is compressed or encrypted; torch stores entries as they are")
            if name in entries:
                raise Error(f"{path} holds two entries {short(name)}")
            local, local_names, local_extras = struct.unpack_from("<4s22xHH", mapped, header)
            start = header + 30 + local_names + local_extras
            if local != b"PK\x03\x04" or mapped[header + 30 : header + 30 + local_names] != name.encode():
                raise broken
            entries[name] = (start, size)
            spans.append((header, start + size))
        spans.sort()
        ends = [end for _, end in spans]
        if any(start < end for (start, _), end in zip(spans[1:], ends[:-1], strict=True)) or max(ends, default=0) > len(mapped):
            raise broken
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise (error if isinstance(error, Error) else broken) from error
    return entries


def _zip_directory(mapped: mmap.mmap) -> tuple[int, int, int]:
    """How many entries a zip archive has and from where to where its central directory lies."""
    end = mapped.rfind(b"PK\x05\x06", max(0, len(mapped) - 22 - 0xFFFF))
    if end < 0:
        raise ValueError
    count, size, start = struct.unpack_from("<2xHII", mapped, end + 8)
    locator = end - 20
    if locator >= 0 and mapped[locator : locator + 4] == b"PK\x06\x07":
        (record,) = struct.unpack_from("<Q", mapped, locator + 8)
        signature, count, size, start = struct.unpack_from("<4s28xQQQ", mapped, min(record, len(mapped)))
        if signature != b"PK\x06\x06":
            raise ValueError
    return count, start, start + size


def _zip64(values: list[int], extra: bytes) -> list[int]:
    """Sizes and offset, those that do not fit 32 bits taken from the extra field."""
    position = 0
    while 0xFFFFFFFF in values and position + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, position)
        if kind == 1:
            longer = iter(struct.unpack_from(f"<{size // 8}Q", extra, position + 4))
            return [next(longer, value) if value == 0xFFFFFFFF else value for value in values]
        position += 4 + size
    return values


# The machine.


class Machine:
    """A pickle's opcodes, run over bytes: what they may name is in ADMITTED, what they may build is data."""

    def __init__(self, data: memoryview, path: Path, file_size: int) -> None:
        self.data, self.path, self.position = data, path, 0
        self.left = _allowance(file_size)
        self.storages: dict[str, Storage] = {}

    def load(self) -> Any:
        """The object of the next pickle; raises Error where it is cut off, malformed, too long or names what is not admitted."""
        try:
            return self._run()
        except (IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
            raise Error(f"{self.path} is not a whole torch file: its pickle is malformed at byte {self.position}") from error

    def _spend(self, work: int) -> None:
        self.left -= work
        if self.left < 0:
            raise Error(f"{self.path} has a pickle of far more objects than a checkpoint's; it is damaged or hostile")

    def _take(self, count: int) -> bytes:
        if count > len(self.data) - self.position:
            raise IndexError
        self.position += count
        return bytes(self.data[self.position - count : self.position])

    def _number(self, count: int) -> int:
        return int.from_bytes(self._take(count), "little")

    def _text(self, count: int, encoding: str = "utf-8") -> str:
        if count > LONGEST_TEXT:
            raise Error(f"{self.path} holds a string of {count} bytes, longer than any of a checkpoint")
        return self._take(count).decode(encoding)

    def _line(self) -> str:
        length = bytes(self.data[self.position : self.position + LONGEST_NAME]).find(b"\n")
        if length < 0:
            raise IndexError
        return self._take(length + 1)[:-1].decode()

    def _admit(self, module: Any, name: Any) -> Name:
        text = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else ""
        if text in ADMITTED or (text.startswith(INERT_PACKAGES) and len(text) <= LONGEST_NAME):
            return Name(text)
        raise Error(f"{self.path} names {short(text)}, which no checkpoint needs; it is refused and nothing has run")

    def _call(self, function: Any, args: Any) -> Any:
        """What the file would have called, made as data."""
        if not isinstance(function, Name) or not isinstance(args, tuple):
            raise IndexError
        name = function.text
        if name in TENSORS:
            return self._tensor(args, name.endswith("v3"))
        if name in PARAMETERS:
            if not args or not isinstance(args[0], Tensor):
                raise Error(f"{self.path} has a parameter that is not a tensor")
            return args[0]
        if name not in DICTS:
            return Record(name, args)
        pairs = args[0] if args and isinstance(args[0], list | tuple) else ()
        self._spend(len(pairs))
        return {pair[0]: pair[1] for pair in pairs if isinstance(pair, list | tuple) and len(pair) == 2 and type(pair[0]) is str}

    def _tensor(self, args: tuple[Any, ...], typed: bool) -> Tensor:
        storage, offset, shape, strides, *rest = args if len(args) >= 4 else (None,) * 4
        shape, strides = (size.args[0] if _is_size(size) else size for size in (shape, strides))
        kind = storage.kind if isinstance(storage, Storage) else ""
        if typed and len(rest) > 2 and isinstance(rest[2], Name):
            kind = DTYPES.get(rest[2].text, "")
        if not isinstance(storage, Storage) or not kind or not _are_counts(shape) or not _are_counts(strides):
            raise Error(f"{self.path} has a tensor that is not made of a storage, an offset, sizes and strides")
        if not _are_counts((offset,)) or len(shape) != len(strides):
            raise Error(f"{self.path} has a tensor of offset {short(offset)}, {len(shape)} sizes and {len(strides)} strides")
        last = sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
        room = _bytes(storage) // STORAGES[kind].itemsize
        count = _product(shape)
        if offset > room or (count and (offset + last >= room or count > room)):
            raise Error(f"{self.path} has a tensor of {count} elements that reaches past its storage of {room}")
        steps = tuple(step if size > 1 and count else 0 for size, step in zip(shape, strides, strict=True))
        return Tensor(storage, kind, offset, shape, steps)

    def _storage(self, identity: Any) -> Storage:
        match identity:
            case ("storage", Name(kind), str(key), str(), int(count), *view) if kind in STORAGES and view in ([], [None]):
                storage = Storage(key, kind, count)
                if 0 <= count < 2**62 and self.storages.setdefault(key, storage) == storage:
                    return storage
        raise Error(f"{self.path} has a persistent id that is not a storage: kind, key, place and size, the same each time")

    def _run(self) -> Any:
        stack: list[Any] = []
        marked: list[list[Any]] = []
        memo: dict[int, Any] = {}
        while True:
            self._spend(1)
            code = self._take(1)
            match code:
                case b"\x80":  # PROTO
                    if self._number(1) > 5:
                        raise IndexError
                case b"\x95":  # FRAME
                    self._number(8)
                case b".":  # STOP
                    return stack.pop()
                case b"(":  # MARK
                    marked.append(stack)
                    stack = []
                case b"0":  # POP
                    stack.pop()
                case b"1":  # POP_MARK
                    stack = marked.pop()
                case b"2":  # DUP
                    stack.append(stack[-1])
                case b"N":  # NONE
                    stack.append(None)
                case b"\x88" | b"\x89":  # NEWTRUE, NEWFALSE
                    stack.append(code == b"\x88")
                case b"K" | b"M":  # BININT1, BININT2
                    stack.append(self._number(1 if code == b"K" else 2))
                case b"J":  # BININT
                    stack.append(int.from_bytes(self._take(4), "little", signed=True))
                case b"\x8a":  # LONG1
                    stack.append(int.from_bytes(self._take(self._number(1)), "little", signed=True))
                case b"G":  # BINFLOAT
                    stack.append(struct.unpack(">d", self._take(8))[0])
                case b"X" | b"\x8c" | b"\x8d":  # BINUNICODE, SHORT_BINUNICODE, BINUNICODE8
                    stack.append(self._text(self._number({b"X": 4, b"\x8c": 1, b"\x8d": 8}[code])))
                case b"T" | b"U":  # BINSTRING, SHORT_BINSTRING: Python 2's
                    stack.append(self._text(self._number(4 if code == b"T" else 1), "latin-1"))
                case b"B" | b"C" | b"\x8e":  # BINBYTES, SHORT_BINBYTES, BINBYTES8
                    stack.append(self._take(self._number({b"B": 4, b"C": 1, b"\x8e": 8}[code])))
                case b"]" | b"\x8f":  # EMPTY_LIST, EMPTY_SET
                    stack.append([])
                case b"}":  # EMPTY_DICT
                    stack.append({})
                case b")":  # EMPTY_TUPLE
                    stack.append(())
                case b"a":  # APPEND
                    _extend(stack[-2], [stack.pop()])
                case b"e" | b"\x90":  # APPENDS, ADDITEMS
                    items, stack = stack, marked.pop()
                    _extend(stack[-1], items)
                case b"s":  # SETITEM
                    value, key = stack.pop(), stack.pop()
                    _set_items(stack[-1], [key, value])
                case b"u":  # SETITEMS
                    items, stack = stack, marked.pop()
                    _set_items(stack[-1], items)
                case b"\x85" | b"\x86" | b"\x87":  # TUPLE1, TUPLE2, TUPLE3
                    count = code[0] - 0x84
                    items = [stack.pop() for _ in range(count)][::-1]
                    stack.append(tuple(items))
                case b"t" | b"\x91":  # TUPLE, FROZENSET
                    items, stack = stack, marked.pop()
                    stack.append(tuple(items))
                case b"l" | b"d":  # LIST, DICT
                    items, stack = stack, marked.pop()
                    stack.append(items if code == b"l" else {})
                    if code == b"d":
                        _set_items(stack[-1], items)
                case b"q" | b"r":  # BINPUT, LONG_BINPUT
                    memo[self._number(1 if code == b"q" else 4)] = stack[-1]
                case b"\x94":  # MEMOIZE
                    memo[len(memo)] = stack[-1]
                case b"h" | b"j":  # BINGET, LONG_BINGET
                    stack.append(memo[self._number(1 if code == b"h" else 4)])
                case b"c":  # GLOBAL
                    stack.append(self._admit(self._line(), self._line()))
                case b"\x93":  # STACK_GLOBAL
                    name, module = stack.pop(), stack.pop()
                    stack.append(self._admit(module, name))
                case b"R" | b"\x81":  # REDUCE, NEWOBJ
                    args, function = stack.pop(), stack.pop()
                    stack.append(self._call(function, args))
                case b"\x92":  # NEWOBJ_EX
                    _, args, function = stack.pop(), stack.pop(), stack.pop()
                    stack.append(self._call(function, args))
                case b"b":  # BUILD: a state; of a dict or tensor (hooks, _metadata) it is dropped
                    state = stack.pop()
                    if isinstance(stack[-1], Record):
                        stack[-1].state = state
                    elif not isinstance(stack[-1], dict | Tensor):
                        raise IndexError
                case b"Q":  # BINPERSID
                    stack.append(self._storage(stack.pop()))
                case _:
                    raise Error(f"{self.path} has a pickle with opcode {code!r}, which torch does not write")


def _allowance(file_size: int) -> int:
    """How many opcodes or entries a file of a size may hold: each makes an object of some 64 bytes."""
    return min(2**16 + file_size // 64, MOST_OPCODES)


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Record):
        raise IndexError


def _set_items(target: Any, items: list[Any]) -> None:
    """Entries whose key is not a string are left out: a checkpoint's names are strings."""
    if isinstance(target, dict) and len(items) % 2 == 0:
        target.update((key, value) for key, value in zip(items[::2], items[1::2], strict=True) if type(key) is str)
    elif not isinstance(target, Record):
        raise IndexError


def _is_size(x: Any) -> bool:
    return isinstance(x, Record) and x.name == "torch.Size" and len(x.args) == 1


def _are_counts(x: Any) -> bool:
    return isinstance(x, tuple) and len(x) <= MOST_DIMENSIONS and all(type(n) is int and 0 <= n < 2**62 for n in x)


def _product(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _bytes(storage: Storage) -> int:
    return storage.numel * STORAGES[storage.kind].itemsize


def short(x: Any) -> str:
    """A value from a file, as short as a sentence can take."""
    text = x if isinstance(x, str) else str(x) if isinstance(x, int) and abs(x) < 2**80 else type(x).__name__
    return ascii(text[:80])
