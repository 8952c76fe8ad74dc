"""Options of the Clippy rule that tables and dense parameters share, as keys of a configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dlrm_mtl.core.clippy_defaults import INITIAL_ACCUMULATOR, LAMBDA_ABS, LAMBDA_REL
from dlrm_mtl.core.schema import Strict


class ClippyLimits(Strict):
    """How far the Clippy rule lets a coordinate move, and the accumulator that it divides by."""

    lambda_rel: float = Field(default=LAMBDA_REL, ge=0)
    """A coordinate w moves at most lambda_rel |w| + lambda_abs in a step."""
    lambda_abs: float = Field(default=LAMBDA_ABS, ge=0)
    """See lambda_rel."""
    initial_accumulator_value: float = Field(default=INITIAL_ACCUMULATOR, ge=0)
    """What the accumulators start from."""
    accumulator: Literal["standard", "delayed"] = "standard"
    """Whether the root is taken after adding the new squares (the paper) or before (TF Recommenders)."""
