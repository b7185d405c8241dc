"""A hook of the site: a line `:source: module.function` becomes that function's code."""

import importlib
import inspect
import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page with the code that its lines ask for."""
    return re.sub(r"^:source: (\S+)\.(\w+)$", _code, markdown, flags=re.M)


def _code(found: re.Match[str]) -> str:
    function = getattr(importlib.import_module(found[1]), found[2])
    return f"```python\n{inspect.getsource(function)}```"
