"""One self-contained HTML page without scripts, external fonts or images, so that it opens offline and can be mailed."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.reports.page_template import TEMPLATE
from dlrm_mtl.reports.themes import STYLE, inline_svg, theme_colour


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    strong: bool = False
    colour: str | None = None
    """A colour (such as #0072b2) of a mark in front of the text."""
    bar: float | None = None
    """Length of a bar behind the text, 0 to 1."""
    note: str = ""
    """Smaller text below, such as an interval."""


@dataclass(frozen=True)
class PageTable:
    """A table; cells are texts or :class:`Cell`."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    text_columns: int = 1
    """Number of columns with text, from the left; the others hold numbers and are right-aligned."""
    caption: str = ""

    def cells(self) -> list[list[Cell]]:
        """All rows, with every cell a :class:`Cell`."""
        return [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows]


@dataclass(frozen=True)
class Figure:
    """A plot."""

    svg: str
    description: str
    """Alternative text for readers who cannot see the plot."""
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page: a paragraph, tables, and plots in a grid."""

    title: str
    text: str = ""
    tables: Sequence[PageTable] = ()
    figures: Sequence[Figure] = ()
    folded: bool = False
    """True if the section is closed until its title is clicked."""


@dataclass(frozen=True)
class Page:
    """A page of sections."""

    title: str
    subtitle: str = ""
    legend: Sequence[tuple[str, str]] = ()
    """Colours and their meanings in all plots; always visible."""
    sections: list[Section] = field(default_factory=list)
    notes: Sequence[str] = ()
    """Sentences that a reader must see first, such as what is missing."""
    source: str = ""
    """Last line: versions, machine."""

    def render(self) -> str:
        """Render the page as HTML."""
        environment = jinja2.Environment(
            autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
        )
        numbers = itertools.count()
        environment.filters["theme"] = theme_colour
        environment.filters["inline"] = lambda svg: inline_svg(svg, f"f{next(numbers)}-")
        return environment.from_string(TEMPLATE).render(page=self, style=STYLE)

    def write(self, path: Path) -> None:
        """Write the page to ``path`` atomically; raises :class:`UserError` if that fails."""
        write_text(path, self.render())


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically; raises :class:`UserError` if that fails."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror}); name a file you may write.") from None
