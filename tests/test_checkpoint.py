"""weights/checkpoint.py: what lies in folders as people have them, read without torch."""

import dataclasses
import json
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from models_for_tests import new_model
from torch_writer import put, save, storage, tensor

import tinyroberta
from tinyroberta import Error, RobertaPreLayerNormConfig
from tinyroberta.config import CONFIGS
from tinyroberta.family import KIN
from tinyroberta.heads import HEADS
from tinyroberta.inspect import inspect
from tinyroberta.weights.checkpoint import FORMATS, open_checkpoint, weight_files, weights_of
from tinyroberta.weights.names import FAMILIES
from tinyroberta.weights.safetensors import open_tensors

HERE = Path(__file__).parent
SIZES = {
    "vocab_size": 30,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 20,
    "type_vocab_size": 1,
}
IDS = np.array([[0, 7, 9, 2]])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    new_model(tinyroberta.RobertaForMaskedLM, CONFIGS["roberta"](**SIZES)).save_pretrained(tmp_path)
    return tmp_path


def logits(path: Path) -> np.ndarray:
    return tinyroberta.load(path, backend="numpy")(IDS).logits


def stored(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "model.safetensors")


def rewritten(folder: Path, change: Callable[[dict], dict]) -> None:
    safetensors.numpy.save_file(change(stored(folder)), folder / "model.safetensors", {"format": "pt"})


def configured(folder: Path, **changes: object) -> None:
    content = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))


# No model_type.


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_config_without_model_type(tmp_path: Path, model_type: str, head: str) -> None:
    cls = KIN[model_type][head]
    decoder = cls.__name__.endswith("CausalLM")
    model = new_model(cls, CONFIGS[model_type](**SIZES, is_decoder=decoder), backend="numpy")
    model.save_pretrained(tmp_path)
    ids = IDS[None] if cls.__name__.endswith("MultipleChoice") else IDS
    wanted = model(ids).to_tuple()[0]
    configured(tmp_path, model_type=...)
    assert type(tinyroberta.load(tmp_path)) is cls
    for loaded in (tinyroberta.load(tmp_path, backend="numpy"), cls.from_pretrained(tmp_path, backend="numpy")):
        np.testing.assert_array_equal(loaded(ids).to_tuple()[0], wanted)
    for architectures in (None, ...):
        configured(tmp_path, architectures=architectures)
        assert cls.from_pretrained(tmp_path).config.model_type == model_type
        kin = model_type if model_type in ("roberta-prelayernorm", "xlm-roberta-xl") else "roberta"
        assert type(tinyroberta.load(tmp_path)) is KIN[kin]["Model"]


def test_a_config_that_names_strangers(saved: Path) -> None:
    configured(saved, model_type=..., architectures=["BertForMaskedLM"])
    with pytest.raises(Error, match="names the class BertForMaskedLM"):
        tinyroberta.load(saved)
    configured(saved, model_type=7)
    with pytest.raises(Error, match="model_type is 7"):
        tinyroberta.load(saved)


# Files and folders.


