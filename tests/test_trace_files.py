"""trace.save and what reads it: every call, of every class, comes back; what is no trace is refused in one sentence."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from test_tap import model_of, pair, texts

from tinyroberta import Error, trace, traces
from tinyroberta.numerics import importers, live, transplant


def saved(path: Path, model: Any, inputs: Any, **options: Any) -> traces.TraceFile:
    with trace(model) as seen:
        model(**inputs, **options)
    seen.save(path)
    read = traces.load(path)
    for call, found in zip(seen.calls, read.calls, strict=True):
        assert list(found.arrays) == list(call.arrays)  # in the order in which they passed
        for name, x in call.arrays.items():
            np.testing.assert_array_equal(found.arrays[name], x, strict=True)
        assert found.shape == call.rows.shape
        every = np.arange(found.shape[0] * found.shape[1])
        assert np.array_equal(found.rows(), every if call.rows.places is None else call.rows.places)
    return read


@pytest.mark.parametrize("place", range(7))
def test_what_is_saved_is_read_and_can_be_run_again(place: int, tmp_path: Path) -> None:
    model, inputs = model_of("roberta-prelayernorm", place), texts(1 + (place == 4))
    for padding in ("skip", "compute"):
        read = saved(tmp_path / "a.safetensors", model, inputs, padding=padding)
        (call,) = read.calls
        kept = inputs["attention_mask"].reshape(-1, 9) == 1
        for name in ("input_ids", "attention_mask"):
            assert np.array_equal(call.inputs[name][kept], inputs[name].reshape(-1, 9)[kept])
        if call.places is not None:
            assert np.array_equal(call.places, traces.packed_places(call.inputs["attention_mask"]))
        with trace(model) as again:
            transplant.replay(model, call)
        for name, x in call.arrays.items():
            np.testing.assert_array_equal(again[name], x, err_msg=name, strict=True)


def test_the_manifest_says_what_ran(tmp_path: Path) -> None:
    model = model_of("xlm-roberta-xl")
    model.save_pretrained(tmp_path / "model")
    again = type(model).from_pretrained(tmp_path / "model", backend="numpy", dtype="float64", threads=1)
    told = saved(tmp_path / "a.safetensors", again, texts()).manifest
    assert told["schema"] == 1
    assert told["model"] == str(tmp_path / "model")
    assert told["class"] == "XLMRobertaXLForMaskedLM"
    assert (told["backend"], told["dtype"], told["precision"], told["threads"]) == ("numpy", "float64", "highest", 1)
    assert told["config"]["hidden_size"] == 48
    assert {"python", "numpy"} <= set(told["versions"])
    assert told["weights"] == traces.weight_hashes(model)  # whoever holds the same numbers has the same hashes
    stored = safetensors.numpy.load_file(tmp_path / "model" / "model.safetensors")
    theirs = {name.removeprefix("roberta."): traces.hashed(x.astype(np.float64)) for name, x in stored.items()}
    assert theirs.items() <= (told["weights"] | {"lm_head.bias": theirs["lm_head.bias"]}).items()


def test_calls_that_ids_do_not_say_have_no_inputs(tmp_path: Path) -> None:
    decoder, ids = model_of(place=1), texts()["input_ids"][:1]
    with trace(decoder) as seen:
        decoder.generate(ids, max_new_tokens=2, do_sample=False, eos_token_id=None)
    seen.save(tmp_path / "a.safetensors")
    read = traces.load(tmp_path / "a.safetensors")
    assert [call.inputs is None for call in read.calls] == [False, True]
    model, vectors = model_of(), np.zeros((1, 3, 48), np.float32)
    assert saved(tmp_path / "a.safetensors", model, {"inputs_embeds": vectors}).calls[0].inputs is None
    assert saved(tmp_path / "a.safetensors", model, texts(), head_mask=np.ones(3)).calls[0].inputs is None
    half = texts() | {"attention_mask": texts()["attention_mask"] * 0.5}
    assert saved(tmp_path / "a.safetensors", model, half).calls[0].inputs is None
    both = pair({"backend": "numpy"})
    read = saved(tmp_path / "a.safetensors", both, {**texts(), "decoder_input_ids": [[3, 4]] * 3})
    assert [call.part for call in read.calls] == ["encoder.", "decoder."]
    assert {"encoder.embeddings.word_embeddings.weight", "decoder.lm_head.dense.weight"} <= set(read.manifest["weights"])


def rewritten(path: Path, change: Any) -> Path:
    """The trace in a file with another manifest."""
    with safetensors.safe_open(path, "np") as file:
        manifest = json.loads(file.metadata()[traces.KEY])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    told = change(manifest, arrays)
    metadata = {traces.KEY: told if isinstance(told, str) else json.dumps(manifest)}
    safetensors.numpy.save_file(arrays, path, metadata)
    return path


LAYER = "encoder.layer.0"


def _moved(place: int) -> Any:
    return lambda told, _: told["calls"][0].update(places=[place] * len(told["calls"][0]["places"]))


@pytest.mark.parametrize(("change", "said"), [
    (lambda told, _: told.update(schema=2), "a trace of schema 2; this version reads up to 1"),
    (lambda told, _: told.update(schema=0), "schema is 0"),
    (lambda told, _: told.pop("schema"), "not valid: KeyError"),
    (lambda told, _: told.pop("calls"), "not valid: KeyError"),
    (lambda told, _: told.update(calls=[]), "not valid: IndexError"),
    (lambda told, _: told["calls"][0].update(shape=[3]), "not valid: ValueError"),
    (lambda told, _: told["calls"][0].update(shape=[3, 8]), "not valid: ValueError: .*places|input_ids"),
    (_moved(99), "places are not rows of 3 x 9 positions"),
    (_moved(-1), "places are not rows of 3 x 9 positions"),
    (lambda told, _: told["calls"][0]["inputs"].update(input_ids=[[1, 2]]), "input_ids has shape"),
    (lambda told, _: told["calls"][0]["inputs"].update(input_ids="x"), "not valid"),
    (lambda _, arrays: arrays.update({LAYER: arrays[LAYER][1:]}), r"encoder.layer.0 has shape \(20, 48\)"),
    (lambda _, arrays: arrays.update({LAYER: np.zeros(3, np.float32)}), r"encoder.layer.0 has shape \(3,\)"),
    (lambda _, arrays: arrays.update({LAYER: np.zeros((21, 48), np.int32)}), "which no activation is"),
    (lambda _, arrays: arrays.update({f"7/{LAYER}": np.zeros((21, 48))}), "not valid: IndexError"),
    (lambda *_: "{", "not valid: JSONDecodeError"),
    (lambda *_: "[1]", "not valid: TypeError"),
    (lambda *_: "[" * 100_000, "not valid: RecursionError"),
])  # fmt: skip
def test_manifests_that_are_wrong(change: Any, said: str, tmp_path: Path) -> None:
    saved(tmp_path / "a.safetensors", model_of(), texts())
    with pytest.raises(Error, match=said):
        traces.load(rewritten(tmp_path / "a.safetensors", change))


def test_files_that_are_no_trace(tmp_path: Path) -> None:
    model, path = model_of(), tmp_path / "a.safetensors"
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(Error, match="without a trace's manifest"):
        traces.load(tmp_path / "model" / "model.safetensors")
    saved(path, model, texts())
    whole = path.read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(Error):
            traces.load(path)
    path.write_bytes(b"\0" * 64)
    for bad in (path, tmp_path, tmp_path / "absent.safetensors"):
        with pytest.raises(Error):
            traces.load(bad)
    with trace(model) as seen:
        model(**texts())
    with pytest.raises(Error, match="cannot write"):
        seen.save(path / "below.safetensors")


# Other programs' arrays.


def stored(path: Path, model: Any, names: dict[str, str], **inputs: Any) -> Path:
    """An .npz of a model's arrays (B, S, ...) under other names."""
    with trace(model) as seen:
        model(**texts())
    rows = seen.calls[0].rows
    arrays = {theirs: rows.unpack(seen[ours]) for ours, theirs in names.items()}
    np.savez(path, **arrays, **inputs)
    return path


