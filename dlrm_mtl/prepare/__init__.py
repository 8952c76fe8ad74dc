"""Adapters that turn raw data into the layout the reader reads: one file or folder of this package each.

An adapter is a function that registers itself, ``@register("adapter", NAME)``, here or in a plugin:

- It has a parameter ``output``, a folder of which it writes all or nothing, and most have ``input``, a folder of raw files.
- Its own options are keyword-only and annotated ``Annotated[TYPE, typer.Option(help="...")]``; the command
  ``dlrm-mtl prepare NAME`` gets its options and their defaults from there, and its help from the docstring's first paragraph.
- ``progress`` is called with what is being done and the share that is done.
- It returns nothing, or what is to be printed when it is done, in place of "OUTPUT: ready".
"""

from __future__ import annotations

import shlex

from dlrm_mtl.core.registry import home

ADAPTERS = home("adapter", __name__)
"""All adapters, by name; they are imported when one is first asked for, so that the command line starts quickly."""


def ready(output: object) -> str:
    """The last line about a data set that is written, which says how to go on with it."""
    return f"{output}: ready; draft a configuration with: dlrm-mtl init {shlex.quote(str(output))} --output run.yaml"
