"""The ``metrics`` part of a run's configuration."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from dlrm_mtl.core.schema import Strict


class SliceConfig(Strict):
    """Slices of a split by a column: by its values, or by ranges of its numbers."""

    column: str
    """A feature, a label or a Parquet column of the data set."""
    largest: int | None = Field(default=None, gt=0, le=1000)
    """Number of values with a slice of their own, those with the most rows; the other values share the slice `other`. Default:
    20, if neither of the other two keys is given."""
    edges: list[float] | None = Field(default=None, min_length=1, max_length=1000)
    """Ascending numbers that part the ranges: `[18, 65]` makes three slices, below 18, from 18 to below 65, and from 65."""
    quantiles: int | None = Field(default=None, gt=1, le=1000)
    """Number of ranges with about the same number of rows, by the quantiles of the split that is evaluated."""

    @model_validator(mode="before")
    @classmethod
    def _name_of_a_column(cls, value: Any) -> Any:
        return {"column": value} if isinstance(value, str) else value

    @field_validator("edges")
    @classmethod
    def _ascending(cls, edges: list[float] | None) -> list[float] | None:
        for before, after in zip(edges or [], (edges or [])[1:], strict=False):
            if not before < after:
                raise ValueError(f"{after:g} follows {before:g}, where edges must ascend; sort them, each once.")
        return edges

    @model_validator(mode="after")
    def _one_way(self) -> SliceConfig:
        ways = [key for key in ("largest", "edges", "quantiles") if getattr(self, key) is not None]
        if len(ways) > 1:
            raise ValueError(f"{' and '.join(ways)} are two ways to make slices; give one of them.")
        return self

    @property
    def numeric(self) -> bool:
        """True for ranges of numbers."""
        return self.edges is not None or self.quantiles is not None


class MetricsConfig(Strict):
    """Metrics beyond those that every task has by its loss."""

    gauc: list[str] = Field(default_factory=list)
    """Columns by which rows are grouped for `gauc@COLUMN` of binary tasks, such as `[user_id]`: a sparse feature, or a
    Parquet column of integers or strings, such as that of the request. GAUC is the mean AUC of the groups, weighted by their
    rows."""
    slices: list[SliceConfig] = Field(default_factory=list)
    """Columns by which a split is cut to show every metric by slice, such as `[tab, {column: age, edges: [18, 65]}]`. They
    are computed on the test split and by `evaluate`, not while training goes on."""

    @field_validator("gauc")
    @classmethod
    def _groups_once(cls, columns: list[str]) -> list[str]:
        _refuse_twice(columns)
        return columns

    @field_validator("slices")
    @classmethod
    def _slices_once(cls, slices: list[SliceConfig]) -> list[SliceConfig]:
        _refuse_twice([each.column for each in slices])
        return slices


def _refuse_twice(columns: list[str]) -> None:
    for position, column in enumerate(columns):
        if column in columns[:position]:
            raise ValueError(f"the column {column!r} is listed twice; remove one.")
