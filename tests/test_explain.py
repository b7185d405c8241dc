"""tinyroberta explain: every known deviation, planted in a program that is not this one, is named; so are pairs."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numerics_cases import CASES, MODELS, SIZES, STORED, inputs, planted, tensors

import tinyroberta
from tinyroberta import traces
from tinyroberta.cli import main
from tinyroberta.config import config_from
from tinyroberta.errors import Error
from tinyroberta.family import KIN
from tinyroberta.heads import HEADS
from tinyroberta.numerics import compare, importers, live
from tinyroberta.numerics.deviations import Setup, deviations
from tinyroberta.numerics.explain import explain

FOLDER = Path(__file__).parent / "golden_numerics"
SAPIENS = os.environ.get("TINYROBERTA_SAPIENS", "")


def model_of(name: str) -> Any:
    config = config_from(SIZES | MODELS[name])
    cls = KIN[config.model_type]["ForMaskedLM"]
    held = tensors(cls.encoder_shapes(config) | cls.head_shapes(config))
    return cls(config, held, backend="numpy", dtype="float64")


def trace_of(model: Any, given: dict[str, Any], arrays: dict[str, Any], dtype: str = "float64") -> traces.TraceFile:
    """Another program's arrays (B, S, ...) as a trace."""
    call = traces.Recorded("", (0, 0), None, dict(given), {name: x.astype(dtype) for name, x in arrays.items()})
    made = traces.TraceFile({"dtype": dtype}, [call], "the candidate")
    importers.settle(made, model, given)
    return made


def named(found: Any) -> list[str]:
    return [cause["cause"] for cause in found.together]


@pytest.mark.live
@pytest.mark.parametrize("name", CASES)
def test_a_planted_mistake_is_named(name: str) -> None:
    pytest.importorskip("torch")
    from torch_roberta import Mistakes, run

    case = CASES[name]
    model, given = model_of(case.model), inputs(case.model)
    wrong = Mistakes(**planted(case.mistakes))
    arrays = run(SIZES | MODELS[case.model], model.tensors, given["input_ids"], given["attention_mask"], wrong)
    reference, candidate = live.run(model, given), trace_of(model, given, arrays)
    compared = compare.compare(reference, candidate, model)
    assert compared.first == case.ops[0]
    assert set(case.ops) <= {op.name for op in compared.ops if not op.ok}
    found = explain(reference, candidate, model)
    assert found.verdict == "explained"
    assert sorted(named(found)) == sorted(case.causes)
    assert found.explained > 1 - 1e-9
    if len(case.causes) == 1:
        assert found.causes[0]["cause"] == case.causes[0]


@pytest.mark.live
@pytest.mark.parametrize("model_name", MODELS)
def test_the_program_without_a_mistake_has_nothing_to_explain(model_name: str) -> None:
    pytest.importorskip("torch")
    from torch_roberta import run

    model, given = model_of(model_name), inputs(model_name)
    arrays = run(SIZES | MODELS[model_name], model.tensors, given["input_ids"], given["attention_mask"])
    found = explain(live.run(model, given), trace_of(model, given, arrays), model)
    assert (found.verdict, found.causes, found.together) == ("same", [], [])


