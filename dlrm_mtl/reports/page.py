"""One self-contained HTML page without scripts, external fonts or images, so that it opens offline and can be mailed."""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

from dlrm_mtl.core.errors import UserError


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    strong: bool = False
    colour: str | None = None
    """A colour (such as #0072b2) of a mark in front of the text."""
    bar: float | None = None
    """Length of a bar behind the text, 0 to 1."""


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

    @property
    def source(self) -> str:
        """Data URI of the plot. A separate image keeps the identifiers of several plots apart."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode("utf-8")).decode("ascii")


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

    def render(self) -> str:
        """Render the page as HTML."""
        environment = jinja2.Environment(
            autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
        )
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


STYLE = """\
:root { color-scheme: light dark; --paper: #fff;
  --ink: #1f2328; --soft: #59636e; --line: #d8dee4; --fill: #f6f8fa; --mark: #dbe9f6; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 24px 28px 64px; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 27px; margin: 0; } h2 { font-size: 19px; margin: 0; display: inline; }
section, details { margin-top: 34px; } section > h2 { display: block; margin-bottom: 6px; }
summary { cursor: pointer; margin-bottom: 6px; }
p { margin: 4px 0 10px; max-width: 90ch; color: var(--soft); }
.legend { position: sticky; top: 0; background: var(--paper); border-bottom: 1px solid var(--line); padding: 8px 0;
  margin-top: 14px; display: flex; flex-wrap: wrap; gap: 4px 20px; z-index: 1; }
.swatch { display: inline-block; width: 14px; height: 10px; border-radius: 2px; margin-right: 6px; }
.tables { display: flex; flex-wrap: wrap; gap: 0 40px; align-items: flex-start; }
.scroll { max-width: 100%; overflow-x: auto; margin-bottom: 14px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13.5px; }
caption { text-align: left; font-weight: 600; padding: 6px 0; }
th, td { padding: 4px 10px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  vertical-align: top; }
th { background: var(--fill); font-weight: 600; white-space: normal; vertical-align: bottom; }
td.text, th.text { text-align: left; white-space: normal; }
td.bar { background-image: linear-gradient(var(--mark), var(--mark)); background-repeat: no-repeat;
  background-position: 0 50%; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(360px, 1fr)); gap: 12px; }
.grid img { width: 100%; height: auto; border: 1px solid var(--line); border-radius: 6px; } .grid .wide { grid-column: 1 / -1; }
@media screen and (prefers-color-scheme: dark) {
  :root { --paper: #0d1117; --ink: #e6edf3; --soft: #9da7b1; --line: #3d444d; --fill: #161b22; --mark: #1f3a5f; }
  .grid img { filter: invert(0.94) hue-rotate(180deg); } }
@media print { .legend { position: static; } details { display: block; } }
"""

TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ page.title }}</title>
<style>
{{ style | safe }}</style>
</head>
<body>
<h1>{{ page.title }}</h1>
{% if page.subtitle %}
<p>{{ page.subtitle }}</p>
{% endif %}
{% if page.legend %}
<div class="legend">
{% for colour, name in page.legend %}
<span><span class="swatch" style="background: {{ colour }}"></span>{{ name }}</span>
{% endfor %}
</div>
{% endif %}
{% for section in page.sections %}
{% if section.folded %}
<details>
<summary><h2>{{ section.title }}</h2></summary>
{% else %}
<section>
<h2>{{ section.title }}</h2>
{% endif %}
{% if section.text %}
<p>{{ section.text }}</p>
{% endif %}
{% if section.tables %}
<div class="tables">
{% for table in section.tables %}
<div class="scroll"><table>
{% if table.caption %}
<caption>{{ table.caption }}</caption>
{% endif %}
<thead><tr>
{%- for column in table.columns -%}
<th{% if loop.index0 < table.text_columns %} class="text"{% endif %}>{{ column }}</th>
{%- endfor -%}
</tr></thead>
<tbody>
{% for row in table.cells() %}
<tr>
{%- for cell in row -%}
<td class="{% if loop.index0 < table.text_columns %}text{% endif %}{% if cell.bar is not none %} bar{% endif %}"
{%- if cell.bar is not none %} style="background-size: {{ '%.1f' | format(100 * cell.bar) }}% 70%"{% endif %}>
{%- if cell.colour %}<span class="swatch" style="background: {{ cell.colour }}"></span>{% endif -%}
{%- if cell.strong %}<strong>{{ cell.text }}</strong>{% else %}{{ cell.text }}{% endif -%}
</td>
{%- endfor -%}
</tr>
{% endfor %}
</tbody>
</table></div>
{% endfor %}
</div>
{% endif %}
{% if section.figures %}
<div class="grid">
{% for figure in section.figures %}
<img{% if figure.wide %} class="wide"{% endif %} src="{{ figure.source }}" alt="{{ figure.description }}">
{% endfor %}
</div>
{% endif %}
{% if section.folded %}
</details>
{% else %}
</section>
{% endif %}
{% endfor %}
</body>
</html>
"""
