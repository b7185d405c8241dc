"""tinyroberta compare: where two runs of a model part."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import Error
from ..terminal import print_rich, tell
from .reading import items_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    told = "a trace's file, an .npz, or a backend to run: numpy:float64, cpu:high, cpu:medium, cpu:reproducible, cupy"
    parser.add_argument("reference", metavar="REFERENCE", nargs="?", help=told)
    parser.add_argument(
        "candidate", metavar="CANDIDATE", nargs="?", help="the same; of --invariance the one argument is a backend"
    )
    told = "the checkpoint that both ran (that which a trace names, else the embedded model)"
    parser.add_argument("--model", metavar="PATH_OR_REPO", help=told)
    parser.add_argument("--inputs", metavar="FILE", help="texts, one a line, or .json: a list of lists of ids")
    parser.add_argument("--names", metavar="FILE", help="what an .npz calls its arrays, a line each: theirs -> ours")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument("--html", metavar="FILE", help="write a page with a heat map of layers and ops")
    parser.add_argument(
        "--invariance", action="store_true", help="hold a backend to the same bits alone, in batches, with threads"
    )


def run(arguments: argparse.Namespace) -> int:
    """Compare inputs, weights and what passed; the exit status is 0 where all is the same, 1 where it differs, 2 on wrong use."""
    try:
        return _invariance(arguments) if arguments.invariance else _compare(arguments)
    except Error as error:
        tell(error)
        return 2


def _compare(arguments: argparse.Namespace) -> int:
    from ..numerics import compare, importers, live

    sides = (arguments.reference, arguments.candidate)
    if None in sides:
        raise Error("compare reads a REFERENCE and a CANDIDATE, two files or backends: compare numpy:float64 trace.safetensors")
    files = {side: importers.open_trace(side, arguments.names) for side in sides if not live.is_backend(side)}
    if arguments.names and not any(isinstance(side, str) and side.endswith(".npz") for side in files):
        raise Error(f"--names {arguments.names} is of an .npz, and neither {sides[0]} nor {sides[1]} is one")
    source: Any = arguments.model or next((x.manifest["model"] for x in files.values() if _there(x.manifest.get("model"))), None)
    if source is None and len(files) < 2:
        source = _embedded() if not files else None
        if source is None:
            raise Error(f"{next(iter(files))} does not say where its model is: name the checkpoint with --model")
    exact: Any = None if source is None else load(source, {"backend": "numpy", "dtype": "float64"})
    inputs = None if exact is None else _inputs(arguments, files, exact, source)
    if exact is not None:
        for file in files.values():
            importers.settle(file, exact, inputs)
    whole = any(call.places is None for file in files.values() for call in file.calls[:1])
    found = []
    for side in sides:
        if side in files:
            found.append(files[side])
            continue
        running = live.running_of(side)
        same = running == {"backend": "numpy", "dtype": "float64"}
        if inputs is None:
            raise Error(f"the inputs of {next(iter(files))} are not in it, so {side} cannot run them: give --inputs")
        found.append(live.run(exact if same else load(source, running), inputs, hashes=bool(files), padding=whole))
    result = compare.compare(found[0], found[1], exact)
    if arguments.html:
        from ..numerics import report

        report.write(Path(arguments.html), result)
    if arguments.json:
        print(json.dumps(result.as_json(), indent=2, ensure_ascii=False))
    else:
        _show(result)
    return 0 if result.verdict == "same" else 1


def _there(path: Any) -> bool:
    return isinstance(path, str) and Path(path).exists()


def _embedded() -> str:
    from ..demo import FOLDER

    return str(FOLDER)


def load(source: str, running: dict[str, Any]) -> Any:
    """A checkpoint's model, of the class that it names."""
    from ..auto import load as load_model

    return load_model(source, **running)


def _inputs(arguments: argparse.Namespace, files: dict[str, Any], model: Any, source: str) -> Any:
    """What is run: --inputs, else what a file was given, else texts that are drawn."""
    from ..numerics import live

    if arguments.inputs is None:
        for file in files.values():
            if file.calls and file.calls[0].inputs is not None:
                return file.calls[0].inputs
        if files:
            return None
        return live.drawn_inputs(model.config)
    if arguments.inputs.endswith(".json"):
        return _ids(arguments.inputs, model)
    from ..tasks.tokenizer import load_tokenizer
    from ..weights.hub import checkpoint_folder

    if not Path(arguments.inputs).is_file():
        raise Error(f"there is no file {arguments.inputs}: --inputs takes a file of texts, one a line, or of lists of ids, .json")
    texts = [item.text for items in items_of([arguments.inputs], "a text") for item in items]
    if not texts:
        raise Error(f"{arguments.inputs} holds no text: give one a line")
    tokenizer = load_tokenizer(checkpoint_folder(source))
    return live.padded([tokenizer.encode(text).ids for text in texts], model.config.pad_token_id or 0)


def _ids(path: str, model: Any) -> Any:
    from ..inputs import check_texts
    from ..numerics import live

    try:
        texts = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Error(f"cannot read {path}: {error}") from error
    if not isinstance(texts, list) or not all(isinstance(text, list) for text in texts):
        raise Error(f"{path} is no list of lists of ids: write [[0, 5, 2], [0, 2]]")
    check_texts(texts, model.config.vocab_size)
    return live.padded(texts, model.config.pad_token_id or 0)


