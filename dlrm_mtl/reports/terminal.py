"""The tables of a page, in the terminal."""

from __future__ import annotations

from typing import Literal

import rich.table
from rich.markup import escape

from dlrm_mtl.reports.page import Cell, PageTable


def rich_table(table: PageTable) -> rich.table.Table:
    """The same table for :mod:`rich`."""
    shown = rich.table.Table(title=escape(table.caption), title_justify="left")
    for position, column in enumerate(table.columns):
        text = position < table.text_columns
        justify: Literal["left", "right"] = "left" if text else "right"
        shown.add_column(escape(column), justify=justify, overflow="fold", no_wrap=position == 0)
    for row in table.cells():
        shown.add_row(*(_markup(cell) for cell in row))
    return shown


def _markup(cell: Cell) -> str:
    return f"[bold]{escape(cell.text)}[/bold]" if cell.strong else escape(cell.text)
