"""The parts of the benchmarks that decide what is compared with what; no peer is needed, nothing is timed for its time."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")
sys.path.append(str(Path(__file__).resolve().parent.parent))  # last, so that the tinyroberta tested stays the installed one
from benchmarks import cpu, embed, load, peers, plot, start

ROW = {"class": "float32", "error": 5e-7, "median_ms": 2.0}


def test_texts_are_what_their_names_say() -> None:
    ids, mask = cpu.texts("3x7")
    assert ids.shape == mask.shape == (3, 7)
    assert mask.all()
    ids, mask = cpu.texts("ragged")
    lengths = mask.sum(1)
    assert len(ids) == 32
    assert 8 <= lengths.min() <= lengths.max() <= 256
    assert ids.shape[1] == lengths.max()
    assert (ids[mask == 1] >= 3).all()


@pytest.mark.parametrize("count", [1, 4, 32])
def test_buckets_come_back_in_order(count: int) -> None:
    ids, mask = cpu.texts("ragged")
    batches, which = cpu.bucketed(ids, mask, count)
    assert len(batches) == count
    assert sorted(np.concatenate(which)) == list(range(32))
    assert max(given.size for given, _ in batches) <= ids.size / count
    answers = [np.repeat((given * kept)[..., None], 2, -1).astype(np.float32) for given, kept in batches]
    whole = cpu.together(answers, which, ids.shape)
    np.testing.assert_array_equal(whole, np.repeat((ids * mask)[..., None], 2, -1))


def test_error_looks_at_real_tokens_only_and_at_every_number() -> None:
    mask = np.array([[1, 1, 0]])
    exact = np.ones((1, 3, 4))
    found = exact.copy()
    found[0, 2] = np.nan
    assert cpu.error(found, exact, mask) == 0
    found[0, 1, 0] = 1.1
    assert cpu.error(found, exact, mask) == pytest.approx(0.1 / 8**0.5)
    found[0, 1, 0] = np.nan
    assert cpu.error(found, exact, mask) == np.inf
    assert cpu.error(exact[:, :2], exact, mask) == np.inf


class Fixed:
    """A worker that answers with what it was given, whatever is asked."""

    def __init__(self, answer: Any, seconds: float = 0.5) -> None:
        self.given, self.each, self.ended = answer, seconds, False

    def answer(self, batches: peers.Batches) -> list[Any]:  # noqa: ARG002
        if isinstance(self.given, Exception):
            raise self.given
        return [self.given]

    def seconds(self) -> float:
        return self.each

    def end(self) -> None:
        self.ended = True


def test_a_wrong_peer_is_left_out_and_a_wrong_run_of_ours_ends_it() -> None:
    exact = np.ones((1, 16, 4))
    right, wrong, dead = Fixed(exact), Fixed(exact * 1.001), Fixed(RuntimeError("it died"))
    workers: dict[str, Any] = {"numba highest": right, "torch": wrong, "torch bf16": wrong, "openvino": dead}
    assert cpu.checked(workers, "1x16", exact) == {"numba highest": 0, "torch bf16": pytest.approx(1e-3)}
    assert dead.ended
    assert "openvino" not in workers
    with pytest.raises(SystemExit, match="numba highest is off by"):
        cpu.checked({"numba highest": wrong}, "1x16", exact)  # type: ignore[dict-item]


def test_the_fastest_peer_is_by_the_median_of_a_rounds_ratios() -> None:
    times = {
        "numba highest": [1.0, 2.0, 1.0],
        "numpy": [0.1, 0.1, 0.1],
        "torch": [2.0, 4.0, 9.0],
        "openvino": [3.0, 6.0, 1.0],
        "torch bf16": [0.5, 0.5, 0.5],
    }
    assert cpu.fastest(times, "float32") == ("torch", 2.0)
    assert cpu.fastest(times, "bf16") is None
    assert cpu.fastest(times | {"numba medium": [1.0, 1.0, 1.0]}, "bf16") == ("torch bf16", 0.5)
    rounds = cpu.timed({"numba highest": Fixed(None), "torch": Fixed(None, 0.2)}, ["numba highest", "torch"], 0)  # type: ignore[dict-item]
    assert rounds == {"numba highest": [0.5] * 3, "torch": [0.2] * 3}


def test_peers_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    absent = peers.Stack("float32", peers.ours(), ("no_such_package",))
    monkeypatch.setitem(peers.STACKS, "torch", absent)
    names = cpu.chosen_stacks(["torch", "numpy"])
    assert "torch: left out, no_such_package not installed" in capsys.readouterr().out
    assert "torch" not in names
    assert {"numpy", "numba highest", "numba medium"} <= set(names)
    assert cpu.chosen_stacks([])[0] == "numba highest"


def test_a_worker_gives_its_runs_answer_and_says_what_went_wrong(tmp_path: Any) -> None:
    import tinyroberta

    config = tinyroberta.RobertaPreLayerNormConfig(
        vocab_size=5000, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    model = tinyroberta.RobertaPreLayerNormModel(config, seed=3)
    peers.write_model(config, model.tensors, tmp_path)
    ids, mask = cpu.texts("2x5")
    worker = cpu.Worker("numpy", tmp_path, 1)
    try:
        (found,) = worker.answer([(ids, mask)])
        assert cpu.error(found, model(ids, mask).last_hidden_state, mask) < 1e-6
        assert 0 < worker.seconds() < 10
    finally:
        worker.end()
    with pytest.raises((RuntimeError, tinyroberta.Error)):
        cpu.Worker("numpy", tmp_path / "nowhere", 1)


def test_bytes_held_count_shared_arrays_once() -> None:
    x = np.zeros(10, np.float32)
    assert start.held({"a": x, "b": [x, (np.zeros(3, np.int8), None)]}) == 43
    assert start.installed(("numpy",)) > 1e7


def test_pictures_of_saved_results(tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    about = {"cpu": "Some CPU", "threads": 2, "path": ["matrix products: fma"], "date": "2026-01-01", "size": "base"}
    rows = {"numba highest": ROW, "torch": ROW | {"median_ms": 3.0}, "torch bf16": ROW | {"class": "bf16"}}
    results = {
        "cpu": about | {"works": {"1x16": rows, "ragged": rows}},
        "growth": about | {what: {"1": rows, "2": rows} for what in ("tokens", "batch", "layers")},
        "start": about,
    }
    for kind, result in results.items():
        path = tmp_path / f"{kind}-some.json"
        path.write_text(json.dumps(result))
        picture = plot.draw(path)
        assert (picture is None) == (kind == "start")
        if picture is not None:
            assert picture.read_text().count("<path") > 10


def test_sentences_are_the_same_each_time_and_ragged() -> None:
    pytest.importorskip("tokenizers")
    found = embed.sentences(400)
    assert found == embed.sentences(400)
    words = np.array([len(text.split()) for text in found])
    assert 14 <= np.median(words) <= 20
    assert words.min() < 8 < 60 < words.max()
    assert len(set(found)) > 390


def test_the_folder_for_embeddings_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers")
    monkeypatch.setitem(embed.SIZES, "base", (16, 1, 2, 24))
    embed.write_folder(tmp_path)
    texts = embed.sentences(5)
    vectors = embed.STACKS[embed.OURS].load(tmp_path, 1)(texts)
    assert vectors.shape == (5, 16)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert embed.STACKS["bare"].load(tmp_path, 1)(texts) is None
    assert embed.far(vectors, vectors) == 0
    assert embed.far(vectors[:1], vectors) == np.inf
    assert embed.missing(embed.Stack(embed.bare, ("numpy", "no_such.package"))) == ["no_such.package"]


def test_our_server_is_measured_under_every_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for needed in ("starlette", "uvicorn", "tokenizers", "resource"):
        pytest.importorskip(needed)
    from benchmarks import serve

    found = serve.run({serve.OURS: sys.executable}, embed.FOLDER.resolve(), tmp_path, 0.3, 2)[serve.OURS]
    for clients in serve.CLIENTS:
        row = found[f"{clients} clients"]
        assert row["rounds"] == 2
        assert row["other_bits"] == 0
        assert 0 < row["p50"] <= row["p99"]
        assert row["per_second"] > 0
    row = found["overload"]
    assert row["wrong"] == row["other_bits"] == row["given_up"] == row["broken"] == row["failed"] == 0
    assert row["answered"] + row["refused"] == row["sent"] > 20
    assert "200 vectors, each text alone, have the bits of Embedder.encode" in capsys.readouterr().out


def test_what_ray_adds_is_measured_and_leaves_nothing(tmp_path: Path) -> None:
    for needed in ("ray.data", "tokenizers"):
        pytest.importorskip(needed)
    code = (
        f"import psutil, sys\nsys.path.append({str(Path(cpu.__file__).parents[1])!r})\n"
        "from benchmarks import bulk, embed\nembed.SIZES['base'] = (16, 1, 2, 24)\n"
        f"bulk.main(['--texts', '9', '--seconds', '0', '--threads', '1', '--exports', {str(tmp_path)!r}])\n"
        "print([process.name() for process in psutil.Process().children(recursive=True) if 'ray' in process.name()])"
    )
    with tempfile.TemporaryDirectory(prefix="r") as short:  # the names of sockets have at most 107 bytes
        command = [sys.executable, "-c", code]  # a process of its own: Ray takes one token for as long as it lives
        environment = os.environ | {"TMPDIR": short}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        assert list(Path(short).iterdir()) == []
    assert "encode" in done.stdout
    assert "ray, less start" in done.stdout
    assert "a billion vectors of 16 float32: 0.06 TB" in done.stdout
    assert done.stdout.endswith("[]\n")


def test_a_wrong_vector_and_other_bits_are_seen() -> None:
    pytest.importorskip("resource")
    import base64

    from benchmarks import serve

    right = np.ones((1, 4), np.float32)

    def answer(x: Any) -> load.Answer:
        coded = base64.b64encode(x.tobytes()).decode()
        return load.Answer(0, 0.0, 1.0, 1.0, 200, json.dumps({"data": [{"embedding": coded}]}).encode())

    for most, near, expected in ((0.0, 1 + 2e-7, (1, 1)), (1e-5, 1 + 2e-7, (0, 1)), (1e-5, 1 + 1e-4, (1, 1))):
        running = serve.Running(("127.0.0.1", 1), ["a"], "none", most)
        running.alone = {0: right[0].tobytes()}
        assert serve.wrong([answer(right[0]), answer(right[0] * np.float32(near))], running, right) == expected


def test_a_connection_that_is_refused_is_told_and_ends() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    (answer,) = load.Load(("127.0.0.1", port), [b"x"], lambda: 0.0).closed(1, 0.0)
    assert answer.status == load.BROKEN
