"""The embedded models: a small masked language model, trained by tools/train_demo.py, and what tools/train_heads.py made of it.

Their cards are the README.md of each folder. All have one tokenizer, and the masked model's embeddings.
"""

from pathlib import Path
from typing import Any, Unpack

import numpy as np

from .. import auto
from ..errors import Error
from ..keywords import Running
from ..weights.checkpoint import Stored, open_checkpoint
from ..weights.names import PREFIX
from ..weights.safetensors import Array

FOLDER = Path(__file__).parent
TASKS = {  # transformers' name of a task, and the folder of what it adds to the masked model
    "fill-mask": None,
    "text-classification": "sentiment",
    "token-classification": "entities",
    "question-answering": "answers",
    "multiple-choice": "choices",
    "feature-extraction": "sentences",
    "embed": "sentences",
    "text-generation": "causal",
}


class Merged(dict[str, Array]):
    """A checkpoint's tensors in memory, as weights/checkpoint.py's Stored."""

    def __init__(self, base: Stored, update: Stored, layers: int) -> None:
        """What a task learned, in place of the base's or beside them; a matrix with lora_A and lora_B is the base's + B A.

        The sum is taken in float64, whose rounding is lost in that to the base's dtype, whatever the order of its terms.
        """
        self.aliases: dict[str, str] = {}
        above = tuple(f"{PREFIX}encoder.layer.{layer}." for layer in range(layers, _layers(base)))
        super().__init__((name, base[name]) for name in base if not name.startswith(above))
        for name in update:
            if name.endswith("lora_A.weight"):
                stem = name.removesuffix("lora_A.weight")
                down, up = (update[f"{stem}{part}.weight"].astype(np.float64) for part in ("lora_A", "lora_B"))
                whole = base[f"{stem}weight"]
                self[f"{stem}weight"] = (whole.astype(np.float64) + up @ down).astype(whole.dtype)
            elif not name.endswith("lora_B.weight"):
                self[name] = update[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self[name].shape


def _layers(stored: Stored) -> int:
    start = f"{PREFIX}encoder.layer."
    return 1 + max(int(name.removeprefix(start).split(".")[0]) for name in stored if name.startswith(start))


def load(task: str | None = None, **running: Unpack[Running]) -> Any:
    """The embedded model for a task by transformers' name, of its class; the masked language model for None.

    Raises Error on another task than those of TASKS, and as `tinyroberta.load`.
    """
    if task is not None and task not in TASKS:
        raise Error(f"the embedded model knows no task {task!r}; it knows {', '.join(TASKS)}: name a model for another")
    name = None if task is None else TASKS[task]
    if name is None:
        return auto.load(FOLDER, **running)
    folder = FOLDER / name
    base, update = open_checkpoint(FOLDER), open_checkpoint(folder / "update.safetensors")
    cls, config = auto.class_of(folder, update)
    return cls.from_stored(Merged(base, update, config.num_hidden_layers), config, str(folder), **running)
