"""The row-wise update rules of the two-phase optimizer, and their options."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from dlrm_mtl.embeddings.kernels.layout import Rule

TINY = 2.0**-126
"""The smallest normal float32: without it under the root, an empty accumulator beside a gradient whose square underflows
would divide by 0."""


@dataclass(frozen=True)
class ClippyRowWiseAdagrad:
    """AdaGrad with one accumulator per row, clipped as in Clippy (arXiv 2302.09178, Algorithm 1).

    a <- a + mean(g^2);  r = g / sqrt(a + eps);  sigma = min(1, min_i (lambda_rel |w_i| + lambda_abs) / (lr |r_i|));
    w <- w - lr sigma r. With scope ``table`` sigma is one number for all rows of a table that the global batch touches; with
    ``row`` each row has its own, a variant that is not in the paper.
    """

    lr: float
    lambda_rel: float = 0.5
    lambda_abs: float = 1e-2
    initial_accumulator_value: float = 0.1
    eps: float = 0.0
    accumulator: Literal["standard", "delayed"] = "standard"
    """Whether the root is taken after adding the new squares (the paper) or before (TF Recommenders)."""
    scope: Literal["table", "row"] = "table"

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name in ("lr", "lambda_rel", "lambda_abs", "initial_accumulator_value", "eps"):
            _refuse_negative(name, getattr(self, name))
        _refuse_other("accumulator", self.accumulator, ("standard", "delayed"))
        _refuse_other("scope", self.scope, ("table", "row"))

    def kernel_rule(self) -> Rule:
        """The rule as the kernels know it."""
        return Rule(
            kind="clippy",
            lambda_rel=self.lambda_rel,
            lambda_abs=self.lambda_abs,
            eps=max(self.eps, TINY),
            delayed=self.accumulator == "delayed",
            per_row=self.scope == "row",
        )


@dataclass(frozen=True)
class RowWiseAdagrad:
    """AdaGrad with one accumulator per row: a <- a + mean(g^2);  w <- w - lr g / (sqrt(a) + eps), as FBGEMM's.

    Unlike there, the mean is over the whole row also where the columns of a table are spread over processes.
    """

    lr: float
    eps: float = 1e-8
    initial_accumulator_value: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name in ("lr", "eps", "initial_accumulator_value"):
            _refuse_negative(name, getattr(self, name))

    def kernel_rule(self) -> Rule:
        """The rule as the kernels know it."""
        return Rule(kind="adagrad", eps=max(self.eps, math.sqrt(TINY)), eps_inside=False)


@dataclass(frozen=True)
class SGD:
    """w <- w - lr g, without any state."""

    lr: float
    initial_accumulator_value: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        """Refuse a negative or undefined learning rate."""
        _refuse_negative("lr", self.lr)

    def kernel_rule(self) -> Rule:
        """The rule as the kernels know it."""
        return Rule(kind="sgd")


@dataclass(frozen=True)
class RowWiseAdam:
    """Adam with the second moment per row, of the rows that the batch touches.

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) mean(g^2);  w <- w - lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps), with t
    the number of steps: FBGEMM's PARTIAL_ROWWISE_ADAM. The first moment takes as much memory as the table.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    initial_accumulator_value: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        _refuse_negative("lr", self.lr)
        _refuse_negative("eps", self.eps)
        for beta in self.betas:
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"betas {self.betas} are not both in [0, 1): choose values such as (0.9, 0.999)")


RowWiseRule = ClippyRowWiseAdagrad | RowWiseAdagrad | SGD | RowWiseAdam


def _refuse_negative(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0.0):
        raise ValueError(f"{name} is {value}: choose a finite number that is not negative")


def _refuse_other(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}: choose one of {', '.join(choices)}")
