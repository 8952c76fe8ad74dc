"""The ``tasks`` part of a run's configuration."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from dlrm_mtl.core.schema import Strict
from dlrm_mtl.tasks.binary import BinaryCrossEntropyConfig
from dlrm_mtl.tasks.loss import Kind, LossConfig


class TaskConfig(Strict):
    """One prediction of the model."""

    name: str
    """Name of the task, in logs, metrics and predictions."""
    label: str | None = None
    """Name of the data set's label; default: the task's name."""
    loss: LossConfig = BinaryCrossEntropyConfig()
    """Loss on the task's logit: `focal`, or with options `{name: focal, gamma: 1}`. It determines the task's metrics, and
    whether a prediction is a probability or a number."""
    weight: float = Field(default=1.0, ge=0)
    """Weight of the task's loss in the sum over tasks."""
    positive_weight: float = Field(default=1.0, gt=0)
    """Weight of positives relative to negatives in binary cross-entropy. Predicted probabilities rise with it. Ignored by
    focal loss, which weighs rows by itself."""
    only_where: str | None = None
    """Name of another label: the task learns from and is evaluated on rows in which that label is 1, such as conversion
    only after a click."""
    product_of: list[str] | None = None
    """Names of other tasks: this task's probability is the product of theirs, as in ESMM, and the model has no tower for
    it. The probability of click and conversion is `product_of: [click, conversion]`, where conversion means conversion
    after a click."""
    negative_sampling: float = Field(default=1.0, gt=0, le=1)
    """Fraction of this task's negatives that it learns from, drawn at every step. Predictions stay calibrated to all rows."""

    @model_validator(mode="before")
    @classmethod
    def _name_of_a_task(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def label_name(self) -> str:
        """Name of the data set's label."""
        return self.label or self.name

    @property
    def kind(self) -> Kind:
        """Kind of the prediction: the probability of a binary label, or a real number."""
        return self.loss.labels

    @model_validator(mode="after")
    def _binary_options_on_binary_losses(self) -> TaskConfig:
        for key in ("positive_weight", "negative_sampling"):
            value = getattr(self, key)
            if self.kind != "binary" and value != 1.0:
                raise ValueError(
                    f"{key} {value:g} needs positives and negatives, which {self.loss.name} has not; remove it."
                )
        if self.only_where == self.label_name:
            raise ValueError(f"only_where names the task's own label {self.label_name!r}; name another label.")
        return self
