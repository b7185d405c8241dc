"""Our ops on another's inputs: the model is run in float64, and what the other recorded is put in the place of what each op gave.

So every op reads what the other's op read, and the difference of the two results is what the other's op adds. Where the other
recorded nothing, our own result passes on, and the next op that is recorded answers for those before it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..backends import Array
from ..backends import numpy as definition
from ..heads import HEADS
from ..tap import around, trace
from ..traces import Recorded

Change = Callable[[str, Array], Array]
UNREAD = 1e30  # the size of a score that a mask has made


def exact_of(model: Any) -> Any:
    """A model in float64 on the NumPy backend, whose chunks, which give the same numbers, are whole."""
    if hasattr(model, "encoder"):
        pair = type(model)(exact_of(model.encoder), exact_of(model.decoder), model.projection)
        pair.name_or_path = model.name_or_path
        return pair
    config = replace(model.config, chunk_size_feed_forward=0)
    exact = type(model)(config, model.tensors, backend="numpy", dtype="float64")
    exact.name_or_path = model.name_or_path
    return exact


def replay(model: Any, call: Recorded) -> Any:
    """The output of a model for the inputs of a recorded call, its rows those of the call."""
    assert call.inputs is not None
    given = dict(call.inputs)
    if type(model).head is HEADS["ForMultipleChoice"]:
        given = {name: x[None] for name, x in given.items()}
    padded = call.places is None and not call.inputs.get("attention_mask", np.ones(1)).all()
    return model(**given, padding="compute" if padded else "skip")


def ours(model: Any, call: Recorded, theirs: Mapping[str, Array], change: Change = lambda _, x: x) -> dict[str, Array]:
    """What each op of a float64 model gives where the arrays of `theirs` stand for those before it; by full name.

    `change` is applied to everything that passes on.
    """
    part = getattr(model, call.part.removesuffix("."), model) if call.part else model
    found: dict[str, Array] = {}

    def function(name: str, x: Array) -> Array:
        found[call.part + name] = x
        rows = seen.calls[-1].rows
        assert rows is not None
        places = np.arange(rows.shape[0] * rows.shape[1]) if rows.places is None else rows.places
        given = theirs.get(call.part + name)
        return change(name, x if given is None else placed(given, call.rows(), x, places))

    with trace(part, [], {"*": function}) as seen:
        replay(part, call)
    return found


def placed(given: Array, given_places: Array, own: Array, own_places: Array) -> Array:
    """An array in the rows of another, at the places that both have; where it does not fit, the other's own."""
    given = given.astype(np.float64)
    if given.shape == own.shape and (len(given) != len(given_places) or np.array_equal(given_places, own_places)):
        return given
    if given.shape[1:] != own.shape[1:] or len(given) != len(given_places) or len(own) != len(own_places):
        return own
    _, theirs, mine = np.intersect1d(given_places, own_places, return_indices=True)
    whole = own.copy()
    whole[mine] = given[theirs]
    return whole


def with_shaken_scores(model: Any, seed: int, size: float) -> Any:
    """A float64 model whose attention moves every score at random by up to `size` times itself: scores pass under no name."""
    random, kind = np.random.default_rng(seed), type(model)

    def softmax(scores: Array) -> Array:
        moved = size * scores * random.uniform(-1, 1, scores.shape)
        return definition.softmax(scores + np.where(np.abs(scores) < UNREAD, moved, 0))

    def attention(q: Array, k: Array, v: Array, *others: Any) -> Any:
        return definition.attend(np.matmul, softmax, q, k, v, *others)

    backend: Any = SimpleNamespace(**vars(definition) | {"attention": attention})
    shaky: Any = object.__new__(type(kind.__name__, (kind,), {"ops": property(lambda self: around(self, backend))}))
    shaky.__dict__ = model.__dict__
    return shaky


def shaken(seed: int, size: float, by_row: bool) -> Change:
    """A change that moves every number at random by up to `size` times itself, or times its row's largest number."""
    random = np.random.default_rng(seed)

    def shake(name: str, x: Array) -> Array:  # noqa: ARG001
        scale = np.abs(x).max(-1, keepdims=True, initial=0) if by_row else x
        moved: Array = x + size * scale * random.uniform(-1, 1, x.shape)
        return moved

    return shake
