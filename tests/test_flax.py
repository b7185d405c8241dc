"""Flax checkpoints against the numbers Flax computed (tools/make_golden_flax.py), and hostile ones."""

import json
import os
import struct
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tinyroberta
from tinyroberta import Error
from tinyroberta.weights.checkpoint import open_checkpoint
from tinyroberta.weights.flax import open_flax

msgpack = pytest.importorskip("msgpack")

GOLDEN = Path(__file__).parent / "golden_flax"
HEADS = (
    "Model", "ForCausalLM", "ForMaskedLM", "ForSequenceClassification", "ForMultipleChoice", "ForTokenClassification",
    "ForQuestionAnswering",
)  # fmt: skip
WHOLE = (GOLDEN / "ForMaskedLM" / "flax_model.msgpack").read_bytes()
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "200"))
fuzzed = settings(
    max_examples=EXAMPLES, deadline=10_000, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def check_outputs(folder: Path, golden: Path) -> None:
    """A folder's model gives the outputs that its framework gave, to 2e-6 of the largest, in both precisions."""
    arrays = np.load(golden)
    inputs = {name: arrays[name] for name in arrays.files if not name.startswith("output.")}
    for dtype in ("float32", "float64"):
        outputs = tinyroberta.load(folder, dtype=dtype, backend="numpy")(**inputs, padding="compute")
        for name in arrays.files:
            if name.startswith("output."):
                expected = arrays[name]
                np.testing.assert_allclose(outputs[name[7:]], expected, rtol=0, atol=2e-6 * np.abs(expected).max(), err_msg=name)


def numbers_of(stored: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: np.ascontiguousarray(value).tobytes() for name, value in stored.items()}


@pytest.mark.parametrize("head", HEADS)
def test_flax_class_gives_its_numbers(head: str) -> None:
    model = tinyroberta.load(GOLDEN / head)
    assert type(model).__name__ == f"RobertaPreLayerNorm{head}"
    check_outputs(GOLDEN / head, GOLDEN / head / "outputs.npz")


@pytest.mark.parametrize("form", ["sharded", "safetensors"])
def test_rarer_forms_give_their_numbers(form: str) -> None:
    check_outputs(GOLDEN / form, GOLDEN / "small.npz")


def test_chunked_bfloat16_leaves_are_the_rounded_ones() -> None:
    whole, chunked = open_checkpoint(GOLDEN / "sharded"), open_checkpoint(GOLDEN / "chunked_bfloat16")
    assert set(whole) == set(chunked)
    assert (GOLDEN / "chunked_bfloat16" / "flax_model.msgpack").read_bytes().count(b"__msgpack_chunked_array__") > 1
    for name in whole:
        assert chunked.dtype(name) == "bfloat16"
        np.testing.assert_array_equal(chunked[name], whole[name].astype(ml_dtypes.bfloat16))


def test_names_shapes_and_dtypes_are_known_without_reading() -> None:
    stored = open_flax(GOLDEN / "ForMaskedLM" / "flax_model.msgpack")
    name = "roberta_prelayernorm.encoder.layer.1.intermediate.dense.weight"
    assert stored.shape(name) == (18, 16) == stored[name].shape
    assert stored.dtype(name) == "float32"
    assert stored[name].flags.c_contiguous
    assert "lm_head.bias" in stored
    assert not stored.aliases


def packed(array: np.ndarray, name: str | None = None) -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb((array.shape, name or array.dtype.name, array.tobytes())))


def as_tree(stored: dict[str, np.ndarray], gain: str, shift: str) -> dict:
    """The tree that an earlier Flax wrote: gains and shifts of the norms under other names."""
    tree: dict = {}
    for name, value in stored.items():
        *path, leaf = name.split(".")
        if path[-1] in ("LayerNorm", "layer_norm"):
            leaf = gain if leaf == "weight" else shift
        elif leaf == "weight":
            leaf, value = ("embedding", value) if path[-1].endswith("embeddings") else ("kernel", value.T)
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[leaf] = packed(np.ascontiguousarray(value))
    return tree


def test_gamma_and_beta_of_old_files(tmp_path: Path) -> None:
    stored = open_flax(GOLDEN / "ForMaskedLM" / "flax_model.msgpack")
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(msgpack.packb(as_tree(dict(stored), "gamma", "beta")))
    assert numbers_of(dict(open_flax(path))) == numbers_of(dict(stored))


