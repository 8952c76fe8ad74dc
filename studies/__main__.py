"""The command line of the studies: ``python -m studies NAME``."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from dlrm_mtl.core.errors import EXIT_CODE, UserError
from dlrm_mtl.core.suggest import suggest

STUDIES = ("architectures", "assignment", "auxiliary", "task_relatedness", "taobao_balancing")
"""Modules with a ``main(arguments)`` and a docstring whose first line says what is asked."""


def question(name: str) -> str:
    """First line of a study's docstring, without importing it."""
    found = find_spec(f"studies.{name}")
    assert found is not None
    assert found.origin is not None
    text = ast.get_docstring(ast.parse(Path(found.origin).read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def main(arguments: Sequence[str]) -> None:
    """Run the study that the first argument names; without one, list them."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("python -m studies NAME [--help]\n")
        print("\n".join(f"  {name:18} {question(name)}" for name in STUDIES))
        return
    name, *rest = arguments
    if name not in STUDIES:
        raise UserError(f"there is no study {name!r}; {suggest(name, STUDIES)}.")
    import_module(f"studies.{name}").main(rest)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_CODE)
