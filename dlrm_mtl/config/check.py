"""What the parts of a configuration ask of each other, and of the data set's description where that is at hand."""

from __future__ import annotations

from pathlib import Path

from dlrm_mtl.balancing import build_balancing
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.negatives.check import check_negatives
from dlrm_mtl.data.spec import DATASET_FILE
from dlrm_mtl.models.blocks import counts_per_task
from dlrm_mtl.models.classical.multitask_net import MultitaskNetConfig
from dlrm_mtl.models.config import ModelConfig
from dlrm_mtl.tasks.check import check_labels
from dlrm_mtl.tasks.products import own_tasks, product_mistake
from dlrm_mtl.tasks.targets import label_columns


def check_run(config: RunConfig, place: str) -> None:
    """Raise :class:`UserError` for the first mistake, with the path of its key behind ``place``."""
    mistake = product_mistake(config.tasks)
    if mistake is not None:
        number, reason = mistake
        raise UserError(f"{place}: tasks.{number}.product_of: {reason}.")
    try:
        build_balancing(config.balancing, [task.name for task in config.tasks], [])
        check_growing(config)
        check_negatives_count(config)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    own = [config.tasks[number] for number in own_tasks(config.tasks)]
    model = config.model
    draws = isinstance(model, MultitaskNetConfig)
    for number, task in enumerate(config.tasks):
        if task.kind == "ranking" and not draws:
            raise UserError(
                f"{place}: tasks.{number}.loss: {task.loss.name} compares an item with others, and the model {model.name!r} "
                "draws none; choose a loss of single rows, such as binary_cross_entropy, or model.name: multitask_net."
            )
    if draws and not any(task.kind == "ranking" for task in own):
        raise UserError(
            f"{place}: tasks: multitask_net needs a task with a ranking loss, such as bpr, and finds none; give one task such "
            "a loss, or choose another model."
        )
    if draws and config.data.unbounded:
        raise UserError(
            f"{place}: data.unbounded: multitask_net draws and ranks items by their numbers, so its ids need vocabularies; "
            "remove the key, or choose another model."
        )
    if isinstance(model, ModelConfig) and hasattr(model.multitask, "task_experts"):
        try:
            counts_per_task(model.multitask.task_experts, len(own))
        except ValueError as error:
            raise UserError(f"{place}: model.multitask.task_experts: {error}") from None


def check_growing(config: RunConfig) -> None:
    """Refuse what has no meaning while the end of the data is not known.

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
        UserError: every task has a ranking loss, whose model draws items itself, or a mask, which leaves negatives out.
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
    """Check what :func:`check_run` cannot tell without the data set, if its description is on this machine.

    Raises:
        UserError: the first mistake that dataset.yaml shows.
    """
    if "://" in config.data.path or not Path(config.data.path, DATASET_FILE).is_file():
        return
    spec = open_dataset(config.data.path).spec
    try:
        check_labels(config.tasks, spec)
        check_negatives(spec, config.data, label_columns(config.tasks))
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
