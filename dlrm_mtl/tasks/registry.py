"""The losses that a task can have. A new one is a configuration and a function, and one line in each of the tables below."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from dlrm_mtl.tasks.binary import BinaryCrossEntropyConfig, FocalConfig, binary_cross_entropy, focal
from dlrm_mtl.tasks.ranking import (
    BPRConfig,
    BPRProbabilityConfig,
    SoftmaxCrossEntropyConfig,
    bpr,
    bpr_probability,
)
from dlrm_mtl.tasks.regression import (
    HuberConfig,
    MeanAbsoluteErrorConfig,
    MeanSquaredErrorConfig,
    absolute_error,
    huber,
    squared_error,
)

Kind = Literal["binary", "real", "ranking"]
"""What a loss's labels are: it decides on metrics and on what a prediction is.

`ranking`: a label above 0 says that the row's user and item belong together, and other rows do not count; the loss compares
the item with others that the model draws, and the prediction is a score that orders a user's items."""

_Loss = Annotated[
    BinaryCrossEntropyConfig
    | FocalConfig
    | MeanSquaredErrorConfig
    | MeanAbsoluteErrorConfig
    | HuberConfig
    | BPRConfig
    | BPRProbabilityConfig
    | SoftmaxCrossEntropyConfig,
    Field(discriminator="name"),
]

_Name = Literal[
    "binary_cross_entropy",
    "focal",
    "mean_squared_error",
    "mean_absolute_error",
    "huber",
    "bpr",
    "bpr_probability",
    "softmax_cross_entropy",
]


@dataclass(frozen=True)
class Loss:
    """A loss of single rows."""

    kind: Kind
    function: Callable[[Any, Tensor, Tensor, Tensor | None], Tensor]
    """(configuration, logits [B, k], labels [B, k], positive weights [k] if there are any) -> losses [B, k]."""
    takes_positive_weight: bool = False


LOSSES: dict[type, Loss] = {
    BinaryCrossEntropyConfig: Loss("binary", lambda c, z, y, w: binary_cross_entropy(z, y, w), True),
    FocalConfig: Loss("binary", lambda c, z, y, w: focal(z, y, c.gamma, c.alpha, c.detach_factor)),
    MeanSquaredErrorConfig: Loss("real", lambda c, z, y, w: squared_error(z, y)),
    MeanAbsoluteErrorConfig: Loss("real", lambda c, z, y, w: absolute_error(z, y)),
    HuberConfig: Loss("real", lambda c, z, y, w: huber(z, y, c.delta)),
    # In training the logit z of these is the margin between the row's item and those drawn, see ranking.margin.
    BPRConfig: Loss("ranking", lambda c, z, y, w: bpr(z, torch.zeros_like(z))),
    BPRProbabilityConfig: Loss("ranking", lambda c, z, y, w: bpr_probability(z, torch.zeros_like(z))),
    SoftmaxCrossEntropyConfig: Loss("ranking", lambda c, z, y, w: bpr(z, torch.zeros_like(z))),
}


def _from_name(value: Any) -> Any:
    """`loss: focal` is short for `loss: {name: focal}`."""
    return {"name": value} if isinstance(value, str) else value


LossConfig = Annotated[_Loss, BeforeValidator(_from_name, json_schema_input_type=_Name | _Loss)]
