"""The ``training`` part of a run's configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.registry import Entry, registry
from dlrm_mtl.core.schema import Strict, validate


class EarlyStoppingConfig(Strict):
    """When to stop before the last epoch."""

    metric: str = "mean/auc"
    """What to watch on the validation split: `TASK/METRIC`, or `mean/METRIC` for the mean over tasks. The best checkpoint is
    chosen by it as well."""
    patience: int = Field(default=3, ge=0)
    """Evaluations without improvement before training stops; 0 never stops early."""


class ProfileConfig(Strict):
    """Which steps to trace."""

    start: int = Field(default=10, ge=0)
    """Steps to take before, counted from where this start of the run begins."""
    steps: int = Field(default=5, gt=0)
    """Steps to trace."""


def listener_part(listener: str | dict[str, Any]) -> tuple[Entry, BaseModel | None]:
    """The registered listener that an entry of ``training.listeners`` names, and its options if it has any.

    Raises:
        UserError: there is none of this name, or the options do not fit.
    """
    options = {"name": listener} if isinstance(listener, str) else listener
    entry = registry("listener")[str(options.get("name"))]
    if entry.config is not None:
        return entry, validate(entry.config, options, f"listener {entry.name!r}")
    if len(options) > 1:
        raise UserError(f"the listener {entry.name!r} has no options; name it alone.")
    return entry, None


class TrainingConfig(Strict):
    """How long to train, and what to do on the way."""

    epochs: int = Field(default=1, gt=0)
    """Passes over the training split."""
    max_steps: int | None = Field(default=None, gt=0)
    """Stop after this many steps; default: at the end of the last epoch."""
    micro_batches: int = Field(default=1, gt=0)
    """Pieces that a batch is cut into: their gradients are added up before the one update, so that activations take a
    fraction of the memory. `data.batch_size` must be a multiple of this times `data.lanes`."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Of products of float32 matrices, as in torch.set_float32_matmul_precision. `high` lets NVIDIA GPUs use TF32, several
    times faster, with errors of 1e-3; results then depend on the number of processes by as much."""
    evaluate_every: int | None = Field(default=None, gt=0)
    """Steps between evaluations on the validation split; default: once at the end of every epoch. The last step is always
    followed by one."""
    checkpoint_every: int | None = Field(default=None, gt=0)
    """Steps between checkpoints; default: whenever the validation split is evaluated."""
    keep_checkpoints: int = Field(default=2, gt=0)
    """Checkpoints that are kept besides the best one."""
    max_skipped_steps: int = Field(default=10, gt=0)
    """A step whose gradient is not finite changes nothing; after this many in a row the run ends."""
    stop_on_divergence: bool = False
    """End the run where a task's loss has been ten times its first value for three log entries; otherwise a warning says so."""
    log_every: int = Field(default=10, gt=0)
    """Steps between entries in metrics.jsonl and TensorBoard."""
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    """When to stop before the last epoch."""
    profile: ProfileConfig | None = None
    """Trace a few steps on every process, such as `{start: 20, steps: 5}`, into profile/ in the run's folder, for
    https://ui.perfetto.dev."""
    listeners: list[str | dict[str, Any]] = Field(default_factory=list)
    """Listeners that plugins register, by name or with options: `[mlflow, {name: pager, threshold: 0.5}]`."""

    @field_validator("listeners")
    @classmethod
    def _registered(cls, listeners: list[str | dict[str, Any]]) -> list[str | dict[str, Any]]:
        for listener in listeners:
            try:
                listener_part(listener)
            except UserError as error:
                raise ValueError(str(error)) from None
        return listeners

    def steps_per_epoch(self, micro_batches: int) -> int:
        """Steps that an epoch of so many micro-batches takes."""
        return -(-micro_batches // self.micro_batches)

    def total_steps(self, micro_batches: int) -> int:
        """Steps of the whole run, whose epochs have so many micro-batches."""
        steps = self.epochs * self.steps_per_epoch(micro_batches)
        return min(steps, self.max_steps or steps)
