"""Draws the figures of docs/reports.md: plots taken from a page that `dlrm-mtl compare` or `dlrm-mtl data describe` wrote.

    python docs/figures/draw_reports.py PAGE.html FIGURE.svg "DESCRIPTION" ["DESCRIPTION" ...]

A description is a plot's `aria-label` in the page. The plots stand side by side, in the colours of a light page.
"""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path

from dlrm_mtl.reports.themes import light_colours

GAP = 12


def plots(page: str) -> dict[str, str]:
    """The plots of a page as SVG texts, by description."""
    found = re.findall(r'role="img" aria-label="([^"]*)">\n(<svg.*?</svg>)', page, flags=re.DOTALL)
    return {html.unescape(name): light_colours(drawing) for name, drawing in found}


def side_by_side(drawings: list[str]) -> str:
    """One SVG with all ``drawings`` in a row; identifiers get a prefix, so that those of two drawings do not meet."""
    parts, x, tallest = [], 0.0, 0.0
    for number, drawing in enumerate(drawings):
        width, height = (float(value) for value in re.findall(r'\b(?:width|height)="([\d.]+)pt"', drawing)[:2])
        own = re.sub(r'(\bid="|url\(#|href="#)', rf"\1p{number}", drawing)
        parts.append(own.replace("<svg ", f'<svg x="{x:g}" y="0" ', 1).replace('pt"', '"'))
        x, tallest = x + width + GAP, max(tallest, height)
    size = f"{x - GAP:g} {tallest:g}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {size}">'
    return "\n".join([head, *parts, "</svg>\n"])


def main(page: Path, figure: Path, descriptions: list[str]) -> None:
    """Write ``figure``."""
    found = plots(page.read_text(encoding="utf-8"))
    text = side_by_side([found[description] for description in descriptions])
    figure.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
