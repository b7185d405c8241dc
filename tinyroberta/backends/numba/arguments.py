"""What a kernel is given, by name: Fields are declared once, beside the kernel; it reads given.x, and who runs it passes x=... .

In memory that is a struct of 8 bytes a field, whose address the kernel gets, so that any thread can run any kernel.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .buffers import address

Array = np.ndarray[Any, np.dtype[Any]]


class Fields:
    """The names of what a kernel is given: words, each an address or an integer; then what is a float32, or Fields again."""

    def __init__(self, *words: str, **others: "Fields | type[np.float32]") -> None:
        self.kinds: dict[str, Any] = dict.fromkeys(words, np.int64) | others
        stored = [(name, kind.dtype if isinstance(kind, Fields) else kind) for name, kind in self.kinds.items()]
        self.dtype: np.dtype[Any] = np.dtype(stored, align=True)
        if self.dtype.itemsize != 8 * self.count():
            raise TypeError(f"not 8 bytes a field: {self.dtype}")

    def count(self) -> int:
        """How many words they are, those of Fields within these counted."""
        return sum(kind.count() if isinstance(kind, Fields) else 1 for kind in self.kinds.values())

    def words(self, given: Mapping[str, Any]) -> list[int]:
        """The values as words, arrays as their addresses and None as 0; raises TypeError where a name or a value does not fit."""
        if given.keys() != self.kinds.keys():
            missing, unknown = sorted(self.kinds.keys() - given.keys()), sorted(given.keys() - self.kinds.keys())
            raise TypeError(f"a kernel misses {missing} and knows no {unknown}")
        words: list[int] = []
        for name, kind in self.kinds.items():
            x = given[name]
            if kind is np.int64 and type(x) is int:
                words.append(x)
            elif kind is np.int64 and (x is None or isinstance(x, np.ndarray)):
                words.append(address(x))
            elif kind is np.float32 and isinstance(x, float | np.float32):
                words.append(int(np.float32(x).view(np.uint32)))
            elif isinstance(kind, Fields):
                words += kind.words(x)
            else:
                raise TypeError(f"a kernel's {name} cannot be of type {type(x).__name__}")
        return words


def arrays(given: Mapping[str, Any]) -> Iterator[Array]:
    """The arrays among the values, which must live as long as the kernel may run."""
    for x in given.values():
        if isinstance(x, np.ndarray):
            yield x
        elif isinstance(x, dict):
            yield from arrays(x)
