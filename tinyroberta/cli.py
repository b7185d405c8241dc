"""The command line: tinyroberta COMMAND ..."""

import argparse
import codecs
import io
import json
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy

from . import __version__, convert, inspect, terminal
from .backends import default_backend, load_backend
from .errors import Error


def command() -> NoReturn:
    """The command as a process: main, which Ctrl-C ends at any moment with one line and the exit status 130."""
    sys.exit(terminal.guarded(main))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 where an input could not be answered, 2 on wrong usage, 130 on Ctrl-C."""
    parser = argparse.ArgumentParser(prog="tinyroberta", description="RoBERTa-PreLayerNorm without a deep-learning framework.")
    parser.add_argument("--version", action="version", version=f"tinyroberta {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    fill = commands.add_parser("fill-mask", help="fill the <mask> in sentences", description=fill_mask.__doc__)
    fill.add_argument(
        "texts",
        nargs="*",
        metavar="TEXT",
        help="a sentence with <mask>, or a file of them; - or none: standard input",
    )
    fill.add_argument("--top-k", type=_positive, default=5, metavar="K", help="how many candidates for each mask (5)")
    fill.add_argument("--json", action="store_true", help="print a JSON object for each input, one a line")
    fill.add_argument(
        "--model", metavar="PATH_OR_REPO", help="a checkpoint's folder, file or Hub repository (the embedded model)"
    )
    fill.add_argument("--revision", help="a branch, tag or commit of a Hub repository")
    fill.add_argument("--backend", help="cpu or numpy (cpu where its kernels are there; numpy for the embedded model)")
    fill.set_defaults(run=fill_mask)
    convert.add_arguments(commands.add_parser("convert", help="write a checkpoint of any format as a safetensors folder"))
    inspect.add_arguments(commands.add_parser("inspect", help="print what a checkpoint holds"))
    commands.add_parser("info", help="say what runs on this machine", description=info.__doc__).set_defaults(run=info)
    warm = commands.add_parser("warmup", help="compile the CPU backend ahead of its first use", description=warmup.__doc__)
    warm.set_defaults(run=warmup)
    terminal.open_streams()
    _tolerate()
    try:
        try:
            chosen = parser.parse_args(arguments)
            if sys.stdout is None and chosen.run in (fill_mask, info, inspect.run):
                raise Error("standard output is closed, and what is asked for would be printed there")
            with warnings.catch_warnings():
                warnings.showwarning = lambda message, *_, **__: _tell(str(message))
                return int(chosen.run(chosen))
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a failure can be told
    except Error as error:
        _tell(error)
        return 1
    except BrokenPipeError:
        terminal.drop_output()
        return 1
    except OSError as error:
        terminal.drop_output()
        _tell(f"{error.filename or 'standard output'}: {error.strerror or error}")
        return 1
    except KeyboardInterrupt:
        _tell(terminal.INTERRUPTED)
        return 130


def _tell(error: Exception | str) -> None:
    """One line on standard error; characters that steer a terminal, which a file's names may hold, are written out."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(error))
    print(f"tinyroberta: {text}", file=sys.stderr)


def _tolerate() -> None:
    """Let no byte that is read and no character that is written stop a command: the one becomes U+FFFD, the other an escape."""
    codecs.register_error("tinyroberta.escape", _escaped)
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "tinyroberta.escape")):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=errors)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """What an encoding lacks, as JSON writes it: \\u and four digits."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def fill_mask(arguments: argparse.Namespace) -> int:
    """Print the likeliest words for the mask in each sentence (<mask>, or as the tokenizer calls it) and their probabilities."""
    from .auto import class_of
    from .demo import FOLDER
    from .family import KIN
    from .text.fill_mask import fill_mask as fill
    from .text.tokenizer import load_tokenizer
    from .weights.checkpoint import open_checkpoint
    from .weights.hub import checkpoint_folder

    embedded = arguments.model is None
    if embedded and arguments.revision is not None:
        raise Error(f"--revision {arguments.revision} is of a Hub repository: name it with --model")
    texts = _texts(arguments.texts)
    folder = FOLDER if embedded else checkpoint_folder(arguments.model, arguments.revision)
    tokenizer = load_tokenizer(folder)
    stored = open_checkpoint(folder)
    _, config = class_of(folder, stored)
    kind = KIN[config.model_type]["ForMaskedLM"]
    if not any("lm_head" in name for name in stored):
        held = (config.architectures or ["the bare model"])[0]
        raise Error(f"{folder} holds no masked-language-model head, which fill-mask reads: its config.json names {held}")
    model: Any = kind.from_stored(stored, config, str(folder), backend=arguments.backend or ("numpy" if embedded else None))
    failed = False
    for text in texts:
        try:
            (candidates,) = fill(model, tokenizer, [text], arguments.top_k)
        except Error as error:
            failed = True
            _tell(error)
            if arguments.json:
                print(json.dumps({"text": text, "error": str(error)}, ensure_ascii=False), flush=True)
            continue
        if arguments.json:
            print(json.dumps(_as_json(text, candidates), ensure_ascii=False), flush=True)
        else:
            _show(text, candidates)
    return 1 if failed else 0


def info(arguments: argparse.Namespace) -> int:  # noqa: ARG001
    """Print the version, the backends and what each of them runs on."""
    print(f"tinyroberta {__version__}")
    default = default_backend()
    for name in ("cpu", "cupy"):
        try:
            backend: Any = load_backend(name)
        except Error as error:
            print(f"{name} backend: {error}")
            continue
        print(f"{name} backend{' (default)' if name == default else ''}: float32")
        for line in backend.describe():
            print(f"  {line}")
    note = "default" if default == "numpy" else "default for float64"
    print(f"numpy backend ({note}): NumPy {numpy.__version__}, float32 and float64")
    return 0


def warmup(arguments: argparse.Namespace) -> int:  # noqa: ARG001
    """Compile the CPU backend's kernels and keep them, for container images and the like: later processes compile nothing."""
    compiled: Any = load_backend("cpu")
    compiled.warmup(lambda line: print(line, file=sys.stderr, flush=True))
    return 0