def _invariance(arguments: argparse.Namespace) -> int:
    from ..numerics import invariance

    if arguments.candidate is not None:
        raise Error(f"--invariance holds one backend to itself; {arguments.candidate} is a second: leave it out")
    result = invariance.check(arguments.reference, arguments.model or _embedded())
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        for way in result["ways"]:
            print(
                f"{'ok ' if way['first'] is None else 'NOT'}  {way['way']}" + (f": first {way['first']}" if way["first"] else "")
            )
        print(f"{result['backend']}: {'bitwise equal' if result['verdict'] == 'same' else 'not equal: ' + result['first']}")
    return 0 if result["verdict"] == "same" else 1


def _show(result: Any) -> None:
    """A table for people that points at the first op that is wrong; layers in which all is well are a line each."""
    try:
        from rich.markup import escape
        from rich.table import Table
    except ImportError as error:
        raise Error("the table needs the rich package: pip install 'tinyroberta[text]', or ask for --json") from error

    def render(console: Any, width: int | None) -> None:
        console.print(f"[bold]{escape(_headline(result))}[/bold]", soft_wrap=True)
        console.print(f"reference {escape(result.reference)}, candidate {escape(result.candidate)}", style="dim", soft_wrap=True)
        for what, differ in (("input", result.inputs), ("weight", dict.fromkeys(result.weights, "another hash"))):
            for name, told in list(differ.items())[:12]:
                console.print(f"{what} {escape(name)}: {escape(told)}", style="red", soft_wrap=True)
        for name, (a, b) in result.config.items():
            console.print(f"config {name}: {escape(str(a))} and {escape(str(b))}", style="yellow", soft_wrap=True)
        if result.ops:
            wide = width is None or width >= 96
            table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
            table.add_column("", no_wrap=True)
            table.add_column("op", overflow="fold")
            for name in ("adds", "bound", "off by", *(["max abs", "cosine"] if wide else [])):
                table.add_column(name, justify="right", no_wrap=True)
            for mark, name, ops in _lines(result):
                worst = max(ops, key=_badness)
                more = (_number(max(op.max_abs for op in ops)), f"{min(op.cosine for op in ops):.6f}") if wide else ()
                style = "bold red" if mark == ">" else "red" if mark else ""
                off = max(ops, key=lambda op: op.relative)
                table.add_row(
                    mark, escape(name), _number(worst.added), _number(worst.bound), _number(off.relative),
                    *more, style=style,
                )  # fmt: skip
            console.print(table)
        for told in _details(result):
            console.print(escape(told), soft_wrap=True)
        for note in result.notes:
            console.print(escape(note), style="dim", soft_wrap=True)

    print_rich(render)


def _headline(result: Any) -> str:
    if result.verdict == "same":
        return f"same: all {len(result.ops)} ops are within their bounds"
    wrong = [op for op in result.ops if not op.ok]
    more = f"; {len(wrong)} of {_ops(result.ops)} add more than their bound" if len(wrong) > 1 else ""
    return f"differs: first at {result.first}{more}"


def _details(result: Any) -> list[str]:
    """What there is to say of the first op that is wrong."""
    op = next((op for op in result.ops if op.name == result.first), None)
    if op is None:
        return []
    told = []
    if op.covers:
        few = ", ".join(name.removeprefix(f"{op.name}.") for name in op.covers)
        told.append(f"{op.name} answers for {_ops(op.covers)} before it that the candidate has not recorded: {few}")
    if op.nonfinite is not None:
        told.append(f"{op.name} has {op.nonfinite['value']} first at {op.nonfinite['at']}, {op.nonfinite['count']} in all")
    if op.row is not None and not op.ok:
        told.append(f"{op.name} is worst at text {op.row[0]}, position {op.row[1]}")
    return told


def _ops(ops: Sequence[Any]) -> str:
    return f"{len(ops)} op{'s' * (len(ops) != 1)}"


def _lines(result: Any) -> list[tuple[str, str, list[Any]]]:
    """A mark, a name and its ops: layers in which every op is right are one line."""
    groups: list[tuple[str, list[Any]]] = []
    for op in result.ops:
        at = op.name.find("encoder.layer.")
        layer = ".".join(op.name[at:].split(".")[:3]) if at >= 0 else op.name
        if groups and groups[-1][0] == layer and groups[-1][1][0].call == op.call:
            groups[-1][1].append(op)
        else:
            groups.append((layer, [op]))
    lines: list[tuple[str, str, list[Any]]] = []
    for layer, ops in groups:
        call = f" (call {ops[0].call})" if ops[0].call else ""
        if len(ops) > 1 and all(op.ok and op.name != result.first for op in ops):
            lines.append(("", f"{layer}: {_ops(ops)}{call}", ops))
        else:
            marks = [">" if op.name == result.first else "" if op.ok else "x" for op in ops]
            lines += [(mark, op.name + call, [op]) for mark, op in zip(marks, ops, strict=True)]
    return lines


def _badness(op: Any) -> float:
    measured = op.relative if op.added is None else op.added
    return float(measured / op.bound) if op.bound else float(measured > 0)


def _number(x: float | None) -> str:
    return "" if x is None else f"{x:.1e}" if x else "0"
