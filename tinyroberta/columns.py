"""Tables by their columns: which one holds the texts, and the package that reads tables."""

from collections.abc import Iterable, Sequence
from typing import Any

from .errors import Error


def import_arrow() -> Any:
    """The pyarrow package; raises Error where it is not installed."""
    try:
        import pyarrow
    except ImportError as error:
        raise Error("Parquet needs the pyarrow package: pip install 'tinyroberta[parquet]'") from error
    return pyarrow


def column_of(names: Sequence[str], column: str, name: str) -> str:
    """The column that holds the texts; raises Error where it is not there."""
    if column not in names:
        raise Error(f"{name} has no column {column}: there are {names_of(names)}")
    return column


def names_of(names: Iterable[str]) -> str:
    """The first of many names, for a sentence."""
    shown = [str(name)[:40] for name in names]
    return ", ".join(shown[:12]) + (" ..." if len(shown) > 12 else "") or "none"
