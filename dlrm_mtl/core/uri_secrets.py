"""URIs that hold a password or secret key are refused: they would stand in configurations, logs and lists of processes."""

from __future__ import annotations

import re

from dlrm_mtl.core.errors import UserError

_SECRET = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*://)[^/@\s:]*:(?!\d+(?:/|$))\S*@")


def refuse_secrets(text: str) -> None:
    """Raise :class:`UserError`, without the secret, if ``text`` holds a URI with a user and a secret."""
    found = _SECRET.search(text)
    if found is not None:
        shown = _SECRET.sub(r"\1***@", text)
        raise UserError(
            f"{shown}: this URI holds a secret, which would stand in configurations and logs; leave it out, and give it by "
            "environment variables such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or by the store's own file of "
            "credentials."
        )