def test_an_npz_with_names_of_its_own(tmp_path: Path) -> None:
    model, inputs = model_of(), texts()
    names = {"embeddings": "emb", "encoder.layer.0": "block_0/out", "encoder.layer.1": "block_1/out"}
    path = stored(tmp_path / "a.npz", model, names, tokens=inputs["input_ids"], seen=inputs["attention_mask"])
    (tmp_path / "names.txt").write_text(
        "# what theirs are called\ntokens -> input_ids\nseen -> attention_mask\n"
        "block_*/out -> encoder.layer.*  # each\nemb->embeddings\n"
    )
    read = importers.open_trace(str(path), str(tmp_path / "names.txt"))
    importers.settle(read, model, None)
    with trace(model) as seen:
        model(**inputs)
    for name in names:
        np.testing.assert_array_equal(read.calls[0].arrays[name], seen[name])


def test_stacked_hidden_states_and_ids_from_elsewhere(tmp_path: Path) -> None:
    model, inputs = model_of(place=0), texts()
    states = np.stack(model(**inputs, output_hidden_states=True).hidden_states)
    np.savez(tmp_path / "a.npz", states=states)
    (tmp_path / "names.txt").write_text("states -> hidden_states.*")
    read = importers.open_trace(str(tmp_path / "a.npz"), str(tmp_path / "names.txt"))
    importers.settle(read, model, inputs)
    with trace(model) as seen:
        model(**inputs)
    assert list(read.calls[0].arrays) == ["embeddings", "encoder.layer.0", "LayerNorm"]
    for name, x in read.calls[0].arrays.items():
        np.testing.assert_array_equal(x, seen[name])
    one = live.padded([[0, 5, 2]], 1)
    np.savez(tmp_path / "b.npz", embeddings=np.zeros((3, 48), np.float32))  # one text without an axis for it
    read = importers.open_trace(str(tmp_path / "b.npz"))
    importers.settle(read, model, one)
    assert read.calls[0].arrays["embeddings"].shape == (3, 48)


