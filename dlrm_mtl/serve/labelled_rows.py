"""Rows with labels for a bundle: predictions, labels of the binary tasks, and groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.serve.score_file import read_rows
from dlrm_mtl.serve.score_objective import TaskLabels
from dlrm_mtl.serve.scorer import Scorer

ROWS = 8192
"""Number of rows that are read at a time."""


@dataclass(frozen=True)
class LabelledRows:
    """N rows."""

    predictions: dict[str, NDArray[np.float32]]
    """[N] by task, calibrated as the bundle is."""
    labels: dict[str, TaskLabels]
    """Labels by binary task."""
    groups: NDArray[np.int64] | None
    """[N], number of the group of each row."""


def read_labelled(scorer: Scorer, source: str, by: str | None) -> LabelledRows:
    """Rows of a file with the columns of the model's features and labels, scored.

    Args:
        scorer: the model.
        source: Parquet file or folder, or JSON lines; path or URI.
        by: column whose equal values make a group, such as the user's id; None for no groups.

    Raises:
        UserError: the file cannot be read, or lacks a column; a row is refused.
    """
    columns = scorer.label_columns
    needed = list(dict.fromkeys([*columns.values(), *([] if by is None else [by])]))
    scores: dict[str, list[NDArray[np.float32]]] = {task: [] for task in scorer.tasks}
    carried: dict[str, list[pa.Array | pa.ChunkedArray]] = {name: [] for name in needed}
    for rows, values, where in read_rows(source, needed, ROWS):
        for task, part in scorer.score(rows, where=where).items():
            scores[task].append(part)
        for name, column in zip(needed, values, strict=True):
            carried[name].append(column)
    if not next(iter(scores.values())):
        raise UserError(f"{source}: there are no rows; name a file that has some.")
    whole = {name: _whole(parts) for name, parts in carried.items()}
    return LabelledRows(
        {task: np.concatenate(parts) for task, parts in scores.items()},
        _labels(scorer, {label: whole[column] for label, column in columns.items()}, source),
        None if by is None else _numbers(whole[by], by, source),
    )


def _whole(parts: list[pa.Array | pa.ChunkedArray]) -> pa.Array:
    chunks = [chunk for part in parts for chunk in (part.chunks if isinstance(part, pa.ChunkedArray) else [part])]
    return pa.concat_arrays(chunks)


def _labels(scorer: Scorer, columns: Mapping[str, pa.Array], source: str) -> dict[str, TaskLabels]:
    values, known = {}, {}
    for name, column in columns.items():
        try:
            values[name] = pc.fill_null(column.cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False)
        except pa.ArrowException:
            raise UserError(
                f"{source}: column {scorer.label_columns[name]!r} holds {column.type} where a label is expected; write 0 and 1."
            ) from None
        known[name] = column.is_valid().to_numpy(zero_copy_only=False)
    found = {}
    for task in scorer.task_configs:
        if task.kind != "binary":
            continue
        counted = known[task.label_name]
        if task.only_where is not None:
            counted = counted & known[task.only_where] & (values[task.only_where] == 1)
        found[task.name] = TaskLabels(values[task.label_name] == 1, counted)
    return found


def _numbers(column: pa.Array, by: str, source: str) -> NDArray[np.int64]:
    if pa.types.is_nested(column.type):
        raise UserError(f"{source}: column {by!r} holds lists, which make no groups; name a column of single values.")
    codes: NDArray[np.int64] = (
        column.dictionary_encode(null_encoding="encode").indices.to_numpy(zero_copy_only=False).astype(np.int64)
    )
    return codes
