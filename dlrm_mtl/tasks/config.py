"""The ``tasks`` part of a run's configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dlrm_mtl.config.strict import Strict


class TaskConfig(Strict):
    """One thing the model predicts."""

    name: str
    """Name of the task, in logs, metrics and predictions."""
    label: str | None = None
    """Name of the data set's label; default: the task's name."""
    loss: Literal["binary_cross_entropy"] = "binary_cross_entropy"
    """The loss on the task's logit."""
    weight: float = Field(default=1.0, ge=0)
    """Weight of the task's loss in the sum over tasks."""

    @property
    def label_name(self) -> str:
        """Name of the data set's label."""
        return self.label or self.name
