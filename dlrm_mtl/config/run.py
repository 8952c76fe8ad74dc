"""The root of a run's configuration."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from dlrm_mtl.balancing import BalancingConfig, NoBalancingConfig
from dlrm_mtl.config.init_from import InitFromConfig
from dlrm_mtl.config.serving import ServingConfig
from dlrm_mtl.config.training import TrainingConfig
from dlrm_mtl.core.schema import Strict
from dlrm_mtl.data.config import DataConfig
from dlrm_mtl.embeddings.config import ShardingConfig
from dlrm_mtl.metrics.config import MetricsConfig
from dlrm_mtl.models.config import ModelConfig
from dlrm_mtl.models.registry import AnyModelConfig
from dlrm_mtl.optim.config import OptimizerConfig
from dlrm_mtl.tasks.config import TaskConfig
from dlrm_mtl.tasks.weighting import FixedWeightingConfig, TaskWeightingConfig


class RunConfig(Strict):
    """Everything that determines a run: equal configurations give equal models."""

    name: str
    """Name of the run; its folder is runs/NAME unless `--output` says otherwise."""
    seed: int = Field(default=1, ge=0)
    """Seed of initial weights, row order and dropout."""
    plugins: list[str] = Field(default_factory=list)
    """Modules that register parts of your own, such as `my_package.ranking`; see docs/extending.md. Importing a module runs
    it."""
    data: DataConfig
    """Rows and columns to read, and their order."""
    tasks: list[TaskConfig] = Field(min_length=1)
    """Predictions of the model."""
    task_weighting: TaskWeightingConfig = FixedWeightingConfig()
    """Combination of the tasks' losses: `fixed`, `uncertainty` or `dwa`, or with options `{name: dwa, temperature: 1}`."""
    model: AnyModelConfig = ModelConfig()
    """Tables, interaction, multitask architecture and towers; or another model, by its `name`."""
    balancing: BalancingConfig = NoBalancingConfig()
    """Combination of the tasks' gradients of shared parameters: `none` (their sum), or a method such as `{name:
    metabalance, target: is_click, relax: 0.7}`."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizers of the tables and of all other parameters."""
    sharding: ShardingConfig = ShardingConfig()
    """Distribution of the tables over processes."""
    training: TrainingConfig = TrainingConfig()
    """Length of training, evaluation, checkpoints and logging."""
    init_from: InitFromConfig | None = None
    """Weights to begin with, from a checkpoint of another run: `init_from: runs/a`, or with options `{run: runs/a,
    optimizer_state: true}`."""

    metrics: MetricsConfig = MetricsConfig()
    """Metrics beyond those that every task has by its loss: AUC within groups, metrics by slice."""
    serving: ServingConfig = ServingConfig()
    """Use of the predictions by an exported bundle."""

    @field_validator("tasks")
    @classmethod
    def _distinct(cls, tasks: list[TaskConfig]) -> list[TaskConfig]:
        names = [task.name for task in tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the task {twice[0]!r} is listed twice; give every task its own name.")
        if "mean" in names:
            raise ValueError("no task may be called 'mean', which stands for the mean over tasks; rename it.")
        return tasks

    @model_validator(mode="after")
    def _exchange_ahead_needs_rows(self) -> RunConfig:
        if self.training.exchange_ahead and self.data.unbounded:
            raise ValueError(
                "training.exchange_ahead: true does not go with data.unbounded, whose ids get their rows in the order of the "
                "steps; remove one of them."
            )
        return self

    @model_validator(mode="after")
    def _micro_batches_divide_batches(self) -> RunConfig:
        pieces, lanes, size = self.training.micro_batches, self.data.lanes, self.data.batch_size
        if size % (pieces * lanes):
            fitting = -(-size // (pieces * lanes)) * pieces * lanes
            raise ValueError(
                f"data.batch_size {size} cannot be cut into training.micro_batches {pieces} with data.lanes {lanes}; set the "
                f"batch size to {fitting}."
            )
        return self
