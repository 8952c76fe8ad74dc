"""Adapters from raw data to the reader's layout: one file or folder of this package each.

An adapter is a function that registers itself, ``@register("adapter", NAME)``, here or in a plugin:

- It has a parameter ``output``, a folder that it writes completely or not at all, and most have ``input``, a folder of raw
  files.
- Its own options are keyword-only and annotated ``Annotated[TYPE, typer.Option(help="...")]``. The command ``dlrm-mtl
  prepare NAME`` takes its options and defaults from them, and its help from the docstring's first paragraph.
- ``progress`` is called with the name of the current work and the fraction of the whole that is done.
- It returns None, or a text to print at the end instead of "OUTPUT: ready".
"""

from __future__ import annotations

import shlex

from dlrm_mtl.core.registry import home

ADAPTERS = home("adapter", __name__)
"""All adapters, by name; imported when one is first requested, so that the command line starts quickly."""


def ready(output: object) -> str:
    """Last line of output about a written data set, which says how to continue."""
    return f"{output}: ready; draft a configuration with: dlrm-mtl init {shlex.quote(str(output))} --output run.yaml"
