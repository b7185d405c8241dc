"""tinyroberta compare: every backend is the same as float64, and what is changed at an op is named there.

Mistakes planted in PyTorch and in transformers: test_live_compare.py. Files: test_trace_files.py.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import run
from test_tap import WAYS, model_of, name_of, texts

from tinyroberta import Error, trace, traces
from tinyroberta.numerics import invariance, live, report, transplant
from tinyroberta.numerics.compare import ULPS, Comparison, compare


def traced(model: Any, names: Any = None, replace: Any = None, **inputs: Any) -> traces.TraceFile:
    with trace(model, names, replace) as seen:
        model(**(inputs or texts()))
    return traces.of_model(model, seen.calls)


def exact_of(model: Any, **inputs: Any) -> traces.TraceFile:
    return traced(transplant.exact_of(model), **inputs)


def wrong(result: Comparison) -> list[str]:
    return [op.name for op in result.ops if not op.ok]


@pytest.fixture(params=WAYS, ids=name_of)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    running = dict(request.param)
    if "path" in running:
        monkeypatch.setenv("TINYROBERTA_CPU", running.pop("path"))
    return running


@pytest.mark.parametrize("model_type", ["roberta-prelayernorm", "roberta"])
def test_every_backend_path_and_precision_is_the_same(way: dict[str, Any], model_type: str) -> None:
    for seed in range(2):
        model = model_of(model_type, running=way)
        inputs = texts(seed=seed)
        result = compare(exact_of(model, **inputs), traced(model, **inputs), model)
        assert (result.verdict, result.first, wrong(result), result.notes) == ("same", None, [], [])
        assert [op.name for op in result.ops] == model.tap_names()
        assert all(op.added is not None and op.added <= op.bound for op in result.ops)


@pytest.mark.parametrize("place", range(7))
def test_every_class_and_both_ways_to_pad(place: int) -> None:
    model, inputs = model_of("xlm-roberta-xl", place), texts(1 + (place == 4))
    for padding in ("skip", "compute"):
        result = compare(exact_of(model, **inputs), traced(model, **inputs, padding=padding), model)
        assert (result.verdict, wrong(result)) == ("same", [])
        assert len(result.ops) >= len(model.tap_names()) - 2  # probabilities of padding's keys are laid otherwise


def test_an_op_that_is_changed_is_named_and_no_other(way: dict[str, Any]) -> None:
    model = model_of(running=way)
    size = 3e-2 if way.get("matmul_precision") == "medium" else 3e-3 if way.get("matmul_precision") == "high" else 1e-5
    for name in [name for name in model.tap_names() if not name.endswith("probs")]:
        changed = traced(model, None, {name: lambda _, x: x * (1 + size)})
        result = compare(exact_of(model), changed, model)
        assert result.first == name
        assert wrong(result) == [name]


def test_what_is_not_recorded_is_answered_for_by_the_next_op_that_is() -> None:
    model = model_of()
    names = ["embeddings", "encoder.layer.0", "encoder.layer.1", "lm_head"]
    changed = traced(model, names, {"encoder.layer.1.intermediate.dense": lambda _, x: 1.001 * x})
    result = compare(exact_of(model), changed, model)
    assert (result.first, wrong(result)) == ("encoder.layer.1", ["encoder.layer.1"])
    by_name = {op.name: op.covers for op in result.ops}
    assert by_name["embeddings"] == ["embeddings.LayerNorm"]
    assert by_name["encoder.layer.1"] == [name for name in model.tap_names() if name.startswith("encoder.layer.1.")]


def test_one_row_of_many_is_enough() -> None:
    model = model_of()

    def one(_: str, x: Any) -> Any:
        x[17] *= 1 + 1e-5
        return x

    result = compare(exact_of(model), traced(model, None, {"encoder.layer.0.output": one}), model)
    op = next(op for op in result.ops if op.name == "encoder.layer.0.output")
    assert (result.first, op.row) == ("encoder.layer.0.output", [2, 6])


def test_a_reference_that_is_not_ours_and_what_both_do() -> None:
    model = model_of()
    odd = {"encoder.layer.0.intermediate": lambda _, x: x + 0.01}
    reference = traced(model, None, odd)
    assert compare(reference, traced(model, None, odd), model).verdict == "same"
    assert compare(reference, traced(model), model).first == "encoder.layer.0.intermediate"
    both = odd | {"encoder.layer.1.attention.self": lambda _, x: 1.001 * x}
    assert wrong(compare(reference, traced(model, None, both), model)) == ["encoder.layer.1.attention.self"]


def test_without_a_model_the_first_that_is_off_is_named() -> None:
    model = model_of()
    result = compare(exact_of(model), traced(model))
    assert (result.verdict, result.ops[0].added) == ("same", None)
    assert "No model was given" in result.notes[0]
    changed = traced(model, None, {"encoder.layer.1.output.dense": lambda _, x: 1.001 * x})
    assert compare(exact_of(model), changed).first == "encoder.layer.1.output.dense"


def test_inputs_come_first() -> None:
    model, inputs = model_of(), texts()
    other = inputs | {"input_ids": inputs["input_ids"].copy()}
    other["input_ids"][2, 5] = 4
    result = compare(exact_of(model), traced(model, **other), model)
    assert (result.verdict, result.first, result.ops) == ("differs", "input_ids", [])
    assert result.inputs["input_ids"].startswith("1 places differ, first text 2, position 5")
    whole = {"input_ids": inputs["input_ids"]}
    assert compare(exact_of(model), traced(model, **whole), model).first == "attention_mask"
    positions = np.broadcast_to(np.arange(9) + 2, (3, 9))
    result = compare(exact_of(model), traced(model, **inputs, position_ids=positions), model)
    assert list(result.inputs) == ["position_ids"]
    assert (result.first, wrong(result)) == ("position_ids", [])  # with these positions it computes what it should
    assert result.ops[0].relative > 0.1
    result = compare(exact_of(model), traced(model, **inputs, token_type_ids=np.ones((3, 9), int)), model)
    assert (list(result.inputs), result.first) == (["token_type_ids"], "token_type_ids")
    assert compare(exact_of(model), traced(model, input_ids=[[5, 6]]), model).first == "input_ids"


def test_weights_come_second() -> None:
    model = model_of()
    tensors = dict(model.tensors)
    tensors["encoder.layer.1.output.dense.weight"] = tensors["encoder.layer.1.output.dense.weight"].copy()
    tensors["encoder.layer.1.output.dense.weight"][0, 0] += 1e-7
    other = type(model)(model.config, tensors, backend="numpy")
    result = compare(exact_of(model), traced(other), model)
    assert (result.verdict, result.weights) == ("differs", ["encoder.layer.1.output.dense.weight"])
    assert result.first == "encoder.layer.1.output.dense"
    assert wrong(result) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_told_where_it_begins(value: float) -> None:
    model = model_of()

    def broken(_: str, x: Any) -> Any:
        x[4, 7] = value
        return x

    result = compare(exact_of(model), traced(model, None, {"encoder.layer.0.output.dense": broken}), model)
    op = next(op for op in result.ops if op.name == result.first)
    assert op.name == "encoder.layer.0.output.dense"
    assert op.nonfinite == {"value": str(value), "at": [4, 7], "count": 1}
    assert wrong(result) == [op.name]  # what reads it cannot help it
    told = json.dumps(result.as_json(), allow_nan=False)
    assert json.loads(told)["verdict"] == "differs"
    both = traced(model, None, {"encoder.layer.0.output.dense": broken})
    assert compare(both, both, model).verdict == "same"


def test_the_measures() -> None:
    model = model_of()
    result = compare(exact_of(model), traced(model, None, {"lm_head": lambda _, x: np.roll(x, 1, 1)}), model)
    op = result.ops[-1]
    reference, candidate = exact_of(model).calls[0].arrays["lm_head"], traced(model).calls[0].arrays["lm_head"]
    gap = np.roll(candidate, 1, 1) - reference
    assert op.max_abs == pytest.approx(np.abs(gap).max())
    assert op.relative == pytest.approx(np.linalg.norm(gap) / np.linalg.norm(reference))
    assert op.argmax_flips == op.rows == len(reference)
    assert op.cosine < 0.9
    assert sum(op.ulps.values()) == gap.size
    assert list(op.ulps) == [str(low) for low in ULPS]
    equal = compare(traced(model), traced(model)).ops[-1]
    assert (equal.max_abs, equal.relative, equal.cosine, equal.argmax_flips) == (0, 0, pytest.approx(1), 0)
    assert equal.ulps["0"] == gap.size


def test_calls_that_cannot_be_run_again_are_compared_all_the_same() -> None:
    decoder, ids = model_of(place=1), texts()["input_ids"][:1]

    def generated(model: Any, replace: Any = None) -> traces.TraceFile:
        with trace(model, None, replace) as seen:
            model.generate(ids, max_new_tokens=3, do_sample=False, eos_token_id=None)
        return traces.of_model(model, seen.calls)

    reference = generated(transplant.exact_of(decoder))
    result = compare(reference, generated(decoder), decoder)
    assert result.verdict == "same"
    assert {op.call for op in result.ops} == {0, 1, 2}
    assert [note[:7] for note in result.notes] == ["Not run", "Call 1 ", "Call 2 "]  # a step gives the last place's words alone
    bad = compare(reference, generated(decoder, {"encoder.layer.1": lambda _, x: x + 1e-3}), decoder)
    assert bad.first == "encoder.layer.1"


def test_nothing_in_common() -> None:
    model = model_of()
    with pytest.raises(Error, match="no name in common"):
        compare(traced(model, "embeddings"), traced(model, "lm_head"), model)
    wide = model_of(hidden_size=96)
    with pytest.raises(Error, match=r"of another model than .*shapes are \(21, 48\) and \(21, 96\)"):
        compare(traced(model, "embeddings"), traced(wide, "embeddings"))
    result = compare(traced(model, "embeddings"), traced(model, "embeddings"), wide)
    assert (result.ops[0].added, result.notes) == (
        None,
        ["Not run again, since the model's results have other shapes: embeddings."],
    )
    with pytest.raises(Error, match="holds no call"):
        compare(exact_of(model), traces.of_model(model, []), model)


def test_the_page_needs_nothing_and_says_everything(tmp_path: Path) -> None:
    model = model_of()
    result = compare(exact_of(model), traced(model, None, {"encoder.layer.1.output": lambda _, x: 1.001 * x}), model)
    report.write(tmp_path / "out.html", result)
    page = (tmp_path / "out.html").read_text()
    assert "first at <code>encoder.layer.1.output</code>" in page
    assert not any(word in page for word in ("http:", "https:", "<script", "src=", "@import", "url("))
    assert page.count(' first"') == 1
    assert page.count("×</a>") == 1
    for number, op in enumerate(result.ops):
        assert f'id="op{number}"' in page
        assert op.name in page
    result.candidate = "<b>'&\""
    assert "<b>'" not in report.page(result)


# The command.


def test_the_command_names_the_op(tmp_path: Path) -> None:
    model = model_of()
    model.save_pretrained(tmp_path / "model")
    loaded = type(model).from_pretrained(tmp_path / "model", backend="numpy")
    for name, replace in (("good", None), ("bad", {"encoder.layer.0.attention.self.value": lambda _, x: x + 1e-3})):
        with trace(loaded, None, replace) as seen:
            loaded(**texts())
        seen.save(tmp_path / f"{name}.safetensors")
    good, bad = (str(tmp_path / f"{name}.safetensors") for name in ("good", "bad"))
    done = run("compare", "numpy:float64", good)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("same: all 37 ops")
    done = run("compare", "numpy:float64", bad, "--html", str(tmp_path / "out.html"))
    assert (done.returncode, done.stderr) == (1, "")
    assert "differs: first at encoder.layer.0.attention.self.value" in done.stdout
    assert ">  encoder.layer.0.attention.self.value" in done.stdout
    assert (tmp_path / "out.html").read_text().startswith("<!doctype html>")
    done = run("compare", good, bad, "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["verdict"], told["first"]) == (1, "differs", "encoder.layer.0.attention.self.value")
    assert {"name", "max_abs", "relative", "added", "bound", "ok"} <= set(told["ops"][0])
    (tmp_path / "ids.json").write_text("[[0, 5, 6, 2], [0, 7, 2]]")
    done = run(
        "compare",
        "numpy:float64",
        "numpy:reproducible",
        "--model",
        str(tmp_path / "model"),
        "--inputs",
        str(tmp_path / "ids.json"),
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "texts.txt").write_text("He opened the door.\nShe left.\n")
    done = run("compare", "numpy:float64", "numpy", "--inputs", str(tmp_path / "texts.txt"), "--json")
    assert (done.returncode, json.loads(done.stdout)["ops"][0]["rows"]) == (0, 12)


def test_hidden_states_of_another_program_and_two_lines(tmp_path: Path) -> None:
    model = model_of()
    model.save_pretrained(tmp_path / "model")
    with trace(model, None, {"encoder.layer.1.intermediate": lambda _, x: 1.001 * x}) as seen:
        model(**texts())
    unpack = seen.calls[0].rows.unpack
    np.savez(tmp_path / "theirs.npz", toks=texts()["input_ids"], attention_mask=texts()["attention_mask"],
             h0=unpack(seen["encoder.layer.0"]), h1=unpack(seen["encoder.layer.1"]))  # fmt: skip
    (tmp_path / "names.txt").write_text("toks -> input_ids\nh* -> encoder.layer.*\nattention_mask -> attention_mask\n")
    given = ["--model", str(tmp_path / "model"), "--names", str(tmp_path / "names.txt")]
    done = run("compare", "numpy:float64", str(tmp_path / "theirs.npz"), *given)
    assert (done.returncode, done.stderr) == (1, "")
    assert "differs: first at encoder.layer.1" in done.stdout
    assert "encoder.layer.1 answers for 14 ops before it" in done.stdout


@pytest.mark.parametrize(("arguments", "said"), [
    ([], "a REFERENCE and a CANDIDATE"),
    (["numpy:float64"], "a REFERENCE and a CANDIDATE"),
    (["numpy:float64", "numpy:slow"], "'slow' is no way to run numpy; it can be float32"),
    (["numpy:float64", "numba:float64"], "float64"),
    (["numpy:float64", "absent.safetensors"], "there is no file absent.safetensors"),
    (["numpy", "numpy", "--names", "x"], "--names x is of an .npz"),
    (["numpy", "numpy", "--inputs", "absent.txt"], "there is no file absent.txt"),
    (["numpy", "numpy", "--inputs", "absent.json"], "cannot read absent.json"),
    (["numpy", "numpy", "--model", "/absent"], "there is no folder"),
    (["--invariance", "numpy", "numba"], "numba is a second"),
    (["--invariance", "abacus"], "'abacus' is none"),
    (["numpy", "numpy", "--nothing"], "unrecognized arguments"),
])  # fmt: skip
def test_wrong_use_is_2_and_one_sentence(arguments: list[str], said: str) -> None:
    done = run("compare", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""
    assert sum(line.startswith("tinyroberta") for line in done.stderr.splitlines()) == 1


# The same bits.


def test_invariance_holds_what_is_promised_and_sees_what_is_not(way: dict[str, Any]) -> None:
    model = model_of(running=way, max_position_embeddings=80)
    settings = model.settings
    result = invariance.check_model(model)
    assert model.settings == settings
    assert {"a batch of 64", "permuted", "beside other lengths", "alone, threads=2"} <= {entry["way"] for entry in result["ways"]}
    if way.get("reproducible") or (way["backend"] == "numba" and not _by_blas()):
        assert (result["verdict"], result["first"]) == ("same", None)


def _by_blas() -> bool:
    from tinyroberta.backends.numba.paths import chosen_path

    return chosen_path() == "blas"


def test_a_batch_that_leaks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(running={"backend": "numpy", "reproducible": True}, max_position_embeddings=80)
    from tinyroberta.backends import bitwise

    plain = bitwise.attention

    def leaking(q: Any, *others: Any) -> Any:
        return plain(q + np.float32(1e-6) * (len(others[2].key_start) > 1), *others)

    monkeypatch.setattr(bitwise, "attention", leaking)
    result = invariance.check_model(model)
    assert (result["verdict"], result["first"]) == ("differs", "encoder.layer.0.attention.self.probs")
    assert {entry["way"]: entry["first"] for entry in result["ways"]}["alone, threads=2"] is None


def test_texts_that_are_drawn_fit_the_model() -> None:
    config = model_of(max_position_embeddings=9).config
    inputs = live.drawn_inputs(config)
    assert inputs["attention_mask"].sum(1).max() == config.usable_length
    assert (inputs["input_ids"][inputs["attention_mask"] == 1] != config.pad_token_id).all()
