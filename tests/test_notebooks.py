"""The notebooks: each .py runs from top to bottom, the answers folded in its text too; its .ipynb holds the same cells, run.

`python tests/test_notebooks.py` writes every .ipynb anew: after a change of a .py, or of the embedded model.
"""

import os
import re
import tempfile
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
SAPIENS = os.environ.get("TINYROBERTA_SAPIENS", "")
LARGEST = 600_000  # bytes of an .ipynb: a code host still shows it, and the repository stays small

parametrized = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def read(notebook: Path) -> Any:
    """A .py as a notebook whose cells have lasting names, so that a new run changes no more than it must."""
    cells = jupytext.read(notebook, fmt="py:percent")
    for index, cell in enumerate(cells.cells):
        cell.id = f"cell-{index}"
    return cells


def with_answers(notebook: Any) -> Any:
    """The notebook with the Python that stands in its text as cells of its own, where it stands."""
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type == "markdown":
            cells += [nbformat.v4.new_code_cell(code) for code in ANSWER.findall(cell.source)]
    notebook.cells = cells
    return notebook


def execute(notebook: Any, folder: str) -> None:
    """Run all cells; the kernel imports the very package that this process imports, and reads nothing of the user's."""
    package = str(Path(tinyroberta.__file__).parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "IPYTHONDIR": folder}
    steady = {"record_timing": False, "coalesce_streams": True}  # the same outputs give the same file
    place = {"metadata": {"path": folder}}
    client = nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3", resources=place, **steady)
    client.execute(env=environment)
    del notebook.metadata["language_info"]  # the version of Python that ran it


def skipped(notebook: Any) -> list[str]:
    """What a notebook says that it leaves out, because something cannot be had."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [line for output in outputs for line in output.get("text", "").splitlines() if line.startswith("Skipped")]


def complaints(notebook: Any) -> list[str]:
    """Errors and warnings among the outputs."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    told = [output.get("text", "") for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    return [text for text in told if "font cache" not in text]


@parametrized
@pytest.mark.filterwarnings("ignore::DeprecationWarning:(jupyter_core|nbclient|asyncio|traitlets).*")
@pytest.mark.filterwarnings("ignore:Proactor event loop:RuntimeWarning")
def test_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Sapiens where it is at hand; a test fetches nothing."""
    monkeypatch.setenv("TINYROBERTA_SAPIENS", str(Path(SAPIENS or tmp_path).resolve()))
    cells = with_answers(read(notebook))
    execute(cells, str(tmp_path))
    assert not complaints(cells)
    assert not (SAPIENS and skipped(cells))


@pytest.mark.parametrize("name", ["02_norm_and_add", "06_when_numbers_differ"])
@pytest.mark.skipif(not SAPIENS, reason="test_runs runs without it already")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:(jupyter_core|nbclient|asyncio|traitlets).*")
@pytest.mark.filterwarnings("ignore:Proactor event loop:RuntimeWarning")
def test_runs_without_sapiens(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYROBERTA_SAPIENS", str(tmp_path))
    cells = with_answers(read(NOTEBOOKS[0].with_name(f"{name}.py")))
    execute(cells, str(tmp_path))
    assert not complaints(cells)
    assert len(skipped(cells)) == 1


@parametrized
def test_pair(notebook: Path) -> None:
    """The .ipynb is the .py, run once from top to bottom, with its pictures and without errors."""
    pair = notebook.with_suffix(".ipynb")
    run, source = nbformat.read(pair, as_version=4), read(notebook)
    same = [(cell.cell_type, cell.source) for cell in run.cells] == [(cell.cell_type, cell.source) for cell in source.cells]
    assert same, f"{pair.name} is behind {notebook.name}: python tests/test_notebooks.py"
    counts = [cell.execution_count for cell in run.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert not complaints(run)
    assert not skipped(run), f"{pair.name} was written without what it needs"
    assert pair.stat().st_size < LARGEST


if __name__ == "__main__":
    for notebook in NOTEBOOKS:
        cells = read(notebook)
        with tempfile.TemporaryDirectory() as folder:
            execute(cells, folder)
        nbformat.write(cells, notebook.with_suffix(".ipynb"))
        print(notebook.with_suffix(".ipynb"), *complaints(cells), *skipped(cells))
