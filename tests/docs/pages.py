"""The documents, taken apart: fenced blocks, command lines and code spans, each with the line where it stands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "launchers/README.md",
    ROOT / "studies/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "docs/tutorial.ipynb",
]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]

NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
"""Stands alone on a line before a fenced block that no test can run, and says why."""


@dataclass(frozen=True)
class Piece:
    """A block, a command or a span of a document."""

    page: str
    line: int
    text: str
    language: str = ""
    not_run: str | None = None

    @property
    def place(self) -> str:
        """``docs/data.md:12``."""
        return f"{self.page}:{self.line}"


def lines(page: str) -> list[str]:
    """The lines of a page; a notebook's cells of code become fenced blocks."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if not page.endswith(".ipynb"):
        return text.splitlines()
    found = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"]).splitlines()
        found += ["```python", *source, "```"] if cell["cell_type"] == "code" else source
    return found


def blocks(page: str, language: str | None = None) -> list[Piece]:
    """The fenced blocks of a page, of all languages or of one."""
    found: list[Piece] = []
    body: list[str] | None = None
    for number, line in enumerate(text := lines(page), start=1):
        if line.startswith("```"):
            if body is None:
                body, opened, kind = [], number + 1, line[3:].strip()
                marker = next((above for above in reversed(text[: number - 1]) if above.strip()), "")
                reason = NOT_RUN.fullmatch(marker.strip())
            else:
                found.append(Piece(page, opened, "\n".join(body) + "\n", kind, reason and reason.group(1)))
                body = None
        elif body is not None:
            body.append(line)
    assert body is None, f"{page}:{opened}: this block is not closed"
    return [block for block in found if language in (None, block.language)]


def code_lines(page: str) -> Iterator[Piece]:
    """Lines of code: of blocks without a language or with ``sh``, and indented ones; continued lines are joined."""
    fenced = shown = False
    held: tuple[int, str] | None = None
    for number, line in enumerate(lines(page), start=1):
        if line.startswith("```"):
            fenced = not fenced
            shown = fenced and line[3:].strip() in ("", "sh", "console", "bash")
            continue
        if held is None and not shown and (fenced or not line.startswith("    ")):
            continue
        start, before = held or (number, "")
        line = before + line.strip()
        held = (start, line[:-1]) if line.endswith("\\") else None
        if held is None:
            yield Piece(page, start, line)


def spans(page: str) -> Iterator[Piece]:
    """Code spans in running text."""
    fenced = False
    for number, line in enumerate(lines(page), start=1):
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("    "):
            for span in re.findall(r"`([^`]+)`", line):
                yield Piece(page, number, span)
