"""The Clippy rule in plain PyTorch: the reference for every faster form, dense or sparse.

Source: "Improving Training Stability for Multitask Ranking Models in Recommender Systems", arXiv 2302.09178, Algorithm 1.
The options ``accumulator="delayed"``, ``accumulator_relative_threshold`` and ``clip_accumulator_update`` are those of
TensorFlow Recommenders' ClippyAdagrad. With g a tensor's gradient, G its accumulators and r = g / sqrt(G):

    sigma = min(1, min_i (lambda_rel |w_i| + lambda_abs) / (lr |r_i|))        one factor for the whole tensor
    w    <- w - lr sigma r

so that no coordinate moves by more than lambda_rel |w_i| + lambda_abs.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dlrm_mtl.core.clippy_defaults import INITIAL_ACCUMULATOR, LAMBDA_ABS, LAMBDA_REL

Accumulator = Literal["standard", "delayed"]


def _require_at_least_zero(name: str, value: float, remedy: str) -> None:
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{name} is {value}; it must be a number of at least 0 ({remedy})")


@dataclass(frozen=True)
class ClippyOptions:
    """Options of the rule, except the learning rate. The defaults are the paper's.

    Raises:
        ValueError: a value is not allowed.
    """

    lambda_rel: float = LAMBDA_REL
    """Largest move of a coordinate in one step, as a fraction of its size."""
    lambda_abs: float = LAMBDA_ABS
    """Largest move of any coordinate in one step, in addition. At 0, a weight of 0 with a gradient stops its tensor."""
    initial_accumulator_value: float = INITIAL_ACCUMULATOR
    """Initial value of the accumulators."""
    eps: float = 0.0
    """Number added to the root of the accumulator, or to the accumulator (``eps_inside``). See :func:`smallest_root`."""
    eps_inside: bool = False
    """True to add ``eps`` under the root."""
    accumulator: Accumulator = "standard"
    """Divisor of r: the accumulator with the current gradient (``standard``), or without it (``delayed``)."""
    accumulator_relative_threshold: float = 0.0
    """Number times 1 / sqrt(G) that is added to the allowed move. Tightens the rule as the accumulators grow."""
    clip_accumulator_update: bool = False
    """True if the accumulator takes the square of sigma g instead of g. Only with ``delayed``."""

    def __post_init__(self) -> None:
        _require_at_least_zero("lambda_rel", self.lambda_rel, "the paper uses 0.5")
        _require_at_least_zero("lambda_abs", self.lambda_abs, "the paper uses 1e-2")
        _require_at_least_zero("initial_accumulator_value", self.initial_accumulator_value, "the paper uses 0.1")
        _require_at_least_zero("eps", self.eps, "0 is safe")
        _require_at_least_zero(
            "accumulator_relative_threshold", self.accumulator_relative_threshold, "0 switches it off"
        )
        if self.accumulator not in ("standard", "delayed"):
            raise ValueError(f"accumulator is {self.accumulator!r}; it must be 'standard' or 'delayed'")
        if self.lambda_rel == 0 and self.lambda_abs == 0 and self.accumulator_relative_threshold == 0:
            raise ValueError(
                "lambda_rel and lambda_abs are both 0, so that no weight could ever move; raise one of them"
            )
        if self.clip_accumulator_update and self.accumulator == "standard":
            raise ValueError(
                "clip_accumulator_update is True with accumulator='standard', whose factor depends on the update itself; "
                "set accumulator='delayed' or clip_accumulator_update=False"
            )

    def as_dict(self) -> dict[str, Any]:
        """Options as keyword arguments."""
        return asdict(self)


PAPER = ClippyOptions()
"""Algorithm 1 of arXiv 2302.09178 with the values of its experiments."""

TFRS = ClippyOptions(
    lambda_rel=0.1,
    lambda_abs=1e-7,
    eps=1e-7,
    eps_inside=True,
    accumulator="delayed",
)
"""The defaults of TensorFlow Recommenders' ClippyAdagrad; far tighter than the paper's."""

PRESETS = {"paper": PAPER, "tfrs": TFRS}


def preset(name: str) -> ClippyOptions:
    """Options of a published implementation: ``paper`` or ``tfrs``.

    Raises:
        ValueError: there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"preset is {name!r}; it must be one of {', '.join(map(repr, PRESETS))}")
    return PRESETS[name]


def require_learning_rate(lr: float) -> None:
    """Refuse a learning rate that is negative or not finite.

    Raises:
        ValueError: the learning rate is one of these.
    """
    _require_at_least_zero("lr", lr, "a usual value is 0.02")


