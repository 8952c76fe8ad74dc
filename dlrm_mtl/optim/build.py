"""From configuration to optimizers: attached to the tables before they are sharded, built for the rest afterwards.

A new optimizer is one configuration class in config.py and one line in a table below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import KeyedOptimizer
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from dlrm_mtl.optim.config import (
    AdagradConfig,
    AdamConfig,
    DenseSGDConfig,
    OptimizerConfig,
    RowWiseAdagradConfig,
    ScheduleConfig,
    SparseSGDConfig,
)
from dlrm_mtl.optim.schedule import learning_rate_factor

_SPARSE: dict[type, Callable[[Any], tuple[type[torch.optim.Optimizer], dict[str, Any]]]] = {
    RowWiseAdagradConfig: lambda c: (RowWiseAdagrad, {"lr": c.learning_rate, "eps": c.eps}),
    SparseSGDConfig: lambda c: (torch.optim.SGD, {"lr": c.learning_rate}),
}

_DENSE: dict[type, Callable[[Any, list[nn.Parameter]], torch.optim.Optimizer]] = {
    AdamConfig: lambda c, parameters: torch.optim.AdamW(
        parameters, lr=c.learning_rate, betas=c.betas, eps=c.eps, weight_decay=c.weight_decay
    ),
    AdagradConfig: lambda c, parameters: torch.optim.Adagrad(
        parameters,
        lr=c.learning_rate,
        initial_accumulator_value=c.initial_accumulator_value,
        eps=c.eps,
        weight_decay=c.weight_decay,
    ),
    DenseSGDConfig: lambda c, parameters: torch.optim.SGD(parameters, lr=c.learning_rate),
}


def attach_sparse_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> None:
    """Mark unsharded tables so that sharding gives them FBGEMM's fused form of the optimizer."""
    optimizer, arguments = _SPARSE[type(config.sparse)](config.sparse)
    apply_optimizer_in_backward(optimizer, parameters, arguments)


class Optimizers:
    """Everything that updates a run's parameters, as one thing with one learning-rate schedule.

    Args:
        config: the ``optimizer`` part of the configuration.
        dense: the dense parameters by name.
        replicated: tables of which every process holds a full copy, by name; TorchRec does not fuse an optimizer into them,
            so they get the unfused form of the same rule.
        fused: the optimizer that TorchRec built for the sharded tables.
        total_steps: steps of the run, for the schedule.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        dense: dict[str, nn.Parameter],
        replicated: dict[str, nn.Parameter],
        fused: KeyedOptimizer,
        total_steps: int,
    ) -> None:
        self.schedule: ScheduleConfig = config.schedule
        self.total_steps = total_steps
        self.dense_parameters = dense
        self.replicated_parameters = replicated
        self.dense = _DENSE[type(config.dense)](config.dense, list(dense.values()))
        self.fused = fused
        self.replicated: torch.optim.Optimizer | None = None
        if replicated:
            optimizer, arguments = _SPARSE[type(config.sparse)](config.sparse)
            self.replicated = optimizer(list(replicated.values()), **arguments)
        self.factor = 1.0
        self._base_rates = [(group, group["lr"]) for part in self._parts for group in part.param_groups]

    @property
    def _parts(self) -> list[torch.optim.Optimizer]:
        return [self.dense, self.fused] + ([self.replicated] if self.replicated else [])

    def prepare(self, step: int) -> None:
        """Set the learning rates of ``step`` and clear gradients.

        Called before the backward pass, because FBGEMM updates sharded tables inside it.
        """
        self.factor = learning_rate_factor(self.schedule, step, self.total_steps)
        for group, rate in self._base_rates:
            group["lr"] = rate * self.factor
        for part in self._parts:
            part.zero_grad()

    def step(self) -> None:
        """Apply the gradients of dense parameters and replicated tables."""
        for part in self._parts:
            part.step()

    def allocate(self) -> None:
        """Create all state tensors without changing a parameter, so that a checkpoint can be loaded into them."""
        for part in [self.dense] + ([self.replicated] if self.replicated else []):
            rates = [group["lr"] for group in part.param_groups]
            for group in part.param_groups:
                group["lr"] = 0.0
                for parameter in group["params"]:
                    parameter.grad = torch.zeros_like(parameter)
            part.step()
            part.zero_grad()
            for group, rate in zip(part.param_groups, rates, strict=True):
                group["lr"] = rate

    def table_state(self) -> dict[str, dict[str, Any]]:
        """State of every table by name, as [rows] tensors: sharded ones, or plain ones for replicated tables."""
        state: dict[str, dict[str, Any]] = {}
        for key, values in self.fused.state_dict()["state"].items():
            table = key.split(".")[-2] if key.endswith(".weight") else key
            state[table] = {name.removeprefix(f"{table}."): value for name, value in values.items()}
        if self.replicated is not None:
            for table, parameter in self.replicated_parameters.items():
                values = self.replicated.state.get(parameter, {})
                state[table] = {
                    _FUSED_NAMES[name]: value.view(-1) for name, value in values.items() if name in _FUSED_NAMES
                }
        return {table: values for table, values in state.items() if values}

    def dense_state(self) -> dict[str, dict[str, Tensor]]:
        """State of every dense parameter by name; the tensors are the live ones."""
        return {
            name: {key: value for key, value in self.dense.state[parameter].items() if isinstance(value, Tensor)}
            for name, parameter in self.dense_parameters.items()
            if self.dense.state.get(parameter)
        }


_FUSED_NAMES = {"sum": "momentum1"}
"""What FBGEMM calls the state that torchrec.optim.RowWiseAdagrad calls otherwise."""
