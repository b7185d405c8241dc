"""A bar on standard error for what takes long: on a terminal alone, drawn by rich where it is installed."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

T = TypeVar("T")
PATIENCE = 3.0  # seconds before a bar is shown of what need not take long


@contextmanager
def progress(total: float | None, name: str, after: float = 0.0, unit: str = "bytes") -> Iterator[Callable[[float], object]]:
    """Yield what is to be told of bytes or other units done; the bar shows `after` seconds from now and is wiped at the end.

    total: of how many, or None where nobody knows: then what is done is counted.
    """
    if sys.stderr is None or not (sys.stderr.isatty() or os.environ.get("FORCE_COLOR")):  # which is rich's word for a terminal
        yield lambda _: None
        return
    start, done = time.monotonic(), 0.0
    show: Callable[[float], object] | None = None
    with ExitStack() as stack:

        def advance(count: float) -> None:
            nonlocal done, show
            done += count
            if show is None and time.monotonic() - start >= after and (total is None or done < total):
                show = stack.enter_context(_bar(total, name, unit))
            if show is not None:
                show(done)

        yield advance


def counted(items: Iterable[T], total: float | None, name: str, unit: str, asked: bool | None = None) -> Iterator[T]:
    """The items, with a bar that counts them: at once, never, or (None) where they take longer than some seconds."""
    if asked is False:
        yield from items
        return
    with progress(total, name, 0.0 if asked else PATIENCE, unit) as told:
        for item in items:
            told(1)
            yield item


@contextmanager
def _bar(total: float | None, name: str, unit: str) -> Iterator[Callable[[float], object]]:
    try:
        from rich import progress as parts
        from rich.console import Console
    except ImportError:
        longest = 0

        def show(done: float) -> None:
            nonlocal longest
            told = f"{name}: {done:.0f} {unit}" if total is None else f"{name}: {done / total:.0%}"
            longest = max(longest, len(told))
            print(f"\r{told}", end="", file=sys.stderr, flush=True)

        yield show
        print(f"\r{' ' * longest}\r", end="", file=sys.stderr, flush=True)
        return
    console = Console(stderr=True)
    columns: list[parts.ProgressColumn] = [parts.TextColumn(name), parts.BarColumn(40 if console.width >= 80 else None)]
    if total is None:
        columns[1:] = [parts.SpinnerColumn(), parts.TextColumn(f"{{task.completed:.0f}} {unit}"), parts.TimeElapsedColumn()]
    elif console.width < 60:
        columns.append(parts.TaskProgressColumn())
    elif unit == "bytes":
        columns += [parts.DownloadColumn(), parts.TransferSpeedColumn(), parts.TimeRemainingColumn()]
    else:
        columns += [parts.MofNCompleteColumn(), parts.TextColumn(unit)]
    with parts.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=total)
        yield lambda done: bar.update(task, completed=done)
