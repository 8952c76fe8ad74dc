"""Clippy AdaGrad, see :mod:`dlrm_mtl.optim.clippy_adagrad`."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from dlrm_mtl.core.clippy_limits import ClippyLimits
from dlrm_mtl.core.registry import register
from dlrm_mtl.core.schema import LearningRate
from dlrm_mtl.optim.clippy import ClippyOptions
from dlrm_mtl.optim.dense.base import DenseOptimizerConfig


@register("dense_optimizer", "clippy_adagrad", order=30)
class ClippyAdagradConfig(ClippyLimits, DenseOptimizerConfig):
    """AdaGrad that limits how far any coordinate moves in a step: Clippy, one factor per tensor."""

    name: Literal["clippy_adagrad"] = "clippy_adagrad"
    learning_rate: LearningRate = 0.1
    """Step size; must be above lambda_abs for any clipping with the standard accumulator."""
    eps: float = Field(default=0.0, ge=0)
    """Added to the root of the accumulator, or under it (eps_inside)."""
    eps_inside: bool = False
    """True to add eps under the root."""
    accumulator_relative_threshold: float = Field(default=0.0, ge=0)
    """Number times 1 / sqrt(accumulator) that is added to the allowed move."""
    clip_accumulator_update: bool = False
    """True if the accumulator takes the clipped gradient's square; only with the delayed accumulator."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay, outside the limit."""

    def options(self) -> ClippyOptions:
        """Options of the rule."""
        return ClippyOptions(**self.model_dump(exclude={"name", "learning_rate", "weight_decay"}))

    @model_validator(mode="after")
    def _options_fit(self) -> ClippyAdagradConfig:
        self.options()
        return self

    def build(self, parameters: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Build the optimizer of ``parameters``."""
        from dlrm_mtl.optim.clippy_adagrad import ClippyAdagrad  # imported here: DTensor takes a second to import

        return ClippyAdagrad(parameters, self.learning_rate, weight_decay=self.weight_decay, **self.options().as_dict())