def test_untied_decoder_is_a_kernel_too(tmp_path: Path) -> None:
    path = tmp_path / "flax_model.msgpack"
    kernel = np.arange(12, dtype=np.float32).reshape(3, 4)
    path.write_bytes(msgpack.packb({"lm_head": {"decoder": {"kernel": packed(kernel)}}}))
    np.testing.assert_array_equal(open_flax(path)["lm_head.decoder.weight"], kernel.T)


def nested(names: list[str], value: object) -> object:
    for name in reversed(names):
        value = {name: value}
    return value


ONE = np.ones(4, np.float32)
HOSTILE = {
    "empty": b"",
    "not a map": msgpack.packb([1, 2]),
    "a number": msgpack.packb({"a": 1}),
    "a string": msgpack.packb({"a": "b"}),
    "nothing": msgpack.packb({"a": None}),
    "a timestamp": msgpack.packb({"a": msgpack.Timestamp(1)}),
    "a complex number": msgpack.packb({"a": msgpack.ExtType(2, msgpack.packb((1.0, 2.0)))}),
    "bytes follow": msgpack.packb({"a": packed(ONE)}) + b"\0",
    "a wrong shape": msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((5,), "float32", ONE.tobytes())))}),
    "a huge shape": msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((2**63, 2**63), "float32", ONE.tobytes())))}),
    "a huge empty shape": msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((2**63, 0), "float32", b"")))}),
    "many dimensions": msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((1,) * 99, "float32", b"\0" * 4)))}),
    "an object dtype": msgpack.packb({"a": packed(ONE, "object")}),
    "a void dtype": msgpack.packb({"a": packed(ONE, "V16")}),
    "a long dtype": msgpack.packb({"a": packed(ONE, "f" * 5000)}),
    "a long name": msgpack.packb({"a" * 5000: packed(ONE)}),
    "a name of bytes": msgpack.packb({b"\xff": packed(ONE)}),
    "a name that is no text": b"\x81\xa1\xff" + msgpack.packb(packed(ONE)),
    "a number as a name": b"\x81\x01" + msgpack.packb(packed(ONE)),
    "a name twice": b"\x82" + 2 * (b"\xa1a" + msgpack.packb(packed(ONE))),
    "one name by two ways": msgpack.packb({"a": {"b": packed(ONE)}, "a.b": packed(ONE)}),
    "weight and kernel": msgpack.packb({"a": {"weight": packed(ONE), "kernel": packed(ONE)}}),
    "a map of 2^32 entries": b"\xdf\xff\xff\xff\xff",
    "an extension of 2^32 bytes": b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",
    "an array of 2^32 dimensions": b"\x81\xa1a\xc7\x06\x01\x93\xdd\xff\xff\xff\xff",
    "bytes past the extension": b"\x81\xa1a\xc7\x08\x01\x93\x91\x04\xa7float32\xc4\x10" + ONE.tobytes(),
    "a million maps": b"\xdf\x00\x0f\x42\x40"
    + b"".join(b"\xa4" + struct.pack("I", i & 0x7F7F7F7F) + b"\x80" for i in range(10**6)),
    "maps without end": b"\x81\xa1a" * 10_000,
    "chunks without a shape": msgpack.packb({"a": {"__msgpack_chunked_array__": True, "chunks": {"0": packed(ONE)}}}),
    "a shape without chunks": msgpack.packb({"a": {"__msgpack_chunked_array__": True, "shape": {"0": 4}}}),
    "chunks of two dtypes": msgpack.packb(
        {"a": {"__msgpack_chunked_array__": True, "shape": {"0": 8}, "chunks": {"0": packed(ONE), "1": packed(ONE.view("i4"))}}}
    ),
    "a missing chunk": msgpack.packb(
        {"a": {"__msgpack_chunked_array__": True, "shape": {"0": 8}, "chunks": {"0": packed(ONE), "2": packed(ONE)}}}
    ),
    "chunks that fall short": msgpack.packb(
        {"a": {"__msgpack_chunked_array__": True, "shape": {"0": 10**12}, "chunks": {"0": packed(ONE)}}}
    ),
    "a shape of arrays": msgpack.packb(
        {"a": {"__msgpack_chunked_array__": True, "shape": {"0": packed(ONE)}, "chunks": {"0": packed(ONE)}}}
    ),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_file_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(content)
    with pytest.raises(Error, match=r"flax_model\.msgpack"):
        open_flax(path)


