"""tinyroberta classify: which label a text has."""

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

from .answering import answer_texts
from .parsing import add_long, add_model, add_outputs, model_of, positive
from .reading import Item, add_sources, items_of
from .tables import Column, bars, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add_sources(parser, "a text")
    parser.add_argument("--top-k", type=positive, metavar="K", help="how many labels for each text (all)")
    add_outputs(parser)
    add_model(parser)
    add_long(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the labels of each text and how likely they are: by the embedded model, whether it speaks well of something."""
    lists = items_of(arguments.texts, "a text", arguments.field, arguments.column)

    def load() -> Any:
        from ..tasks.classify import TextClassification

        task = model_of(arguments, TextClassification, long=arguments.long)

        def respond(texts: list[str]) -> Iterable[Any]:
            for labels in task(iter(texts), top_k=arguments.top_k, keep_errors=True):
                yield {"labels": labels} if isinstance(labels, list) else labels

        return respond

    return answer_texts(arguments, lists, load, _show)


def _show(item: Item, answer: Mapping[str, Any]) -> None:
    scores = [label["score"] for label in answer["labels"]]
    likely = all(0 <= score <= 1 for score in scores)
    shown = [f"{score:.1%}" if likely else f"{score:.4g}" for score in scores]
    names = Column("label", [label["label"] for label in answer["labels"]], "bold cyan")
    print_table(item.text, [Column("score", shown, justify="right"), bars(scores), names])
