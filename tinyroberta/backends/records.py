"""What a backend is given to prepare: a model's weights as records that say what each is for (plan.py makes them).

Records are told apart by identity: two layers may hold equal numbers, and tied weights are one array in two records.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Array = Any

# Who reads a dense layer's result, its `feeds`:
#   ATTENTION           self-attention, to which it gives queries, keys and values side by side
#   RELATIVE_ATTENTION  the same with relative positions, whose scores read queries and keys once more
#   CROSS_ATTENTION     attention to another model's rows, to which it gives queries, keys or values
#   ACTIVATION          an activation, and after it one dense layer alone
#   STREAM              the sum with the stream of rows
#   CALLER              anything else: a caller, or what else stands in a head
ATTENTION, RELATIVE_ATTENTION, CROSS_ATTENTION = "attention", "relative attention", "cross-attention"
ACTIVATION, STREAM, CALLER = "activation", "stream", "caller"
# Who reads a norm's result: dense layers alone, so that a backend may write it as their products want it; or STREAM, anyone.
PRODUCTS = "products"
# What a table's rows stand for.
WORDS, POSITIONS, SEGMENTS, DISTANCES = "words", "positions", "segments", "distances"


@dataclass(frozen=True, eq=False)
class Norm:
    """A layer norm's gain and shift, (D,) each; its sublayer is a number that only weights of the same sublayer share."""

    weight: Array
    bias: Array
    feeds: str
    sublayer: int


@dataclass(frozen=True, eq=False)
class Dense:
    """A dense layer: parts (O, I) with biases (O,), whose results stand side by side.

    `reads` says what makes the rows that it multiplies, `feeds` who reads its result.
    """

    parts: tuple[Array, ...]
    biases: tuple[Array, ...]
    reads: "Source"
    feeds: str
    sublayer: int


@dataclass(frozen=True, eq=False)
class Table:
    """Rows to be looked up, (N, D); whether a norm reads their sum."""

    weight: Array
    of: str
    normed: bool


@dataclass(frozen=True, eq=False)
class Normed:
    """Rows that one of these norms makes; which one depends on the call."""

    norms: tuple[Norm, ...]


@dataclass(frozen=True, eq=False)
class Attended:
    """Rows that attention makes of the queries, keys and values of a dense layer: means of its values."""

    values: Dense


@dataclass(frozen=True, eq=False)
class Activated:
    """Rows that a dense layer makes, after the activation."""

    dense: Dense


@dataclass(frozen=True, eq=False)
class Elsewhere:
    """Rows of which nothing is known: sums, a caller's, another model's."""


Source = Normed | Attended | Activated | Elsewhere
Record = Dense | Norm | Table


def each(tree: dict[str, Any]) -> Iterator[Record]:
    """The records of a tree, in its order."""
    for branch in tree.values():
        if isinstance(branch, dict):
            yield from each(branch)
        else:
            yield branch


def mapped(tree: dict[str, Any], prepared: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """The tree with what becomes of each record, the arguments of the op that reads it."""
    return {name: mapped(x, prepared) if isinstance(x, dict) else prepared(x) for name, x in tree.items()}
