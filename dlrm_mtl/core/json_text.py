"""JSON files that others may have changed or damaged."""

from __future__ import annotations

import json
from typing import Any

from dlrm_mtl.core.errors import UserError


def parse_mapping(text: bytes, place: object, remedy: str) -> dict[str, Any]:
    """Read the mapping that a JSON file holds.

    Args:
        text: the file's content.
        place: its name, for the error.
        remedy: the end of the error's sentence.

    Raises:
        UserError: it is not JSON, or holds something else.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: is not JSON ({str(error)[:200]}); {remedy}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{place}: holds no mapping; {remedy}.")
    return content
