"""Arguments that several commands take."""

import argparse
from typing import Any

from ..backends import PRECISIONS
from ..errors import Error


def add_model(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which model runs, and how."""
    parser.add_argument(
        "--model", metavar="PATH_OR_REPO", help="a checkpoint's folder, file or Hub repository (the embedded model)"
    )
    parser.add_argument("--revision", help="a branch, tag or commit of a Hub repository")
    parser.add_argument("--backend", help="cpu or numpy (cpu where its kernels are there; numpy for the embedded model)")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="highest", help="of products: load's matmul_precision (highest)"
    )


def model_of(arguments: argparse.Namespace, task: Any, **own: Any) -> Any:
    """The task of the model that the arguments name; raises Error as its from_pretrained."""
    embedded = arguments.model is None
    if embedded and arguments.revision is not None:
        raise Error(f"--revision {arguments.revision} is of a Hub repository: name it with --model")
    backend = arguments.backend or ("numpy" if embedded else None)  # NumPy starts sooner than it is slower, at that size
    running = {"backend": backend, "matmul_precision": arguments.precision}
    return task.from_pretrained(arguments.model, revision=arguments.revision, **running, **own)


def add_long(parser: argparse.ArgumentParser, default: str = "error") -> None:
    """The argument that says what is done with texts that are too long."""
    parser.add_argument(
        "--long",
        choices=("error", "truncate", "window"),
        default=default,
        help=f"texts that are too long for the model ({default})",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """The argument that asks for JSON."""
    parser.add_argument("--json", action="store_true", help="print a JSON object for each input, one a line")


def add_outputs(parser: argparse.ArgumentParser, kinds: str = ".jsonl or .parquet") -> None:
    """The arguments that say where answers go, and in which form."""
    add_json(parser)
    parser.add_argument("--out", metavar="FILE", help=f"write a file, {kinds}; killed and started again the command finishes it")


def positive(text: str) -> int:
    """A whole number of at least 1, as argparse's type."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
