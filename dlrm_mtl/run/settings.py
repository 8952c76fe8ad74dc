"""Comparison of a run's configuration with the one to resume it with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.errors import UserError

MAY_CHANGE = (
    "name",
    "plugins",
    "data.path",
    "data.evaluation_batch_size",
    "data.out_of_range",
    "data.prefetch",
    "data.read_ahead",
    "data.read_threads",
    "serving",
    "sharding.default",
    "sharding.tables",
    "sharding.processes_per_host",
    "sharding.plan",
    "training.epochs",
    "training.max_steps",
    "training.micro_batches",
    "training.evaluate_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.on_save_error",
    "training.async_checkpoints",
    "training.publish",
    "training.max_skipped_steps",
    "training.stop_on_divergence",
    "training.stall_timeout",
    "training.log_every",
    "training.early_stopping.patience",
    "training.exchange_ahead",
    "training.profile",
    "training.phase_times",
    "training.listeners",
)
"""Keys that a resumed run may change: its length, and how it is executed, saved, watched and served. ``data.path`` must
lead to the same files."""
ORDER = ("seed", "data.batch_size", "data.lanes", "data.shuffle", "data.block_rows", "data.negatives")
"""Keys that determine the order of rows and the drawn rows: no resumed run can change them."""

Difference = tuple[str, str, str]
"""A key, its old value and its new value, as text."""


def flat(content: Any, path: str = "") -> dict[str, Any]:
    """Single values, and lists of them, by their key paths, such as ``tasks.0.weight``."""
    if isinstance(content, dict) and content:
        inner: Iterator[tuple[Any, Any]] = iter(content.items())
    elif isinstance(content, list) and any(isinstance(entry, dict) for entry in content):
        inner = iter(enumerate(content))
    else:
        return {path: content}
    result: dict[str, Any] = {}
    for key, value in inner:
        result |= flat(value, f"{path}.{key}" if path else str(key))
    return result


def setting_differences(was: RunConfig, now: RunConfig) -> list[Difference]:
    """Keys whose values differ, in the order of the configuration; for an exchanged part, only its name."""
    before, after = flat(was.model_dump(mode="json")), flat(now.model_dump(mode="json"))
    found: list[Difference] = []
    exchanged: list[str] = []
    for key in {**after, **before}:
        if key.endswith(".name") and key in before and key in after and before[key] != after[key]:
            exchanged.append(key.removesuffix("name"))
    for key in {**after, **before}:
        if any(key.startswith(part) and key != f"{part}name" for part in exchanged):
            continue
        if before.get(key, "absent") != after.get(key, "absent"):
            found.append((key, _text(before, key), _text(after, key)))
    return found


def _text(values: dict[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False).strip('"') if key in values else "absent"


def check_same_settings(was: RunConfig, now: RunConfig, place: str, wanted: Sequence[str] = ()) -> list[Difference]:
    """Settings that a resumed run changes, after checking that it may.

    Args:
        was: configuration of the checkpoint.
        now: configuration to continue with.
        place: place of the run.
        wanted: ``key=value`` to change on purpose.

    Raises:
        UserError: the first key with another value that changes the result.
    """
    keys = [setting.partition("=")[0].strip() for setting in wanted]
    found = setting_differences(was, now)
    for key, before, after in found:
        if not _below(key, (*MAY_CHANGE, *ORDER, *keys)):
            raise UserError(
                f"{place}: {key} was {before} and is now {after}, so that another model would come out; set it back to resume, "
                f"or change it on purpose with --set-on-resume {key}={after}."
            )
    return found


def _below(key: str, prefixes: Sequence[str]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)
