"""weights/torch_bin.py: every layout that torch writes, and everything hostile that a pickle or an archive can say."""

import os
import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_writer import call, legacy, name, pickled, put, save, storage, tensor, zipped

import tinyroberta
from tinyroberta import Error
from tinyroberta.weights.torch_bin import MOST_TIMES, Name, Record, Storage, Tensor, open_torch, read_torch

FOLDER = Path(__file__).parent / "torch_files"
KINDS = ["kinds_zip.bin", "kinds_legacy.bin", "kinds_protocol_4.bin"]
EXAMPLES = int(os.environ.get("TINYROBERTA_FUZZ", "300"))


@pytest.mark.live
def test_the_writer_writes_what_torch_reads(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3).T, "b": np.ones(3, np.float16)}
    save(tmp_path / "x.bin", arrays)
    theirs, ours = torch.load(tmp_path / "x.bin"), open_torch([tmp_path / "x.bin"])
    assert all(np.array_equal(theirs[key].numpy(), ours[key]) and np.array_equal(ours[key], arrays[key]) for key in arrays)
    save(tmp_path / "y.bin", arrays, "legacy")
    assert all(np.array_equal(torch.load(tmp_path / "y.bin")[key].numpy(), x) for key, x in arrays.items())


@pytest.mark.parametrize("file", KINDS)
def test_every_dtype_and_stride(file: str) -> None:
    found = open_torch([FOLDER / file])
    expected = safetensors.numpy.load_file(FOLDER / "kinds.safetensors")
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        assert found.shape(key) == value.shape, key
        np.testing.assert_array_equal(found[key], value, err_msg=key)
        assert not found[key].flags.writeable
    assert found["bfloat16"].dtype == ml_dtypes.bfloat16
    assert found["one"] is found["same"]
    assert not found["transposed"].flags.c_contiguous


@pytest.mark.parametrize("folder", ["model", "model_sharded", "model_legacy"])
def test_hugging_faces_files(folder: str) -> None:
    expected = safetensors.numpy.load_file(FOLDER / "logits.safetensors")
    model = tinyroberta.load(FOLDER / folder, dtype="float64")
    error = np.linalg.norm(model(expected["ids"]).logits - expected["model"]) / np.linalg.norm(expected["model"])
    assert error < 1e-12
    assert model.tensors["lm_head.decoder.weight"] is model.tensors["embeddings.word_embeddings.weight"]


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    model = tinyroberta.load(FOLDER / "model")
    model.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"no torch file at all")
    tinyroberta.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(Error, match=r"pytorch_model\.bin is not a torch file"):
        tinyroberta.load(tmp_path)


