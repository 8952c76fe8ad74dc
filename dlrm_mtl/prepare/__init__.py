"""Adapters that turn raw data into the layout the reader reads: one file each, and one line here.

An adapter is a module with a function ``prepare(input, output, *, <own options>, progress)``:

- ``input`` and ``output`` are folders; it writes all of ``output`` or nothing. Without a parameter ``input`` it needs none.
- Its own options are keyword-only and annotated ``Annotated[TYPE, typer.Option(help="...")]``; the command
  ``dlrm-mtl prepare NAME`` gets its options and their defaults from there, and its help from the docstring's first paragraph.
- ``progress`` is called with what is being done and the share that is done.
- It returns nothing, or what is to be printed when it is done, in place of "OUTPUT: ready".
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Adapter:
    """An adapter that is imported when it is first used, so that the command line starts quickly."""

    module: str
    """Name of the module in this package that has the function ``prepare``."""

    @property
    def function(self) -> Callable[..., str | None]:
        """The function ``prepare`` of the module."""
        function: Callable[..., str | None] = importlib.import_module(f"{__name__}.{self.module}").prepare
        return function

    def __call__(self, *arguments: Any, **options: Any) -> str | None:
        """Prepare a data set."""
        return self.function(*arguments, **options)


ADAPTERS: dict[str, Adapter] = {
    "aliccp": Adapter("aliccp"),
    "aliexpress": Adapter("aliexpress"),
    "criteo": Adapter("criteo"),
    "kuairand": Adapter("kuairand.adapter"),
    "movielens": Adapter("movielens.adapter"),
    "table": Adapter("table.adapter"),
    "userbehavior": Adapter("userbehavior"),
    "synthetic": Adapter("synthetic.adapter"),
}
