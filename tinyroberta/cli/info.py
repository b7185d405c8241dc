"""tinyroberta info: what runs on this machine."""

import argparse
from typing import Any

import numpy

from .. import __version__
from ..backends import default_backend, load_backend
from ..errors import Error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing."""


def run(arguments: argparse.Namespace) -> int:  # noqa: ARG001
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
