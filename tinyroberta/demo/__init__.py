"""The embedded model: a small masked language model, trained by tools/train_demo.py; its card is README.md."""

from pathlib import Path
from typing import Any

from .. import auto
from ..errors import Error

FOLDER = Path(__file__).parent


def load(task: str | None = None, **running: Any) -> Any:
    """The embedded model of a task by transformers' name; raises Error where there is none."""
    if task not in (None, "fill-mask"):
        raise Error(f"there is no embedded model for {task}: name a checkpoint")
    return auto.load(FOLDER, **running)