def test_an_index_that_lies(tmp_path: Path) -> None:
    for path in (FOLDER / "model_sharded").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    index = tmp_path / "pytorch_model.bin.index.json"
    whole = index.read_text()
    index.write_text(whole.replace('"lm_head.bias"', '"lm_head.other"'))
    with pytest.raises(Error, match=r"do not hold: lm_head\.other"):
        tinyroberta.load(tmp_path)
    index.write_text(whole.replace("pytorch_model-00002-of-00003.bin", "../model/pytorch_model.bin"))
    with pytest.raises(Error, match="not a file beside it"):
        tinyroberta.load(tmp_path)
    index.write_text(whole)
    (tmp_path / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(Error, match="pytorch_model-00002-of-00003"):
        tinyroberta.load(tmp_path)


def test_inert_objects_stay_inert(tmp_path: Path) -> None:
    state = {"__class__": "x", "__reduce__": 1}
    content = {
        "w": tensor(),
        "args": name("argparse Namespace") + b")\x81" + put(state) + b"b",
        "cfg": call("fairseq.x System", "rm"),
    }
    path = tmp_path / "x.bin"
    path.write_bytes(zipped(pickled(content)))
    read = read_torch(path).content
    assert type(read["args"]) is Record
    assert read["args"].state == state
    assert type(read["cfg"]) is Record
    assert read["cfg"].args == ("rm",)
    assert "fairseq" not in sys.modules


def canary(path: Path) -> dict[str, bytes]:
    """Pickles that would write a file if anything ran."""
    command, code = f"touch {path}", f"open({str(path)!r}, 'w')"

    class Reduced:
        def __reduce__(self):
            return os.system, (command,)

    posix = {f"protocol {n}": pickle.dumps({"w": Reduced()}, n) for n in range(2, 6)}
    return posix | {
        "os.system": pickled({"w": call("os system", command)}),
        "eval": pickled({"w": call("builtins eval", code)}),
        "exec": pickled({"w": call("__builtin__ exec", code)}),
        "getattr": pickled({"w": call("builtins getattr", name("os system"), "x")}),
        "subprocess": pickled({"w": call("subprocess Popen", ["touch", str(path)])}),
        "runpy": pickled({"w": call("runpy _run_code", code, {})}),
        "torch.load": pickled({"w": call("torch load", str(path))}),
        "torch.hub": pickled({"w": call("torch.hub load", str(path), "x")}),
        "an attribute of what is admitted": b"\x80\x04" + put("collections") + put("OrderedDict.__init__.__globals__") + b"\x93.",
        "a module of what is admitted": b"\x80\x04" + put("torch._utils") + put("os.system") + b"\x93" + put((command,)) + b"R.",
        "a name put together": b"\x80\x04" + put("os.system") + put("") + b"\x93" + put((command,)) + b"R.",
        "a name that is no string": b"\x80\x04" + put(3) + put(("os", "system")) + b"\x93.",
        "storage look-alike": pickled({"w": call("os FloatStorage", command)}),
        "dotted storage": pickled({"w": call("torch.FloatStorage.os system", command)}),
        "state that calls": pickled({"w": tensor() + put({"__setstate__": name("os system")}) + b"b"}),
        "a callable from a memo": b"\x80\x02" + name("os system") + b"q\x00" + put((command,)) + b"R.",
        "an old instance": b"\x80\x02(" + put(command) + b"ios\nsystem\n.",
        "an object": b"\x80\x02(" + name("os system") + put(command) + b"o.",
        "an extension": b"\x80\x02\x82\x01" + put((command,)) + b"R.",
        "a persistent name": b"\x80\x02Pos.system\n.",
    }


@pytest.mark.parametrize("layout", [zipped, legacy], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", canary(Path("x")))
def test_nothing_in_a_pickle_runs(tmp_path: Path, kind: str, layout) -> None:
    path, marker = tmp_path / "x.bin", tmp_path / "ran"
    path.write_bytes(layout(canary(marker)[kind]))
    before = set(sys.modules)
    with pytest.raises(Error, match=r"x\.bin"):
        open_torch([path])
    assert not marker.exists()
    assert not {module for module in set(sys.modules) - before if module.split(".")[0] in ("torch", "runpy", "fairseq")}


def test_a_refusal_names_what_it_refuses(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(zipped(pickled({"w": call("transformers.models.bert BertModel")})))
    with pytest.raises(Error, match=r"names 'transformers\.models\.bert\.BertModel', which no checkpoint needs"):
        open_torch([path])


HOSTILE = {
    # storages and persistent ids
    "an id that is a string": put("0") + b"Q",
    "an id of a module": put(("module", name("torch FloatStorage"), "x", "y")) + b"Q",
    "a storage of no kind": put(("storage", "torch FloatStorage", "0", "cpu", 4)) + b"Q",
    "a storage of an inert kind": put(("storage", name("argparse Namespace"), "0", "cpu", 4)) + b"Q",
    "a storage by a path": tensor(stored=storage("../../etc/passwd")),
    "a storage by a number": tensor(stored=storage(0)),
    "a storage that is absent": tensor(stored=storage("1")),
    "a negative storage": tensor(stored=storage(count=-4)),
    "a storage too large": tensor(stored=storage(count=5)),
    "a storage of all memory": tensor((2**50,), stored=storage(count=2**50)),
    "a storage of a long number": tensor(stored=storage(count=2**2000)),
    "a storage of a fraction": tensor(stored=storage(count=4.0)),
    "a storage twice, unlike": put([storage(), storage(count=3)]),
    "a storage twice, of two kinds": put([storage(), storage(count=2, kind="torch DoubleStorage")]),
    "a view of a storage": tensor(stored=storage("0", 4, "torch FloatStorage", "cpu", ("v", 0, 4))),
    # tensors
    "an offset past the end": tensor(offset=1),
    "an offset before": tensor(offset=-1),
    "a long offset": tensor((0,), offset=2**2000),
    "strides past the end": tensor((2, 2), (3, 1)),
    "strides before": tensor((2, 2), (-1, 1)),
    "strides that repeat": tensor((1000, 1000), (0, 0)),
    "strides of all memory": tensor((1, 4), (2**70, 1)),
    "a negative size": tensor((-4,)),
    "sizes of all memory": tensor((2**62, 2**62), (0, 0)),
    "an empty tensor of all memory": tensor((0, 2**61, 2**61), (1, 1, 1)),
    "unequal sizes and strides": tensor((2, 2), (1,)),
    "nine sizes": tensor((1,) * 9, (1,) * 9),
    "a size that is true": tensor((True,)),
    "a size that is a fraction": tensor((4.0,)),
    "sizes as a list": tensor([4], [1]),
    "no storage": tensor(stored=b"N"),
    "too few arguments": call("torch._utils _rebuild_tensor_v2", storage()),
    "a parameter of no tensor": call("torch._utils _rebuild_parameter", 3, True, None),
    "an unknown dtype": call("torch._utils _rebuild_tensor_v3", storage(), 0, (4,), (1,), False, None, name("torch complex64")),
    # the machine
    "a memo that is empty": b"h\x07",
    "a stack that is empty": b"0000000",
    "a mark that is missing": b"tttt",
    "an odd dict": b"}(" + put("w") + b"u",
    "append to a number": put(3) + put(4) + b"a",
    "items of a list": b"](" + put("a") + put("b") + b"u",
    "state of a number": put(3) + b"}b",
    "call a number": put(3) + b")R",
    "call with a list": name("argparse Namespace") + b"]R",
    "protocol 9": b"\x80\x09",
    "a long integer": b"\x8b\xff\xff\xff\x7f",
    "a string of all memory": b"X\xff\xff\xff\xff",
    "bytes of all memory": b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
    "a bytearray of all memory": b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f",
    "a bad string": b"X\x02\x00\x00\x00\xff\xfe",
    "a name without an end": b"c" + b"a" * 1000,
    "a name in no encoding": b"c\xff\xfe\nx\n",
    "a long name": name("omegaconf." + "x" * 500 + " y"),
    "text opcodes": b"I4\n",
    # bombs
    "marks": b"(" * 200_000,
    "lists": b"]" * 200_000,
    "doubled": b"]" + b"2" * 200_000,
    "nested tuples": b")" + b"\x85" * 200_000,
    "nested dicts": (b"}" + put("a")) * 200_000,
    "pairs over and over": b"]("
    + put([["a", 1]] * 20)
    + b"e"
    + b"q\x00"
    + (name("collections OrderedDict") + b"h\x00\x85R0") * 30_000,
    "sizes over and over": put((1,) * 2000)
    + b"q\x00"
    + (name("torch._utils _rebuild_tensor") + b"(h\x00h\x00h\x00h\x00tR0") * 9000,
}


@pytest.mark.parametrize("layout", [zipped, legacy], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_pickles_are_one_error(tmp_path: Path, kind: str, layout) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(layout(b"\x80\x02}" + put("w") + HOSTILE[kind] + b"s."))
    assert_refused(path)


def assert_refused(path: Path) -> None:
    """One Error that names the file, soon, in memory of the file's size and a few MiB."""
    start = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(Error, match=path.name.replace(".", r"\.")) as told:
            open_torch([path])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(str(told.value)) < 400 + len(str(path))
    assert "\n" not in str(told.value)
    assert peak < 4 * path.stat().st_size + 8 * 2**20
    assert time.perf_counter() - start < 10


def test_a_memo_that_holds_itself_is_only_data(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(zipped(b"\x80\x02}q\x00(" + put("w") + tensor() + put("self") + b"h\x00" + b"u."))
    assert list(open_torch([path])) == ["w"]
    path.write_bytes(zipped(b"\x80\x02}" + put("w") + tensor() + b"sr\xff\xff\xff\xff."))
    assert list(open_torch([path])) == ["w"]


def test_tensors_may_not_multiply_their_file(tmp_path: Path) -> None:
    """A storage may have many names; the bytes that all names hold are bounded by the file's."""
    path, count = tmp_path / "x.bin", 20_000
    stored = {"data/0": bytes(4 * count)}
    for places in (1, 2):  # all in one place, or in two that overlap

        def named(names: int, places: int = places) -> bytes:
            shape = (count - 1,)
            tensors = {f"a{i}": tensor(shape, (1,), i % places, storage("0", count)) for i in range(names)}
            return zipped(pickled(tensors), stored)

        path.write_bytes(named(4))
        assert len({id(x) for x in open_torch([path]).values()}) == places
        path.write_bytes(named(5))
        with pytest.raises(Error, match="'a4' and others before it hold more than 4 times the bytes of the file"):
            open_torch([path])
    path.write_bytes(zipped(pickled({f"a{i}": tensor() for i in range(12)})))
    assert len(open_torch([path])) == 12


def test_what_lightning_keeps_beside_the_tensors_is_only_data(tmp_path: Path) -> None:
    before, path = set(sys.modules), tmp_path / "x.ckpt"
    parameters = call("lightning_fabric.utilities.data AttributeDict") + b"(" + put("lr") + put(0.1) + b"u"
    content = {"epoch": 3, "hyper_parameters": parameters, "state_dict": {"model.w": tensor()}}
    path.write_bytes(zipped(pickled(content)))
    assert list(open_torch([path])) == ["model.w"]
    assert not {module for module in set(sys.modules) - before if module.startswith(("lightning", "pytorch_lightning"))}
    path.write_bytes(zipped(pickled({"w": tensor(), "x": call("lightning_fabricated Thing")})))
    with pytest.raises(Error, match="it is refused and nothing has run"):
        open_torch([path])


def changed(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    return content.replace(old, new)


@cache
def archives() -> dict[str, bytes]:
    """Zip archives and files that are no torch file."""
    good = zipped(pickled({"w": tensor()}))
    end = good.rindex(b"PK\x05\x06")
    directory = good.index(b"PK\x01\x02")
    bomb = zipped(pickled({"w": tensor(stored=storage(count=2**24))}), {"data/0": bytes(2**26)}, zipfile.ZIP_DEFLATED)
    many = end + 10
    return {
        "nothing": b"",
        "a text": b"hello\n" * 100,
        "half": good[: len(good) // 2],
        "no end": good[:end],
        "only an end": good[end:],
        "a compressed bomb": bomb,
        "a bomb in the pickle": zipped(b"\x80\x02" + bytes(2**24), None, zipfile.ZIP_LZMA),
        "encrypted": changed(good, good[directory : directory + 10], good[directory : directory + 8] + b"\x01\x00"),
        "the same entry twice": zipped(pickled({"w": tensor()}), {"data/0": bytes(16), "data/1": bytes(16)}).replace(
            b"data/1", b"data/0"
        ),
        "two pickles": zipped(pickled({"w": tensor()}), {"data.pkm": b"N.", "data/0": bytes(16)}).replace(
            b"archive/data.pkm", b"brchive/data.pkl"
        ),
        "no pickle": good.replace(b"archive/data.pkl", b"archive/date.pkl"),
        "another archive": good.replace(b"archive/data.pkl", b"../chive/data.pkl"),
        "a program": zipped(pickled({"w": tensor()}), {"data/0": bytes(16), "constants.pkl": pickled(())}),
        "big-endian": zipped(pickled({"w": tensor()}), {"data/0": bytes(16), "byteorder": b"big"}),
        "a storage cut short": zipped(pickled({"w": tensor()}), {"data/0": bytes(15)}),
        "a name in no encoding": good.replace(b"archive/version", b"archive/versi\xff\xfe"),
        "a directory elsewhere": good[: end + 16] + struct.pack("<I", 5) + good[end + 20 :],
        "a directory past the end": good[: end + 16] + struct.pack("<I", 2**31) + good[end + 20 :],
        "more entries than there are": good[:many] + struct.pack("<H", 65000) + good[many + 2 :],
        "a pickle that ends early": zipped(b"\x80\x02}"),
        "no pickle in the pickle": zipped(b""),
        "no dict": zipped(pickled([1, 2])),
        "no tensors": zipped(pickled({"a": 1})),
        "big-endian, legacy": legacy(pickled({"w": tensor()}), little=False),
        "another magic": b"\x80\x02\x8a\x0am" + legacy(pickled({}))[5:],
        "keys that are no list": legacy(pickled({"w": tensor()}), {"0": 1}).replace(b"](X", b"}(X"),
        "keys not asked for": legacy(pickled({"w": tensor()}), ("0", "1")),
        "the same key twice": legacy(pickled({"w": tensor()}), ("0", "0")),
        "keys that lack one": legacy(pickled({"w": tensor()}), ()),
        "keys that are numbers": legacy(pickled({"w": tensor()}), (0,)),
        "a size that lies": legacy(pickled({"w": tensor()}), storages=struct.pack("<q", 2**40) + bytes(16)),
        "a size below zero": legacy(pickled({"w": tensor()}), storages=struct.pack("<q", -1) + bytes(16)),
        "storages cut short": legacy(pickled({"w": tensor()}), storages=struct.pack("<q", 4) + bytes(15)),
        "a tar archive": bytes(257) + b"ustar" + bytes(250),
    }


@pytest.mark.parametrize("kind", archives())
def test_archives_that_are_not_whole_are_one_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(archives()[kind])
    assert_refused(path)


def test_entries_that_overlap(tmp_path: Path) -> None:
    content = bytearray(zipped(pickled([tensor(), tensor(stored=storage("1"))]), {"data/0": bytes(16), "data/1": bytes(16)}))
    headers = [i for i in range(len(content)) if content[i : i + 4] == b"PK\x01\x02"]
    local = [struct.unpack_from("<I", content, header + 42)[0] for header in headers]
    content[headers[2] + 42 : headers[2] + 46] = struct.pack("<I", local[1])
    start = local[1] + 30
    assert content[start : start + 14] == b"archive/data/0"
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    assert_refused(path)


def test_directories_and_absent_files_are_told(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.bin"):
        with pytest.raises(Error, match="cannot read"):
            open_torch([path])


SEEDS = [*(FOLDER / file for file in KINDS), *(FOLDER / folder / "pytorch_model.bin" for folder in ("model", "model_legacy"))]


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_one_error(tmp_path: Path, data: st.DataObject) -> None:
    content = damaged(data.draw(st.sampled_from(SEEDS)).read_bytes(), data)
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    found = opened(path, open_torch, [path])
    assert sum(x.nbytes for x in found.values()) <= MOST_TIMES * len(content)
    assert all(len(x.tobytes()) == x.nbytes for x in found.values())


def opened(path: Path, read, *given):
    """What a reader makes of a file, or nothing where it raises the one error, naming the file."""
    said = str(path)
    try:
        return read(*given)
    except Error as error:
        said = str(error)
    assert str(path) in said
    return {}


def damaged(content: bytes, data: st.DataObject) -> bytes:
    """A file cut, flipped, with bytes put in, taken out or copied, or with another's opcodes."""
    changed = bytearray(content)
    # where the pickle or the zip directory lies the damage is worse than in the numbers
    where = st.one_of(st.integers(0, min(len(content), 4000) - 1), st.integers(0, len(content) - 1))
    for _ in range(data.draw(st.integers(1, 3))):
        place = min(data.draw(where), max(len(changed) - 1, 0))
        kind = data.draw(st.sampled_from(["cut", "flip", "byte", "insert", "delete", "copy"]))
        if kind == "cut":
            del changed[place:]
        elif kind == "flip" and changed:
            changed[place] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "byte" and changed:
            changed[place] = data.draw(st.sampled_from(b"\x80(01aehjqrstuQRb}])\x81\x85X\x8a.\xff\x00"))
        elif kind == "insert":
            changed[place:place] = data.draw(st.binary(min_size=1, max_size=12))
        elif kind == "delete":
            del changed[place : place + data.draw(st.integers(1, 40))]
        else:
            changed[place:place] = changed[place : place + data.draw(st.integers(1, 60))]
    return bytes(changed)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(opcodes=st.lists(st.sampled_from([
    b"(", b"0", b"1", b"2", b"N", b"K\x03", b"]", b"}", b")", b"a", b"e", b"s", b"u", b"t", b"\x85", b"\x86", b"\x87", b"l", b"d",
    b"q\x00", b"h\x00", b"\x94", b"Q", b"R", b"\x81", b"b", b"\x92", b"\x90", b"\x91", put("w"), put((1, 2)), storage(), tensor(),
    name("collections OrderedDict"), name("torch._utils _rebuild_tensor"), name("torch._utils _rebuild_parameter"),
    name("argparse Namespace"), name("torch Size"), name("torch FloatStorage"),
]), max_size=60))  # fmt: skip
def test_any_opcodes_are_data_or_one_error(tmp_path: Path, opcodes: list[bytes]) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(zipped(b"\x80\x02" + b"".join(opcodes) + b"."))
    file = opened(path, read_torch, path)
    kinds = (bool, int, str, list, dict, Name, Record, Storage, Tensor, tuple)
    assert not file or file.content is None or type(file.content) in kinds


LOADING = """
import sys, tracemalloc
from pathlib import Path
import tinyroberta

def peak():
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line).split()[1]) * 1024

before = peak()
tracemalloc.start()
model = tinyroberta.load(sys.argv[1], backend="numpy", dtype=sys.argv[2])
held = {}
def walk(tree):
    for value in tree.values():
        walk(value) if isinstance(value, dict) else held.setdefault(id(value), value.nbytes)
walk(model.weights)
print(sum(held.values()), peak() - before, tracemalloc.get_traced_memory()[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize(("layout", "dtype"), [("zip", "float32"), ("zip", "float64"), ("legacy", "float32")])
def test_loading_peaks_at_the_loaded_models_memory(tmp_path: Path, layout: str, dtype: str) -> None:
    sizes = {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048, "vocab_size": 16000}
    config = tinyroberta.RobertaPreLayerNormConfig(**sizes, architectures=["RobertaPreLayerNormForMaskedLM"])
    config.save_pretrained(tmp_path)
    shapes = tinyroberta.RobertaPreLayerNormForMaskedLM.encoder_shapes(config) | {
        key: shape
        for key, shape in tinyroberta.RobertaPreLayerNormForMaskedLM.head_shapes(config).items()
        if key != "lm_head.decoder.weight"
    }
    save(tmp_path / "pytorch_model.bin", {key: np.ones(shape, np.float32) for key, shape in shapes.items()}, layout)
    done = subprocess.run([sys.executable, "-c", LOADING, str(tmp_path), dtype], capture_output=True, text=True, check=True)
    model, resident, traced = map(int, done.stdout.split())
    assert model > 10**8
    assert resident <= 1.2 * model
    assert traced <= 1.2 * model
