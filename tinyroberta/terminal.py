"""Where a command meets a terminal or a pipe: Ctrl-C at any moment, streams that are closed, tables as wide as there is room.

The package imports this before anything that takes time, so it imports nothing that does.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

INTERRUPTED = "interrupted"


def is_command() -> bool:
    """Whether this process is the command: its script, or `python -m tinyroberta` while Python looks for the module."""
    name = os.path.basename((getattr(sys, "argv", None) or [""])[0])  # noqa: PTH119 - pathlib takes as long as all else here
    return name == "-m" or name.removesuffix(".exe") == "tinyroberta"


def leave(*_: object) -> None:
    """Ctrl-C while modules are imported: nothing is written yet, and an exception could come out of any of them as another."""
    if sys.stderr is not None:
        os.write(2, f"tinyroberta: {INTERRUPTED}\n".encode())
    os._exit(130)


def watch() -> None:
    """Let Ctrl-C end this process by `leave`, unless it is ignored, as for a job in the background."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)


def guarded(main: Callable[[], int]) -> int:
    """Run a command; its exit status, 130 where it was interrupted at whatever moment. Later Ctrl-C find nothing to stop."""
    if signal.getsignal(signal.SIGINT) not in (leave, signal.default_int_handler):
        return main()
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        raise KeyboardInterrupt

    def ignored(told: Any) -> None:
        """What a callback or finalizer raised goes nowhere: Ctrl-C comes again a moment later, what it led to is not told."""
        if stopped and issubclass(told.exc_type, KeyboardInterrupt):
            again = threading.Timer(0.01, interrupt)
            again.daemon = True
            again.start()
        elif not stopped:
            sys.__unraisablehook__(told)

    sys.unraisablehook = ignored
    try:
        signal.signal(signal.SIGINT, stop)
        status = main()
    except SystemExit:
        raise
    except BaseException:
        if not stopped:
            raise
        leave()  # what was under way made another exception of it, or main was not there yet
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if stopped:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()
        os._exit(130)  # Python, where an exec'd string was interrupted, would end by the signal itself, once more
    return status


def interrupt() -> None:
    """Send SIGINT to the main thread, from another."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        signal.raise_signal(signal.SIGINT)


def open_streams() -> None:
    """Where standard streams are closed, open nothing in their place: the next file would get their numbers, and what they are
    told; a closed standard error loses what it is told."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - for as long as the process lives


def tell(error: Exception | str) -> None:
    """One line on standard error; characters that steer a terminal, which a file's names may hold, are written out."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(error))
    print(f"tinyroberta: {text}", file=sys.stderr)


def tolerate() -> None:
    """Let no byte that is read and no character that is written stop a command: the one becomes U+FFFD, the other an escape."""
    import codecs

    codecs.register_error("tinyroberta.escape", _escaped)
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "tinyroberta.escape")):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=errors)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """What an encoding lacks, as JSON writes it: \\u and four digits."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    import json

    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def drop_output() -> None:
    """Let what standard output did not take go nowhere, so that Python does not try once more when it ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # what stands for it in a test has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def one_line(text: str) -> str:
    """A text without characters that steer a terminal or end a line."""
    return "".join(c if c.isprintable() else " " for c in text)


def print_rich(render: Callable[[Any, int | None], None]) -> None:
    """Call `render` with a rich console and the columns it has: a terminal's, or None for a pipe, where nothing is cut, wrapped
    or padded."""
    from rich.console import Console

    console = Console(highlight=False)
    if console.is_terminal:
        return render(console, console.width)
    console.width = 10**5
    with console.capture() as captured:
        render(console, None)
    print("\n".join(line.rstrip() for line in captured.get().split("\n")), end="")
    return None


if is_command():
    watch()
