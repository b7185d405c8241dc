"""TensorFlow checkpoints against the numbers TensorFlow computed (tools/make_golden_tf.py), and hostile ones."""

import os
import shutil
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tinyroberta
from tinyroberta import Error
from tinyroberta.weights.checkpoint import open_checkpoint
from tinyroberta.weights.tf import open_tf

h5py = pytest.importorskip("h5py")

GOLDEN = Path(__file__).parent / "golden_tf"
HEADS = (
    "Model", "ForCausalLM", "ForMaskedLM", "ForSequenceClassification", "ForMultipleChoice", "ForTokenClassification",
    "ForQuestionAnswering",
)  # fmt: skip
WHOLE = (GOLDEN / "ForMaskedLM" / "tf_model.h5").read_bytes()
WORDS = "roberta_prelayernorm.embeddings.word_embeddings.weight"
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "200"))
fuzzed = settings(
    max_examples=EXAMPLES, deadline=10_000, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def check_outputs(folder: Path, golden: Path) -> None:
    """A folder's model gives the outputs that its framework gave, to 2e-6 of the largest, in both precisions.

    A padded token's -10000 and a sum less 1e-9 in TensorFlow's softmax are nothing in float32 beside a token that is attended.
    """
    arrays = np.load(golden)
    inputs = {name: arrays[name] for name in arrays.files if not name.startswith("output.")}
    for dtype in ("float32", "float64"):
        outputs = tinyroberta.load(folder, dtype=dtype, backend="numpy")(**inputs, padding="compute")
        for name in arrays.files:
            if name.startswith("output."):
                expected = arrays[name]
                np.testing.assert_allclose(outputs[name[7:]], expected, rtol=0, atol=2e-6 * np.abs(expected).max(), err_msg=name)


@pytest.mark.parametrize("head", HEADS)
def test_tf_class_gives_its_numbers(head: str) -> None:
    model = tinyroberta.load(GOLDEN / head)
    assert type(model).__name__ == f"RobertaPreLayerNorm{head}"
    check_outputs(GOLDEN / head, GOLDEN / head / "outputs.npz")


@pytest.mark.parametrize("form", ["sharded", "safetensors"])
def test_rarer_forms_give_their_numbers(form: str) -> None:
    check_outputs(GOLDEN / form, GOLDEN / "small.npz")


@pytest.mark.parametrize("head", HEADS)
def test_arrays_are_those_that_h5py_reads(head: str) -> None:
    stored = open_tf(GOLDEN / head / "tf_model.h5")
    read = {}
    with h5py.File(GOLDEN / head / "tf_model.h5") as file:
        for layer in file.attrs["layer_names"]:
            for name in file[layer].attrs["weight_names"]:
                read[f"{layer}/{name}"] = file[layer][name][()]
    sources = {source: name for name in stored for source in stored.sources(name)}
    assert set(sources) == set(read)
    for source, array in read.items():
        expected = array.T if source.endswith("kernel:0") else array
        np.testing.assert_array_equal(stored[sources[source]], expected)
        assert stored.shape(sources[source]) == expected.shape
        assert stored.dtype(sources[source]) == "float32"


def test_duplicated_embeddings_must_agree(tmp_path: Path) -> None:
    path = tmp_path / "tf_model.h5"
    shutil.copyfile(GOLDEN / "ForMaskedLM" / "tf_model.h5", path)
    assert len(open_tf(path).sources(WORDS)) == 2
    with h5py.File(path, "r+") as file:
        file["lm_head"][file["lm_head"].attrs["weight_names"][-1]][...] = 0
        changed = file["lm_head"].attrs["weight_names"][-1]
    stored = open_tf(path)
    (name,) = (name for name in stored for source in stored.sources(name) if source == f"lm_head/{changed}")
    with pytest.raises(Error, match="differ"):
        stored[name]


def test_model_name_levels_are_any(tmp_path: Path) -> None:
    path = tmp_path / "tf_model.h5"
    with h5py.File(path, "w") as file:
        file["roberta_prelayernorm/my_own_model/roberta_prelayernorm/pooler/dense/kernel:0"] = np.ones((2, 3), np.float16)
        file["classifier/my_own_model/classifier/bias:0"] = np.ones(3)
        file["dropout"] = np.ones(1)
        del file["dropout"]
        file.create_group("dropout")
    stored = open_tf(path)
    assert {name: (stored.shape(name), stored.dtype(name)) for name in stored} == {
        "roberta_prelayernorm.pooler.dense.weight": ((3, 2), "float16"),
        "classifier.bias": ((3,), "float64"),
    }


def test_group_of_many_members_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tf_model.h5"
    with h5py.File(path, "w") as file:
        for index in range(500):
            file[f"roberta_prelayernorm/encoder/layer_._{index}/bias:0"] = np.full(1, index, np.float32)
    stored = open_tf(path)
    assert len(stored) == 500
    assert all(stored[f"roberta_prelayernorm.encoder.layer.{index}.bias"] == index for index in range(500))


def written(name: str) -> Callable[[Callable[[h5py.File], None]], Callable[[h5py.File], None]]:
    def keep(function: Callable[[h5py.File], None]) -> Callable[[h5py.File], None]:
        HOSTILE[name] = function
        return function

    return keep


HOSTILE: dict[str, Callable[[h5py.File], None]] = {
    "never written": lambda file: file.create_dataset("a", (10**6, 10**6), "f4"),
    "a fill value": lambda file: file.create_dataset("a", (10**12,), "f4", fillvalue=1.0),
    "chunks": lambda file: file.create_dataset("a", data=np.zeros(10**6, "f4"), chunks=True),
    "compressed": lambda file: file.create_dataset("a", data=np.zeros(10**6, "f4"), compression="gzip"),
    "shuffled": lambda file: file.create_dataset("a", data=np.zeros(10**4, "f4"), shuffle=True),
    "growing": lambda file: file.create_dataset("a", (10**12,), "f4", maxshape=(None,)),
    "a soft link": lambda file: file.__setitem__("a", h5py.SoftLink("/b")),
    "a soft link to itself": lambda file: file.__setitem__("a", h5py.SoftLink("/a")),
    "a link to another file": lambda file: file.__setitem__("a", h5py.ExternalLink("/etc/passwd", "/")),
    "data in another file": lambda file: file.create_dataset("a", (4,), "f4", external=[("/etc/passwd", 0, 16)]),
    "a group in itself": lambda file: file.create_group("a").__setitem__("b", file["a"]),
    "the root in a group": lambda file: file.create_group("a").__setitem__("b", file["/"]),
    "an array twice": lambda file: (file.__setitem__("a", np.ones(3)), file.__setitem__("b", file["a"])),
    "strings": lambda file: file.create_dataset("a", data=[b"abc"]),
    "strings of any length": lambda file: file.create_dataset("a", data=["abc"], dtype=h5py.string_dtype()),
    "records": lambda file: file.create_dataset("a", data=np.zeros(3, [("x", "f4"), ("y", "i4")])),
    "references": lambda file: file.create_dataset("a", data=[file.ref], dtype=h5py.ref_dtype),
    "big-endian": lambda file: file.create_dataset("a", data=np.ones(3, ">f4")),
    "complex": lambda file: file.create_dataset("a", data=np.ones(3, "c8")),
    "unsigned": lambda file: file.create_dataset("a", data=np.ones(3, "u4")),
    "nothing at all": lambda file: file.create_dataset("a", data=h5py.Empty("f4")),
    "no numbers": lambda file: file.create_dataset("a", (0, 10**12), "f4"),
    "a named datatype": lambda file: file.__setitem__("a", np.dtype("f4")),
    "many dimensions": lambda file: file.create_dataset("a", data=np.ones((1,) * 30, "f4")),
    "groups without end": lambda file: file.create_group("/".join(["a"] * 100)),
    "a long path": lambda file: file.create_dataset("/".join(["a" * 100] * 20), data=np.ones(3)),
    "a long name": lambda file: file.create_dataset("a" * 5000, data=np.ones(3)),
}


@written("virtual")
def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((10**6,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "a", (10**6,))
    file.create_virtual_dataset("a", layout)


@written("a datatype kept elsewhere")
def _shared(file: h5py.File) -> None:
    file["t"] = np.dtype("f4")
    file.create_dataset("a", data=np.ones(3, "f4"), dtype=file["t"])
    del file["t"]


@written("compact")
def _compact(file: h5py.File) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    h5py.h5d.create(file.id, b"a", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((4,)), plist)


@pytest.mark.parametrize("write", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_file_is_refused_by_name(write: Callable[[h5py.File], None], tmp_path: Path) -> None:
    path = tmp_path / "tf_model.h5"
    with h5py.File(path, "w") as file:
        write(file)
    with pytest.raises(Error, match=r"tf_model\.h5"):
        open_tf(path)


@pytest.mark.parametrize("libver", ["v108", "v110", "latest"])
def test_newer_layout_is_refused_with_the_reason(libver: str, tmp_path: Path) -> None:
    path = tmp_path / "tf_model.h5"
    with h5py.File(path, "w", libver=libver) as file:
        file["a/b"] = np.ones(3, np.float32)
    with pytest.raises(Error, match=r"tf_model\.h5.*superblock has version"):
        open_tf(path)


def test_headers_that_share_a_long_rest_are_refused_soon(tmp_path: Path) -> None:
    """60 arrays whose headers all go on in the same half megabyte of empty messages: 4 million reads in a file of 600 kB."""
    path = tmp_path / "tf_model.h5"
    with h5py.File(path, "w") as file:
        for index in range(60):
            file[f"a{index}"] = np.ones(3, np.float32)
        headers = [h5py.h5o.get_info(file[name].id).addr for name in file]
    content = bytearray(path.read_bytes())
    end = len(content)
    for index, header in enumerate(headers):
        at = header + 16
        while (kind := int.from_bytes(content[at : at + 2], "little")) in (1, 3, 8) or content[at + 2] < 16:
            at += 8 + int.from_bytes(content[at + 2 : at + 4], "little")
        assert kind in (0, 5, 18)  # nothing, a fill value, a time: not needed
        content[header + 2 : header + 4] = b"\xff\xff"
        content[at : at + 2] = b"\x10\0"
        content[at + 8 : at + 24] = (end + 8 * index).to_bytes(8, "little") + (8 * 65535).to_bytes(8, "little")
    content += bytes(8 * (65535 + len(headers)))
    path.write_bytes(content)
    tracemalloc.start()
    try:
        start = time.perf_counter()
        with pytest.raises(Error, match=r"tf_model\.h5.*steps do not reach its end"):
            open_tf(path)
        assert time.perf_counter() - start < 10
        assert tracemalloc.get_traced_memory()[1] < 5 * 10**7
    finally:
        tracemalloc.stop()


def check_opened_or_refused(content: bytes, path: Path) -> None:
    """A damaged file opens and reads within its own bytes, or is an Error that names it."""
    path.write_bytes(content)
    refusal = path.name
    try:
        stored = open_tf(path)
        assert sum(array.nbytes for array in stored.values()) <= len(content)
    except Error as error:
        refusal = str(error)
    assert path.name in refusal


@fuzzed
@given(st.integers(0, len(WHOLE) - 1))
def test_truncated_file_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "tf_model.h5"
    path.write_bytes(WHOLE[:size])
    with pytest.raises(Error, match=r"tf_model\.h5"):
        open_tf(path)


# the file is mostly structure, and mostly zeros: half of the changes go where there is something
FULL = [at for at, byte in enumerate(WHOLE) if byte]
places = st.integers(0, len(WHOLE) - 1) | st.sampled_from(FULL)


@fuzzed
@given(st.lists(st.tuples(places, st.integers(0, 7)), min_size=1, max_size=20))
def test_flipped_bits_are_read_or_refused(tmp_path: Path, flips: list[tuple[int, int]]) -> None:
    content = bytearray(WHOLE)
    for at, bit in flips:
        content[at] ^= 1 << bit
    check_opened_or_refused(bytes(content), tmp_path / "tf_model.h5")


@fuzzed
@given(st.lists(st.tuples(places, st.binary(min_size=1, max_size=16)), min_size=1, max_size=4))
def test_overwritten_bytes_are_read_or_refused(tmp_path: Path, changes: list[tuple[int, bytes]]) -> None:
    content = bytearray(WHOLE)
    for at, new in changes:
        content[at : at + len(new)] = new
    check_opened_or_refused(bytes(content), tmp_path / "tf_model.h5")


@fuzzed
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) // 8 - 1), st.integers(0, len(WHOLE) // 8 - 1)), min_size=1, max_size=4))
def test_moved_words_are_read_or_refused(tmp_path: Path, moves: list[tuple[int, int]]) -> None:
    """Addresses copied over other addresses, which makes loops and overlaps."""
    content = bytearray(WHOLE)
    for source, target in moves:
        content[8 * target : 8 * target + 8] = WHOLE[8 * source : 8 * source + 8]
    check_opened_or_refused(bytes(content), tmp_path / "tf_model.h5")


def test_every_byte_of_a_small_file_may_be_wrong(tmp_path: Path) -> None:
    path = tmp_path / "tf_model.h5"
    with h5py.File(path, "w") as file:
        file["lm_head/m/lm_head/dense/kernel:0"] = np.ones((2, 3), np.float32)
    small = path.read_bytes()
    for at in range(len(small)) if EXAMPLES > 200 else [at for at, byte in enumerate(small) if byte]:
        for value in {0, 1, 0x10, 0x80, 0xFF, *(small[at] ^ 1 << bit for bit in range(8) if EXAMPLES > 200)}:
            check_opened_or_refused(small[:at] + bytes([value]) + small[at + 1 :], path)


@fuzzed
@given(st.binary(max_size=200).map(lambda content: WHOLE[:8] + content))
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    check_opened_or_refused(content, tmp_path / "tf_model.h5")


def test_ten_gigabytes_are_opened_at_once(tmp_path: Path) -> None:
    """A sparse file: only the pages that are looked at exist."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    path = tmp_path / "tf_model.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("classifier/m/classifier")
        space = h5py.h5s.create_simple((50_000, 50_000))
        h5py.h5d.create(group.id, b"kernel:0", h5py.h5t.IEEE_F32LE, space, creation)
        group["bias:0"] = np.arange(4, dtype=np.float32)
    assert path.stat().st_size > 10**10
    start = time.perf_counter()
    stored = open_tf(path)
    assert stored.shape("classifier.weight") == (50_000, 50_000)
    np.testing.assert_array_equal(stored["classifier.bias"], np.arange(4))
    assert time.perf_counter() - start < 1


def test_safetensors_of_tensorflow_are_the_same_weights() -> None:
    sharded, single = open_checkpoint(GOLDEN / "sharded"), open_checkpoint(GOLDEN / "safetensors")
    assert set(sharded) == set(single)
    for name in sharded:
        np.testing.assert_array_equal(sharded[name], single[name])
