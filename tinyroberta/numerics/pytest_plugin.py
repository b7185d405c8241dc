"""A pytest plugin, there where tinyroberta is installed: the fixture `golden`, and assert_trace_close.

    def test_my_port(golden):
        with tinyroberta.trace(model) as seen:
            model(ids)
        golden(seen)                                  # golden/test_my_port beside this file: written by pytest --update-golden
        golden(my_arrays, "base", model=model)        # {name of model.tap_names(): array}; golden/base, by golden make too

It imports nothing until a test asks for it.
"""

import re
from collections.abc import Callable
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """--update-golden."""
    told = "write the golden files of the fixture `golden` anew instead of checking them"
    parser.getgroup("tinyroberta").addoption("--update-golden", action="store_true", help=told)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[..., None]:
    """golden(trace, name=None, kind="full", model=None): hold a trace to a golden file beside the test, or write that file.

    trace: what assert_trace_close takes; arrays by name only where the file is there. name: of the folder in golden/, the test's
    where it is None. kind: "full" or "sketch", of what is written. model: what ran.
    """

    def check(trace: Any, name: str | None = None, kind: str = "full", model: Any = None) -> None:
        __tracebackhide__ = True
        from . import golden as files

        folder = request.path.parent / "golden" / (name or re.sub(r"[^\w.-]+", "_", request.node.name).strip("_"))
        if request.config.getoption("--update-golden"):
            like = files.read(folder) if (folder / files.FILE).exists() else None
            files.make(files.trace_of(trace, like), folder, kind, update=True)
            return
        if not (folder / files.FILE).exists():
            pytest.fail(f"there is no {folder / files.FILE}: write it with pytest --update-golden", pytrace=False)
        files.assert_trace_close(trace, folder, model)

    return check


def assert_trace_close(candidate: Any, reference: Any, model: Any = None) -> None:
    """As tinyroberta.numerics.golden.assert_trace_close."""
    __tracebackhide__ = True
    from .golden import assert_trace_close

    assert_trace_close(candidate, reference, model)
