"""tinyroberta inspect: what a checkpoint holds."""

import argparse
import json
from typing import Any

from ..errors import Error
from ..inspect import inspect
from ..terminal import print_rich


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("source", metavar="SOURCE", help="a checkpoint: a folder, a file or a Hub repository")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument("--revision", help="a branch, tag or commit of a Hub repository")


def run(arguments: argparse.Namespace) -> int:
    """Print what a checkpoint holds; only the headers of its files are read."""
    content = inspect(arguments.source, arguments.revision)
    if arguments.json:
        print(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        _show(content)
    return 0 if content["problem"] is None else 1  # the model cannot be loaded


def _show(content: dict[str, Any]) -> None:
    """A description as tables for people; raises Error where rich is not installed."""
    try:
        from rich.markup import escape
        from rich.table import Table
    except ImportError as error:
        raise Error("the table needs the rich package: pip install 'tinyroberta[text]', or ask for --json") from error
    rows = {
        "source": content["source"],
        "format": content["format"],
        "files": "\n".join(f"{name}  {size:,} bytes" for name, size in content["files"].items()),
        "architecture": content["architecture"] or "unknown",
        "sizes": ", ".join(f"{name} {size}" for name, size in content["sizes"].items()),
        "parameters": f"{content['parameters']:,}",
        "dtypes": ", ".join(f"{name}: {n['tensors']} tensors, {n['bytes']:,} bytes" for name, n in content["dtypes"].items()),
        "tied": "\n".join(f"{name} is {kept}" for name, kept in content["tied"].items()) or "nothing",
        "unused": "\n".join(content["unused"]) or "nothing",
    }

    def render(console: Any, width: int | None) -> None:
        facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        facts.add_column(style="dim", no_wrap=True)
        facts.add_column(overflow="fold")
        for name, text in rows.items():
            facts.add_row(name, escape(text))
        console.print(facts)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        counted = width is None or width >= 80
        for name in ("shape", "dtype", *(["bytes"] if counted else [])):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("tensor", overflow="fold")
        for tensor in content["tensors"]:
            shape = " x ".join(map(str, tensor["shape"])) or "1"
            size = [f"{tensor['bytes']:,}"] if counted else []
            table.add_row(shape, tensor["dtype"], *size, escape(tensor["name"]), style="dim" if tensor["used"] is False else "")
        console.print(table)
        if content["problem"]:
            console.print(f"\n[bold]cannot be loaded:[/bold] {escape(content['problem'])}", soft_wrap=True)

    print_rich(render)
