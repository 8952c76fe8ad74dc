"""The command ``dlrm-mtl skew``: what it prints."""

from __future__ import annotations

from collections.abc import Sequence

import rich.box
import rich.table

from dlrm_mtl.console import console
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.serve.skew.find import FeatureSkew, compare_with_data
from dlrm_mtl.serve.skew.replay import Limits, LogReader, Replay


def show_skew(reader: LogReader, log: str, data: str | None, split: str, keys: Sequence[str], limits: Limits) -> bool:
    """Print the skew of a log, and return True if there is any.

    Args:
        reader: reader of the log, with its bundle.
        log: the log.
        data: data set to compare with; None compares scores only.
        split: split of the data set.
        keys: columns that identify a row, in the log and in the data set.
        limits: limits of what is skew.

    Raises:
        UserError: the log or the data set cannot be read, or do not fit the bundle.
    """
    if keys and data is None:
        raise UserError("--on: names columns that identify a row in the data set of --data; add it, or leave --on out.")
    out = console()
    logged = reader.read(log, keys, limits)
    for line in _replayed(log, logged.replay, limits):
        out.print(line)
    found: list[FeatureSkew] = []
    if data is not None:
        found, matched = compare_with_data(reader, logged, data, split, keys, limits)
        if keys:
            out.print(f"{data}: {matched:,} rows of the log found by {', '.join(keys)}")
        first = found[0] if found and found[0].different else None
        out.print(_conclusion(first))
        out.print(_table(found, bool(keys)))
    return bool(logged.replay.differing) or any(feature.different for feature in found)


def _replayed(log: str, replay: Replay, limits: Limits) -> list[str]:
    lines = [f"{log}: {replay.rows:,} rows in {replay.requests:,} requests"]
    for version, count in sorted(replay.versions.items()):
        lines.append(f"note: {count:,} requests were scored by version {version}, so their scores are not compared")
    if not replay.compared:
        lines.append("no scores to compare")
    elif not replay.differing:
        lines.append(f"scores: equal in all {replay.compared:,} rows (within {limits.score:g})")
    else:
        lines.append(
            f"scores: {replay.differing:,} of {replay.compared:,} rows differ ({replay.differing / replay.compared:.1%}), "
            f"by up to {replay.largest:.3g} in task {replay.task}"
        )
    return lines


def _conclusion(first: FeatureSkew | None) -> str:
    if first is None:
        return "features: no skew"
    if first.differs is not None:
        return f"features: {first.name!r} differs most often, in {first.differs:.1%} of the rows"
    return f"features: {first.name!r} differs most, with a stability index of {first.stability:.3g}"


def _table(found: Sequence[FeatureSkew], by_key: bool) -> rich.table.Table:
    table = rich.table.Table(box=rich.box.SIMPLE)
    table.add_column("feature", overflow="fold")
    names = [
        "skew",
        *(["differs"] if by_key else []),
        "stability index",
        "no field",
        "empty",
        "in the log",
        "unknown",
        "in the log",
    ]
    for name in names:
        table.add_column(name, justify="right")
    for feature in found:
        shares = [feature.missing, *feature.empty, *feature.unknown]
        differs = [f"{feature.differs:.1%}"] if feature.differs is not None else []
        table.add_row(
            feature.name,
            "yes" if feature.different else "",
            *differs,
            f"{feature.stability:.3f}",
            *(f"{share:.1%}" for share in shares),
        )
    return table
