"""tinyroberta explain: which known deviation makes a run what it is."""

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import Error
from ..terminal import print_rich, tell
from .compare import opened


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    told = "what is right: a trace's file, an .npz, or a backend to run, such as numpy:float64"
    parser.add_argument("reference", metavar="REFERENCE", help=told)
    parser.add_argument("candidate", metavar="CANDIDATE", help="what is not: the same")
    told = "the checkpoint that both ran (that which a trace names, else the embedded model)"
    parser.add_argument("--model", metavar="PATH_OR_REPO", help=told)
    parser.add_argument("--inputs", metavar="FILE", help="texts, one a line, or .json: a list of lists of ids")
    parser.add_argument("--names", metavar="FILE", help="what an .npz calls its arrays, a line each: theirs -> ours")
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Run the model with one known deviation each, and rank them by how well each reproduces the candidate.

    The exit status is 0 where nothing differs, 1 where something does, 2 on wrong use.
    """
    try:
        return _explain(arguments)
    except Error as error:
        tell(error)
        return 2


def _explain(arguments: argparse.Namespace) -> int:
    from ..numerics import explain

    reference, candidate, exact, source = opened(arguments)
    if exact is None:
        raise Error(f"explain runs the model again, and {arguments.reference} does not say where it is: name it with --model")
    result = explain.explain(reference, candidate, exact, _tokens(source))
    if arguments.json:
        print(json.dumps(result.as_json(), indent=2, ensure_ascii=False))
    else:
        _show(result)
    return 0 if result.verdict == "same" else 1


def _tokens(source: Any) -> dict[str, int]:
    """The ids of the mask and of what is unknown, as the checkpoint's tokenizer says; none where there is no tokenizer."""
    if source is None or not Path(source).is_dir():
        return {}
    try:
        from ..tasks.tokenizer import load_tokenizer, mask_token

        tokenizer = load_tokenizer(Path(source))
        texts = {"mask": mask_token(tokenizer), "unk": "<unk>"}
    except Error:
        return {}
    ids = {name: tokenizer.token_to_id(text) for name, text in texts.items()}
    return {name: int(id_) for name, id_ in ids.items() if id_ is not None}


def _show(result: Any) -> None:
    try:
        from rich.markup import escape
        from rich.table import Table
    except ImportError as error:
        raise Error("the table needs the rich package: pip install 'tinyroberta[text]', or ask for --json") from error

    def render(console: Any, width: int | None) -> None:  # noqa: ARG001
        console.print(f"[bold]{escape(headline(result))}[/bold]", soft_wrap=True)
        if result.causes:
            table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
            table.add_column("explains", justify="right", no_wrap=True)
            table.add_column("cause, alone", overflow="fold")
            named = {cause["cause"] for cause in result.together}
            for cause in result.causes[:10]:
                style = "bold" if cause["cause"] in named else ""
                table.add_row(percent(cause["explains"]), escape(cause["cause"]), style=style)
            console.print(table)
        for note in result.notes:
            console.print(escape(note), style="dim", soft_wrap=True)

    print_rich(render)


def headline(result: Any) -> str:
    """What is found, in a sentence."""
    if result.verdict == "same":
        return "same: the candidate is within rounding of the model, so there is nothing to explain"
    if not result.together:
        near = (
            f"; the nearest, {result.causes[0]['cause']}, explains {percent(result.causes[0]['explains'])}"
            if result.causes
            else ""
        )
        return f"none fits: no known deviation reproduces the candidate{near}"
    told = [
        result.together[0]["cause"],
        *(f"{cause['cause']} ({percent(cause['explains'])} of what is left)" for cause in result.together[1:]),
    ]
    return f"{' + '.join(told)}: explains {percent(result.explained)} of the difference"


def percent(share: float) -> str:
    """A share, never rounded up to the whole."""
    return "100%" if share > 1 - 1e-12 else f"{min(share * 100, 99.99999):.7g}%" if share > 0.9999 else f"{share * 100:.3g}%"