def test_a_format_that_is_appended_breaks_no_other(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = FORMATS[0]._replace(name="stranger", files=("stranger.bin",), suffix=".stranger")
    monkeypatch.setattr("tinyroberta.weights.checkpoint.FORMATS", (*FORMATS, stranger))
    fairseq = HERE / "torch_files" / "prenorm.pt"
    assert weights_of(fairseq)[0].name == "fairseq"
    assert weights_of(saved)[0].name == "safetensors"
    with pytest.raises(Error, match="no file of weights"):
        weights_of(saved / "config.json")


@pytest.mark.parametrize(
    "folder", ["golden_tf/ForMaskedLM", "golden_flax/ForMaskedLM", "torch_files/model", "torch_files/model_sharded"]
)
def test_a_file_is_read_as_its_folder(folder: str) -> None:
    path = HERE / folder
    wanted = open_checkpoint(path)
    files = [file for form in FORMATS for file in form.files if (path / file).is_file()]
    assert files
    for file in files:
        found = open_checkpoint(path / file)
        assert sorted(found) == sorted(wanted)
        assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
        assert weight_files(path / file) == weight_files(path)
        np.testing.assert_array_equal(logits(path / file), logits(path))


def test_a_file_may_have_any_name(saved: Path) -> None:
    wanted = logits(saved)
    save(saved / "step_100.bin", stored(saved))
    (saved / "model.safetensors").rename(saved / "best.safetensors")
    np.testing.assert_array_equal(logits(saved / "best.safetensors"), wanted)
    np.testing.assert_array_equal(logits(saved / "step_100.bin"), wanted)
    (saved / "config.json").unlink()
    with pytest.raises(Error, match=r"config\.json"):
        tinyroberta.load(saved / "best.safetensors")


def test_shards_by_their_index(saved: Path, tmp_path: Path) -> None:
    model = tinyroberta.load(saved, backend="numpy")
    model.save_pretrained(tmp_path / "shards", max_shard_size=900)
    np.testing.assert_array_equal(logits(tmp_path / "shards" / "model.safetensors.index.json"), model(IDS).logits)
    (tmp_path / "shards" / "model-00002-of-00004.safetensors").unlink(missing_ok=True)
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    (tmp_path / "shards" / sorted(set(index["weight_map"].values()))[0]).unlink()
    with pytest.raises(Error, match="does not hold"):
        tinyroberta.load(tmp_path / "shards" / "model.safetensors.index.json")


@pytest.mark.parametrize("name", ["model.pt", "roberta.pth", "epoch=3.ckpt", "pytorch_model.pt"])
def test_a_plain_state_dict_beside_a_config(saved: Path, name: str) -> None:
    wanted = logits(saved)
    save(saved / name, stored(saved))
    (saved / "model.safetensors").unlink()
    for file in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt", "training_args.bin"):
        (saved / file).write_bytes(b"no weights")
    np.testing.assert_array_equal(logits(saved), wanted)
    np.testing.assert_array_equal(logits(saved / name), wanted)
    assert weights_of(saved)[0].name == "torch"
    assert weight_files(saved) == [saved / name]


def test_a_trainers_folder(saved: Path, tmp_path: Path) -> None:
    wanted = logits(saved)
    for step in (90, 1000):
        shutil.copytree(saved, tmp_path / "run" / f"checkpoint-{step}", ignore=lambda *_: {"run"})
    last = tmp_path / "run" / "checkpoint-1000"
    for file in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "trainer_state.json"):
        (last / file).write_bytes(b"no weights")
    np.testing.assert_array_equal(logits(last), wanted)
    (last / "model.safetensors").unlink()
    with pytest.raises(Error, match=r"holds neither model\.safetensors nor another file of weights"):
        tinyroberta.load(last)
    shutil.copy(last / "config.json", tmp_path / "run")
    with pytest.raises(Error, match="its last checkpoint is checkpoint-1000"):
        tinyroberta.load(tmp_path / "run")


# Wrappings.


@pytest.mark.parametrize("form", ["safetensors", "torch"])
@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.model."])
def test_names_that_were_wrapped(saved: Path, prefix: str, form: str) -> None:
    wanted = logits(saved)
    wrapped = {prefix + name: value for name, value in stored(saved).items()}
    if form == "torch":
        save(saved / "pytorch_model.bin", wrapped)
        (saved / "model.safetensors").unlink()
    else:
        rewritten(saved, lambda _: wrapped)
    np.testing.assert_array_equal(logits(saved), wanted)


