"""Base of the configurations of dense optimizers."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import nn

from dlrm_mtl.core.parts import Part
from dlrm_mtl.core.schema import PartConfig


class DenseOptimizerConfig(PartConfig):
    """An optimizer of dense parameters, with a learning rate in each of its groups of parameters."""

    def build(self, parameters: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Build the optimizer of ``parameters``, pairs of name and parameter.

        Its state must be tensors, by parameter: checkpoints hold it, and a step whose gradients and learning rate are 0
        creates it without changing a parameter.
        """
        raise NotImplementedError


AnyDenseOptimizerConfig = Annotated[DenseOptimizerConfig, Part("dense_optimizer", default="adam")]
"""The name of a dense optimizer, or a mapping with its options."""
