"""tinyroberta answer: where a text answers a question."""

import argparse
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import Error
from .answering import answer_texts
from .parsing import add_model, add_outputs, model_of, positive
from .reading import Item, items_of, whole_text
from .tables import Column, bars, print_table

AROUND = 30  # characters of the text that are shown on either side of an answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("question", metavar="QUESTION", nargs="?", help="what is asked")
    parser.add_argument(
        "texts", nargs="*", metavar="TEXT", help="a text, or a file that is read whole; - or none: standard input"
    )
    parser.add_argument("--pairs", metavar="FILE", help="JSON lines, each with a question and a context, in place of the others")
    parser.add_argument("--top-k", type=positive, default=1, metavar="K", help="how many answers (1)")
    parser.add_argument("--unanswerable", action="store_true", help="let there be no answer: pipeline's handle_impossible_answer")
    add_outputs(parser)
    add_model(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print where a text answers a question; the text may be of any length."""
    if (arguments.pairs is None) == (arguments.question is None):
        raise Error("give a question and the text to look in, or --pairs FILE")
    lists = _pairs(arguments.pairs) if arguments.pairs is not None else _asked(arguments.question, arguments.texts)

    def load() -> Any:
        from ..tasks.answer import QuestionAnswering

        task = model_of(arguments, QuestionAnswering)
        how = {"top_k": arguments.top_k, "handle_impossible_answer": arguments.unanswerable}

        def respond(pairs: list[dict[str, str]]) -> Iterable[Any]:
            for found in task(iter(pairs), keep_errors=True, **how):
                yield found if isinstance(found, Error) else {"answers": found if isinstance(found, list) else [found]}

        return respond

    return answer_texts(arguments, lists, load, _show)


def _asked(question: str, texts: list[str]) -> Iterator[list[Item]]:
    for text in texts or ["-"]:
        pair = {"question": question, "context": whole_text(text)}
        yield [Item(pair, pair)]


def _pairs(name: str) -> Iterator[list[Item]]:
    for items in items_of([name], "a file of questions", field="question"):
        for item in items:
            context = item.record.get("context")
            error = item.error or (None if isinstance(context, str) else Error("it has no context that is a text"))
            yield [Item({"question": item.text, "context": context}, item.record, item.where, error)]


def _show(item: Item, answer: Mapping[str, Any]) -> None:
    answers, context = answer["answers"], item.text["context"]
    scores = [float(found["score"]) for found in answers]
    around = [_around(context, found["start"], found["end"]) for found in answers]
    print_table(
        item.text["question"],
        [
            Column("score", [f"{score:.1%}" for score in scores], justify="right"),
            bars(scores),
            Column("answer", [found["answer"] or "no answer" for found in answers], "bold cyan"),
            Column("where", around, least=AROUND),
        ],
    )


def _around(context: str, start: int, end: int) -> str:
    before, after = max(0, start - AROUND), min(len(context), end + AROUND)
    return f"{'...' if before else ''}{context[before:after]}{'...' if after < len(context) else ''}" if end > start else ""
