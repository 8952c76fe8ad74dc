"""What the parts of a configuration ask of each other, as far as it can be told without the data set."""

from __future__ import annotations

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
    if isinstance(model, ModelConfig) and hasattr(model.multitask, "task_experts"):
        try:
            counts_per_task(model.multitask.task_experts, len(own))
        except ValueError as error:
            raise UserError(f"{place}: model.multitask.task_experts: {error}") from None
