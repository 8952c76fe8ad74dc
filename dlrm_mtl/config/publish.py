"""The ``training.publish`` part of a run's configuration."""

from __future__ import annotations

from pydantic import Field, model_validator

from dlrm_mtl.core.schema import Strict


class PublishConfig(Strict):
    """Versions of the model that servers follow while training goes on."""

    to: str = Field(min_length=1)
    """Folder of the versions, path or URI; it belongs to this run alone."""
    every_steps: int | None = Field(default=None, gt=0)
    """Steps between versions. The last step is always published."""
    every_minutes: float | None = Field(default=None, gt=0)
    """Minutes between versions, instead of `every_steps`."""
    base_every: int = Field(default=48, gt=0)
    """Number of changes in a row after which the next version is a whole model again. It is one after a resume, too."""
    base_share: float = Field(default=0.5, gt=0)
    """Share of the last whole model's size: when the changes since then are larger, the next version is a whole model."""
    keep: int = Field(default=2, gt=0)
    """Number of whole models that are kept, each with the changes that follow it."""

    @model_validator(mode="after")
    def _one_interval(self) -> PublishConfig:
        if (self.every_steps is None) == (self.every_minutes is None):
            found = "neither" if self.every_steps is None else "both"
            raise ValueError(
                f"has {found} of every_steps and every_minutes; write one of them, such as every_steps: 1000."
            )
        return self
