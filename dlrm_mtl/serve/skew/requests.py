"""Requests in a log: lines of the server's request log, or plain rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.dataset import open_files
from dlrm_mtl.data.parquet_guard import unreadable
from dlrm_mtl.serve.score_file import JSON_ENDINGS, json_objects
from dlrm_mtl.storage.filesystems import locate

BATCH = 4096
"""Number of plain rows at a time."""


@dataclass(frozen=True)
class LoggedRequest:
    """Rows that were scored, or will be."""

    place: str
    rows: list[dict[str, Any]] | pa.Table
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    """[K] logged scores by task; none for plain rows."""
    order: np.ndarray | None = None
    """[K] row of each score; None for all rows in order."""
    version: str | None = None
    """Version of the bundle that gave the scores."""

    def column(self, name: str) -> list[Any]:
        """Values of a field in all rows; raises :class:`UserError` if a row has none."""
        if isinstance(self.rows, pa.Table):
            if name in self.rows.column_names:
                values: list[Any] = self.rows.column(name).to_pylist()
                return values
            lacking = 0
        else:
            found = next((number for number, row in enumerate(self.rows) if name not in row), None)
            if found is None:
                return [row[name] for row in self.rows]
            lacking = found
        raise UserError(f"{self.place}: row {lacking} has no field {name!r}, which --on names; log it, or name others.")


def read_requests(source: str) -> Iterator[LoggedRequest]:
    """Requests in a log.

    Args:
        source: JSON lines, each with ``rows`` and ``scores``, or with ``context``, ``candidates``, ``order`` and ``scores``,
            or each a row; or a Parquet file or folder of rows. Path or URI.

    Raises:
        UserError: the log cannot be read, or a line has another form.
    """
    if not source.endswith(JSON_ENDINGS):
        yield from _parquet(source)
        return
    plain: list[dict[str, Any]] = []
    first = 0
    for number, line in enumerate(json_objects(source)):
        place = f"{source}, line {number}"
        request = _request(line, place)
        if request is not None:
            yield request
            continue
        if not plain:
            first = number
        plain.append(line)
        if len(plain) == BATCH:
            yield LoggedRequest(f"{source}, lines from {first} on", plain)
            plain = []
    if plain:
        yield LoggedRequest(f"{source}, lines from {first} on", plain)


def _parquet(source: str) -> Iterator[LoggedRequest]:
    for file in open_files(*locate(source)):
        first = 0
        try:
            for batch in file.open().iter_batches(BATCH, use_threads=False):
                yield LoggedRequest(f"{file.path}, rows from {first} on", pa.Table.from_batches([batch]))
                first += batch.num_rows
        except (OSError, pa.ArrowException) as error:
            raise unreadable(file.path, error) from None


def _request(line: Mapping[str, Any], place: str) -> LoggedRequest | None:
    """The request in a line; None for a plain row."""
    order = None
    if isinstance(line.get("rows"), list):
        rows = line["rows"]
    elif isinstance(line.get("candidates"), list) and isinstance(line.get("context"), dict):
        rows = [{**line["context"], **_mapping(candidate, place)} for candidate in line["candidates"]]
        order = line.get("order")
    else:
        return None
    rows = [_mapping(row, place) for row in rows]
    scores = line.get("scores", {})
    try:
        found = {str(task): np.array(values, np.float64) for task, values in scores.items()}
        places = None if order is None else np.array(order, np.int64)
        if any(each.shape != (len(rows) if places is None else len(places),) for each in found.values()):
            raise ValueError
        if places is not None and len(places) and not (places.min() >= 0 and places.max() < len(rows)):
            raise ValueError
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise UserError(
            f"{place}: scores do not belong to the rows of this request; log them as the server does."
        ) from None
    version = line.get("version")
    return LoggedRequest(place, rows, found, places, None if version is None else str(version))


def _mapping(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{place}: a row is no object; log each as an object with the columns' names as keys.")
    return row
