"""Tasks whose probability is the product of other tasks' probabilities, as in ESMM (Ma et al., SIGIR 2018).

A purchase needs a click: p(click and purchase) = p(click) p(purchase | click). Losses on the click and on the product use
all exposures. So the conditional task also learns from all exposures, although it is observed only after clicks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from dlrm_mtl.tasks.config import TaskConfig


def product_logit(a: Tensor, b: Tensor) -> Tensor:
    """Logit of sigmoid(a) sigmoid(b), for any one shape.

    With p the product, (1 - p) / p = (1 + e^-a)(1 + e^-b) - 1 = e^-a + e^-b + e^-(a + b), so the logit is minus the log of
    a sum of exponentials: nothing cancels, overflows or is subtracted from 1. Its derivatives are in [0, 1].
    """
    return -torch.logsumexp(torch.stack([-a, -b, -(a + b)]), dim=0)


def own_tasks(tasks: Sequence[TaskConfig]) -> list[int]:
    """Numbers of the tasks with their own logit in the model; the others are products of these."""
    return [number for number, task in enumerate(tasks) if task.product_of is None]


class TaskProducts(nn.Module):
    """Map from the logits of tasks with their own logit, [B, O], to those of all tasks, [B, T].

    Args:
        tasks: the tasks; products name tasks that are not products.
    """

    def __init__(self, tasks: Sequence[TaskConfig]) -> None:
        super().__init__()
        own = own_tasks(tasks)
        self.own = own
        column = {tasks[number].name: place for place, number in enumerate(own)}
        self.factors = [[column[name] for name in task.product_of or [task.name]] for task in tasks]

    def forward(self, logits: Tensor) -> Tensor:
        """Map ``logits`` [B, O] to [B, T]."""
        if len(self.own) == len(self.factors):
            return logits
        columns = logits.unbind(1)
        return torch.stack([reduce(product_logit, [columns[f] for f in factors]) for factors in self.factors], dim=1)


def product_mistake(tasks: Sequence[TaskConfig]) -> tuple[int, str] | None:
    """Number of the first task whose ``product_of`` cannot be used, and the reason; None if all can."""
    by_name = {task.name: task for task in tasks}
    for number, task in enumerate(tasks):
        names = task.product_of
        if names is None:
            continue
        if task.kind != "binary":
            return number, f"a product of probabilities needs a loss of binary labels, not {task.loss.name}"
        if len(names) < 2 or len(set(names)) < len(names):
            return number, f"{names} does not name two or more different tasks; name each factor once"
        for name in names:
            if name not in by_name or name == task.name:
                others = ", ".join(other for other in by_name if other != task.name)
                return number, f"there is no other task {name!r}; there are: {others or 'none'}"
            if by_name[name].product_of is not None:
                return number, f"{name!r} is a product itself; name its factors instead"
            if by_name[name].kind != "binary":
                return number, f"{name!r} has {by_name[name].loss.name} loss and so no probability; name a binary task"
    return None