def never_clips(lr: float, options: ClippyOptions) -> str | None:
    """One sentence if the options make Clippy equal to plain AdaGrad at this learning rate, else None.

    With the standard accumulator G >= g^2, so that |r| <= 1 and no coordinate moves by more than lr.
    """
    if options.accumulator == "delayed" or lr > options.lambda_abs:
        return None
    return (
        f"Clippy can never clip at lr={lr:g}: with the standard accumulator no coordinate moves by more than lr, and "
        f"lambda_abs={options.lambda_abs:g} allows that; raise lr above lambda_abs, lower lambda_abs, or set "
        f"accumulator='delayed'"
    )


class ClippyUpdate(NamedTuple):
    """Result of one step for one tensor."""

    weight: Tensor
    """New weight, of the shape and dtype before the step."""
    accumulator: Tensor
    """New accumulator, of the shape and dtype before the step."""
    factor: Tensor
    """[] sigma, in [0, 1]."""
    finite: Tensor
    """[] bool: False if the gradient or its square is not finite; weight and accumulator are then unchanged."""


def clippy_update(
    weight: Tensor,
    gradient: Tensor,
    accumulator: Tensor,
    lr: float | Tensor,
    options: ClippyOptions = PAPER,
    squares: Tensor | None = None,
) -> ClippyUpdate:
    """One step of the rule for one tensor, as a pure function.

    Args:
        weight: [*] float32 or float64; for narrower types convert before and after.
        gradient: [*] of the same dtype.
        accumulator: same dtype, [*] or a shape that broadcasts to it: [rows, 1] for row-wise state.
        lr: learning rate, a number or a 0-dim tensor.
        options: the rule's options.
        squares: increment of the accumulator, in its shape; None for the square of ``gradient``. Row-wise AdaGrad passes
            the mean of the squares of each row, [rows, 1].

    Returns:
        New tensors; the arguments are not changed. An empty tensor gives factor 1.
    """
    # Operations and their order are those of torch.optim.Adagrad, so results without clipping have the same bits.
    added = torch.addcmul(accumulator, gradient, gradient) if squares is None else accumulator + squares
    finite = added.isfinite().all()
    root = accumulator_root(added if options.accumulator == "standard" else accumulator, options)
    direction = gradient / root
    factor = clipping_factor(largest_ratio(direction, allowed_change(weight, root, options)) * lr)
    moved = torch.addcdiv(weight, gradient * (factor * -lr), root)
    if options.clip_accumulator_update:
        added = accumulator + (gradient.square() if squares is None else squares) * factor.square()
    return ClippyUpdate(torch.where(finite, moved, weight), torch.where(finite, added, accumulator), factor, finite)


def smallest_root(dtype: torch.dtype) -> float:
    """Smallest denominator: the root of the smallest normal number, 1.1e-19 for float32.

    An ``eps`` below it is raised to it. It changes nothing if the accumulator is above about 1e-23 (float32). Without it, a
    gradient whose square underflows would divide by 0 at an empty accumulator.
    """
    return math.sqrt(torch.finfo(dtype).tiny)


def effective_eps(options: ClippyOptions, dtype: torch.dtype) -> float:
    """Number added to the root, or to the accumulator (``eps_inside``), in arithmetic of ``dtype``."""
    least = smallest_root(dtype)
    return max(options.eps, torch.finfo(dtype).tiny if options.eps_inside else least)


def accumulator_root(accumulator: Tensor, options: ClippyOptions) -> Tensor:
    """Denominator of r, in the accumulator's shape."""
    eps = effective_eps(options, accumulator.dtype)
    return (accumulator + eps).sqrt() if options.eps_inside else accumulator.sqrt() + eps


def allowed_change(weight: Tensor, root: Tensor, options: ClippyOptions) -> Tensor:
    """Largest move of each coordinate in one step, in the weight's shape."""
    allowed = options.lambda_rel * weight.abs() + options.lambda_abs
    if options.accumulator_relative_threshold:
        allowed = allowed + options.accumulator_relative_threshold / root
    return allowed


def largest_ratio(change: Tensor, allowed: Tensor) -> Tensor:
    """Largest |change| / allowed, as a 0-dim tensor.

    A coordinate that does not move counts as 0, even if no move is allowed; 0 for empty tensors.
    """
    if not change.numel():
        return change.new_zeros(())
    return torch.where(change == 0, 0.0, change.abs() / allowed).amax()


def clipping_factor(ratio: Tensor) -> Tensor:
    """sigma, from the largest ratio of an unclipped to an allowed move; any shape.

    A ratio above 1 by rounding only (8 units in the last place of the dtype) does not clip: if no clipping can occur in
    exact arithmetic, the step is AdaGrad's bit for bit. A factor that is not a normal number would round upwards by more
    than that, and becomes 0.
    """
    precision = torch.finfo(ratio.dtype)
    factor = torch.where(ratio > 1 + 8 * precision.eps, ratio.reciprocal(), 1.0)
    return torch.where(factor < precision.tiny, 0.0, factor)
