"""Checks before a job is submitted: a typo should not cost the time in the queue."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.launching.client import refuse


def overrides_of(text: str) -> list[str]:
    """The overrides in a text such as ``training.epochs=1,model.tower.layers=[64,32]``."""
    # A comma separates them only where a key follows, so that values may be lists.
    parts = re.split(r",(?=\s*[A-Za-z_][\w.]*=)", text) if text else []
    return [part.strip() for part in parts]


def check_config(config: str, overrides: Sequence[str], more: Sequence[str], check: bool) -> None:
    """Refuse a configuration that the job would refuse; an absolute path or a URI need not be visible here.

    Args:
        config: path of the YAML file.
        overrides: ``key=value``.
        more: further arguments of the job, with overrides and plugins among them.
        check: whether to read it; otherwise it need only be there.
    """
    found = "://" not in config and os.path.isfile(config)
    if "://" not in config and not os.path.isabs(config) and not found:
        refuse(
            f"--config: there is no file '{config}' in {os.getcwd()}; name an existing one, such as those in configs/."
        )
    if found and check:
        _load(Path(config), [*overrides, *_values(more, "--set"), *_values(more, "--set-on-resume")], more)


def check_run(run: str, overrides: Sequence[str], more: Sequence[str], check: bool) -> None:
    """Refuse a folder without a run, and overrides that do not fit it; an absolute path or a URI need not be visible here."""
    if "://" in run:
        return
    if not os.path.isdir(run):
        if os.path.isabs(run):
            return
        refuse(f"--run: there is no folder '{run}' in {os.getcwd()}; name the folder of a trained run.")
    config = Path(run) / "config.yaml"
    if not config.is_file():
        refuse(f"--run: there is no run in '{run}'; name the folder of a trained run.")
    if check:
        _load(config, [*overrides, *_values(more, "--set")], more)


def check_adapter(adapter: str, plugin: str | None) -> None:
    """Refuse a data set that ``dlrm-mtl prepare`` does not know; a plugin's are known to the job only."""
    if plugin is not None:
        return
    try:
        from dlrm_mtl.core.plugins import load_plugins
        from dlrm_mtl.prepare import ADAPTERS

        load_plugins([], "plugins")
        names = sorted(ADAPTERS.names())
    except ImportError:  # the client's Python has the launcher only
        return
    if adapter not in names:
        refuse(f"--adapter: there is no data set '{adapter}'; {suggest(adapter, names)}.")


def _load(path: Path, overrides: Sequence[str], more: Sequence[str]) -> None:
    try:
        from dlrm_mtl.config.check import check_against_data_set
        from dlrm_mtl.config.load import load_config
    except ImportError:  # the client's Python has the launcher only
        return
    try:
        config = load_config(path, list(overrides), _values(more, "--plugin"))
        check_against_data_set(config, str(path))
    except UserError as error:
        elsewhere = "; or write --check False, if only the image has it" if "plugin" in str(error) else ""
        refuse(f"{str(error).removesuffix('.')}{elsewhere}.")


def _values(arguments: Sequence[str], option: str) -> list[str]:
    """The values of an option that may be repeated, as ``--set a=1`` or ``--set=a=1``."""
    found = [argument.removeprefix(f"{option}=") for argument in arguments if argument.startswith(f"{option}=")]
    return [*found, *(after for before, after in pairwise(arguments) if before == option)]
