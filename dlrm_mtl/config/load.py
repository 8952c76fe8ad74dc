"""Reading a run's configuration: one YAML file and overrides from the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dlrm_mtl.config.check import check_run
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.schema import read_yaml, validate
from dlrm_mtl.core.yaml_text import parse_yaml


def load_config(path: str | Path, overrides: Sequence[str] | None = None) -> RunConfig:
    """Read and validate a configuration.

    Args:
        path: the YAML file.
        overrides: ``key.path=value``, in order; values are YAML, list entries are addressed by number.

    Raises:
        UserError: with one sentence per mistake.
    """
    content = read_yaml(Path(path))
    for override in overrides or []:
        apply_override(content, override)
    config = validate(RunConfig, content, str(path))
    check_run(config, str(path))
    return config


def apply_override(content: dict[str, Any], override: str) -> None:
    """Set one ``key.path=value`` in ``content``; raises :class:`UserError` if it has another form."""
    key_path, equals, text = override.partition("=")
    keys = key_path.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"--set {override}: this is not of the form key.path=value, such as training.epochs=3.")
    try:
        value = parse_yaml(text)
    except ValueError:
        raise UserError(f"--set {override}: the value {text!r} is not YAML; quote it.") from None
    node: Any = content
    for position, key in enumerate(keys):
        last = position == len(keys) - 1
        if isinstance(node, list):
            if not key.isdecimal() or int(key) >= len(node):
                place = ".".join(keys[:position])
                raise UserError(f"--set {override}: {place} has entries 0 to {len(node) - 1}; {key!r} is none of them.")
            if last:
                node[int(key)] = value
            else:
                node = node[int(key)]
        elif isinstance(node, dict):
            if last:
                node[key] = value
            else:
                if node.get(key) is None:
                    node[key] = {}
                node = node[key]
        else:
            raise UserError(f"--set {override}: {'.'.join(keys[:position])} is a single value and has no keys.")


def dump_config(config: RunConfig) -> str:
    """The configuration as YAML with every default written out; :func:`load_config` reads it back to the same thing."""
    content = config.model_dump(mode="json")
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def json_schema() -> str:
    """The JSON schema of a configuration file, for editors."""
    return json.dumps(RunConfig.model_json_schema(), indent=2)
