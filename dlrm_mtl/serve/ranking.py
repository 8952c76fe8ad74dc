"""Requests: one user, many candidates, the best first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dlrm_mtl.config.serving import ScoreFormula
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.serve.formula import combined, tasks_of
from dlrm_mtl.serve.rows import Rows, Where, table_of


@dataclass(frozen=True)
class Ranked:
    """The K best of N candidates, best first; of equal scores the earlier candidate is first."""

    order: NDArray[np.int64]
    """[K] positions of the candidates in the request."""
    score: NDArray[np.float32]
    """[K] scores, see :class:`~dlrm_mtl.config.serving.ScoreFormula`."""
    tasks: dict[str, NDArray[np.float32]]
    """[K] predictions by task."""


def best(
    formula: ScoreFormula, predictions: Mapping[str, NDArray[np.float32]], top: int | None, where: Where
) -> Ranked:
    """The ``top`` best candidates, or all of them, given the ``predictions`` [N] by task.

    Raises:
        UserError: ``top`` is not positive, or a prediction in the score is no finite number.
    """
    if top is not None and top < 1:
        raise UserError(f"top: {top} is no number of candidates; ask for at least 1, or leave it out for all of them.")
    for task in tasks_of(formula):
        finite = np.isfinite(predictions[task])
        if not finite.all():
            row = int(np.argmin(finite))
            raise UserError(
                f"{where.row(row)}: the model's prediction for {task!r} is {predictions[task][row]}, which cannot be ordered; "
                "the row holds a number far outside the training data, which data.dense_limit of the run would clip."
            )
    score = combined(formula, predictions)
    order = np.argsort(-score, kind="stable")[:top].astype(np.int64)
    return Ranked(order, score[order], {task: values[order] for task, values in predictions.items()})


def merged(context: Mapping[str, Any], candidates: Rows) -> Rows:
    """Rows of the candidates with the fields of ``context`` that they lack."""
    table = table_of(candidates)
    if table is None:
        # What is no mapping is refused with its row, as all rows are.
        return [{**context, **each} if isinstance(each, Mapping) else each for each in candidates]
    for name, value in context.items():
        if name not in table.column_names:
            table = table.append_column(name, _repeated(name, value, table.num_rows))
    return table


def _repeated(name: str, value: Any, rows: int) -> pa.Array:
    try:
        return pa.array([value] * rows)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"context: {name!r} holds a value that no column can hold ({reason}); correct it.") from None
