"""convert.py: every format to safetensors, checked, whole or not at all."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import tinyroberta
from tinyroberta import (
    EncoderDecoderModel,
    Error,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForCausalLM,
    RobertaPreLayerNormForMaskedLM,
    RobertaPreLayerNormModel,
)
from tinyroberta.convert import convert

HERE = Path(__file__).parent
GOLDEN = ("golden_tf", "golden_flax", "golden_family", "torch_files")
SOURCES = sorted(path.parent for golden in GOLDEN for path in (HERE / golden).glob("*/config.json"))
SOURCES += sorted((HERE / "torch_files").glob("*.pt"))
CONFIG = RobertaPreLayerNormConfig(
    vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, max_position_embeddings=20
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small safetensors checkpoint with files beside it."""
    folder = tmp_path / "source"
    RobertaPreLayerNormForMaskedLM(CONFIG, seed=1).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "merges.txt").write_text("a b")
    (folder / "optimizer.bin").write_bytes(b"not for readers")
    return folder


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_every_format_gives_the_same_numbers_as_safetensors(source: Path, tmp_path: Path) -> None:
    done = convert(source, tmp_path / "made")
    assert done.folder == tmp_path / "made"
    assert done.difference == 0
    before, after = tinyroberta.load(source, backend="numpy"), tinyroberta.load(tmp_path / "made", backend="numpy")
    assert type(before) is type(after)
    assert done.architecture == type(after).__name__
    assert set(before.tensors) == set(after.tensors)
    for name, value in before.tensors.items():
        assert after.tensors[name].dtype == value.dtype
        np.testing.assert_array_equal(after.tensors[name], value)
    with safetensors.safe_open(tmp_path / "made" / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert len(list(file.keys())) == done.tensors
    assert left(tmp_path) == ["made"]


@pytest.mark.parametrize(("dtype", "most"), [("float32", 0), ("float16", 2e-2), ("bfloat16", 1e-1)])
def test_dtype_is_chosen(dtype: str, most: float, source: Path, tmp_path: Path) -> None:
    done = convert(source, tmp_path / "made", dtype)
    assert 0 <= done.difference <= most
    assert (done.difference == 0) == (dtype == "float32")
    tensors = safetensors.numpy.load_file(tmp_path / "made" / "model.safetensors")
    assert {str(value.dtype) for value in tensors.values()} == {dtype}
    assert json.loads((tmp_path / "made" / "config.json").read_text())["dtype"] == dtype
    if dtype == "bfloat16":  # widening gives the same numbers again
        assert convert(tmp_path / "made", tmp_path / "wide", "float32").difference == 0
        assert tinyroberta.load(tmp_path / "wide").tensors["LayerNorm.weight"].dtype == np.float32
    assert tinyroberta.load(tmp_path / "made").tensors["LayerNorm.weight"].dtype in (dtype, ml_dtypes.bfloat16)


def test_an_untied_model_whose_file_shares_one_array(tmp_path: Path) -> None:
    """In a .bin two tensors may have one storage; in the safetensors both names are there, as an untied model needs them."""
    shutil.copytree(HERE / "torch_files" / "model", tmp_path / "source")
    config = json.loads((tmp_path / "source" / "config.json").read_text())
    (tmp_path / "source" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    assert convert(tmp_path / "source", tmp_path / "made").difference == 0
    model = tinyroberta.load(tmp_path / "made")
    assert not model.config.tie_word_embeddings
    np.testing.assert_array_equal(model.tensors["lm_head.decoder.weight"], model.get_input_embeddings())


BESIDE = (
    "vocab.txt", "bpe.codes", "sentencepiece.bpe.model", "spiece.model", "added_tokens.json", "special_tokens_map.json",
    "generation_config.json", "dict.txt", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json", "README.md",
    "2_Dense/config.json", "2_Dense/model.safetensors", "2_Dense/pytorch_model.bin", "a/b/c.txt", "chat_template.jinja",
)  # fmt: skip
NOT_BESIDE = (
    "pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth", "onnx/model.onnx",
    "checkpoint-500/model.safetensors", "tf_model.h5", "pytorch_model.bin.index.json",
)  # fmt: skip
HIDDEN = (".gitattributes", ".git/config", ".cache/huggingface/x.metadata", "a/.ipynb_checkpoints/b.json")


def test_small_files_are_kept_and_other_weights_are_not(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tinyroberta.convert, "SMALL", 1000)
    for name in (*BESIDE, *NOT_BESIDE, *HIDDEN):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(json.dumps({"name": name}))
    (source / "train.csv").write_text("x" * 1001)
    (source / "loop").symlink_to(source)
    done = convert(source, tmp_path / "made")
    kept = {path.relative_to(done.folder).as_posix() for path in done.folder.rglob("*") if path.is_file()}
    assert kept == {"config.json", "model.safetensors", "tokenizer.json", "merges.txt", *BESIDE}
    assert all(json.loads((done.folder / name).read_text()) == {"name": name} for name in BESIDE)
    assert sorted(done.left) == sorted((*NOT_BESIDE, "optimizer.bin", "train.csv"))


def test_a_file_is_its_folder_where_that_has_a_config(source: Path, tmp_path: Path) -> None:
    done = convert(source / "model.safetensors", tmp_path / "made")
    assert left(done.folder) == ["config.json", "merges.txt", "model.safetensors", "tokenizer.json"]
    assert done.left == ("optimizer.bin",)


def test_a_file_without_a_config_brings_its_tokenizer_alone(tmp_path: Path) -> None:
    folder = tmp_path / "downloads"
    (folder / "other").mkdir(parents=True)
    file = next(path for path in SOURCES if path.suffix == ".pt")
    for name in ("dict.txt", "vocab.json", "merges.txt", "letters.txt", "other/vocab.json"):
        (folder / name).write_text(name)
    done = convert(shutil.copy(file, folder), tmp_path / "made")
    kept = {path.relative_to(done.folder).as_posix() for path in done.folder.rglob("*") if path.is_file()}
    assert kept == {"config.json", "model.safetensors", "dict.txt", "vocab.json", "merges.txt"}
    assert done.left == ()


def test_the_command_warns_of_a_thing_once_in_a_line(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="is_decoder"):
        tinyroberta.RobertaPreLayerNormForCausalLM(CONFIG).save_pretrained(tmp_path / "source")
    done = subprocess.run(
        command("convert", tmp_path / "source", tmp_path / "made"), capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stderr.startswith("tinyroberta: config.is_decoder is false")
    assert done.stderr.count("\n") == 1


def test_a_destination_inside_its_source(source: Path) -> None:
    convert(source, source / "made")
    assert left(source / "made") == ["config.json", "merges.txt", "model.safetensors", "tokenizer.json"]


def test_the_bar_counts_the_bytes_of_the_file_once(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, float] = {}

    @contextlib.contextmanager
    def counted(total: float, _: str):
        told["total"], told["done"] = total, 0.0
        yield lambda count: told.update(done=told["done"] + count)

    monkeypatch.setattr(tinyroberta.convert, "progress", counted)
    for dtype in (None, "bfloat16", "float32"):
        convert(source, tmp_path / str(dtype), dtype)
        size = sum(value.nbytes for value in safetensors.numpy.load_file(source / "model.safetensors").values())
        assert size <= told["total"] <= 1.01 * size  # a tied bias is one array here
        assert told["done"] == pytest.approx(told["total"], rel=0.02)


def test_shards(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "made", max_shard_size="2KB")
    shards = sorted((tmp_path / "made").glob("model-*.safetensors"))
    assert len(shards) > 2
    assert (tmp_path / "made" / "model.safetensors.index.json").is_file()
    for name, value in tinyroberta.load(source).tensors.items():
        np.testing.assert_array_equal(tinyroberta.load(tmp_path / "made").tensors[name], value)


def test_an_empty_destination_is_taken_and_a_full_one_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    convert(source, tmp_path / "empty")
    with pytest.raises(Error, match="already there"):
        convert(source, tmp_path / "empty")
    with pytest.raises(Error, match="already there"):
        convert(source, source)
    (tmp_path / "file").write_text("")
    with pytest.raises(Error, match="already there"):
        convert(source, tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(Error, match="already there"):
        convert(source, tmp_path / "link")
    assert left(tmp_path) == ["empty", "file", "link", "source"]


def test_wrong_arguments(source: Path, tmp_path: Path) -> None:
    for wrong in ({"dtype": "int8"}, {"dtype": "float64"}, {"max_shard_size": 0}, {"max_shard_size": "5 gigabytes"}):
        with pytest.raises(Error, match=r"must be"):
            convert(source, tmp_path / "made", **wrong)
    with pytest.raises(Error, match="no folder"):
        convert(tmp_path / "nowhere", tmp_path / "made")
    with pytest.raises(Error, match="cannot write"):
        convert(source, source / "tokenizer.json" / "made")
    assert left(tmp_path) == ["source"]


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    decoder = RobertaPreLayerNormForCausalLM(dataclasses.replace(CONFIG, is_decoder=True, add_cross_attention=True))
    EncoderDecoderModel(RobertaPreLayerNormModel(CONFIG), decoder).save_pretrained(tmp_path / "source")
    with pytest.raises(Error, match="holds an encoder-decoder, two models in one"):
        convert(tmp_path / "source", tmp_path / "made")
    assert left(tmp_path) == ["source"]


def test_numbers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = RobertaPreLayerNormForMaskedLM(CONFIG, seed=1)
    model.tensors["LayerNorm.bias"][3] = 1e6
    model.save_pretrained(tmp_path / "source")
    with pytest.raises(Error, match=r"LayerNorm\.bias has numbers up to 1e\+06, which do not fit float16"):
        convert(tmp_path / "source", tmp_path / "made", "float16")
    assert left(tmp_path) == ["source"]
    convert(tmp_path / "source", tmp_path / "made", "bfloat16")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device"), MemoryError])
def test_nothing_is_left_when_stopped(stop: type[BaseException], source: Path, tmp_path: Path, monkeypatch) -> None:
    def halfway(path: Path, *_: object) -> None:
        path.write_bytes(b"half of it")
        raise stop

    monkeypatch.setattr(tinyroberta.weights.safetensors, "stream", halfway)
    with pytest.raises(Error if isinstance(stop, OSError) else stop):
        convert(source, tmp_path / "made")
    assert left(tmp_path) == ["source"]


def test_a_disk_that_lies_is_noticed(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = tinyroberta.weights.safetensors.stream

    def wrong(path: Path, *rest: object) -> None:
        stream(path, *rest)
        content = bytearray(path.read_bytes())
        content[-2] ^= 1
        path.write_bytes(content)

    monkeypatch.setattr(tinyroberta.weights.safetensors, "stream", wrong)
    with pytest.raises(Error, match="is not what was written"):
        convert(source, tmp_path / "made")
    assert left(tmp_path) == ["source"]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tinyroberta", *map(str, arguments)]


def test_the_command(source: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command("convert", source, tmp_path / "made", "--dtype", "float16", "--max-shard-size", "3KB"),
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "RobertaPreLayerNormForMaskedLM, 44 tensors" in done.stdout
    assert done.stderr == "left out: optimizer.bin\n"  # and no bar where nobody watches
    again = subprocess.run(
        command("convert", source, tmp_path / "made"), capture_output=True, text=True, timeout=120, check=False
    )
    assert again.returncode == 1
    assert again.stderr.startswith("tinyroberta: ")
    assert again.stderr.count("\n") == 1
    wrong = command("convert", source, tmp_path / "new", "--max-shard-size", "big")
    assert subprocess.run(wrong, capture_output=True, timeout=120, check=False).returncode == 2


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing(number: int, tmp_path: Path) -> None:
    config = RobertaPreLayerNormConfig(vocab_size=60_000, hidden_size=256, num_hidden_layers=2, num_attention_heads=2)
    RobertaPreLayerNormForMaskedLM(config).save_pretrained(tmp_path / "source")
    slow = (
        "import signal, time, sys, tinyroberta.weights.safetensors as s, tinyroberta.cli as c\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background is started with it ignored
        "s.PIECE = 10**5; s.SHARD_SIZE = 1\n"
        "stream = s.stream\n"
        "s.stream = lambda path, head, arrays, written: stream(path, head, arrays, lambda n: time.sleep(0.1))\n"
        "sys.exit(c.main(sys.argv[1:]))"
    )
    child = subprocess.Popen([sys.executable, "-c", slow, "convert", str(tmp_path / "source"), str(tmp_path / "made")])
    try:
        for _ in range(600):
            if any(path.stat().st_size > 10**5 for path in tmp_path.glob(".made.*.part/.*.part")):
                break
            time.sleep(0.05)
        else:
            pytest.fail("nothing was written")
        child.send_signal(number)
        assert child.wait(60) == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    finally:
        child.kill()
        child.wait()
    assert left(tmp_path) == ["source"]


def test_a_bar_on_a_terminal_only(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich's word for a terminal
    convert(source, tmp_path / "made")
    shown = capsys.readouterr()
    assert "bytes" in shown.err or "kB" in shown.err
    assert shown.out == ""
    monkeypatch.delenv("FORCE_COLOR")
    convert(source, tmp_path / "again")
    assert capsys.readouterr() == ("", "")