@pytest.mark.parametrize("name", STORED)
def test_a_stored_mistake_is_named_by_the_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES[name]
    files = ["numpy:float64", str(FOLDER / f"{name}.npz"), "--model", str(FOLDER / case.model)]
    assert main(["explain", *files, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert sorted(cause["cause"] for cause in found["together"]) == sorted(case.causes)
    if len(case.causes) == 1:
        assert found["causes"][0]["cause"] == case.causes[0]
        assert 0.99 < found["causes"][0]["explains"] <= 1
    pytest.importorskip("rich")
    assert main(["explain", *files]) == 1
    assert all(cause in capsys.readouterr().out.replace("\n", " ") for cause in case.causes[:1])


@pytest.mark.parametrize("kept", [("encoder.layer.0", "encoder.layer.1"), ("lm_head.decoder",)])
@pytest.mark.parametrize("name", ["gelu_tanh", "position_0", "unk_for_mask", "transposed_in_one", "padding_attended"])
def test_a_few_arrays_are_enough(name: str, kept: tuple[str, ...]) -> None:
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = {key: file[key] for key in kept}
    model, given = tinyroberta.load(FOLDER / "prenorm", backend="numpy", dtype="float64"), inputs("prenorm")
    found = explain(live.run(model, given), trace_of(model, given, arrays, "float32"), model)
    assert named(found) == list(CASES[name].causes)


def test_what_no_row_says_is_not_explained() -> None:
    model, given = model_of("prenorm"), inputs("prenorm")
    reference, candidate = live.run(model, given), live.run(model, given)
    arrays = dict(candidate.calls[0].arrays)
    random = np.random.default_rng(0)
    arrays["encoder.layer.1"] = arrays["encoder.layer.1"] + random.standard_normal(arrays["encoder.layer.1"].shape)
    candidate.calls[0].arrays = arrays
    found = explain(reference, candidate, model)
    assert (found.verdict, found.together) == ("unexplained", [])
    assert all(cause["explains"] < 0.5 for cause in found.causes)


@pytest.mark.skipif(not SAPIENS, reason="TINYROBERTA_SAPIENS names no folder (tools/fetch_sapiens.py FOLDER fetches it)")
def test_the_published_numbers_of_sapiens_are_those_of_unk_in_place_of_the_mask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the published table alone: probabilities of twenty letters at the masked places, to six decimals."""
    published = json.loads((Path(__file__).parent / "sapiens.json").read_text())
    letters = [line.split()[0] for line in (Path(SAPIENS) / "dict.txt").read_text().splitlines()]
    words = ["<s>", "<pad>", "</s>", "<unk>", *letters, "<mask>"]
    ids = [0, *(24 if letter == "*" else words.index(letter) for letter in published["sequence"]), 2]
    columns = [words.index(letter) for letter in published["letters"]]
    for rows, expected in (("rows", None), ("rows_with_the_mask_as_unk", "unk in place of mask")):
        told = np.full((1, len(ids), len(words)), np.nan)
        for place, numbers in published[rows].items():
            told[0, int(place) + 1, columns] = numbers
        np.savez(tmp_path / "published.npz", **{"input_ids": [ids], "lm_head.decoder": told})
        command = [
            "explain",
            "numpy:float64",
            str(tmp_path / "published.npz"),
            "--model",
            str(Path(SAPIENS) / "checkpoint_vh.pt"),
        ]
        assert main([*command, "--json"]) == 1
        found = json.loads(capsys.readouterr().out)
        assert (found["causes"][0]["cause"] if found["causes"] else None) == expected
        if expected:
            assert [cause["cause"] for cause in found["together"]] == [expected]
            assert found["causes"][0]["explains"] > 0.999


def test_every_row_of_the_table_has_its_own_name_and_changes_what_it_is_given_alone() -> None:
    for name in MODELS:
        model = model_of(name)
        given = inputs(name)
        setup = Setup(model.config, model.tensors, given, {"mask": 39, "unk": 3})
        before = {key: x.copy() for key, x in model.tensors.items()}
        rows = list(deviations(setup, {"encoder.layer.0.attention.self.query"}))
        assert len({row.name for row in rows}) == len(rows)
        for row in rows:
            row.change(setup)
        assert all(np.array_equal(x, before[key]) for key, x in model.tensors.items())


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("model_type", ["roberta-prelayernorm", "roberta", "xlm-roberta-xl"])
def test_every_row_of_the_table_is_tried_on_every_class(model_type: str, head: str) -> None:
    """A candidate that has one deviation by our own means: it is explained, and no row fails on what another class lacks."""
    more = {"position_embedding_type": "relative_key"} if head == "Model" else {"pruned_heads": {0: [1]}}
    config = config_from(SIZES | {"model_type": model_type, "layer_norm_eps": 1e-12} | more)
    cls = KIN[model_type][head]
    model = cls(config, tensors(cls.encoder_shapes(config) | cls.head_shapes(config)), backend="numpy", dtype="float64")
    wrong = cls(replace(config, layer_norm_eps=1e-5), model.tensors, backend="numpy", dtype="float64")
    found = explain(live.run(model, inputs("prenorm")), live.run(wrong, inputs("prenorm")), model)
    assert named(found) == ["layer_norm_eps is 1e-05"]
    assert found.explained > 1 - 1e-9


def test_a_wrong_use_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of("prenorm")
    given = inputs("prenorm")
    other = live.run(model, {name: x[:, :4] for name, x in given.items()})
    with pytest.raises(Error, match="run the same texts"):
        explain(live.run(model, given), other, model)
    with pytest.raises(Error, match="compare says more"):
        explain(live.run(model, given), trace_of(model, given, {}), model)
    nameless = live.run(model, given)
    nameless.calls[0].inputs = None
    with pytest.raises(Error, match="which ids went in"):
        explain(nameless, nameless, model)
    (tmp_path / "x.npz").write_bytes(b"no zip")
    for wrong in (["no/file", "numpy"], ["numpy", str(tmp_path / "x.npz")], ["numpy", "numpy:float8"]):
        assert main(["explain", *wrong, "--model", str(FOLDER / "prenorm")]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert "Traceback" not in told
