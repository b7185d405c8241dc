"""tinyroberta choose: which of several texts goes on best."""

import argparse
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import Error
from .answering import answer_texts
from .parsing import add_long, add_model, add_outputs, model_of
from .reading import Item, as_text, items_of
from .tables import Column, bars, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("prompt", metavar="TEXT", nargs="?", help="what comes first")
    parser.add_argument("choices", nargs="*", metavar="CHOICE", help="what may follow: two or more")
    parser.add_argument("--pairs", metavar="FILE", help="JSON lines, each with a prompt and its choices, in place of the others")
    add_outputs(parser)
    add_model(parser)
    add_long(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print which of several texts follows another best: by the embedded model, which sentence comes next."""
    if (arguments.pairs is None) == (arguments.prompt is None):
        raise Error("give a text and two choices or more, or --pairs FILE")
    if arguments.pairs is None and len(arguments.choices) < 2:
        raise Error(f"there must be two choices or more, and there is {'one' if arguments.choices else 'none'}")
    if arguments.pairs is not None:
        lists: Any = _pairs(arguments.pairs)
    else:
        asked = {"prompt": as_text(arguments.prompt), "choices": [as_text(choice) for choice in arguments.choices]}
        lists = iter([[Item(asked, asked)]])

    def load() -> Any:
        from ..tasks.choose import MultipleChoice

        task = model_of(arguments, MultipleChoice, long=arguments.long)

        def respond(asked: list[dict[str, Any]]) -> Iterable[Any]:
            for choices in task(iter(asked), keep_errors=True):
                yield choices if isinstance(choices, Error) else {"choices": choices}

        return respond

    return answer_texts(arguments, lists, load, _show)


def _pairs(name: str) -> Iterator[list[Item]]:
    for items in items_of([name], "a file of prompts", field="prompt"):
        for item in items:
            asked = {"prompt": item.text, "choices": item.record.get("choices")}
            yield [Item(asked, item.record, item.where, item.error)]


def _show(item: Item, answer: Mapping[str, Any]) -> None:
    choices = answer["choices"]
    scores = [choice["score"] for choice in choices]
    shown = Column("score", [f"{score:.1%}" for score in scores], justify="right")
    print_table(item.text["prompt"], [shown, bars(scores), Column("choice", [one["choice"] for one in choices], "bold cyan")])
