"""The losses that a task can have. A new one is a configuration and a function, and one line in each of the tables below."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from torch import Tensor

from dlrm_mtl.tasks.binary import BinaryCrossEntropyConfig, FocalConfig, binary_cross_entropy, focal
from dlrm_mtl.tasks.regression import (
    HuberConfig,
    MeanAbsoluteErrorConfig,
    MeanSquaredErrorConfig,
    absolute_error,
    huber,
    squared_error,
)

Kind = Literal["binary", "real"]
"""What a loss's labels are, as in a data set's description: it decides on metrics and on what a prediction is."""

_Loss = Annotated[
    BinaryCrossEntropyConfig | FocalConfig | MeanSquaredErrorConfig | MeanAbsoluteErrorConfig | HuberConfig,
    Field(discriminator="name"),
]

_Name = Literal["binary_cross_entropy", "focal", "mean_squared_error", "mean_absolute_error", "huber"]


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
}


def _from_name(value: Any) -> Any:
    """`loss: focal` is short for `loss: {name: focal}`."""
    return {"name": value} if isinstance(value, str) else value


LossConfig = Annotated[_Loss, BeforeValidator(_from_name, json_schema_input_type=_Name | _Loss)]
