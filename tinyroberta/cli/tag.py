"""tinyroberta tag: the named things in a text."""

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

from .answering import answer_texts
from .parsing import add_long, add_model, add_outputs, model_of
from .reading import Item, add_sources, items_of
from .tables import Column, print_table

STRATEGIES = ("none", "simple", "first", "average", "max")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add_sources(parser, "a text")
    parser.add_argument(
        "--aggregation",
        choices=STRATEGIES,
        default="simple",
        help="how tokens become entities: pipeline's aggregation_strategy (simple)",
    )
    add_outputs(parser)
    add_model(parser)
    add_long(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what each text names, and where: by the embedded model persons, places, groups and works."""
    lists = items_of(arguments.texts, "a text", arguments.field, arguments.column)

    def load() -> Any:
        from ..tasks.tag import TokenClassification

        task = model_of(arguments, TokenClassification, long=arguments.long)

        def respond(texts: list[str]) -> Iterable[Any]:
            for entities in task(iter(texts), aggregation_strategy=arguments.aggregation, keep_errors=True):
                yield {"entities": entities} if isinstance(entities, list) else entities

        return respond

    return answer_texts(arguments, lists, load, _show)


def _show(item: Item, answer: Mapping[str, Any]) -> None:
    entities = answer["entities"]
    if not entities:
        print_table(f"{item.text}", [Column("", ["names nothing that the model knows"])])
        return
    print_table(
        item.text,
        [
            Column("score", [f"{entity['score']:.1%}" for entity in entities], justify="right"),
            Column("entity", [entity.get("entity_group", entity.get("entity")) for entity in entities], "bold cyan"),
            Column("text", [item.text[entity["start"] : entity["end"]] for entity in entities]),
            Column("from", [str(entity["start"]) for entity in entities], justify="right", least=6),
            Column("to", [str(entity["end"]) for entity in entities], justify="right", least=6),
        ],
    )
