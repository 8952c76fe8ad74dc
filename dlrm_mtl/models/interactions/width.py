"""Check for interactions that need pooled features of one width."""

from __future__ import annotations

from collections.abc import Sequence


def one_width(name: str, fields: Sequence[int]) -> int:
    """Width of all ``fields``; raises :class:`ValueError`, which names the interaction, if they differ."""
    if len(set(fields)) != 1:
        found = ", ".join(map(str, sorted(set(fields)))) or "none"
        raise ValueError(f"{name} needs pooled features of one width and finds {found}; give all tables one dim.")
    return fields[0]
