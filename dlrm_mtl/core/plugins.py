"""Parts from other packages: modules that register parts when they are imported.

A module is named by ``plugins:`` in a configuration, by ``--plugin``, or by an installed package as an entry point of the
group ``dlrm_mtl.plugins``. Importing a module runs it: name only modules that you trust.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points

from dlrm_mtl.core.errors import UserError

GROUP = "dlrm_mtl.plugins"
"""Group of the entry points."""


def load_plugins(modules: Iterable[str], place: str) -> None:
    """Import ``modules`` and, once, the entry points of installed packages.

    Args:
        modules: full names, such as ``my_package.ranking``.
        place: place where the user named them, for errors.

    Raises:
        UserError: a module cannot be found or imported, or registers a name that is taken.
    """
    _load_entry_points()
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            missing = error.name or module
            if module == missing or module.startswith(f"{missing}."):
                raise UserError(
                    f"{place}: there is no module {module!r}; install its package, or add its folder to PYTHONPATH."
                ) from None
            raise UserError(f"{place}: {module} needs {missing}, which is not installed; install it.") from error
        except ValueError as error:
            raise UserError(f"{place}: {module}: {error}") from error


@cache
def _load_entry_points() -> None:
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except (ImportError, ValueError) as error:
            raise UserError(
                f"the plugin {entry.name!r} ({entry.value}) of an installed package cannot be loaded ({error}); update or "
                "uninstall it."
            ) from error
