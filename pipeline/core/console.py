"""Print tables without truncation, to a terminal of any width, a pipe or a file."""

import re
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.core.errors import one_line

UNBOUNDED = 10_000  # width in characters if the output is not a terminal
MIN_TEXT_WIDTH = 8  # text is never folded to a narrower column
BORDER = 3  # characters per column: a line and two spaces
# where a line may end: after a space and between the parts of a list, a setting or a path
BREAK = re.compile(r"(?<=[ =/])|(?<=,)(?! )|(?<=\.)(?=[a-z])")


class Column(NamedTuple):
    heading: str
    numeric: bool = False
    """Numbers are right-aligned and never folded"""
    drop: int = 0
    """Order in which columns are left out of a table that is too wide: 1 first, 0 never"""


def print_table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    title: str = "",
    total: Sequence[str] = (),
) -> None:
    """Print a table to standard output.

    If the terminal is too narrow, columns are left out and listed below the table; if that is not
    enough, text is folded. A pipe or file gets every column as plain text, whatever FORCE_COLOR
    says: it has no width.

    Args:
        columns: Headings and layout of the columns.
        rows: Cells as text, one per column. Control characters are escaped.
        title: Heading of the table.
        total: Last row, below a line.
    """
    terminal = sys.stdout.isatty()
    console = Console() if terminal else Console(force_terminal=False, width=UNBOUNDED)
    cells = [[one_line(cell) for cell in row] for row in ([*rows, total] if total else rows)]
    visible = visible_columns(columns, cells, console.width)
    shown = [columns[number] for number in visible]
    cells = [[row[number] for number in visible] for row in cells]
    widths = column_widths(shown, cells, console.width)
    hidden = [column.heading for number, column in enumerate(columns) if number not in visible]
    table = Table(
        title=Text(one_line(title)) if title else None,
        caption=Text(f"too narrow for: {', '.join(hidden)}") if hidden else None,
        caption_justify="left",
    )
    for column, width in zip(shown, widths, strict=True):
        table.add_column(
            Text(one_line(column.heading)),
            justify="right" if column.numeric else "left",
            overflow="fold",
            width=width,
        )
    for number, row in enumerate(cells):
        if total and number == len(cells) - 1:
            table.add_section()
        table.add_row(*(Text(break_lines(*cell)) for cell in zip(row, widths, strict=True)))
    console.width = max(console.width, _table_width(widths))  # as a last resort, lines wrap
    console.print(table)


def visible_columns(columns: Sequence[Column], cells: list[list[str]], width: int) -> list[int]:
    """Return the indices of the columns that fit into a width without folding, in order."""
    visible = list(range(len(columns)))
    widths = [
        max(_heading_width(column), *_cell_widths(cells, n)) for n, column in enumerate(columns)
    ]
    for number in sorted((n for n in visible if columns[n].drop), key=lambda n: columns[n].drop):
        if _table_width([widths[n] for n in visible]) <= width:
            break
        visible.remove(number)
    return visible


def column_widths(columns: Sequence[Column], cells: list[list[str]], max_width: int) -> list[int]:
    """Return the width of each column.

    Columns get their full width if it fits; otherwise headings are folded first, then text.
    Numbers are never folded, so the table may still be wider than the terminal.
    """
    content = [max(_cell_widths(cells, number)) for number in range(len(columns))]
    full = [max(cell_len(c.heading), width) for c, width in zip(columns, content, strict=True)]
    if _table_width(full) <= max_width:
        return full
    widths = [max(_heading_width(c), width) for c, width in zip(columns, content, strict=True)]
    minimum = [
        width if c.numeric else MIN_TEXT_WIDTH for c, width in zip(columns, content, strict=True)
    ]
    while _table_width(widths) > max_width:
        foldable = [n for n in range(len(widths)) if widths[n] > minimum[n]]
        if not foldable:
            break
        widths[max(foldable, key=widths.__getitem__)] -= 1
    return widths


def break_lines(text: str, width: int) -> str:
    """Break text into lines of at most `width`, at BREAK; a longer part stays one line."""
    lines = [""]
    for part in BREAK.split(text):
        if lines[-1] and cell_len((lines[-1] + part).rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def _heading_width(column: Column) -> int:
    """Return the smallest width of a heading: that of its longest word."""
    return max(map(cell_len, column.heading.split()), default=0)


def _cell_widths(cells: list[list[str]], number: int) -> Iterator[int]:
    yield 1  # even without rows
    yield from (cell_len(row[number]) for row in cells)


def _table_width(widths: list[int]) -> int:
    return sum(width + BORDER for width in widths) + 1