@pytest.mark.parametrize(("table", "arrays", "said"), [
    ("a = b", {}, "line 1: 'a = b' is no name"),
    ("a_* -> encoder.layer.0", {}, "is no name"),
    ("# nothing", {}, "holds no name"),
    ("x -> embeddings", {}, "names x, and .* holds y"),
    ("y -> embedings", {"input_ids": np.zeros((3, 9), np.int64)}, "embedings is no name of this model"),
    ("y -> embeddings", {"input_ids": np.zeros((2, 2), np.int64)}, r"embeddings has shape \(3, 9, 48\); it must be \(2, 2"),
    ("y -> embeddings", {"input_ids": np.zeros((1, 2, 3), np.int64)}, "input_ids and all beside it must be"),
    ("y -> input_ids", {}, r"input_ids has shape \(3, 9, 48\)"),
    ("y -> embeddings\nz -> attention_mask", {"z": np.full((3, 9), 2), "input_ids": np.zeros((3, 9), int)}, "other numbers than"),
    ("y -> embeddings\nz -> LayerNorm", {"z": np.array(["a"])}, "which is no number"),
])  # fmt: skip
def test_tables_and_arrays_that_are_wrong(table: str, arrays: Any, said: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(table + "\ninput_ids -> input_ids" * ("input_ids" in arrays))
    np.savez(tmp_path / "a.npz", y=np.zeros((3, 9, 48), np.float32), **arrays)
    with pytest.raises(Error, match=said):
        importers.settle(importers.open_trace(str(tmp_path / "a.npz"), str(tmp_path / "names.txt")), model_of(), None)


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\3\4 nothing")
    np.savez(tmp_path / "b.npz", x=np.array([{}], object))
    for name in ("a.npz", "b.npz"):
        with pytest.raises(Error, match=r"is no \.npz that can be read"):
            importers.open_trace(str(tmp_path / name))
    with pytest.raises(Error, match="there is no file"):
        importers.open_trace(str(tmp_path / "c.npz"))
    np.savez(tmp_path / "d.npz", embeddings=np.zeros((1, 2, 48)))
    with pytest.raises(Error, match="does not say which ids went in"):
        importers.settle(importers.open_trace(str(tmp_path / "d.npz")), model_of(), None)
