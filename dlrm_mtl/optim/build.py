"""All optimizers of a run behind one interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dlrm_mtl.core.phases import phase
from dlrm_mtl.embeddings.kernels.layout import NON_FINITE
from dlrm_mtl.embeddings.two_phase import StepReport, TwoPhaseOptimizer
from dlrm_mtl.optim.clippy_adagrad import ClippyAdagrad, Measurement
from dlrm_mtl.optim.config import OptimizerConfig, ScheduleConfig
from dlrm_mtl.optim.schedule import learning_rate_factor


class Optimizers:
    """All optimizers of a run, with one learning-rate schedule.

    Args:
        config: the ``optimizer`` part of the configuration.
        dense: dense parameters by name.
        model: sharded model whose tables are updated.
        total_steps: number of steps of the run, for the schedule.
        rates: factor of the learning rate of tables that have one, by name; 0 for a frozen table.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        dense: dict[str, nn.Parameter],
        model: nn.Module,
        total_steps: int,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        self.schedule: ScheduleConfig = config.schedule
        self.total_steps = total_steps
        self.dense_parameters = dense
        # Optimizers refuse an empty list.
        nothing = torch.optim.SGD([{"params": []}], lr=0.0)
        self.dense = config.dense.build(list(dense.items())) if dense else nothing
        self.sparse = TwoPhaseOptimizer(model, config.sparse, rates)
        self.factor = 1.0
        parts: list[torch.optim.Optimizer] = [self.dense, self.sparse]
        self._base_rates = [(group, group["lr"]) for part in parts for group in part.param_groups]

    def set_learning_rate(self, step: int) -> None:
        """Set the learning rates of step number ``step``, by the schedule."""
        self.factor = learning_rate_factor(self.schedule, step, self.total_steps)
        for group, rate in self._base_rates:
            group["lr"] = rate * self.factor

    def zero_grad(self) -> None:
        """Clear the gradients of all parameters."""
        self.dense.zero_grad()
        self.sparse.zero_grad()

    @torch.no_grad()
    def step(self, measure: bool = False, flag: int = 0) -> StepReport:
        """Apply all gradients, or none of them on any process if one is not finite anywhere.

        Args:
            measure: True to report the largest moves of coordinates, which takes another pass over them.
            flag: a number whose largest value on any process is in the report of all, see :class:`TwoPhaseOptimizer`.
        """
        with phase("dense optimizer"):
            measurement = self.dense.measure() if isinstance(self.dense, ClippyAdagrad) else None
            others = self._smallest_dense_factor(measurement)
        self.sparse.step(others=others, measure=measure, flag=flag)
        report = self.sparse.report
        if isinstance(self.dense, ClippyAdagrad):
            with phase("dense optimizer"):
                self.dense.step(measurement=measurement, apply_if=torch.tensor(not report.skipped))
            if measure:
                report.more = {f"factor/{name}": float(value) for name, value in self.dense.clipping_factors().items()}
                moves = {f"largest_move/{name}": float(value) for name, value in self.dense.update_norms().items()}
                report.more.update(moves)
        elif not report.skipped:
            with phase("dense optimizer"):
                self.dense.step()
        return report

    def _smallest_dense_factor(self, measurement: Measurement | None) -> Tensor:
        """Smallest factor of a dense parameter, or NON_FINITE."""
        if measurement is not None:
            return torch.where(measurement.finite, measurement.factors.amin(), NON_FINITE)
        gradients = [parameter.grad for parameter in self.dense_parameters.values() if parameter.grad is not None]
        if not gradients:
            return torch.ones(())
        largest = torch.stack(torch._foreach_norm(gradients, float("inf")))
        return torch.where(torch.isfinite(largest).all(), 1.0, NON_FINITE)

    def allocate(self) -> None:
        """Create all state tensors without changing a parameter, so that a checkpoint can be loaded into them."""
        rates = [group["lr"] for group in self.dense.param_groups]
        for group in self.dense.param_groups:
            group["lr"] = 0.0
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        self.dense.step()
        self.dense.zero_grad()
        for group, rate in zip(self.dense.param_groups, rates, strict=True):
            group["lr"] = rate

    def table_state(self) -> dict[str, dict[str, Any]]:
        """State of every table by its own name; sharded tensors, or plain ones for replicated tables."""
        return {name.rpartition(".")[2]: values for name, values in self.sparse.state_by_table().items()}

    def dense_state(self) -> dict[str, dict[str, Tensor]]:
        """State of every dense parameter by name, as live tensors."""
        return {
            name: {key: value for key, value in self.dense.state[parameter].items() if isinstance(value, Tensor)}
            for name, parameter in self.dense_parameters.items()
            if self.dense.state.get(parameter)
        }
