"""AdaGrad whose step is scaled in every tensor by one factor: the rules that the Clippy paper compares with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dlrm_mtl.core.registry import register
from dlrm_mtl.core.schema import LearningRate
from dlrm_mtl.optim.dense.base import DenseOptimizerConfig

SMALLEST_NORM = 1e-3
"""Norm of the weights below which ``adaptive`` does not let the bound shrink, so that zeros can move (Brock et al., 2021)."""


@register("dense_optimizer", "layerwise_adagrad", order=25)
class LayerwiseAdagradConfig(DenseOptimizerConfig):
    """AdaGrad with one factor for every tensor; the accumulators take the unscaled gradient.

    a <- a + g^2; r = g / (sqrt(a) + eps); w <- w - learning_rate s r, in the unified form of Tang et al. (KDD 2023,
    arXiv 2302.09178).
    """

    name: Literal["layerwise_adagrad"] = "layerwise_adagrad"
    learning_rate: LearningRate = 0.01
    """Step size."""
    scale: Literal["gradient_norm", "adaptive", "lamb"] = "gradient_norm"
    """`gradient_norm`: s = min(1, threshold / |g|), gradient clipping (Pascanu et al., ICML 2013). `adaptive`:
    s = min(1, threshold |w| / |g|) (Brock et al., ICML 2021, here for whole tensors). `lamb`: s = threshold |w| / |r|, and
    `threshold` where one of the norms is 0 (You et al., ICLR 2020, on AdaGrad). |.| is the Euclidean norm of a tensor."""
    threshold: float = Field(default=0.1, gt=0)
    """Bound of the scale."""
    initial_accumulator_value: float = Field(default=0.1, ge=0)
    """Initial value of the accumulators."""
    eps: float = Field(default=1e-10, ge=0)
    """Added to the root of the accumulator."""

    def build(self, parameters: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Build the optimizer of ``parameters``."""
        return LayerwiseAdagrad(parameters, self)


class LayerwiseAdagrad(torch.optim.Optimizer):
    """See :class:`LayerwiseAdagradConfig`.

    Args:
        parameters: pairs of name and parameter.
        config: options.
    """

    def __init__(self, parameters: list[tuple[str, nn.Parameter]], config: LayerwiseAdagradConfig) -> None:
        super().__init__(parameters, {"lr": config.learning_rate})
        self.config = config
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["sum"] = torch.full_like(parameter, config.initial_accumulator_value)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take a step; parameters without a gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                total = self.state[parameter]["sum"].addcmul_(gradient, gradient)
                direction = gradient / (total.sqrt() + self.config.eps)
                direction.nan_to_num_(nan=0.0)  # 0 / 0: nothing has moved yet
                parameter.sub_(direction * (group["lr"] * self._scale(parameter, gradient, direction)))
        return loss

    def _scale(self, weight: Tensor, gradient: Tensor, direction: Tensor) -> Tensor:
        """Factor of a tensor, []."""
        bound = self.config.threshold
        if self.config.scale == "gradient_norm":
            return (bound / gradient.norm()).clamp(max=1.0)
        if self.config.scale == "adaptive":
            return (bound * weight.norm().clamp(min=SMALLEST_NORM) / gradient.norm()).clamp(max=1.0)
        of_weight, of_step = weight.norm(), direction.norm()
        ratio = torch.where((of_weight > 0) & (of_step > 0), of_weight / of_step, 1.0)
        return bound * ratio
