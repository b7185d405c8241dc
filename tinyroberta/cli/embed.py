"""tinyroberta embed: texts as vectors."""

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import Error
from .answering import answer_texts
from .parsing import add_long, add_model, add_outputs, model_of, positive
from .reading import Item, add_sources, items_of
from .tables import Column, print_table

COMPARED = 12  # texts whose similarities are printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add_sources(parser, "a text")
    add_outputs(parser, ".npy, .jsonl or .parquet")
    add_model(parser)
    add_long(parser, "truncate")
    parser.add_argument("--prompt-name", metavar="NAME", help="which of the model's prompts goes before each text")
    parser.add_argument("--prompt", help="what goes before each text")
    parser.add_argument("--dimensions", type=positive, metavar="N", help="keep only the first N numbers of a vector")


def run(arguments: argparse.Namespace) -> int:
    """Print each text's vector and how similar the texts are, or write the vectors to a file."""
    lists = items_of(arguments.texts, "a text", arguments.field, arguments.column)
    seen: list[tuple[Item, Any]] = []
    embedder: Any = None

    def load() -> Any:
        nonlocal embedder
        from ..tasks.embed import Embedder

        embedder = model_of(arguments, Embedder, long=arguments.long)

        def respond(texts: list[str]) -> Iterable[Any]:
            how = {"prompt_name": arguments.prompt_name, "prompt": arguments.prompt, "truncate_dim": arguments.dimensions}
            for vector in embedder.stream(texts, keep_errors=True, **how):
                yield vector if isinstance(vector, Error) else {"embedding": vector}

        return respond

    def show(item: Item, answer: Mapping[str, Any]) -> None:
        vector = answer["embedding"]
        numbers = " ".join(f"{number: .3f}" for number in vector[:4])
        print_table(item.text, [Column(f"{len(vector)} numbers", [f"{numbers} ..."])])
        if len(seen) <= COMPARED:
            seen.append((item, vector))

    status = answer_texts(arguments, lists, load, show, vectors=True)
    if 1 < len(seen) <= COMPARED and not arguments.json and arguments.out is None:
        _compare(seen, embedder)
    return status


def _compare(seen: list[tuple[Item, Any]], embedder: Any) -> None:
    """How similar texts are, each to each."""
    import numpy as np

    vectors = np.stack([vector for _, vector in seen])
    similar = np.asarray(embedder.similarity(vectors, vectors))
    columns = [Column(str(n + 1), [f"{row[n]:.2f}" for row in similar], justify="right", least=6) for n in range(len(seen))]
    texts = Column("text", [item.text for item, _ in seen], least=20)
    numbers = Column("", [str(n + 1) for n in range(len(seen))], justify="right")
    print_table(f"similarity ({embedder.similarity_fn_name})", [numbers, *columns, texts])
