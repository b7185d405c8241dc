"""tinyroberta warmup: the CPU backend compiled ahead of its first use."""

import argparse
import sys
from typing import Any

from ..backends import load_backend


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It prints nothing that is asked for."""
    parser.set_defaults(prints=False)


def run(arguments: argparse.Namespace) -> int:  # noqa: ARG001
    """Compile the CPU backend's kernels and keep them, for container images and the like: later processes compile nothing."""
    compiled: Any = load_backend("cpu")
    compiled.warmup(lambda line: print(line, file=sys.stderr, flush=True))
    return 0
