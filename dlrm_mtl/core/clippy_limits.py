"""Clippy options that tables and dense parameters share, as configuration keys."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dlrm_mtl.core.clippy_defaults import INITIAL_ACCUMULATOR, LAMBDA_ABS, LAMBDA_REL
from dlrm_mtl.core.schema import Strict


class ClippyLimits(Strict):
    """Limits of a coordinate's move under the Clippy rule, and the accumulator that it divides by."""

    lambda_rel: float = Field(default=LAMBDA_REL, ge=0)
    """A coordinate w moves at most lambda_rel |w| + lambda_abs in a step."""
    lambda_abs: float = Field(default=LAMBDA_ABS, ge=0)
    """The absolute part of the limit, see lambda_rel."""
    initial_accumulator_value: float = Field(default=INITIAL_ACCUMULATOR, ge=0)
    """Initial value of the accumulators."""
    accumulator: Literal["standard", "delayed"] = "standard"
    """`standard` takes the root after adding the new squares (the paper), `delayed` before (TF Recommenders)."""