def _texts(given: Sequence[str]) -> Iterator[str]:
    """Each text that is given, and the lines of each file and, for "-" or where nothing is given, of standard input."""
    if sys.stdin is None and (not given or "-" in given):
        raise Error("standard input is closed: give a sentence with <mask>, or a file of them, one a line")
    if not given and sys.stdin.isatty():
        raise Error("give a sentence with <mask>, a file of them, or sentences on standard input, one a line")
    return (line for text in given or ["-"] for line in _lines(text))


def _lines(text: str) -> Iterator[str]:
    if text == "-":
        binary = getattr(sys.stdin, "buffer", None)
        encoding = None if binary is None or sys.stdin.isatty() else _encoding(binary, "standard input")
        if encoding is not None:
            sys.stdin.reconfigure(encoding=encoding)  # type: ignore[union-attr]
        yield from _full(sys.stdin)
    elif not _is_file(text):
        yield re.sub("[\ud800-\udfff]", "\ufffd", text).removeprefix("\ufeff")
    else:
        try:
            with Path(text).open("rb") as file:
                yield from _full(io.TextIOWrapper(file, _encoding(file, text) or "utf-8", "replace"))
        except OSError as error:
            raise Error(f"cannot read {text}: {error.strerror or error}") from error


def _full(lines: Iterable[str]) -> Iterator[str]:
    return (line.rstrip("\r\n") for line in lines if line.strip())


def _encoding(binary: BinaryIO, name: str) -> str | None:
    """What the byte order mark at a stream's start says, as Notepad and PowerShell write it; raises Error on what is no text."""
    start = binary.peek(256)  # type: ignore[attr-defined]
    marks = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
    encoding = next((encoding for mark, encoding in marks if start.startswith(mark)), None)
    if encoding is None and b"\0" in start:
        raise Error(f"{name} is no text: give a file of sentences, one a line")
    return encoding


def _is_file(text: str) -> bool:
    """Whether a text is the path of a file, which may be a pipe."""
    try:
        return Path(text).exists() and not Path(text).is_dir()
    except (OSError, ValueError):  # of too long a text, a zero byte
        return False


def _as_json(text: str, candidates: Sequence[Any]) -> dict[str, Any]:
    entries = [candidate._asdict() for candidate in candidates]
    for entry in entries:
        entry["token"] = entry["token"].strip() or entry["token"]
    return {"text": text, "candidates": entries}


def _show(text: str, candidates: Sequence[Any]) -> None:
    """A table for people: the word, how likely, and the sentence it makes where there is room for it."""
    try:
        from rich.cells import cell_len
        from rich.table import Table
        from rich.text import Text
    except ImportError as error:
        raise Error("the table needs the rich package: pip install 'tinyroberta[text]', or ask for --json") from error
    several = len({candidate.mask for candidate in candidates}) > 1
    words = [candidate.token.strip() or repr(candidate.token) for candidate in candidates]
    block = "#" if "█".encode(sys.stdout.encoding or "ascii", "ignore") == b"" else "█"
    most = max(candidate.probability for candidate in candidates)

    def render(console: Any, width: int | None) -> None:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        taken = (len("mask") + 2) * several + len("probability") + 2 + max(map(cell_len, ["word", *words])) + 2
        barred = width is None or taken + BAR + 2 <= width
        told = width is None or taken + BAR + 2 + SENTENCE <= width
        if several:
            table.add_column("mask", justify="right")
        table.add_column("probability", justify="right")
        if barred:
            table.add_column("", min_width=BAR)
        table.add_column("word", style="bold cyan", overflow="fold")
        if told:
            table.add_column("sentence", overflow="fold")
        for word, candidate in zip(words, candidates, strict=True):
            bar = block * max(1, round(BAR * candidate.probability / most))
            row: list[Text | str] = [str(candidate.mask + 1)] if several else []
            row += [f"{candidate.probability:.1%}", *([Text(bar, "cyan")] if barred else []), Text(word)]
            table.add_row(*row, *([Text(_one_line(candidate.sentence))] if told else []))
        console.print(Text(_one_line(text), "bold"))
        console.print(table)
        console.print()

    terminal.print_rich(render)
    sys.stdout.flush()


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


BAR = 12  # columns of the longest bar
SENTENCE = 30  # columns that a sentence needs: in fewer it is a column of words
