"""tinyroberta conformance: whether someone else's forward pass is the model's."""

import argparse
import json
from typing import Any

from ..errors import Error
from ..terminal import tell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    told = "a function of a checkpoint's folder that gives a function of input_ids and attention_mask"
    parser.add_argument("function", metavar="MODULE:CALLABLE", help=told)
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    told = "what it computes in (the type of what it gives)"
    parser.add_argument("--dtype", choices=("float64", "float32", "float16", "bfloat16"), help=told)


def run(arguments: argparse.Namespace) -> int:
    """Run a function over tiny checkpoints of every option; the exit status is 0 where all hold, 1 where not, 2 on wrong use."""
    from ..numerics import conformance

    try:
        result = conformance.check(conformance.find(arguments.function), arguments.dtype)
    except Error as error:
        tell(error)
        return 2
    if arguments.json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        _show(result)
    return 0 if result["verdict"] == "conforms" else 1


def _show(result: dict[str, Any]) -> None:
    width = max(len(option["option"]) for option in result["options"])
    for option in result["options"]:
        passed = f"{option['cases'] - option['failed']} of {option['cases']}"
        told = f"  {option['first']}" if option["first"] else ""
        print(f"{'NOT' if option['failed'] else 'ok '}  {option['option']:<{width}}  {passed:>8}{told}")
    failed = sum(option["failed"] > 0 for option in result["options"])
    count = len(result["options"])
    print(f"conforms: all {count} options" if not failed else f"fails: {failed} of {count} options")
