"""What the parts of a configuration ask of each other, as far as it can be told without the data set."""

from __future__ import annotations

from dlrm_mtl.balancing import build_balancing
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.errors import UserError
from dlrm_mtl.models.blocks import counts_per_task
from dlrm_mtl.models.classical.multitask_net import MultitaskNetConfig
from dlrm_mtl.models.config import ModelConfig
from dlrm_mtl.tasks.products import own_tasks, product_mistake


def check_run(config: RunConfig, place: str) -> None:
    """Raise :class:`UserError` for the first mistake, with the path of its key behind ``place``."""
    mistake = product_mistake(config.tasks)
    if mistake is not None:
        number, reason = mistake
        raise UserError(f"{place}: tasks.{number}.product_of: {reason}.")
    try:
        build_balancing(config.balancing, [task.name for task in config.tasks], [])
        check_growing(config)
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
