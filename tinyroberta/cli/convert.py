"""tinyroberta convert: a checkpoint of any format as a safetensors folder."""

import argparse
import signal
import sys

from ..convert import FLOATS, convert
from ..errors import Error
from ..weights.safetensors import SHARD_SIZE, size_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes; it prints nothing that is asked for."""
    parser.add_argument("source", metavar="SOURCE", help="a checkpoint: a folder, a file or a Hub repository")
    parser.add_argument("destination", metavar="DESTINATION", help="a folder that is new or empty")
    parser.add_argument("--dtype", choices=tuple(FLOATS), help="of all tensors (as they are stored)")
    parser.add_argument("--max-shard-size", type=_size, default=SHARD_SIZE, metavar="SIZE", help="of one file, as 500MB (5GB)")
    parser.add_argument("--revision", help="a branch, tag or commit of a Hub repository")
    parser.set_defaults(prints=False)


def _size(text: str) -> int:
    try:
        return size_of(text)
    except Error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, as 500MB or 5GB is") from error


def run(arguments: argparse.Namespace) -> int:
    """Write a checkpoint of any format as a folder of config.json, safetensors and the small files beside it."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is half written is cleaned up
    try:
        done = convert(
            arguments.source, arguments.destination, arguments.dtype, arguments.max_shard_size, revision=arguments.revision
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    moved = f"within {done.difference:.1e} of the source's" if done.difference else "the source's to the bit"
    if done.left:
        print(f"left out: {', '.join(done.left)}", file=sys.stderr)
    print(f"{done.folder}: {done.architecture}, {done.tensors} tensors, {done.bytes:,} bytes; its outputs are {moved}")
    return 0
