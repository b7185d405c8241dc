"""tinyroberta rerank: which documents answer a query best."""

import argparse
from typing import Any

from ..errors import Error
from ..terminal import tell
from .parsing import add_long, add_model, add_outputs, model_of, positive
from .reading import Item, add_fields, begun, items_of
from .tables import Column, bars, print_table
from .writing import check_out, is_whole, writing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("query", metavar="QUERY", help="what is looked for")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="a document, or a file of them; - or none: standard input")
    add_fields(parser)
    parser.add_argument("--top-k", type=positive, metavar="K", help="how many documents (all)")
    add_outputs(parser)
    add_model(parser)
    add_long(parser, "truncate")


def run(arguments: argparse.Namespace) -> int:
    """Print documents by how well they answer a query, the best first."""
    import json

    out = check_out(arguments.out)
    if out is not None and is_whole(out):
        tell(f"{out} is there already, and whole")
        return 0
    from ..tasks.rerank import Reranker

    lists = begun(items_of(arguments.texts, "a document", arguments.field, arguments.column))
    reranker = model_of(arguments, Reranker, long=arguments.long)
    items, failed = [], False
    for item in (item for items in lists for item in items):
        if item.error is not None:
            failed = True
            tell(f"{item.where}: {item.error}")
        else:
            items.append(item)
    if not items:
        raise Error("there is no document to rank")
    ranked = [(items[entry["corpus_id"]], entry) for entry in reranker.rank(arguments.query, [item.text for item in items])]
    ranked = ranked[: arguments.top_k]
    answers = [{"corpus_id": entry["corpus_id"], "score": float(entry["score"])} for _, entry in ranked]
    if out is not None:
        with writing(out, {"query": arguments.query}) as writer:
            for left in writer.todo(iter([[item for item, _ in ranked]])):
                writer.write(list(zip(left, answers[-len(left) :], strict=True)))
        print(f"{out}: {writer.answers} documents")
    elif arguments.json:
        for (item, _), answer in zip(ranked, answers, strict=True):
            print(json.dumps({**item.record, **answer}, ensure_ascii=False, default=str), flush=True)
    else:
        _show(arguments.query, [item for item, _ in ranked], [answer["score"] for answer in answers])
    return 1 if failed else 0


def _show(query: str, items: list[Item], scores: list[float]) -> None:
    documents: Any = [item.text for item in items]
    print_table(
        query,
        [Column("score", [f"{score:.4f}" for score in scores], justify="right"), bars(scores), Column("document", documents)],
    )
