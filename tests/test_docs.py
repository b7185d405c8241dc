"""docs/ and README.md: every Python block runs, every local link leads somewhere, and the site builds without a warning."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search(page.read_text())], ids=lambda page: page.name)
def test_the_pages_python_runs(page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tokenizers")
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    for block in BLOCK.findall(page.read_text()):
        exec(compile(block, str(page), "exec"), names)
    capsys.readouterr()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_local_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    absent = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert absent == []


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model" / "index.html").exists()


FILES = {
    "texts.jsonl": '{"text": "The sea was calm."}\n{"text": "She went home."}\n',
    "reviews.txt": "What a wonderful film!\nThe room was dirty.\n",
    "articles.csv": "id,body\n1,Mr. Darcy went to London.\n",
    "booking.txt": "A table for four people at eight, please.\n",
}
ALONE = re.compile(r"tinyroberta (fill-mask|embed|classify|tag|answer|choose|generate|info)\b")


def commands() -> list[str]:
    """The commands of all pages that need nothing but the embedded model and FILES."""
    blocks = [block for page in PAGES for block in re.findall(r"^```\n(.*?)^```", page.read_text(), re.M | re.S)]
    lines = {line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()}
    return sorted(line for line in lines if ALONE.match(line) and "--model" not in line)


@pytest.mark.parametrize("command", commands())
def test_the_pages_commands_run(command: str, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    pytest.importorskip("rich")
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    done = subprocess.run(
        f"{shlex.quote(sys.executable)} -m {command}", shell=True, cwd=tmp_path, timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout
