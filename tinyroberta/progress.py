"""A bar on standard error for what takes long: on a terminal alone, drawn by rich where it is installed."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def progress(total: float, name: str, after: float = 0.0) -> Iterator[Callable[[float], object]]:
    """Yield what is to be told of bytes done; the bar shows once `after` seconds have gone by, and is wiped at the end."""
    if sys.stderr is None or not (sys.stderr.isatty() or os.environ.get("FORCE_COLOR")):  # which is rich's word for a terminal
        yield lambda _: None
        return
    start, done = time.monotonic(), 0.0
    show: Callable[[float], object] | None = None
    with ExitStack() as stack:

        def advance(count: float) -> None:
            nonlocal done, show
            done += count
            if show is None and time.monotonic() - start >= after and done < total:
                show = stack.enter_context(_bar(total, name))
            if show is not None:
                show(done)

        yield advance


@contextmanager
def _bar(total: float, name: str) -> Iterator[Callable[[float], object]]:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    except ImportError:
        width = len(name) + len(": 100%")
        yield lambda done: print(f"\r{name}: {done / total:.0%}", end="", file=sys.stderr, flush=True)
        print(f"\r{' ' * width}\r", end="", file=sys.stderr, flush=True)
        return
    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=total)
        yield lambda done: bar.update(task, completed=done)
