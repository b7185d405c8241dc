"""The command line: tinyroberta COMMAND ..."""

import argparse
import codecs
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy

from . import __version__, convert, inspect
from .backends import default_backend, load_backend
from .errors import Error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 where an input could not be answered, 2 on wrong usage."""
    parser = argparse.ArgumentParser(prog="tinyroberta", description="RoBERTa-PreLayerNorm without a deep-learning framework.")
    parser.add_argument("--version", action="version", version=f"tinyroberta {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    fill = commands.add_parser("fill-mask", help="fill the <mask> in sentences", description=fill_mask.__doc__)
    fill.add_argument("texts", nargs="*", metavar="TEXT", help="a sentence with <mask>; none: one a line on standard input")
    fill.add_argument("--top-k", type=_positive, default=5, metavar="K", help="how many candidates for each mask (5)")
    fill.add_argument("--json", action="store_true", help="print a JSON object for each input, one a line")
    fill.add_argument("--model", metavar="PATH_OR_REPO", help="a checkpoint folder or Hub repository (the embedded model)")
    fill.add_argument("--revision", help="a branch, tag or commit of a Hub repository")
    fill.add_argument("--backend", help="numba or numpy (numba where it is installed; numpy for the embedded model)")
    fill.set_defaults(run=fill_mask)
    convert.add_arguments(commands.add_parser("convert", help="write a checkpoint of any format as a safetensors folder"))
    inspect.add_arguments(commands.add_parser("inspect", help="print what a checkpoint holds"))
    commands.add_parser("info", help="say what runs on this machine", description=info.__doc__).set_defaults(run=info)
    warm = commands.add_parser("warmup", help="compile the CPU backend ahead of its first use", description=warmup.__doc__)
    warm.set_defaults(run=warmup)
    _tolerate()
    chosen = parser.parse_args(arguments)
    try:
        return int(chosen.run(chosen))
    except Error as error:
        _tell(error)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        _tell(error)
        return 1
    except KeyboardInterrupt:
        return 130


def _tell(error: Exception) -> None:
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
    from .demo import FOLDER
    from .models import RobertaPreLayerNormForMaskedLM, class_of, classes_of
    from .text.fill_mask import fill_mask as fill
    from .text.tokenizer import load_tokenizer
    from .weights.checkpoint import open_checkpoint
    from .weights.hub import checkpoint_folder

    embedded = arguments.model is None
    texts = [re.sub("[\ud800-\udfff]", "\ufffd", text) for text in arguments.texts] or _lines()
    folder = FOLDER if embedded else checkpoint_folder(arguments.model, arguments.revision)
    tokenizer = load_tokenizer(folder)
    stored = open_checkpoint(folder)
    _, config = class_of(folder, stored)
    (kind,) = (cls for cls in classes_of(config.model_type) if issubclass(cls, RobertaPreLayerNormForMaskedLM))
    model = kind.from_stored(stored, config, str(folder), backend=arguments.backend or ("numpy" if embedded else None))
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
    for name in ("numba", "cupy"):
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
    compiled: Any = load_backend("numba")
    compiled.warmup(lambda line: print(line, file=sys.stderr, flush=True))
    return 0


def _lines() -> Iterator[str]:
    if sys.stdin is None or sys.stdin.isatty():
        raise Error("give a sentence with <mask>, or sentences on standard input, one a line")
    for line in sys.stdin:
        if line.strip():
            yield line.rstrip("\r\n")


def _as_json(text: str, candidates: Sequence[Any]) -> dict[str, Any]:
    entries = [candidate._asdict() for candidate in candidates]
    for entry in entries:
        entry["token"] = entry["token"].strip() or entry["token"]
    return {"text": text, "candidates": entries}


def _show(text: str, candidates: Sequence[Any]) -> None:
    """A table for people: the word, how likely, and the sentence it makes."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError as error:
        raise Error("the table needs the rich package: pip install 'tinyroberta[text]', or ask for --json") from error
    several = len({candidate.mask for candidate in candidates}) > 1
    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        title=Text(_one_line(text), "bold"),
        title_justify="left",
        header_style="dim",
    )
    if several:
        table.add_column("mask", justify="right")
    table.add_column("probability", justify="right")
    table.add_column("", min_width=BAR)
    table.add_column("word", style="bold cyan")
    table.add_column("sentence", ratio=1)
    block = "#" if "█".encode(sys.stdout.encoding or "ascii", "ignore") == b"" else "█"
    most = max(candidate.probability for candidate in candidates)
    for candidate in candidates:
        bar = block * max(1, round(BAR * candidate.probability / most))
        row: list[Text | str] = [
            f"{candidate.probability:.1%}",
            Text(bar, "cyan"),
            Text(candidate.token.strip() or repr(candidate.token)),
            Text(_one_line(candidate.sentence)),
        ]
        table.add_row(*([str(candidate.mask + 1)] if several else []), *row)
    console = Console(highlight=False)
    console.print(table)
    console.print()


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


BAR = 12
