"""tinyroberta generate: how a text goes on."""

import argparse
import json
import sys
from typing import Any

from ..errors import Error
from ..terminal import tell
from .parsing import add_json, add_model, model_of, positive
from .reading import add_sources, begun, items_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add_sources(parser, "the beginning of a text")
    parser.add_argument("--max-new-tokens", type=positive, default=60, metavar="N", help="how many tokens at most (60)")
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="of drawing; the lower, the likelier the tokens; 0 takes the likeliest (0.7)",
    )
    parser.add_argument("--top-k", type=positive, metavar="K", help="draw from the K likeliest")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest that make up P together")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (0)")
    add_json(parser)
    add_model(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print how each text goes on, token by token."""
    lists = begun(items_of(arguments.texts, "the beginning of a text", arguments.field, arguments.column))
    from ..tasks.generate import TextGeneration

    task: Any = model_of(arguments, TextGeneration)
    chosen = {name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p")}
    how: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    how = {"do_sample": False} if arguments.temperature == 0 else {**how, "do_sample": True} if how else {}
    how |= {"max_new_tokens": arguments.max_new_tokens, "seed": arguments.seed}
    failed = False
    for item in (item for items in lists for item in items):
        try:
            if item.error is not None:
                raise item.error
            if arguments.json:
                (answer,) = task(item.text, return_full_text=False, **how)
                print(json.dumps({**item.record, **answer}, ensure_ascii=False, default=str), flush=True)
                continue
            print(item.text, end="", flush=True)
            try:
                for piece in task.stream(item.text, **how):
                    print(piece, end="", flush=True)
            finally:
                print(flush=True)
        except Error as error:
            failed = True
            tell(f"{item.where}: {error}" if item.where else error)
            if arguments.json:
                print(json.dumps({**item.record, "error": str(error)}, ensure_ascii=False, default=str), flush=True)
    sys.stdout.flush()
    return 1 if failed else 0
