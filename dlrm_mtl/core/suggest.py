"""Suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def closest(name: str, allowed: Sequence[str], cutoff: float = 0.6) -> str | None:
    """Return the name among ``allowed`` that ``name`` most likely misspells; None if there is none."""
    return next(iter(nearest(name, allowed, 1, cutoff)), None)


def nearest(name: str, allowed: Sequence[str], most: int, cutoff: float) -> list[str]:
    """Return up to ``most`` names of ``allowed`` that are like ``name``, the nearest first."""
    return difflib.get_close_matches(name, allowed, n=most, cutoff=cutoff)


def suggest(name: str, allowed: Iterable[str]) -> str:
    """Return "did you mean 'x'? there are: x, y" for a name that is not in ``allowed``."""
    known = sorted(allowed)
    return f"{did_you_mean(name, known)}there are: {', '.join(known) if known else 'none'}"


def did_you_mean(name: str, allowed: Sequence[str]) -> str:
    """Return "did you mean 'x'? ", or an empty text if no name is close."""
    close = closest(name, allowed)
    return f"did you mean {close!r}? " if close else ""
