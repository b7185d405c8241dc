"""Every task gives what transformers' pipelines give (tests/golden_tasks), on both backends: shapes, labels, spans, scores."""

import json
from typing import Any

import pytest
from tasks_for_tests import ROOT, assemble, same

import tinyroberta

pytest.importorskip("tokenizers")

CASES = json.loads((ROOT / "cases.json").read_text(encoding="utf-8"))
AS_PIPELINE = {"text-generation": {"add_special_tokens": True, "first_position": 0}}  # where this library does otherwise


@pytest.fixture(scope="module", params=["numpy", "numba"])
def tasks(request, tmp_path_factory: pytest.TempPathFactory):
    if request.param == "numba":
        pytest.importorskip("numba")
    made: dict[str, Any] = {}

    def get(name: str, task: str) -> Any:
        if name not in made:
            folder = assemble(name, tmp_path_factory.mktemp(name))
            made[name] = tinyroberta.task(task, folder, backend=request.param, long="truncate")
        return made[name]

    return get


def ids(case: dict[str, Any]) -> str:
    return f"{case['model']}-{json.dumps(case['arguments'])}-{json.dumps(case['inputs'], ensure_ascii=True)[:30]}"


@pytest.mark.filterwarnings("ignore:the target:UserWarning", "ignore:.*longer than .* tokens, and cut:UserWarning")
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_a_task_gives_what_the_pipeline_gives(tasks, case: dict[str, Any]) -> None:
    task = tasks(case["model"], case["task"])
    if "stride" in case["arguments"]:
        case = {**case, "arguments": {**case["arguments"], "long": "window"}}
    found = task(case["inputs"], **case["arguments"], **AS_PIPELINE.get(case["task"], {}))
    assert same(found, case["result"]), (found, case["result"])
