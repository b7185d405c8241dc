"""tinyroberta fill-mask: the likeliest words for the masks in sentences."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from .. import terminal
from ..errors import Error
from ..terminal import one_line, tell
from .parsing import positive
from .reading import texts_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument(
        "texts",
        nargs="*",
        metavar="TEXT",
        help="a sentence with <mask>, or a file of them; - or none: standard input",
    )
    parser.add_argument("--top-k", type=positive, default=5, metavar="K", help="how many candidates for each mask (5)")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each input, one a line")
    parser.add_argument(
        "--model", metavar="PATH_OR_REPO", help="a checkpoint's folder, file or Hub repository (the embedded model)"
    )
    parser.add_argument("--revision", help="a branch, tag or commit of a Hub repository")
    parser.add_argument("--backend", help="numba or numpy (numba where it is installed; numpy for the embedded model)")


def run(arguments: argparse.Namespace) -> int:
    """Print the likeliest words for the mask in each sentence (<mask>, or as the tokenizer calls it) and their probabilities."""
    from ..auto import class_of
    from ..demo import FOLDER
    from ..family import KIN
    from ..tasks.fill_mask import fill_mask as fill
    from ..tasks.tokenizer import load_tokenizer
    from ..weights.checkpoint import open_checkpoint
    from ..weights.hub import checkpoint_folder

    embedded = arguments.model is None
    if embedded and arguments.revision is not None:
        raise Error(f"--revision {arguments.revision} is of a Hub repository: name it with --model")
    texts = texts_of(arguments.texts)
    folder = FOLDER if embedded else checkpoint_folder(arguments.model, arguments.revision)
    tokenizer = load_tokenizer(folder)
    stored = open_checkpoint(folder)
    _, config = class_of(folder, stored)
    kind = KIN[config.model_type]["ForMaskedLM"]
    if not any("lm_head" in name for name in stored):
        held = (config.architectures or ["the bare model"])[0]
        raise Error(f"{folder} holds no masked-language-model head, which fill-mask reads: its config.json names {held}")
    model: Any = kind.from_stored(stored, config, str(folder), backend=arguments.backend or ("numpy" if embedded else None))
    failed = False
    for text in texts:
        try:
            (candidates,) = fill(model, tokenizer, [text], arguments.top_k)
        except Error as error:
            failed = True
            tell(error)
            if arguments.json:
                print(json.dumps({"text": text, "error": str(error)}, ensure_ascii=False), flush=True)
            continue
        if arguments.json:
            print(json.dumps(_as_json(text, candidates), ensure_ascii=False), flush=True)
        else:
            _show(text, candidates)
    return 1 if failed else 0


def _as_json(text: str, candidates: Sequence[Any]) -> dict[str, Any]:
    entries = [candidate._asdict() for candidate in candidates]
    for entry in entries:
        entry["token"] = entry["token"].strip() or entry["token"]
    return {"text": text, "candidates": entries}


def _show(text: str, candidates: Sequence[Any]) -> None:
    """A table for people: the word, how likely, and the sentence it makes where there is room for it."""
    try:
        from rich.cells import cell_len
        from rich.table import Table
        from rich.text import Text
    except ImportError as error:
        raise Error("the table needs the rich package: pip install 'tinyroberta[text]', or ask for --json") from error
    several = len({candidate.mask for candidate in candidates}) > 1
    words = [candidate.token.strip() or repr(candidate.token) for candidate in candidates]
    block = "#" if "█".encode(sys.stdout.encoding or "ascii", "ignore") == b"" else "█"
    most = max(candidate.probability for candidate in candidates)

    def render(console: Any, width: int | None) -> None:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        taken = (len("mask") + 2) * several + len("probability") + 2 + max(map(cell_len, ["word", *words])) + 2
        barred = width is None or taken + BAR + 2 <= width
        told = width is None or taken + BAR + 2 + SENTENCE <= width
        if several:
            table.add_column("mask", justify="right")
        table.add_column("probability", justify="right")
        if barred:
            table.add_column("", min_width=BAR)
        table.add_column("word", style="bold cyan", overflow="fold")
        if told:
            table.add_column("sentence", overflow="fold")
        for word, candidate in zip(words, candidates, strict=True):
            bar = block * max(1, round(BAR * candidate.probability / most))
            row: list[Text | str] = [str(candidate.mask + 1)] if several else []
            row += [f"{candidate.probability:.1%}", *([Text(bar, "cyan")] if barred else []), Text(word)]
            table.add_row(*row, *([Text(one_line(candidate.sentence))] if told else []))
        console.print(Text(one_line(text), "bold"))
        console.print(table)
        console.print()

    terminal.print_rich(render)
    sys.stdout.flush()


BAR = 12  # columns of the longest bar
SENTENCE = 30  # columns that a sentence needs: in fewer it is a column of words
