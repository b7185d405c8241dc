"""The notebooks: each .py runs from top to bottom, the answers folded in its text too; its .ipynb holds the same cells, run.

After a change, in notebooks/:  jupytext --to ipynb --update NAME.py && jupyter execute --inplace NAME.ipynb
"""

import os
import re
from pathlib import Path
from typing import Any

import pytest

import tinyroberta

jupytext = pytest.importorskip("jupytext")
nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
for needed in ("ipykernel", "matplotlib", "tokenizers"):
    pytest.importorskip(needed)

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))
ANSWER = re.compile(r"```python\n(.*?)```", re.DOTALL)
LARGEST = 600_000  # bytes of an .ipynb: a code host still shows it, and the repository stays small

pytestmark = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def cells_of(notebook: Any) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def with_answers(notebook: Any) -> Any:
    """The notebook with the Python that stands in its text as cells of its own, where it stands."""
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type == "markdown":
            cells += [nbformat.v4.new_code_cell(code) for code in ANSWER.findall(cell.source)]
    notebook.cells = cells
    return notebook


@pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_core.*")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:nbclient.*")
@pytest.mark.filterwarnings("ignore:.*event loop:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Proactor event loop:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:.*without encryption:UserWarning")
def test_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel imports the very package that is under test, and reads nothing of the user's."""
    package = str(Path(tinyroberta.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    cells = with_answers(jupytext.read(notebook, fmt="py:percent"))
    nbclient.NotebookClient(cells, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = [output for cell in cells.cells for output in cell.get("outputs", []) if output.get("name") == "stderr"]
    assert not [output.text for output in printed if "font cache" not in output.text]


def test_pair(notebook: Path) -> None:
    """The .ipynb is the .py, run once from top to bottom, with its pictures and without errors."""
    pair = notebook.with_suffix(".ipynb")
    run = nbformat.read(pair, as_version=4)
    assert cells_of(run) == cells_of(jupytext.read(notebook, fmt="py:percent")), f"{pair.name} is behind {notebook.name}"
    code = [cell for cell in run.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [
        output for cell in code for output in cell.outputs if output.output_type == "error" or output.get("name") == "stderr"
    ]
    assert pair.stat().st_size < LARGEST
