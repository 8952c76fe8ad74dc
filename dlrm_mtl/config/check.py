"""Checks between the parts of a configuration, and against the data set's description if it is available."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dlrm_mtl.config.metric_columns import check_metric_columns
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.parts import Misfit
from dlrm_mtl.core.registry import registry
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.data.chosen_columns import select
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.negatives.check import check_negatives
from dlrm_mtl.data.spec import DATASET_FILE, DatasetSpec
from dlrm_mtl.data.vectors import VectorFiles
from dlrm_mtl.embeddings.config import EmbeddingsConfig
from dlrm_mtl.metrics import task_metrics
from dlrm_mtl.tasks.check import check_labels
from dlrm_mtl.tasks.products import product_mistake
from dlrm_mtl.tasks.targets import label_columns


def check_run(config: RunConfig, place: str) -> None:
    """Raise :class:`UserError` for the first mistake, with the path of its key behind ``place``."""
    mistake = product_mistake(config.tasks)
    if mistake is not None:
        number, reason = mistake
        raise UserError(f"{place}: tasks.{number}.product_of: {reason}.")
    try:
        check_growing(config)
        check_compile(config)
        check_negatives_count(config)
        check_items_are_drawn(config)
        check_groups(config)
        if config.data.negatives is None:  # with negatives, missing labels of the data set are reported first
            check_watched_metric(config)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    check_parts(config, place)


def check_parts(config: RunConfig, place: str) -> None:
    """Call ``check`` of every part that has one, see :class:`~dlrm_mtl.core.parts.RunConfigLike`.

    Raises:
        UserError: the first part that does not fit, with the path of its key behind ``place``.
    """
    for path, part in parts_in(config):
        check = getattr(part, "check", None)
        if not callable(check):
            continue
        try:
            check(config)
        except Misfit as error:
            keys = [error.key] if error.root else [*path, error.key]
            raise UserError(f"{place}: {'.'.join(key for key in keys if key)}: {error}") from None


def parts_in(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], BaseModel]]:
    """All configurations inside ``config``, each with the path of its key."""
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(config, BaseModel):
        if path:
            yield path, config
        inner = config
    elif isinstance(config, dict):
        inner = config.items()
    elif isinstance(config, list):
        inner = enumerate(config)
    for key, value in inner:
        yield from parts_in(value, (*path, str(key)))


def check_compile(config: RunConfig) -> None:
    """Refuse ``training.compile`` with gradient balancing.

    Raises:
        UserError: both are set.
    """
    if config.training.compile and config.balancing.name != "none":
        raise UserError(
            f"training.compile: compiled code goes backward once a step, and balancing.name {config.balancing.name} needs "
            "to once for each task; leave one of them out."
        )


def check_items_are_drawn(config: RunConfig) -> None:
    """Refuse losses that compare an item with others if the model draws no items.

    Raises:
        UserError: there is such a task.
    """
    if config.model.draws_items:
        return
    for number, task in enumerate(config.tasks):
        if task.kind == "ranking":
            drawing = [entry.name for entry in registry("model") if getattr(entry.config, "draws_items", False)]
            raise UserError(
                f"tasks.{number}.loss: {task.loss.name} compares an item with others, and the model {config.model.name!r} "
                f"draws none; choose a loss of single rows, such as binary_cross_entropy, or model.name: "
                f"{' or '.join(drawing)}."
            )


def check_watched_metric(config: RunConfig) -> None:
    """Refuse a metric for early stopping that no task has.

    Raises:
        UserError: there is no such metric.
    """
    watched = config.training.early_stopping.metric
    columns = config.metrics.gauc
    known = {
        f"{name}/{metric}"
        for task in config.tasks
        for name in ("mean", task.name)
        for metric in task_metrics(task.kind, columns)
    }
    if watched not in known:
        raise UserError(f"training.early_stopping.metric: there is no metric {watched!r}; {suggest(watched, known)}.")


def check_groups(config: RunConfig) -> None:
    """Refuse groups for GAUC if no task has a binary label.

    Raises:
        UserError: there are groups and no such task.
    """
    if config.metrics.gauc and not any(task.kind == "binary" for task in config.tasks):
        raise UserError(
            f"metrics.gauc: {config.metrics.gauc[0]!r} groups the rows of tasks with a binary label, and no task has one; "
            "remove the key."
        )


def check_growing(config: RunConfig) -> None:
    """Refuse keys that need to know the end of the data.

    Raises:
        UserError: there is such a key.
    """
    if not config.data.growing:
        return
    for key, wrong, remedy in (
        ("training.epochs", config.training.epochs != 1, "every file is used once; set it to 1"),
        ("training.max_steps", config.training.max_steps is not None, "a round takes all new files; remove it"),
        (
            "optimizer.schedule.decay",
            config.optimizer.schedule.decay != "none",
            "there is no last step to fall towards; set it to none",
        ),
    ):
        if wrong:
            raise UserError(f"{key}: does not fit data.growing, for {remedy}.")


def check_negatives_count(config: RunConfig) -> None:
    """Refuse drawn negatives that no task would learn from.

    Raises:
        UserError: every task has a mask, which excludes negatives, or a ranking loss, whose model draws items itself.
    """
    if config.data.negatives is None:
        return
    if not any(task.kind != "ranking" and task.only_where is None for task in config.tasks):
        raise UserError(
            "data.negatives: no task would learn from drawn rows: tasks with only_where leave them out, since their labels are "
            "0, and ranking losses compare with items that the model draws; remove the key, or add a task with a loss of "
            "single rows and without only_where."
        )


def check_against_data_set(config: RunConfig, place: str) -> None:
    """Check what needs the data set, after :func:`check_run`, if its description is on this machine.

    Raises:
        UserError: the first mistake that dataset.yaml shows.
    """
    if "://" in config.data.path or not Path(config.data.path, DATASET_FILE).is_file():
        return
    dataset = open_dataset(config.data.path)
    try:
        select(dataset.spec, config.data, [])
        check_tasks(config, dataset.spec)
        check_metric_columns(config.metrics, dataset, ("validation", "test"))
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def check_pretrained(config: RunConfig, place: str) -> None:
    """Check the columns of files of pretrained vectors, as far as they are on this machine.

    Raises:
        UserError: a file is not there, or lacks a column.
    """
    embeddings = getattr(config.model, "embeddings", None)
    if not isinstance(embeddings, EmbeddingsConfig):
        return
    for name, table in embeddings.tables.items():
        vectors = table.pretrained
        if vectors is None or "://" in vectors.path:
            continue
        try:
            VectorFiles(vectors.path, vectors.id, vectors.value, vectors.vector, table.dim or embeddings.dim)
        except UserError as error:
            raise UserError(f"{place}: model.embeddings.tables.{name}.pretrained: {error}") from None


def check_tasks(config: RunConfig, spec: DatasetSpec) -> None:
    """Check that the tasks have labels, that negatives can be drawn and that the watched metric exists.

    Raises:
        UserError: the first mistake.
    """
    check_labels(config.tasks, spec)
    check_negatives(spec, config.data, label_columns(config.tasks))
    check_watched_metric(config)
