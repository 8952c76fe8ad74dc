"""Checks of the tasks against the data set."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.tasks.config import TaskConfig


def check_labels(tasks: Sequence[TaskConfig], spec: DatasetSpec) -> None:
    """Check that the labels of tasks and masks exist and are of the right kind; raises :class:`UserError`."""
    labels = {label.name: label for label in spec.labels}
    for position, task in enumerate(tasks):
        place = f"tasks.{position}.label"
        if task.label_name not in labels:
            raise UserError(
                f"{place}: the data set has no label {task.label_name!r}; {suggest(task.label_name, labels)}."
            )
        if task.kind == "binary" and labels[task.label_name].kind != "binary":
            raise UserError(
                f"{place}: {task.loss.name} needs a binary label and {task.label_name!r} is a real number; use another label, "
                "or a loss for real numbers, such as mean_squared_error."
            )
        place = f"tasks.{position}.only_where"
        if task.only_where is None:
            continue
        if task.only_where not in labels:
            raise UserError(
                f"{place}: the data set has no label {task.only_where!r}; {suggest(task.only_where, labels)}."
            )
        if labels[task.only_where].kind != "binary":
            raise UserError(
                f"{place}: a mask needs a binary label and {task.only_where!r} is a real number; use another."
            )


def remarks(tasks: Sequence[TaskConfig]) -> list[str]:
    """Remarks on configuration keys without effect, one sentence each."""
    return [
        f"tasks.{position}.positive_weight: {task.positive_weight:g} is ignored, because {task.loss.name} loss weighs rows by "
        "itself; remove it, or use binary_cross_entropy."
        for position, task in enumerate(tasks)
        if task.kind == "binary" and task.positive_weight != 1.0 and not task.loss.takes_positive_weight
    ]


def starting_logits(tasks: Sequence[TaskConfig], spec: DatasetSpec, drawn: int = 0) -> list[float | None]:
    """Mean of each task's logit over the training rows, as far as the data set's description states it.

    This is the logit of a binary label's rate, or a real label's mean. A task with a mask starts from there as well: the
    mean over its mask's rows is not known, and for most tasks is nearer to it than to 0. For the last factor of a product
    it is known: the product's rate divided by those of the other factors.

    Each row with a positive label is followed by ``drawn`` rows without. The number of rows with a positive label is
    assumed to be that of the most frequent label, which is right if other labels follow from it, as purchases follow from
    clicks.
    """
    means = {label.name: label.mean for label in spec.labels}
    rates = {task.name: means.get(task.label_name) for task in tasks}
    if drawn:
        binary = {label.name for label in spec.labels if label.kind == "binary"}
        diluted = [task for task in tasks if task.label_name in binary and task.only_where is None]
        most = max((rates[task.name] or 0.0 for task in diluted), default=0.0)
        for task in diluted:
            rate = rates[task.name]
            rates[task.name] = None if rate is None else rate / (1.0 + drawn * most)
    for task in tasks:
        if task.product_of is not None:
            whole, others = rates[task.name], [rates[name] for name in task.product_of[:-1]]
            if whole is not None and all(others):
                rates[task.product_of[-1]] = whole / math.prod(other for other in others if other)
    result: list[float | None] = []
    for task in tasks:
        mean = rates[task.name] if task.kind != "ranking" else None
        if mean is not None and task.kind == "binary":
            mean = math.log(mean / (1.0 - mean)) if 0.0 < mean < 1.0 else None
        result.append(mean)
    return result
