"""`dlrm-mtl tune-score`: the score of a bundle or run, tuned on labelled rows."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrm_mtl.config.serving import ScoreFormula
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.serve.bundle import BUNDLE_FILE
from dlrm_mtl.serve.formula import combined
from dlrm_mtl.serve.labelled_rows import LabelledRows, read_labelled
from dlrm_mtl.serve.score_objective import Goal, Judge, goals_of
from dlrm_mtl.serve.scorer import Scorer
from dlrm_mtl.serve.tune_score import Form, TriedScore, TunedScore, tune
from dlrm_mtl.storage.output import output_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tuning:
    """Wishes of the user."""

    objective: Sequence[str]
    """``TASK/METRIC=WEIGHT``; none: the grouped AUC of every binary task, or the AUC without groups."""
    conditions: Sequence[str]
    """``TASK/METRIC=VALUE``."""
    tasks: Sequence[str]
    """Tasks that the score may use; none: those of the objective."""
    by: str | None
    """Column whose equal values make a group."""
    form: Form
    trials: int
    seed: int


def tune_score(
    place: str, source: str, wishes: Tuning, check: str | None = None, plugins: Sequence[str] = ()
) -> tuple[TunedScore, dict[str, Any]]:
    """Tune the score of a bundle, or of the best checkpoint of a run.

    Args:
        place: folder of the bundle or the run.
        source: rows with labels, see :func:`~dlrm_mtl.serve.labelled_rows.read_labelled`.
        wishes: what to tune, and how.
        check: other rows, on which the metrics are computed, too.
        plugins: modules that register parts of the model.

    Returns:
        The result, and its content for JSON.

    Raises:
        UserError: an option is wrong, the rows cannot be read, or no score fulfils the conditions.
    """
    scorer = _scorer(place, plugins)
    binary = [task.name for task in scorer.task_configs if task.kind == "binary"]
    standard = [f"{name}/{'auc' if wishes.by is None else 'gauc'}" for name in binary]
    objective = goals_of(wishes.objective or standard, "--objective", binary)
    if not objective:
        raise UserError(f"{place}: has no binary task, so there is no score to tune.")
    conditions = goals_of(wishes.conditions, "--at-least", binary)
    for goal in [*objective, *conditions]:
        if goal.grouped and wishes.by is None:
            raise UserError(f"{goal.name}: is a mean over groups of rows; name their column, such as --by user_id.")
    for name in wishes.tasks:
        if name not in binary:
            raise UserError(f"--task {name}: there is no such binary task; {suggest(name, binary)}.")
    using = list(wishes.tasks) or list(dict.fromkeys(goal.task for goal in objective))
    goals = [*objective, *conditions]
    rows = read_labelled(scorer, source, wishes.by)
    judge = Judge(rows.labels, rows.groups, goals)
    found = tune(
        rows.predictions, using, judge, objective, conditions, scorer.formula, wishes.form, wishes.trials, wishes.seed
    )
    checked = None if check is None else _checked(found, read_labelled(scorer, check, wishes.by), goals)
    content = {
        "score": _plain(found.best.formula),
        "objective": {goal.name: goal.number for goal in objective},
        "conditions": {goal.name: goal.number for goal in conditions},
        "rows": len(next(iter(rows.predictions.values()))),
        "seed": wishes.seed,
        "bundle": scorer.version,
        "start": _entry(found.start),
        "best": _entry(found.best),
        "checked": checked,
        "front": [_entry(each) for each in found.front],
        "tried": [_entry(each) for each in found.tried],
    }
    return found, content


def write_tuning(content: dict[str, Any], output: str) -> None:
    """Write the result as JSON; raises :class:`UserError` if the file exists or cannot be written."""
    with output_file(output) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def report_tuning(content: dict[str, Any]) -> None:
    """Log the metrics before and after, and the lines to paste."""
    for title, part in (("", content), (" on the other rows", content["checked"])):
        if part is not None:
            for name in part["best"]["metrics"]:
                before, after = (part[key]["metrics"][name] for key in ("start", "best"))
                logger.info("%s%s: %.4f -> %.4f", name, title, before, after)
    logger.info("serving:\n  score: %s", json.dumps(content["score"]).replace('"', ""))


def _scorer(place: str, plugins: Sequence[str]) -> Scorer:
    if (Path(place) / BUNDLE_FILE).is_file() or not (Path(place) / "config.yaml").is_file():
        return Scorer(place, plugins=plugins)
    from dlrm_mtl.serve.export import export_run

    with tempfile.TemporaryDirectory() as folder:  # mapped tables outlive their names
        export_run(place, Path(folder) / "bundle")
        return Scorer(Path(folder) / "bundle", plugins=plugins)


def _checked(found: TunedScore, rows: LabelledRows, goals: Sequence[Goal]) -> dict[str, Any]:
    judge = Judge(rows.labels, rows.groups, goals)
    return {
        key: {"metrics": judge(combined(each.formula, rows.predictions))}
        for key, each in (("start", found.start), ("best", found.best))
    }


def _plain(formula: ScoreFormula) -> dict[str, Any]:
    content: dict[str, Any] = formula.model_dump(exclude_none=True)
    return content


def _entry(each: TriedScore) -> dict[str, Any]:
    return {
        "score": _plain(each.formula),
        "metrics": each.metrics,
        "objective": each.objective,
        "allowed": each.allowed,
    }
