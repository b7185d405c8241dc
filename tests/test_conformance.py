"""tinyroberta conformance: a right forward passes every option, and each wrong one fails where it is wrong, and there alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyroberta.cli import main
from tinyroberta.config import RobertaPreLayerNormConfig
from tinyroberta.numerics import conformance
from tinyroberta.numerics.conformance import MASKS, OPTIONS

HERE = Path(__file__).parent


def run(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *more: str) -> tuple[int, Any]:
    monkeypatch.chdir(HERE)
    status = main(["conformance", f"mine_for_conformance:{name}", "--json", *more])
    return status, json.loads(capsys.readouterr().out)


def failed(found: Any) -> set[str]:
    return {option["option"] for option in found["options"] if option["failed"]}


def test_a_right_one_conforms(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    status, found = run("right", capsys, monkeypatch)
    assert (status, found["verdict"], failed(found)) == (0, "conforms", set())
    assert {case["mask"] for case in found["cases"]} == set(MASKS)
    assert {1, 2, 9, 34} <= {case["length"] for case in found["cases"]}
    assert all(0 < case["error"] <= case["bound"] < 1e-4 for case in found["cases"])


EVERY = {option.name for option in OPTIONS}
EPS = {"layer_norm_eps 1e-05", "layer_norm_eps 0.01", "model_type xlm-roberta-xl"}


@pytest.mark.parametrize(
    ("name", "wrong", "told"),
    [
        ("deaf_to_eps", {"layer_norm_eps 1e-05", "layer_norm_eps 0.01"}, "are off by"),
        ("deaf_to_the_mask", EVERY, "are off by"),
        ("in_half", EVERY, "are off by"),
        ("short", EVERY - {"max_position_embeddings 12"}, "RuntimeError: a text is too long for me"),
        (
            "leaves",
            {"position_embedding_type relative_key", "position_embedding_type relative_key_query"},
            "SystemExit: no relative",
        ),
        ("flat", EVERY, "of shape (3,)"),
        ("nan", EVERY, "are not finite"),
        ("nothing", EVERY, "gave a NoneType"),
    ],
)
def test_a_wrong_one_fails_where_it_is_wrong(
    name: str, wrong: set[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, found = run(name, capsys, monkeypatch)
    assert (status, found["verdict"]) == (1, "fails")
    assert failed(found) == wrong
    assert all(told in case["told"] for case in found["cases"] if not case["ok"])
    if name == "deaf_to_the_mask":
        assert all(case["ok"] for case in found["cases"] if case["mask"] == "no padding")


def test_half_precision_is_held_to_its_own_rounding(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance, "OPTIONS", OPTIONS[:2])
    assert run("in_half", capsys, monkeypatch)[0] == 1
    assert run("in_half", capsys, monkeypatch, "--dtype", "float16")[0] == 0


def test_the_options_are_those_of_the_configuration() -> None:
    """All that changes an encoder's numbers; what is left out says why."""
    inert = {
        "vocab_size", "hidden_size", "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "bos_token_id",
        "eos_token_id", "use_cache", "classifier_dropout", "architectures", "num_labels", "id2label", "label2id", "problem_type",
        "add_cross_attention", "is_encoder_decoder", "cross_attention_hidden_size", "decoder_start_token_id", "sep_token_id",
        "tie_encoder_decoder", "tie_last_hidden_states", "return_dict", "output_hidden_states", "output_attentions", "extra",
    }  # fmt: skip
    changed = {name for option in OPTIONS for name in option.fields}
    assert changed | inert == set(RobertaPreLayerNormConfig.__dataclass_fields__)


def test_a_table_for_people(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)
    monkeypatch.setattr(conformance, "OPTIONS", OPTIONS[:7])
    assert main(["conformance", "mine_for_conformance:deaf_to_eps"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line[:3] for line in lines[:-1]] == ["ok "] * 5 + ["NOT"] * 2
    assert lines[-1] == "fails: 2 of 7 options"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("mine_for_conformance", "module:callable"),
        ("no_such_module_at_all:load", "cannot import no_such_module_at_all: ModuleNotFoundError"),
        ("mine_for_conformance:no", "has no function no"),
        ("mine_for_conformance:word", "has no function word"),
    ],
)
def test_a_wrong_use_is_one_sentence(
    given: str, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(HERE)
    assert main(["conformance", given]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1


@pytest.mark.live
def test_transformers_conforms_by_the_example_of_the_docstring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    lines = (conformance.__doc__ or "").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("    def load(folder)"))
    example = "\n".join(line[4:] for line in lines[start : lines.index("", start)])
    (tmp_path / "theirs_by_the_docstring.py").write_text(f"import torch, transformers\n{example}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(conformance, "OPTIONS", OPTIONS[::3])
    status = main(["conformance", "theirs_by_the_docstring:load", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (status, failed(found)) == (0, set()), found["options"]


def test_models_are_drawn_the_same_every_time() -> None:
    a, b = (conformance.made(OPTIONS[0]).tensors for _ in range(2))
    assert all(np.array_equal(x, b[name]) for name, x in a.items())
