"""What a run keeps for gradient balancing from step to step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dlrm_mtl.balancing import AnyBalancingConfig, TensorInfo, build_balancing
from dlrm_mtl.balancing.base import Level
from dlrm_mtl.balancing.sequence import Balancing


class GradientBalancing(nn.Module):
    """What a run keeps for gradient balancing; a part of the model, so that checkpoints hold it.

    Args:
        methods: made for the tensors named in ``dense`` and then ``tables``, in this order.
        dense: the dense parameters by name.
        tables: the full names of the tables, in ascending order.
        level: where the tables' gradients are compared.
    """

    def __init__(self, methods: Balancing, dense: dict[str, nn.Parameter], tables: list[str], level: Level) -> None:
        super().__init__()
        self.methods = methods
        self.names = list(dense)
        self.tables = tables
        self.level = level
        for index, parameter in enumerate(dense.values()):
            self.register_buffer(
                f"shared_{index}", torch.zeros(slices(parameter), dtype=torch.bool, device=parameter.device)
            )

    def shared(self, index: int) -> Tensor:
        """Which slices of a dense parameter are shared, [size of the first dimension] bool.

        A slice is shared from the step on in which a second task has a gradient in it. Towers, logits and the gates of single
        tasks, which the package stores side by side, never are: their gradients are left as they are.
        """
        mask = getattr(self, f"shared_{index}")
        assert isinstance(mask, Tensor)
        return mask


def slices(parameter: Tensor) -> int:
    """The size of the first dimension; 1 for a single number."""
    return parameter.shape[0] if parameter.dim() else 1


def build_gradient_balancing(
    config: AnyBalancingConfig, tasks: list[str], dense: dict[str, nn.Parameter], tables: list[str]
) -> GradientBalancing | None:
    """What ``config`` asks for, if it does ask for balancing.

    Raises:
        UserError: a target is not one of the tasks.
    """
    methods = config.methods()
    if not methods:
        return None
    tensors = [*(TensorInfo(name) for name in dense), *(TensorInfo(name, is_table=True) for name in tables)]
    return GradientBalancing(build_balancing(config, tasks, tensors), dense, tables, methods[0][1].level)
