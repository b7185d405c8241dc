"""tinyroberta golden: small checked-in references of what passes through a model, and candidates held to them."""

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import Error
from ..terminal import tell
from .compare import inputs_of, load, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    does = parser.add_subparsers(required=True, metavar="make|check", dest="does")
    make = does.add_parser("make", help="write a folder's golden file", description="Write a folder's golden file.")
    make.add_argument("model", metavar="MODEL", help="a checkpoint: a folder, a file or a Hub repository")
    make.add_argument("--inputs", metavar="FILE", required=True, help="texts, one a line, or .json: a list of lists of ids")
    make.add_argument("--out", metavar="DIR", required=True, help="the folder")
    told = "all numbers, or statistics and projections of a few kB a layer (full)"
    make.add_argument("--kind", choices=("full", "sketch"), default="full", help=told)
    make.add_argument("--backend", default="numpy:float64", help="what computes, such as numpy:float32 or numba:high")
    make.add_argument("--update", action="store_true", help="write anew what is there already")
    check = does.add_parser("check", help="hold a candidate to it", description="Hold a candidate to a golden file.")
    check.add_argument("folder", metavar="DIR", help="what golden make has written")
    told = "a trace's file, an .npz, or a backend to run, such as numba:high"
    check.add_argument("--candidate", required=True, help=told)
    told = "the checkpoint that ran: a backend and an .npz need it, and with it an op answers for its own error alone"
    check.add_argument("--model", metavar="PATH_OR_REPO", help=told)
    check.add_argument("--names", metavar="FILE", help="what an .npz calls its arrays, a line each: theirs -> ours")
    check.add_argument("--update", action="store_true", help="where the candidate differs, make it what is golden")
    check.add_argument("--json", action="store_true", help="print a JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Write a golden file, or check a candidate: the exit status is 0 where it holds, 1 where it differs, 2 on wrong use."""
    try:
        return _make(arguments) if arguments.does == "make" else _check(arguments)
    except Error as error:
        tell(error)
        return 2


def _make(arguments: argparse.Namespace) -> int:
    from ..numerics import golden, live

    if not live.is_backend(arguments.backend):
        raise Error(f"--backend {arguments.backend} is none: give numpy:float64, numba:high or another way to run a backend")
    path = Path(arguments.out) / golden.FILE
    if path.exists() and not arguments.update:  # before anything is computed
        raise Error(f"{path} is there already: give --update to write it anew")
    model = load(arguments.model, live.running_of(arguments.backend))
    trace = live.run(model, inputs_of(arguments, {}, model, arguments.model))
    path = golden.make(trace, arguments.out, arguments.kind, arguments.update)
    arrays = sum(len(call.arrays) for call in trace.calls)
    print(f"{path}: {arrays} arrays of {arguments.model}, {path.stat().st_size:,} bytes")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from ..numerics import golden, importers, live

    reference = golden.read(arguments.folder)
    running = live.is_backend(arguments.candidate)
    source, kind = arguments.model, reference.manifest[golden.KEY]
    if source is None and (running or arguments.candidate.endswith(".npz")):
        raise Error(f"{arguments.candidate} needs the model: name the checkpoint with --model")
    exact: Any = None if source is None else load(source, {"backend": "numpy", "dtype": "float64"})
    inputs = reference.calls[0].inputs if reference.calls else None
    if running:
        if inputs is None:
            raise Error(f"{arguments.folder} does not hold the ids that went in, so {arguments.candidate} cannot run them")
        whole = reference.calls[0].places is None
        candidate = live.run(load(source, live.running_of(arguments.candidate)), inputs, padding=whole)
    else:
        candidate = importers.open_trace(arguments.candidate, arguments.names)
        if exact is not None:
            importers.settle(candidate, exact, inputs)
    result = golden.check(reference, candidate, exact)
    if arguments.json:
        print(json.dumps(result.as_json(), indent=2, ensure_ascii=False))
    else:
        show(result)
    if result.verdict == "differs" and arguments.update:
        path = golden.make(candidate, arguments.folder, kind, update=True)
        tell(f"{path} is written anew, and is what {arguments.candidate} gave")
        return 0
    return 0 if result.verdict == "same" else 1
