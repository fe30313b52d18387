"""Tables: of any lines for a terminal, and lines of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from dls.tools import numbers
from dls.tools.rows import Row

Line = Mapping[str, Any]
"""One line of a table: what stands below each head."""


def show_rows(title: str, rows: Sequence[Row]) -> None:
    """Print the rows as one table, with a column for each title."""
    show(title, [row.to_json() for row in rows])


def show(title: str, lines: Sequence[Line]) -> None:
    """Print lines as one table; a head that a line lacks leaves its cell empty."""
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    heads = list(dict.fromkeys(head for line in lines for head in line))
    for head in heads:
        words = "\n".join(head.split(" "))
        table.add_column(words, justify="right", vertical="bottom", no_wrap=True)
    for line in lines:
        table.add_row(*(numbers.cell(line.get(head, "")) for head in heads))
    wide = Console(width=1000)
    Console(width=wide.measure(table).maximum).print(table)


def markdown_line(*cells: str) -> str:
    """A line of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def markdown_head(*heads: str) -> tuple[str, str]:
    """The two lines that begin a table in Markdown."""
    return markdown_line(*heads), markdown_line(*["---"] * len(heads))
