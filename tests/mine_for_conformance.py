"""Forward passes of others, right and wrong, as tinyroberta conformance is given them."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import tinyroberta

Forward = Callable[[Any, Any], Any]


def right(folder: str) -> Forward:
    model: Any = tinyroberta.load(folder, backend="numpy")
    print("what is printed stays off the object")
    return lambda ids, mask: model(ids, mask)[0]


def deaf_to_eps(folder: str) -> Forward:
    model: Any = tinyroberta.load(folder, backend="numpy")
    other = type(model)(replace(model.config, layer_norm_eps=1e-12), model.tensors, backend="numpy")
    return lambda ids, mask: other(ids, mask)[0]


def deaf_to_the_mask(folder: str) -> Forward:
    model: Any = tinyroberta.load(folder, backend="numpy")
    return lambda ids, mask: model(ids, np.ones_like(mask))[0]


def in_half(folder: str) -> Forward:
    model: Any = tinyroberta.load(folder, backend="numpy")
    return lambda ids, mask: model(ids, mask)[0].astype(np.float16).astype(np.float32)


def short(folder: str) -> Forward:
    model: Any = tinyroberta.load(folder, backend="numpy")

    def forward(ids: Any, mask: Any) -> Any:
        if ids.shape[1] > 20:
            raise RuntimeError("a text is too long\nfor me")
        return model(ids, mask)[0]

    return forward


def leaves(folder: str) -> Forward:
    if "relative" in (Path(folder) / "config.json").read_text():
        sys.exit("no relative positions here")
    return right(folder)


def flat(folder: str) -> Forward:
    return lambda ids, mask: np.zeros(len(ids) + 0 * len(mask) + 0 * len(folder))


def nan(folder: str) -> Forward:
    model: Any = tinyroberta.load(folder, backend="numpy")
    return lambda ids, mask: model(ids, mask)[0] * np.nan


def nothing(folder: str) -> None:
    print(folder)


word = "not a function"
