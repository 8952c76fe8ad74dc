"""Golden rows: rows with scores in a bundle, to compare the served model with the trained one.

Besides the scores there are two sums for every part of the model's input (the vectors of a feature from a table, a dense
feature): one that depends on every number and its position, and that of the absolute values, which scales the first. If
scores differ, the sums show which feature is the cause.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.models.input_sums import Sums

TOLERANCE = 1e-5
"""Largest difference of a score, absolute for scores up to 1 and relative beyond: processors differ in the order of sums."""


def write_golden(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    scores: Mapping[str, NDArray[np.float32]],
    raw: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write one line per row: ``{"row": {...}, "raw": {...}, "scores": {...}}``, without ``raw`` if there are no raw rows.

    Raises:
        OSError: the file cannot be written.
    """
    with open(path, "w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            line = {"row": row, "scores": {task: float(values[number]) for task, values in scores.items()}}
            if raw:
                line["raw"] = raw[number]
            file.write(json.dumps(line, separators=(",", ":"), default=_plain) + "\n")


def _plain(value: Any) -> float:
    return float(value)  # decimals


def read_golden(path: Path) -> tuple[list[dict[str, Any]], dict[str, NDArray[np.float32]]]:
    """Golden rows, and their scores by task."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    tasks = list(lines[0]["scores"]) if lines else []
    scores = {task: np.array([line["scores"][task] for line in lines], np.float32) for task in tasks}
    return [line["row"] for line in lines], scores


def read_raw_golden(path: Path) -> list[dict[str, Any]]:
    """Raw values of the golden rows; none if the bundle has no raw rows."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line["raw"] for line in lines if "raw" in line]


def compare_sums(found: Sums, wanted: Mapping[str, tuple[float, float]], place: str) -> None:
    """Check the model's input for golden rows; raises :class:`UserError`, which names the first part that differs."""
    for name, (sum_, scale) in wanted.items():
        own = found.get(name)
        if own is None or not abs(own[0] - sum_) <= TOLERANCE * max(scale, own[1], 1e-30):
            what = "is not read" if own is None else "gives the model other numbers"
            raise UserError(
                f"{place}: on the golden rows the feature {name!r} {what} here than in training, so this bundle is not served; "
                "export it again with this version of dlrm-mtl."
            )


def compare_scores(
    found: Mapping[str, NDArray[np.float32]], wanted: Mapping[str, NDArray[np.float32]], place: str
) -> float:
    """Largest difference between the scores of golden rows.

    Raises:
        UserError: it is larger than :data:`TOLERANCE`; the first task and row are named.
    """
    largest = 0.0
    for task, values in wanted.items():
        own = found[task].astype(np.float64)
        difference = np.abs(own - values) / np.maximum(np.abs(values), 1.0)
        bad = ~(difference <= TOLERANCE)
        if bad.any():
            row = int(np.argmax(bad))
            raise UserError(
                f"{place}: task {task!r} scores {own[row]:.6g} on golden row {row} where the trained model gave "
                f"{values[row]:.6g}, so this bundle is not served; export it again with this version of dlrm-mtl."
            )
        largest = max(largest, float(difference.max(initial=0.0)))
    return largest
