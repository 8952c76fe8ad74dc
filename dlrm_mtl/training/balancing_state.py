"""State of gradient balancing in a run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from typing_extensions import Self

from dlrm_mtl.balancing import AnyBalancingConfig, TensorInfo, build_balancing
from dlrm_mtl.balancing.base import Level
from dlrm_mtl.balancing.sequence import Balancing


class GradientBalancing(nn.Module):
    """State of gradient balancing in a run; a part of the model, so that checkpoints hold it.

    Args:
        methods: methods for the tensors in ``dense`` followed by ``tables``, in this order.
        dense: dense parameters by name.
        tables: full names of the tables, ascending.
        level: level at which the tables' gradients are compared.
        every: number of steps after which gradients are balanced again.
    """

    def __init__(
        self, methods: Balancing, dense: dict[str, nn.Parameter], tables: list[str], level: Level, every: int = 1
    ) -> None:
        super().__init__()
        self.methods = methods
        self.names = list(dense)
        self.tables = tables
        self.level = level
        self.every = every
        if every > 1:
            self.kept = KeptCoefficients(len(methods.tasks))
        for index, parameter in enumerate(dense.values()):
            self.register_buffer(
                f"shared_{index}", torch.zeros(slices(parameter), dtype=torch.bool, device=parameter.device)
            )

    def shared(self, index: int) -> Tensor:
        """Mask of the shared slices of a dense parameter, [size of the first dimension] bool.

        A slice is shared from the step on in which a second task has a gradient in it. Towers, logits and the gates of
        single tasks, which the package concatenates, never are: their gradients are left unchanged.
        """
        mask = getattr(self, f"shared_{index}")
        assert isinstance(mask, Tensor)
        return mask


class KeptCoefficients(nn.Module):
    """The tasks' coefficients for the steps between two balanced ones, [T] float64 on the CPU; 1 at first."""

    values: Tensor

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.register_buffer("values", torch.ones(tasks, dtype=torch.float64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Stay on the CPU and in float64 when the surrounding model is moved or converted."""
        return self


def slices(parameter: Tensor) -> int:
    """Size of the first dimension; 1 for a scalar."""
    return parameter.shape[0] if parameter.dim() else 1


def build_gradient_balancing(
    config: AnyBalancingConfig, tasks: list[str], dense: dict[str, nn.Parameter], tables: list[str]
) -> GradientBalancing | None:
    """Build the gradient balancing of ``config``; None without balancing.

    Raises:
        UserError: a target is not one of the tasks.
    """
    methods = config.methods()
    if not methods:
        return None
    tensors = [*(TensorInfo(name) for name in dense), *(TensorInfo(name, is_table=True) for name in tables)]
    method = methods[0][1]
    return GradientBalancing(build_balancing(config, tasks, tensors), dense, tables, method.level, method.every)
