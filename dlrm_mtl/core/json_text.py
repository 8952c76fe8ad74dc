"""JSON files that others may have edited or damaged, or are writing."""

from __future__ import annotations

import json
from typing import Any

from dlrm_mtl.core.errors import UserError


def parse_mapping(text: bytes, place: object, remedy: str) -> dict[str, Any]:
    """Parse the mapping in a JSON file.

    Args:
        text: content of the file.
        place: name of the file, for the error.
        remedy: end of the error sentence.

    Raises:
        UserError: the text is not JSON, or not a mapping.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: is not JSON ({str(error)[:200]}); {remedy}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{place}: holds no mapping; {remedy}.")
    return content


def parse_lines(text: str) -> list[dict[str, Any]]:
    """The mappings in complete lines of JSON; other lines, and a last one that was cut, are left out."""
    found = []
    for line in text.splitlines(keepends=True):
        try:
            entry = json.loads(line) if line.endswith("\n") else None
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            found.append(entry)
    return found
