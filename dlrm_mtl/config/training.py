"""The ``training`` part of a run's configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from dlrm_mtl.config.publish import PublishConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.registry import Entry, registry
from dlrm_mtl.core.schema import Strict, validate


class EarlyStoppingConfig(Strict):
    """Condition for stopping before the last epoch."""

    metric: str = "mean/auc"
    """Metric to watch on the validation split: `TASK/METRIC`, or `mean/METRIC` for the mean over tasks. It also chooses the
    best checkpoint."""
    patience: int = Field(default=3, ge=0)
    """Evaluations without improvement before training stops; 0 never stops early."""


class ProfileConfig(Strict):
    """Steps to trace."""

    start: int = Field(default=10, ge=0)
    """Steps before tracing begins, counted from the current start of the run."""
    steps: int = Field(default=5, gt=0)
    """Number of traced steps."""


def listener_part(listener: str | dict[str, Any]) -> tuple[Entry, BaseModel | None]:
    """Registered listener of an entry of ``training.listeners``, and its options if it has any.

    Raises:
        UserError: there is no listener of this name, or the options do not fit.
    """
    options = {"name": listener} if isinstance(listener, str) else listener
    entry = registry("listener")[str(options.get("name"))]
    if entry.config is not None:
        return entry, validate(entry.config, options, f"listener {entry.name!r}")
    if len(options) > 1:
        raise UserError(f"the listener {entry.name!r} has no options; name it alone.")
    return entry, None


class TrainingConfig(Strict):
    """Length of training, evaluation, checkpoints and logging."""

    epochs: int = Field(default=1, gt=0)
    """Number of passes over the training split."""
    max_steps: int | None = Field(default=None, gt=0)
    """Largest number of steps; default: the end of the last epoch."""
    micro_batches: int = Field(default=1, gt=0)
    """Pieces that a batch is cut into. Their gradients are added up before the one update, so activations take a fraction
    of the memory. `data.batch_size` must be a multiple of this times `data.lanes`."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Precision of float32 matrix products, as in torch.set_float32_matmul_precision. `high` lets NVIDIA GPUs use TF32,
    several times faster, with errors of 1e-3; results then depend on the number of processes by as much."""
    compile: bool = False
    """Compile the dense part, everything after the lookup, with torch.compile: the first step takes a minute or less more,
    the others less time. Results differ by rounding. Needs a C++ compiler; evaluation is not compiled."""
    autocast: Literal["bfloat16"] | None = None
    """Number format of the dense part's forward and backward passes in training, by torch.autocast: `bfloat16` for products of
    matrices. Weights, tables, updates, losses and evaluations stay float32. Results then depend on the number of processes
    by its rounding, some 1e-3."""
    evaluate_every: int | None = Field(default=None, gt=0)
    """Steps between evaluations on the validation split; default: once at the end of every epoch. The last step is always
    evaluated."""
    checkpoint_every: int | None = Field(default=None, gt=0)
    """Steps between checkpoints; default: at every evaluation on the validation split."""
    keep_checkpoints: int = Field(default=2, gt=0)
    """Number of checkpoints kept besides the best one."""
    async_checkpoints: bool = True
    """Write checkpoints in the background, from copies of the tensors in the host's memory, while training goes on. Where the
    copies would take more than half of the memory available, training waits instead."""
    on_save_error: Literal["continue", "stop"] = "continue"
    """After a checkpoint that cannot be saved, as on a full disk: train on with a warning, or stop with an error. At the end
    of a run it is always an error."""
    publish: PublishConfig | None = None
    """Versions of the model for servers that follow this training, such as `{every_steps: 1000, to: s3://bucket/shop}`: a
    whole model first, and then the rows that have changed. They change nothing in training."""
    max_skipped_steps: int = Field(default=10, gt=0)
    """Largest number of consecutive steps without a finite gradient before the run ends; such a step changes nothing."""
    stop_on_divergence: bool = False
    """End the run if a task's loss is ten times its first value for three log entries; by default this is only a warning."""
    stall_timeout: float | None = Field(default=300.0, ge=1)
    """Seconds after which a process that gives no sign of life, or keeps the others waiting, is named, and the job ends, so
    that a launcher can restart it; null waits for ever."""
    log_every: int = Field(default=10, gt=0)
    """Steps between entries in metrics.jsonl and TensorBoard."""
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    """Condition for stopping before the last epoch."""
    profile: ProfileConfig | None = None
    """Steps to trace on every process, such as `{start: 20, steps: 5}`; the trace is written to profile/ in the run's
    folder, for https://ui.perfetto.dev."""
    exchange_ahead: bool = False
    """With several processes: exchange the ids of the next batch, or micro-batch, while the present one is computed. Losses are
    the same to the last bit. Not for `data.unbounded`."""
    phase_times: bool = False
    """Log the seconds of each phase of a step as `phase/NAME` in metrics.jsonl and TensorBoard: means over the steps of an
    entry, on the first process. On a GPU training is slower, as the clock waits for the device after each phase."""
    listeners: list[str | dict[str, Any]] = Field(default_factory=list)
    """Listeners registered by plugins, by name or with options: `[mlflow, {name: pager, threshold: 0.5}]`."""

    @field_validator("listeners")
    @classmethod
    def _registered(cls, listeners: list[str | dict[str, Any]]) -> list[str | dict[str, Any]]:
        for listener in listeners:
            try:
                listener_part(listener)
            except UserError as error:
                raise ValueError(str(error)) from None
        return listeners

    @model_validator(mode="after")
    def _eager_under_autocast(self) -> TrainingConfig:
        if self.compile and self.autocast is not None:
            raise ValueError(f"autocast: {self.autocast} does not go with compile: true; remove one of them.")
        return self

    def steps_per_epoch(self, micro_batches: int) -> int:
        """Number of steps in an epoch of ``micro_batches`` micro-batches."""
        return -(-micro_batches // self.micro_batches)

    def total_steps(self, micro_batches: int) -> int:
        """Number of steps in a run whose epochs have ``micro_batches`` micro-batches."""
        steps = self.epochs * self.steps_per_epoch(micro_batches)
        return min(steps, self.max_steps or steps)
