"""The tables of a page, in the terminal."""

from __future__ import annotations

from typing import Literal

import rich.table
from rich.text import Text

from dlrm_mtl.reports.page import Cell, PageTable

LONGEST = 48
"""Longest texts in the first column that are kept on one line."""


def rich_table(table: PageTable) -> rich.table.Table:
    """A page's table for :mod:`rich`."""
    shown = rich.table.Table(title=Text(table.caption), title_justify="left")
    for position, column in enumerate(table.columns):
        text = position < table.text_columns
        justify: Literal["left", "right"] = "left" if text else "right"
        whole = position == 0 and all(len(row[0].text) <= LONGEST for row in table.cells())
        shown.add_column(Text(column), justify=justify, overflow="fold", no_wrap=whole)
    for row in table.cells():
        shown.add_row(*(_text(cell) for cell in row))
    return shown


def _text(cell: Cell) -> Text:
    return Text(cell.text, style="bold" if cell.strong else "")
