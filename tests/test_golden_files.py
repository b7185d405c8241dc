"""tinyroberta golden: what it writes, what it finds, the recipe of a sketch, and the pytest plugin."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import tinyroberta
from tinyroberta import traces
from tinyroberta.cli import main
from tinyroberta.errors import Error
from tinyroberta.numerics import golden, live

MODEL = Path(__file__).parent / "golden_numerics" / "prenorm"
IDS = [[0, 39, 7, 22, 2], [0, 12, 2]]


@pytest.fixture
def ids(tmp_path: Path) -> str:
    (tmp_path / "ids.json").write_text(json.dumps(IDS))
    return str(tmp_path / "ids.json")


def load(**running: Any) -> Any:
    return tinyroberta.load(MODEL, **{"backend": "numpy", "dtype": "float64"} | running)


def traced(model: Any) -> Any:
    with tinyroberta.trace(model) as seen:
        model(**live.padded(IDS, 1))
    return seen


def test_the_recipe_of_a_sketch_is_what_its_docstring_says() -> None:
    """Once more, in plain integers."""
    x = np.random.default_rng(0).standard_normal((3, 5))
    wanted = [x.mean(), np.sqrt((x * x).mean()), x.min(), x.max(), *([0.0] * 32)]
    for i, number in enumerate(x.ravel().tolist()):
        z = (i + 1) * 0x9E3779B97F4A7C15 % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        z ^= z >> 31
        for j in range(32):
            wanted[4 + j] += (-number if z >> j & 1 else number) / 15**0.5
    np.testing.assert_allclose(golden.sketch(x)[0], wanted, rtol=1e-13, atol=1e-13)
    assert golden.signs(1)[0] == 0xE220A8397B1DCDAF  # the first that SplitMix64 gives with seed 0


@pytest.mark.parametrize("size", [1e-9, 1e-3])
def test_a_sketch_tells_how_far_an_array_is_off(size: float) -> None:
    random = np.random.default_rng(1)
    x, d = random.standard_normal((2, 50, 16))
    a, b = golden.sketch(x)[0], golden.sketch(x + size * d)[0]
    estimate = np.sqrt(np.square((a - b)[4:]).mean())
    assert 0.6 < estimate / (size * np.sqrt(np.square(d).mean())) < 1.6


@pytest.mark.parametrize("kind", ["full", "sketch"])
def test_a_candidate_holds_or_is_told(kind: str, tmp_path: Path, ids: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "golden"
    assert main(["golden", "make", str(MODEL), "--inputs", ids, "--out", str(folder), "--kind", kind]) == 0
    assert [path.name for path in folder.iterdir()] == ["golden.safetensors"]
    check = ["golden", "check", str(folder), "--json"]
    for backend in ("numpy:float64", "numpy:float32"):
        assert main([*check, "--candidate", backend, "--model", str(MODEL)]) == 0
    capsys.readouterr()

    def wrong(name: str, x: Any) -> Any:
        return x * 1.0001 if name == "encoder.layer.1.intermediate" else None

    with tinyroberta.trace(load(), replace={"*": wrong}) as seen:
        seen.model(**live.padded(IDS, 1))
    seen.save(tmp_path / "candidate.safetensors")
    candidate = str(tmp_path / "candidate.safetensors")
    assert main([*check, "--candidate", candidate]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["first"]) == ("differs", "encoder.layer.1.intermediate")
    whole = next(op for op in found["ops"] if op["name"] == found["first"])
    assert 0.5e-4 < whole["relative"] < 2e-4

    assert main([*check, "--candidate", candidate, "--update"]) == 0
    assert main([*check, "--candidate", candidate]) == 0
    assert main([*check, "--candidate", "numpy:float64", "--model", str(MODEL)]) == 1  # what is stored counts


def test_a_sketch_is_a_few_kilobytes_a_layer_and_holds_no_path(tmp_path: Path) -> None:
    path = golden.make(traces.of_model(load(), traced(load()).calls), tmp_path, "sketch")
    layer = [x for name, x in load_file(path).items() if name.startswith("encoder.layer.0")]
    assert sum(x.nbytes for x in layer) < 6000
    assert str(MODEL.parent) not in path.read_bytes().decode("latin-1")


@pytest.mark.parametrize("kind", ["full", "sketch"])
def test_other_inputs_and_nans_are_told(kind: str, tmp_path: Path) -> None:
    model = load()
    reference = traces.of_model(model, traced(model).calls)
    golden.make(reference, tmp_path, kind)
    other = live.run(model, live.padded([[0, 39, 7, 22, 2], [0, 13, 2]], 1))
    assert golden.check(golden.read(tmp_path), other).first == "input_ids"
    broken = live.run(model, live.padded(IDS, 1))
    x = broken.calls[0].arrays["encoder.layer.0"].copy()
    x[2, 3] = np.nan
    broken.calls[0].arrays = {**broken.calls[0].arrays, "encoder.layer.0": x}
    found = golden.check(golden.read(tmp_path), broken)
    assert found.first == "encoder.layer.0"
    assert next(op for op in found.ops if op.name == found.first).nonfinite["value"] == "nan"


def test_padding_that_is_computed_too_changes_nothing(tmp_path: Path) -> None:
    model = load()
    golden.make(traces.of_model(model, traced(model).calls), tmp_path, "sketch")
    whole = live.run(model, live.padded(IDS, 1), padding=True)
    found = golden.check(golden.read(tmp_path), whole)
    assert {op.name for op in found.ops if not op.ok} <= {f"encoder.layer.{i}.attention.self.probs" for i in range(2)}


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = traces.of_model(load(), traced(load()).calls)
    before = golden.make(trace, tmp_path).read_bytes()
    with pytest.raises(Error, match="--update"):
        golden.make(trace, tmp_path)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(Error, match="No space left"):
        golden.make(trace, tmp_path, "sketch", update=True)
    assert [path.name for path in tmp_path.iterdir()] == ["golden.safetensors"]
    assert (tmp_path / "golden.safetensors").read_bytes() == before


def test_assert_trace_close_takes_what_tests_have(tmp_path: Path) -> None:
    model, single = load(), load(dtype="float32")
    seen = traced(model)
    golden.assert_trace_close(traced(single), seen, model)
    seen.save(tmp_path / "x.safetensors")
    golden.assert_trace_close(tmp_path / "x.safetensors", seen)
    golden.make(golden.trace_of(seen), tmp_path)
    golden.assert_trace_close(seen, tmp_path, model)
    mine = {
        "encoder.layer.0": seen["encoder.layer.0"].copy(),
        "encoder.layer.1": seen.calls[0].rows.unpack(seen["encoder.layer.1"]),
    }
    golden.assert_trace_close(mine, tmp_path, model)
    mine["encoder.layer.0"][0, 0] += 1e-6
    with pytest.raises(AssertionError, match=r"first at encoder\.layer\.0\n"):
        golden.assert_trace_close(mine, tmp_path, model)
    with pytest.raises(Error, match="arrays by name"):
        golden.assert_trace_close(3, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["make", "MODEL", "--inputs", "none.txt", "--out", "OUT"], "no file none.txt"),
        (["make", "MODEL", "--inputs", "IDS", "--out", "IDS"], "cannot write"),
        (["make", "MODEL", "--inputs", "IDS", "--out", "OUT", "--backend", "jax"], "--backend jax"),
        (["check", "OUT", "--candidate", "numpy"], "holds no golden.safetensors"),
        (["check", "FULL", "--candidate", "numpy"], "--model"),
        (["check", "FULL", "--candidate", "none.npz"], "--model"),
        (["check", "FULL", "--candidate", "none.safetensors"], "no file none.safetensors"),
        (["check", "TRACE", "--candidate", "numpy"], "no golden file"),
    ],
)
def test_a_wrong_use_is_one_sentence(
    arguments: list[str], told: str, tmp_path: Path, ids: str, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = traced(load())
    golden.make(golden.trace_of(seen), tmp_path / "full")
    (tmp_path / "trace").mkdir()
    seen.save(tmp_path / "trace" / "golden.safetensors")
    given = {
        "MODEL": str(MODEL),
        "IDS": ids,
        "OUT": str(tmp_path / "out"),
        "FULL": str(tmp_path / "full"),
        "TRACE": str(tmp_path / "trace"),
    }
    assert main(["golden", *(given.get(x, x) for x in arguments)]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


TEST = """
import numpy as np, tinyroberta
from tinyroberta.numerics.pytest_plugin import assert_trace_close
model = tinyroberta.load({model!r}, backend="numpy", dtype="float64")

def traced(replace=None):
    with tinyroberta.trace(model, replace=replace) as seen:
        model([[0, 39, 7, 2]])
    return seen

def test_mine(golden):
    golden(traced({replace}))
    golden(traced({replace}), "small", kind="sketch")

def test_close():
    assert_trace_close(traced(), traced())
"""


def test_the_plugin_writes_and_holds(tmp_path: Path) -> None:
    def run(replace: str, *more: str) -> str:
        (tmp_path / "test_it.py").write_text(TEST.format(model=str(MODEL), replace=replace))
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "tinyroberta.numerics.pytest_plugin",
            *more,
        ]
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False).stdout

    told = run("None")
    assert "1 failed, 1 passed" in told
    assert "pytest --update-golden" in told
    assert "2 passed" in run("None", "--update-golden")
    assert sorted(path.name for path in (tmp_path / "golden").iterdir()) == ["small", "test_mine"]
    assert "2 passed" in run("None")
    told = run('{"encoder.layer.0": lambda _, x: x * 1.001}')
    assert "1 failed, 1 passed" in told
    assert "first at encoder.layer.0" in told


def test_the_plugin_is_declared() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"tinyroberta": "tinyroberta.numerics.pytest_plugin"}
