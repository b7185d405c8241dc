"""A comparison as one page of HTML that needs nothing else: a sentence, a heat map of ops by layers, every number.

A column is a layer and a row an op, since names are read across, also on a phone. A cell's colour says how many times its bound
an op adds; those past it have a cross as well, so that colour is not all. What the candidate did not record is left empty.
"""

import html
import math
from itertools import groupby
from pathlib import Path

from ..weights.files import write_atomically
from .compare import Comparison, Op

STEPS = (0.01, 0.1, 1, 10, 100, 1000)  # of an error by its bound, where the next colour begins
LEGEND = ("below 1 %", "1 % of the bound", "10 %", "past the bound", "10 times", "100", "1000")
BUCKETS = ("0", "1", "2", "4", "16", "256", "65536")

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--dim:#5d6670;--page:#fff;--line:#d9dee3;--none:#eef0f2;--mark:#000;
--c0:#e4eef6;--c1:#c3dbec;--c2:#94bfdc;--c3:#f7c98b;--c4:#ee8f4e;--c5:#d4502f;--c6:#96190f}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--dim:#9aa4ae;--page:#14171a;--line:#333a41;--none:#1d2125;--mark:#fff;
--c0:#1d2d39;--c1:#234256;--c2:#2f6183;--c3:#8a5a1c;--c4:#b9591b;--c5:#dc4d2c;--c6:#ff7f6b}}
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:60rem;margin:auto;padding:1.25rem 1rem 3rem}h1{font-size:1.5rem;line-height:1.25;margin:.2rem 0 .4rem;
overflow-wrap:anywhere}h2{font-size:1.05rem;margin:2rem 0 .5rem}p{margin:.35rem 0;max-width:44rem}.dim{color:var(--dim)}
code{font-family:ui-monospace,monospace;font-size:.92em;overflow-wrap:anywhere}.bad{color:var(--c5);font-weight:600}
ul{padding-left:1.2rem;margin:.35rem 0}.scroll{overflow-x:auto}
.map{border-collapse:separate;border-spacing:2px;font-size:.8rem}.map th{font-weight:400;color:var(--dim);padding:0}
.map th[scope=row]{text-align:left;white-space:nowrap;padding-right:.6rem;color:var(--ink);font-family:ui-monospace,monospace;
font-size:.74rem;position:sticky;left:0;background:var(--page)}
.map td{padding:0;width:1.6rem;min-width:1rem;height:1.35rem;border-radius:3px;background:var(--none)}
.map a{display:block;height:1.35rem;line-height:1.35rem;text-align:center;text-decoration:none;color:var(--mark);font-weight:700}
.map td.first{outline:2px solid var(--mark);outline-offset:1px}.map tr.gap td,.map tr.gap th{height:.5rem;background:none}
.s0{background:var(--c0)!important}.s1{background:var(--c1)!important}.s2{background:var(--c2)!important}
.s3{background:var(--c3)!important}.s4{background:var(--c4)!important}.s5{background:var(--c5)!important}
.s6{background:var(--c6)!important}.s5,.s5 a,.s6,.s6 a{color:#fff!important}
.legend{display:flex;flex-wrap:wrap;gap:.3rem .9rem;font-size:.8rem;color:var(--dim);margin:.6rem 0;padding:0;list-style:none}
.legend i{display:inline-block;width:1rem;height:1rem;border-radius:3px;vertical-align:-.15rem;margin-right:.35rem;
font-style:normal;text-align:center;line-height:1rem;color:var(--mark);font-weight:700;background:var(--none)}
.all{border-collapse:collapse;font-size:.82rem;width:100%}.all th,.all td{padding:.2rem .6rem;text-align:right;
border-bottom:1px solid var(--line);white-space:nowrap;font-variant-numeric:tabular-nums}.all th{color:var(--dim);font-weight:400}
.all th:first-child,.all td:first-child{text-align:left;padding-left:0}.all tr:target{background:var(--none)}
summary{cursor:pointer;font-size:1.05rem;font-weight:600;margin:2rem 0 .5rem}
@media(max-width:34rem){.map{border-spacing:1px}.map td,.map th{width:1.05rem;min-width:.7rem;font-size:.68rem}
.map th[scope=row]{font-size:.68rem;padding-right:.3rem}}
"""


def write(path: Path, result: Comparison) -> None:
    """Write the page, whole or not at all; raises Error where it cannot be written."""
    text = page(result)
    write_atomically(path.expanduser(), lambda part: part.write_text(text, encoding="utf-8"))


def page(result: Comparison) -> str:
    """The page."""
    numbered = {(op.call, op.name): number for number, op in enumerate(result.ops)}
    maps = [_map(list(ops), result.first, numbered, call) for call, ops in groupby(result.ops, lambda op: op.call)]
    told = html.escape(f"{result.candidate} beside {result.reference}")
    body = f"""<p class="dim">{told}</p>
<h1>{_headline(result)}</h1>
{_first(result)}
{_differences(result)}
{_legend() if maps else ""}
{"".join(maps)}
{_table(result) if result.ops else ""}"""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    head += f"<title>{result.verdict}: {told}</title><style>{STYLE}</style>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body><main>{body}</main></body></html>\n'


def _headline(result: Comparison) -> str:
    if result.verdict == "same":
        return f"Same: all {len(result.ops)} ops are within their bounds"
    return f"Differs: first at <code>{html.escape(str(result.first))}</code>"


def _first(result: Comparison) -> str:
    """What there is to say of the first op that is wrong, and how many more there are."""
    op = next((op for op in result.ops if op.name == result.first), None)
    told: list[str] = []
    if op is not None and op.added is not None and not op.ok:
        told.append(f"It adds {op.added:.1e} of its result by itself, given the same inputs; rounding explains {op.bound:.1e}.")
    elif op is not None and not op.ok:
        told.append(f"It is off by {op.relative:.1e}, and {op.bound:.1e} would be rounding.")
    if op is not None and op.nonfinite is not None:
        told.append(f"It has {op.nonfinite['value']} at {op.nonfinite['at']}, {op.nonfinite['count']} in all.")
    if op is not None and op.covers:
        few = html.escape(", ".join(name.removeprefix(f"{op.name}.") for name in op.covers))
        ops = "an op" if len(op.covers) == 1 else f"{len(op.covers)} ops"
        told.append(f"It answers for {ops} before it that the candidate has not recorded: <code>{few}</code>.")
    wrong = sum(not op.ok for op in result.ops)
    if wrong > 1:
        told.append(f"{wrong} of {len(result.ops)} ops add more than their bounds.")
    return "".join(f"<p>{sentence}</p>" for sentence in told)


def _differences(result: Comparison) -> str:
    lines = [f"<li>input <code>{html.escape(name)}</code>: {html.escape(told)}</li>" for name, told in result.inputs.items()]
    lines += [f"<li>weight <code>{html.escape(name)}</code> has another hash</li>" for name in result.weights[:20]]
    lines += [f"<li>{len(result.weights) - 20} more weights</li>"] if len(result.weights) > 20 else []
    for name, (a, b) in result.config.items():
        lines.append(f"<li>configuration <code>{name}</code>: {html.escape(str(a))} and {html.escape(str(b))}</li>")
    lines += [f'<li class="dim">{html.escape(note)}</li>' for note in result.notes]
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def _legend() -> str:
    marks = ["", "", "", "×", "×", "×", "×"]
    steps = "".join(f'<li><i class="s{i}">{marks[i]}</i>{told}</li>' for i, told in enumerate(LEGEND))
    return f'<h2>What each op adds, beside its bound</h2><ul class="legend">{steps}<li><i></i>not recorded</li></ul>'


def _map(ops: list[Op], first: str | None, numbered: dict[tuple[int, str], int], call: int) -> str:
    """A call's ops: those before the layers, a row for each op of a layer and a column for each layer, those behind them."""
    layers: dict[str, dict[str, Op]] = {}
    before: list[tuple[str, Op]] = []
    behind: list[tuple[str, Op]] = []
    for op in ops:
        prefix, found, rest = op.name.partition("encoder.layer.")
        if found:
            number, _, bare = rest.partition(".")
            layers.setdefault(prefix + number, {})[bare or "(layer)"] = op
        else:
            (behind if layers else before).append((op.name, op))
    rows = list(dict.fromkeys(name for layer in layers.values() for name in layer))
    rows.sort(key=lambda name: max(list(layer).index(name) for layer in layers.values() if name in layer))

    def cell(op: Op | None) -> str:
        if op is None:
            return "<td></td>"
        told = html.escape(f"{op.name}: adds {_number(op.added)}, bound {_number(op.bound)}, off by {_number(op.relative)}")
        classes = f"s{_step(op)}" + (" first" if op.name == first else "")
        mark = "" if op.ok else "×"
        return (
            f'<td class="{classes}"><a href="#op{numbered[op.call, op.name]}" title="{told}" aria-label="{told}">{mark}</a></td>'
        )

    def line(name: str, cells: str) -> str:
        return f'<tr><th scope="row">{html.escape(name)}</th>{cells}</tr>'

    gap = '<tr class="gap"><th></th></tr>'
    lines = [line(name, cell(op)) for name, op in before]
    if layers:
        lines += [gap] if lines else []
        every = 1 if len(layers) <= 16 else 4
        numbers = "".join(f"<th>{number if i % every == 0 else ''}</th>" for i, number in enumerate(layers))
        lines.append(f"<tr><th scope='row' class='dim'>encoder.layer.</th>{numbers}</tr>")
        lines += [line(name, "".join(cell(layer.get(name)) for layer in layers.values())) for name in rows]
        lines.append(gap)
    lines += [line(name, cell(op)) for name, op in behind]
    title = f"<h2>Call {call}</h2>" if call else ""
    return f'{title}<div class="scroll"><table class="map">{"".join(lines)}</table></div>'


def _step(op: Op) -> int:
    measured = op.relative if op.added is None else op.added
    ratio = measured / op.bound if op.bound else (math.inf if measured else 0.0)
    step = sum(ratio > edge for edge in STEPS)
    return step if op.ok else max(step, 3)


def _table(result: Comparison) -> str:
    names = ("op", "adds", "bound", "off by", "max abs", "cosine", "argmax flips", "ulps: median", "most")
    head = "".join(f"<th>{name}</th>" for name in names)
    lines = []
    for number, op in enumerate(result.ops):
        median, most = _ulps(op)
        cells = (_number(op.added), _number(op.bound), _number(op.relative), _number(op.max_abs), f"{op.cosine:.7f}",
                 f"{op.argmax_flips} of {op.rows}", median, most)  # fmt: skip
        name = html.escape(op.name) + (f" (call {op.call})" if op.call else "")
        style = "" if op.ok else ' class="bad"'
        lines.append(
            f'<tr id="op{number}"{style}><td><code>{name}</code></td>' + "".join(f"<td>{x}</td>" for x in cells) + "</tr>"
        )
    opened = " open" if len(lines) <= 60 else ""
    table = f'<table class="all"><tr>{head}</tr>{"".join(lines)}</table>'
    return f'<details{opened}><summary>Every number</summary><div class="scroll">{table}</div></details>'


def _ulps(op: Op) -> tuple[str, str]:
    """In which step of the histogram the median lies, and the last that is not empty."""
    total, seen, median = sum(op.ulps.values()), 0, BUCKETS[0]
    for bucket in BUCKETS:
        seen += op.ulps.get(bucket, 0)
        if 2 * seen >= total:
            median = bucket
            break
    most = next((bucket for bucket in reversed(BUCKETS) if op.ulps.get(bucket)), "0")
    return tuple(x if x in ("0", "1") else f"{x} or more" for x in (median, most))  # type: ignore[return-value]


def _number(x: float | None) -> str:
    return "" if x is None else f"{x:.1e}" if x else "0"
