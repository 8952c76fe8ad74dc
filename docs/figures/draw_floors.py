"""Draws the floors of the package from its imports: ``python docs/figures/draw_floors.py``."""

from __future__ import annotations

import configparser
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[2]
WIDTH, HEIGHT, GAP = 960, 34, 8


def floors() -> list[list[str]]:
    """The floors of .importlinter, from the top down."""
    contract = configparser.ConfigParser()
    contract.read(ROOT / ".importlinter")
    text = contract["importlinter:contract:floors"]["layers"]
    return [[name.strip() for name in line.split("|")] for line in text.strip().splitlines()]


def lines_of(name: str) -> int:
    """Lines of Python in a folder or file of the package."""
    path = ROOT / "dlrm_mtl" / name
    files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    return sum(len(file.read_text().splitlines()) for file in files)


def draw() -> str:
    """The picture as SVG: for each folder its lines, and the folders it imports from."""
    graph = grimp.build_graph("dlrm_mtl", exclude_type_checking_imports=True)
    rows = floors()
    height = len(rows) * (HEIGHT + GAP) + GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for number, row in enumerate(rows):
        top, width = GAP + number * (HEIGHT + GAP), (WIDTH - GAP) / len(row) - GAP
        for place, name in enumerate(row):
            left = GAP + place * (width + GAP)
            below = sorted(
                other
                for others in rows[number + 1 :]
                for other in others
                if graph.direct_import_exists(
                    importer=f"dlrm_mtl.{name}", imported=f"dlrm_mtl.{other}", as_packages=True
                )
            )
            parts.append(
                f'<rect x="{left}" y="{top}" width="{width}" height="{HEIGHT}" rx="4" fill="#e8eaf6" stroke="#3949ab"/>'
            )
            parts.append(f'<text x="{left + 10}" y="{top + 21}" font-weight="bold">{name}</text>')
            used = f" &#8594; {', '.join(below)}" if below and len(row) == 1 else ""
            shift = 10 + 8.5 * len(name)
            parts.append(
                f'<text x="{left + 10 + shift}" y="{top + 21}" fill="#555">{lines_of(name):,} lines{used}</text>'
            )
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    (ROOT / "docs" / "figures" / "floors.svg").write_text(draw())
