"""The one exception of this library, and what is none: NumPy's floating-point errors."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")


def ieee(function: Callable[P, R]) -> Callable[P, R]:
    """The function, with IEEE 754's defaults whatever np.seterr says: what underflows is 0, what overflows infinite, no more.

    (np.errstate as a decorator is one state for all threads before NumPy 2.)
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with np.errstate(all="ignore"):
            return function(*args, **kwargs)

    return call


class Error(ValueError):
    """Anything a caller can get wrong: one sentence that says what was given, what is allowed and what to do."""


class RangeError(Error, IndexError):
    """A token id, token type or position outside its embedding table."""