@pytest.mark.parametrize(
    "wrappers", [["state_dict"], ["model_state_dict"], ["model"], ["module"], ["state_dict", "model"]], ids=str
)
def test_state_dicts_that_lie_in_others(saved: Path, wrappers: list[str]) -> None:
    wanted, arrays = logits(saved), stored(saved)
    content: object = {
        f"model.{name}": tensor(x.shape, tuple(step // 4 for step in x.strides), 0, storage(str(i), x.size))
        for i, (name, x) in enumerate(arrays.items())
    }
    step = tensor((1,), (1,), 0, storage(str(len(arrays)), 1, "torch LongStorage"))
    for wrapper in reversed(wrappers):
        content = {"epoch": 3, wrapper: content, "global_step": step, "optimizer": {"state": {"exp_avg": step}}, "loss": 0.5}
    with zipfile.ZipFile(saved / "pytorch_model.bin", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + put(content) + b".")
        for i, x in enumerate([*arrays.values(), np.array([100])]):
            archive.writestr(f"archive/data/{i}", x.tobytes())
    (saved / "model.safetensors").unlink()
    np.testing.assert_array_equal(logits(saved), wanted)


def test_two_wrappings_of_one_weight_are_told(saved: Path) -> None:
    rewritten(saved, lambda held: held | {f"model.{name}": value for name, value in held.items()})
    with pytest.raises(Error, match="which are the same weight"):
        tinyroberta.load(saved)


@pytest.mark.parametrize(
    "extra", [["mlp.dense.weight", "mlp.dense.bias"], ["logit_scale"], ["roberta.encoder.layer.2.output.dense.bias"]]
)
def test_tensors_that_no_class_needs_are_said_once(saved: Path, extra: list[str]) -> None:
    wanted = logits(saved)
    rewritten(saved, lambda held: held | dict.fromkeys(extra, np.ones(3, np.float32)))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        np.testing.assert_array_equal(logits(saved), wanted)
    (warning,) = told
    assert f"holds tensors that this model does not have, left out here: {', '.join(sorted(extra))}" in str(warning.message)
    with pytest.warns(UserWarning, match="left out here") as told:
        tinyroberta.RobertaForMaskedLM.from_pretrained(saved)
    assert [warning.filename for warning in told] == [__file__]


def test_what_is_saved_is_not_wrapped(saved: Path, tmp_path: Path) -> None:
    before = stored(saved)
    rewritten(saved, lambda held: {f"module.{name}": value for name, value in held.items()})
    tinyroberta.load(saved).save_pretrained(tmp_path / "again")
    assert sorted(open_tensors(tmp_path / "again")) == sorted(before)


# Pairs.


@pytest.mark.parametrize("kept", ["encoder", "decoder", "both"])
@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_tied_pair_may_hold_a_tensor_once(tmp_path: Path, model_type: str, kept: str) -> None:
    bare, writer = KIN[model_type]["Model"], KIN[model_type]["ForCausalLM"]
    config = CONFIGS[model_type](**SIZES)
    reading = dataclasses.replace(config, is_decoder=True, add_cross_attention=True)
    encoder, decoder = new_model(bare, config, backend="numpy"), new_model(writer, reading, backend="numpy")
    shared = {name: value for name, value in encoder.tensors.items() if name in decoder.tensors}
    assert len(shared) > 30
    shared["lm_head.decoder.weight"] = shared["embeddings.word_embeddings.weight"]
    decoder = writer(reading, decoder.tensors | shared, backend="numpy")
    pair = tinyroberta.EncoderDecoderModel(encoder, decoder, extra={"tie_encoder_decoder": True})
    pair.save_pretrained(tmp_path)
    wanted = pair(IDS, decoder_input_ids=IDS).logits

    def twin(name: str) -> str:
        part, own = name.split(".", 1)
        prefix = FAMILIES[model_type].prefix
        return f"decoder.{prefix}{own}" if part == "encoder" else f"encoder.{own.removeprefix(prefix)}"

    def once(held: dict) -> dict:
        return {name: x for name, x in held.items() if kept == "both" or name.startswith(kept) or twin(name) not in held}

    before = len(stored(tmp_path))
    rewritten(tmp_path, once)
    assert len(stored(tmp_path)) < before - 30 or kept == "both"
    loaded = tinyroberta.load(tmp_path, backend="numpy")
    np.testing.assert_array_equal(loaded(IDS, decoder_input_ids=IDS).logits, wanted)
    assert inspect(tmp_path)["problem"] is None
    assert inspect(tmp_path)["unused"] == []
    loaded.save_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(
        tinyroberta.load(tmp_path / "again", backend="numpy")(IDS, decoder_input_ids=IDS).logits, wanted
    )
    if kept != "both":
        configured(tmp_path, tie_encoder_decoder=False)
        with pytest.raises(Error, match="missing"):
            tinyroberta.load(tmp_path)


def test_a_pair_without_model_types(tmp_path: Path) -> None:
    config = RobertaPreLayerNormConfig(**SIZES)
    reading = dataclasses.replace(config, is_decoder=True, add_cross_attention=True)
    parts = (tinyroberta.RobertaPreLayerNormModel(config), tinyroberta.RobertaPreLayerNormForCausalLM(reading))
    pair = tinyroberta.EncoderDecoderModel(*parts, extra={"pad_token_id": None, "decoder_start_token_id": 0})
    assert pair.config.pad_token_id == 1
    pair.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    del content["model_type"]
    for part in ("encoder", "decoder"):
        del content[part]["model_type"], content[part]["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    rewritten(tmp_path, lambda held: {f"module.{name}": value for name, value in held.items()})
    loaded = tinyroberta.load(tmp_path / "model.safetensors")
    assert loaded.encoder.config.model_type == loaded.decoder.config.model_type == "roberta-prelayernorm"
    wanted = pair(IDS, decoder_input_ids=IDS).logits
    np.testing.assert_array_equal(loaded(IDS, decoder_input_ids=IDS).logits, wanted)
