"""What the commands that answer texts share: texts in, and a table, JSON lines or a file out."""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ..errors import Error
from ..progress import counted
from ..terminal import tell
from .reading import Item, begun
from .writing import check_out, is_whole, plain, writing

Respond = Callable[[list[Any]], Iterable[Mapping[str, Any] | Error]]
Show = Callable[[Item, Mapping[str, Any]], None]
TOGETHER = 32  # answers that are written at once
UNTOLD = ("run", "prints", "texts", "out", "json")  # on which no answer depends


def answer_texts(
    arguments: argparse.Namespace, lists: Iterator[list[Item]], load: Callable[[], Respond], show: Show, vectors: bool = False
) -> int:
    """Answer texts; the exit status, 1 where one could not be answered.

    load: gives what answers a list of texts, each by a mapping or the Error it deserves. Printed, such a text is told
    of and passed over; in a file it ends the command, which goes on from there when it is given again.
    """
    out = check_out(getattr(arguments, "out", None), vectors)
    if out is not None and is_whole(out):
        tell(f"{out} is there already, and whole")
        return 0
    lists = begun(lists)
    respond = load()
    if out is None:
        return _print(arguments.json, lists, respond, show)
    settings = {name: value for name, value in vars(arguments).items() if name not in UNTOLD}
    with writing(out, settings) as writer:
        answers = (pair for items in writer.todo(lists) for pair in _answers(items, respond))
        pairs: list[tuple[Item, Mapping[str, Any]]] = []
        for item, answer in counted(answers, None, arguments.command, "texts"):
            if isinstance(answer, Error):
                writer.write(pairs)
                kept = f"{writer.answers} answers are kept in {writer.part}, and the same command goes on behind them"
                raise Error(f"{item.where + ': ' if item.where else ''}{answer}; {kept}")
            pairs.append((item, answer))
            if len(pairs) == TOGETHER:
                writer.write(pairs)
                pairs = []
        writer.write(pairs)
    print(f"{out}: {writer.answers} texts")
    return 0


def _answers(items: list[Item], respond: Respond) -> Iterator[tuple[Item, Mapping[str, Any] | Error]]:
    """Each item with its answer."""
    answers = iter(respond([item.text for item in items if item.error is None]))
    for item in items:
        yield item, item.error or next(answers)


def _print(as_json: bool, lists: Iterator[list[Item]], respond: Respond, show: Show) -> int:
    failed = False
    for items in lists:
        for item, answer in _answers(items, respond):
            if isinstance(answer, Error):
                failed = True
                tell(f"{item.where}: {answer}" if item.where else answer)
            if as_json:
                told = {"error": str(answer)} if isinstance(answer, Error) else plain(answer)
                print(json.dumps({**item.record, **told}, ensure_ascii=False, default=str), flush=True)
            elif not isinstance(answer, Error):
                show(item, answer)
    return 1 if failed else 0
