"""The command line: tinyroberta COMMAND ...; a file each, with what it adds to the parser and what it runs."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from .. import __version__, terminal
from ..errors import Error
from ..terminal import tell
from . import (
    answer,
    choose,
    classify,
    compare,
    conformance,
    convert,
    embed,
    explain,
    fill_mask,
    generate,
    golden,
    info,
    inspect,
    rerank,
    serve,
    tag,
    warmup,
)

COMMANDS = {
    "fill-mask": (fill_mask, "fill the <mask> in sentences"),
    "embed": (embed, "texts as vectors"),
    "rerank": (rerank, "documents by how well they answer a query"),
    "classify": (classify, "the label of a text"),
    "tag": (tag, "what a text names, and where"),
    "answer": (answer, "where a text answers a question"),
    "choose": (choose, "which of several texts goes on best"),
    "generate": (generate, "how a text goes on"),
    "serve": (serve, "a model behind HTTP, for the clients of text-embeddings-inference and OpenAI"),
    "convert": (convert, "write a checkpoint of any format as a safetensors folder"),
    "inspect": (inspect, "print what a checkpoint holds"),
    "compare": (compare, "say where two runs of a model part"),
    "explain": (explain, "say which known deviation makes a run differ"),
    "golden": (golden, "write and check small references of what passes through a model"),
    "conformance": (conformance, "hold someone else's forward pass to tiny checkpoints of every option"),
    "info": (info, "say what runs on this machine"),
    "warmup": (warmup, "compile the CPU backend ahead of its first use"),
}


def command() -> NoReturn:
    """The command as a process: main, which Ctrl-C ends at any moment with one line and the exit status 130."""
    sys.exit(terminal.guarded(main))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 where an input could not be answered, 2 on wrong usage, 130 on Ctrl-C."""
    parser = argparse.ArgumentParser(prog="tinyroberta", description="RoBERTa-PreLayerNorm without a deep-learning framework.")
    parser.add_argument("--version", action="version", version=f"tinyroberta {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, told) in COMMANDS.items():
        own = commands.add_parser(name, help=told, description=module.run.__doc__)
        own.set_defaults(command=name, run=module.run, prints=True)
        module.add_arguments(own)
    terminal.open_streams()
    terminal.tolerate()
    try:
        try:
            chosen = parser.parse_args(arguments)
            if sys.stdout is None and chosen.prints and getattr(chosen, "out", None) is None:
                raise Error("standard output is closed, and what is asked for would be printed there")
            with warnings.catch_warnings():
                warnings.showwarning = lambda message, *_, **__: tell(str(message))
                return int(chosen.run(chosen))
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a failure can be told
    except Error as error:
        tell(error)
        return 1
    except BrokenPipeError:
        terminal.drop_output()
        return 1
    except OSError as error:
        terminal.drop_output()
        tell(f"{error.filename or 'standard output'}: {error.strerror or error}")
        return 1
    except KeyboardInterrupt:
        tell(terminal.INTERRUPTED)
        return 130
