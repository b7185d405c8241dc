"""progress.py's counted: a bar on a terminal alone, for what takes long or was asked for, also where no total is known."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinyroberta.progress import counted

CODE = """
import sys, time
if {bare}: sys.modules["rich"] = None
from tinyroberta import progress
progress.PATIENCE = {patience}
def items():
    for n in range(10):
        time.sleep(0.02)
        yield n
print(list(progress.counted(items(), {total}, "embedding", "texts", {asked})))
"""


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("total", [10, None])
@pytest.mark.parametrize(
    ("asked", "patience", "shown"), [(None, 0.05, True), (None, 9, False), (True, 9, True), (False, 0, False)]
)
def test_a_bar_counts_on_a_terminal(bare: bool, total: int | None, asked: bool | None, patience: float, shown: bool) -> None:
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    code = CODE.format(bare=bare, total=total, asked=asked, patience=patience)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, stderr=follower, env=environment
    ) as process:
        os.close(follower)
        seen = b""
        try:
            while piece := os.read(leader, 1000):
                seen += piece
        except OSError:  # the other end is closed
            pass
        out = process.stdout.read()
    os.close(leader)
    assert out == b"[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n"
    assert (b"embedding" in seen) == shown
    assert shown or seen == b""
    assert not shown or total is not None or b"texts" in seen


def test_nothing_is_shown_elsewhere(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(counted(iter("abc"), None, "embedding", "texts", True)) == ["a", "b", "c"]
    assert capfd.readouterr().err == ""
