"""Ways to damage files, for tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def flip(path: Path, at: int) -> None:
    """Flip one bit of the byte ``at``."""
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def folder_instead(path: Path) -> None:
    """Put an empty folder in the place of a file."""
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "last byte gone": lambda path: os.truncate(path, path.stat().st_size - 1),
    "emptied": lambda path: os.truncate(path, 0),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "bit flipped at the start": lambda path: flip(path, 3),
    "bit flipped in the middle": lambda path: flip(path, path.stat().st_size // 2),
    "bit flipped near the end": lambda path: flip(path, path.stat().st_size - 5),
    "deleted": lambda path: path.unlink(),
    "a folder": folder_instead,
}
"""Damage to one file, by name."""
