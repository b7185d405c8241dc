"""tinyroberta fill-mask: the likeliest words for the masks in sentences."""

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import Error
from .answering import answer_texts
from .parsing import add_model, add_outputs, model_of, positive
from .reading import Item, add_sources, items_of
from .tables import SENTENCE, Column, bars, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add_sources(parser, "a sentence with <mask>")
    parser.add_argument("--top-k", type=positive, default=5, metavar="K", help="how many candidates for each mask (5)")
    add_outputs(parser)
    add_model(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the likeliest words for the mask in each sentence (<mask>, or as the tokenizer calls it) and their probabilities."""
    lists = items_of(arguments.texts, "a sentence with <mask>", arguments.field, arguments.column)

    def load() -> Any:
        from ..tasks.fill_mask import FillMask, fill_mask

        task = model_of(arguments, FillMask)

        def respond(texts: list[str]) -> Iterable[Any]:
            for text in texts:
                try:
                    (found,) = fill_mask(task.model, task.tokenizer, [text], arguments.top_k)
                except Error as error:
                    yield error
                else:
                    yield {"candidates": [_as_json(candidate) for candidate in found]}

        return respond

    return answer_texts(arguments, lists, load, _show)


def _as_json(candidate: Any) -> dict[str, Any]:
    return {**candidate._asdict(), "token": candidate.token.strip() or candidate.token}


def _show(item: Item, answer: Mapping[str, Any]) -> None:
    """The word, how likely, and the sentence it makes where there is room for it."""
    candidates = answer["candidates"]
    probabilities = [candidate["probability"] for candidate in candidates]
    columns = [
        Column("probability", [f"{probability:.1%}" for probability in probabilities], justify="right"),
        bars(probabilities),
        Column(
            "word",
            [candidate["token"] if candidate["token"].strip() else repr(candidate["token"]) for candidate in candidates],
            "bold cyan",
        ),
        Column("sentence", [candidate["sentence"] for candidate in candidates], least=SENTENCE),
    ]
    masks = [str(candidate["mask"] + 1) for candidate in candidates]
    print_table(item.text, [*([Column("mask", masks, justify="right")] if len(set(masks)) > 1 else []), *columns])
