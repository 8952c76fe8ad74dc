"""Loading a run's configuration: one YAML file and overrides from the command line."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dlrm_mtl.config.check import check_run
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.parts import rebuild
from dlrm_mtl.core.plugins import load_plugins
from dlrm_mtl.core.registry import registrations
from dlrm_mtl.core.schema import read_yaml, validate
from dlrm_mtl.core.yaml_text import parse_yaml
from dlrm_mtl.data.spec import DATASET_FILE

_known = -1
"""Number of registered parts when the schema was made."""


def load_config(
    path: str | Path, overrides: Sequence[str] | None = None, plugins: Sequence[str] | None = None
) -> RunConfig:
    """Read and validate a configuration.

    Args:
        path: the YAML file.
        overrides: ``key.path=value``, in order; values are YAML, list entries are addressed by number.
        plugins: modules with parts of your own, in addition to those in the file; the result names all of them.

    Raises:
        UserError: with one sentence per mistake.
    """
    _refuse_data_set(Path(path))
    content = read_extended(Path(path))
    for override in overrides or []:
        apply_override(content, override)
    load_plugins(plugins or [], "--plugin")
    named = content.get("plugins", [])
    if isinstance(named, list) and all(isinstance(module, str) for module in named):
        load_plugins(named, f"{path}: plugins")
        if plugins:
            content["plugins"] = list(dict.fromkeys([*named, *plugins]))
    know_all_parts()
    config = validate(RunConfig, content, str(path))
    check_run(config, str(path))
    return config


def with_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Copy of ``config`` with other values of the keys in ``overrides``, each ``key.path=value``; see :func:`load_config`."""
    if not overrides:
        return config
    content = config.model_dump(mode="json")
    for override in overrides:
        apply_override(content, override)
    know_all_parts()
    return validate(RunConfig, content, config.name)


def _refuse_data_set(path: Path) -> None:
    """Refuse a data set's folder, or its dataset.yaml, in place of a configuration."""
    if path.name == DATASET_FILE or Path(path, DATASET_FILE).is_file():
        folder = path.parent if path.name == DATASET_FILE else path
        raise UserError(
            f"{path}: this is a data set, not a configuration; draft one with "
            f"`dlrm-mtl init {shlex.quote(str(folder))} --output run.yaml` and name run.yaml."
        )


def know_all_parts() -> None:
    """Update the schema of :class:`RunConfig` with the parts registered since its last use."""
    global _known
    if _known != registrations():
        rebuild(RunConfig)
        _known = registrations()


def read_extended(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Content of a configuration file, merged over the file in its key ``extends``.

    Mappings are merged key by key; other values are replaced. A part's mapping with a new ``name`` replaces the old one
    with all its options. The path in ``extends`` is relative to its own file.

    Args:
        path: the file.
        below: files that extend it.

    Raises:
        UserError: a file cannot be read, or extends itself.
    """
    if path.resolve() in below:
        chain = " -> ".join(file.name for file in (*below[below.index(path.resolve()) :], path))
        raise UserError(f"{path}: extends: files extend each other in a circle ({chain}); remove one of these keys.")
    content = read_yaml(path)
    other = content.pop("extends", None)
    if other is None:
        return content
    if not isinstance(other, str):
        raise UserError(f"{path}: extends: {other!r} is not the path of a file; name one, relative to this one.")
    return _merged(read_extended(path.parent / other, (*below, path.resolve())), content, top=True)


def _merged(base: dict[str, Any], own: dict[str, Any], top: bool = False) -> dict[str, Any]:
    if not top and "name" in own and own["name"] != base.get("name"):
        return own
    result = dict(base)
    for key, value in own.items():
        inherited = base.get(key)
        both = isinstance(value, dict) and isinstance(inherited, dict)
        result[key] = _merged(inherited, value) if both else value  # type: ignore[arg-type]
    return result


def apply_override(content: dict[str, Any], override: str) -> None:
    """Set one ``key.path=value`` in ``content``; raises :class:`UserError` if the override has another form."""
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
    """The configuration as YAML with every default written out; :func:`load_config` reads back an equal one."""
    content = config.model_dump(mode="json")
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def json_schema() -> str:
    """JSON schema of a configuration file, for editors."""
    know_all_parts()
    schema = RunConfig.model_json_schema()
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "Another configuration file, relative to this one, whose keys hold where this one does not set them.",
    }
    return json.dumps(schema, indent=2)