def test_names_take_no_more_memory_than_a_model_s(tmp_path: Path) -> None:
    """20,000 arrays of one number, each below 500 bytes of names that the file holds once."""
    path = tmp_path / "flax_model.msgpack"
    leaf = packed(np.ones(1, np.float16))
    path.write_bytes(msgpack.packb(nested(["a" * 30] * 15, {f"{index}": leaf for index in range(19_000)})))
    tracemalloc.start()
    try:
        assert len(open_flax(path)) == 19_000
        assert tracemalloc.get_traced_memory()[1] < 5 * 10**7
    finally:
        tracemalloc.stop()


def test_indexes_that_lie(tmp_path: Path) -> None:
    for shard in (GOLDEN / "sharded").iterdir():
        (tmp_path / shard.name).write_bytes(shard.read_bytes())
    index = tmp_path / "flax_model.msgpack.index.json"
    first, second = sorted(tmp_path.glob("*.msgpack"))
    assert len(open_flax(tmp_path)) == 25
    for name, said in (("../x", "not a file beside it"), ("x", "does not hold")):
        index.write_text(json.dumps({"weight_map": {"a": name, "b": first.name}}))
        with pytest.raises(Error, match=said):
            open_flax(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": first.name, "b": second.name}}))
    second.write_bytes(first.read_bytes())
    with pytest.raises(Error, match="both hold"):
        open_flax(tmp_path)
    index.unlink()
    with pytest.raises(Error, match="neither"):
        open_flax(tmp_path)


def check_opened_or_refused(content: bytes, path: Path) -> None:
    """A damaged file opens and reads within its own bytes, or is an Error that names it."""
    path.write_bytes(content)
    refusal = path.name
    try:
        stored = open_flax(path)
        assert sum(array.nbytes for array in stored.values()) <= len(content)
    except Error as error:
        refusal = str(error)
    assert path.name in refusal


@fuzzed
@given(st.integers(0, len(WHOLE) - 1))
def test_truncated_file_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(WHOLE[:size])
    with pytest.raises(Error, match=r"flax_model\.msgpack"):
        open_flax(path)


def test_every_byte_of_the_structure_may_be_wrong(tmp_path: Path) -> None:
    small = msgpack.packb({"a": {"kernel": packed(np.ones((2, 3), np.float32))}, "b": {"bias": packed(ONE)}})
    for at in range(len(small)):
        for value in range(256) if EXAMPLES > 200 else (0, 1, 0x7F, 0x80, 0x81, 0x90, 0xA0, 0xC7, 0xC9, 0xD4, 0xDD, 0xDF, 0xFF):
            check_opened_or_refused(small[:at] + bytes([value]) + small[at + 1 :], tmp_path / "flax_model.msgpack")


@fuzzed
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 7)), min_size=1, max_size=20))
def test_flipped_bits_are_read_or_refused(tmp_path: Path, flips: list[tuple[int, int]]) -> None:
    content = bytearray(WHOLE)
    for at, bit in flips:
        content[at] ^= 1 << bit
    check_opened_or_refused(bytes(content), tmp_path / "flax_model.msgpack")


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=4) | st.binary(max_size=40)
    | st.builds(lambda code, data: msgpack.ExtType(code, data), st.integers(0, 5), st.binary(max_size=40))
    | st.builds(
        lambda shape, dtype, data: msgpack.ExtType(1, msgpack.packb((shape, dtype, data))),
        st.lists(st.integers(-1, 2**40), max_size=4), st.sampled_from(["float32", "bfloat16", "S8", "O"]), st.binary(max_size=40),
    ),
    lambda inner: st.dictionaries(
        st.sampled_from(["a", "kernel", "__msgpack_chunked_array__", "shape", "chunks", "0", "1"]) | st.text(max_size=3), inner
    ) | st.lists(inner, max_size=4),
)  # fmt: skip


@fuzzed
@given(st.dictionaries(st.text(max_size=3), values, max_size=4))
def test_any_messagepack_is_read_or_refused(tmp_path: Path, tree: dict) -> None:
    check_opened_or_refused(msgpack.packb(tree), tmp_path / "flax_model.msgpack")


@fuzzed
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    check_opened_or_refused(content, tmp_path / "flax_model.msgpack")
