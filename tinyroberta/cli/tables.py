"""Tables for people, as wide as there is room."""

import sys
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from ..errors import Error
from ..terminal import one_line, print_rich

BAR = 12  # columns of the longest bar
TITLE = 400  # characters of a text that are shown above its table
SENTENCE = 30  # columns that a sentence needs: in fewer it is a column of words


class Column(NamedTuple):
    """A column: its name and cells, and the room without which it is left out; None: it always stands."""

    name: str
    cells: Sequence[str]
    style: str = ""
    justify: Literal["left", "right"] = "left"
    least: int | None = None


def bars(values: Sequence[float]) -> Column:
    """A bar for each value, the longest for the largest."""
    block = "#" if "█".encode(getattr(sys.stdout, "encoding", None) or "ascii", "ignore") == b"" else "█"
    most = max((abs(value) for value in values), default=0) or 1.0
    return Column("", [block * max(1, round(BAR * abs(value) / most)) for value in values], "cyan", least=BAR)


def print_table(title: str, columns: Sequence[Column]) -> None:
    """A title and columns below it; raises Error where rich is not installed."""
    try:
        from rich.cells import cell_len
        from rich.table import Table
        from rich.text import Text
    except ImportError as error:
        raise Error("the table needs the rich package: pip install 'tinyroberta[text]', or ask for --json") from error
    cells = [[one_line(cell) for cell in column.cells] for column in columns]
    widths = [max(map(cell_len, [column.name, *own])) for column, own in zip(columns, cells, strict=True)]

    def render(console: Any, width: int | None) -> None:
        taken = sum(2 + own for column, own in zip(columns, widths, strict=True) if column.least is None)
        shown = []
        for number, column in enumerate(columns):
            if column.least is not None and width is not None:
                if taken + column.least + 2 > width:
                    continue
                taken += column.least + 2
            shown.append(number)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for number in shown:
            column = columns[number]
            fixed = column.justify == "right" or column.least == BAR
            table.add_column(column.name, justify=column.justify, style=column.style, no_wrap=fixed, overflow="fold")
        for row in zip(*(cells[number] for number in shown), strict=True):
            table.add_row(*map(Text, row))
        if title:
            console.print(Text(one_line(title if len(title) <= TITLE else f"{title[:TITLE]}..."), "bold"))
        console.print(table)
        console.print()

    print_rich(render)
    sys.stdout.flush()
