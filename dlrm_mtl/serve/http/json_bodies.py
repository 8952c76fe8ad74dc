"""JSON bodies of requests, from clients that nobody trusts."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from dlrm_mtl.core.suggest import did_you_mean
from dlrm_mtl.serve.http.limits import RefusedRequest


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object in ``body``.

    Raises:
        RefusedRequest: it is no JSON object, holds NaN or Infinity, a key twice in one object, or too many levels.
    """
    content = read_value(body)
    if not isinstance(content, dict):
        raise RefusedRequest(400, 'body: is no JSON object; send one, such as {"rows": [{...}, ...]}.')
    return content


def read_value(body: bytes) -> Any:
    """The JSON value in ``body``; see :func:`read_object`."""
    try:
        return json.loads(body.decode(), object_pairs_hook=_unique, parse_constant=_constant)
    except RecursionError:
        raise RefusedRequest(400, "body: the JSON is nested too deeply; send rows of numbers and lists.") from None
    except ValueError as error:
        raise RefusedRequest(400, f"body: is not JSON in UTF-8 ({_short(error)}); correct it.") from None


def take(content: dict[str, Any], required: dict[str, type], optional: dict[str, type]) -> dict[str, Any]:
    """Values of the keys of ``content``, checked; optional ones may be absent or null.

    Raises:
        RefusedRequest: a key is missing, unknown, or has a value of another type.
    """
    allowed = {**required, **optional}
    for key in content:
        if key not in allowed:
            hint = did_you_mean(key[:60], list(allowed))
            raise RefusedRequest(400, f"body: there is no key {key[:60]!r} here; {hint}allowed: {', '.join(allowed)}.")
    for key in required:
        if key not in content:
            raise RefusedRequest(400, f"body: the key {key!r} is required; add it.")
    for key, value in content.items():
        kind = allowed[key]
        if type(value) is not kind and not (value is None and key in optional):
            raise RefusedRequest(400, f"body: {key!r} is {_TYPES[type(value)]} where {_TYPES[kind]} is expected.")
    return content


_TYPES: dict[type, str] = {
    list: "a list",
    dict: "an object",
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    type(None): "null",
}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:60]!r} stands twice in an object")
    return content


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
