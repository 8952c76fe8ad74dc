"""The description of a data set: the content of its ``dataset.yaml``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from dlrm_mtl.core.schema import Strict
from dlrm_mtl.core.suggest import suggest

DATASET_FILE = "dataset.yaml"


class DenseStatistics(Strict):
    """Statistics of a dense feature over the training split, without nulls; the reader standardises with `mean` and `std`."""

    mean: float
    std: float = Field(ge=0)
    min: float
    max: float
    nulls: int = Field(default=0, ge=0)
    """Number of rows of the training split with null in the column."""


class SparseStatistics(Strict):
    """Statistics of a sparse or sequence feature over the training split."""

    distinct: int = Field(ge=0)
    """Number of distinct ids other than 0."""
    coverage: float = Field(ge=0, le=1)
    """Fraction of the rows with at least one id other than 0."""
    mean_length: float = Field(ge=0)
    """Mean number of ids per row; 1 or less for a column of single ids."""


class FeatureSpec(Strict):
    """One input of a model and the Parquet column it comes from."""

    name: str = Field(min_length=1)
    kind: Literal["sparse", "sequence", "dense"]
    """`sparse`: a column of ids or of unordered lists of ids; `sequence`: a column of lists of ids, oldest first and most
    recent last; `dense`: a column of numbers."""
    column: str | None = None
    """Name of the Parquet column; default: the feature's name."""
    description: str | None = None
    vocabulary_size: int | None = Field(default=None, gt=0)
    """Size of the vocabulary: ids run from 0 to vocabulary_size - 1; id 0 means unknown."""
    vocabulary: str | None = None
    """Name of the feature whose vocabulary this feature shares; both then have one vocabulary size and may share a table."""
    unbounded: bool | None = None
    """True, instead of a vocabulary_size, if ids are any 64-bit integers, such as hashes; 0 means unknown. The
    configuration sets how many rows of a table they share."""
    fingerprint: str | None = None
    """Hash of the vocabulary, the id of every value. A run refuses a data set with another one."""
    transform: str | None = None
    """Transformation of the column's raw numbers, such as `log1p`. A run refuses a data set with another one."""
    statistics: DenseStatistics | SparseStatistics | None = None

    @property
    def source(self) -> str:
        """Name of the Parquet column."""
        return self.column or self.name

    @model_validator(mode="after")
    def _fits_its_kind(self) -> FeatureSpec:
        if self.kind == "dense":
            if self.vocabulary_size is not None or self.vocabulary is not None or self.unbounded:
                raise ValueError(
                    f"feature {self.name!r} is dense and has no vocabulary; remove it or make the feature sparse."
                )
            if isinstance(self.statistics, SparseStatistics):
                raise ValueError(f"feature {self.name!r} is dense; its statistics are mean, std, min, max and nulls.")
        else:
            if [self.vocabulary_size is None, self.vocabulary is None, not self.unbounded].count(False) != 1:
                raise ValueError(
                    f"feature {self.name!r} needs either vocabulary_size or vocabulary (the name of another feature), or "
                    "unbounded: true."
                )
            if isinstance(self.statistics, DenseStatistics):
                raise ValueError(
                    f"feature {self.name!r} is {self.kind}; its statistics are distinct, coverage and mean_length."
                )
        return self


class LabelSpec(Strict):
    """One signal that a task can learn, and its Parquet column."""

    name: str = Field(min_length=1)
    kind: Literal["binary", "real"] = "binary"
    """`binary`: every value is 0, 1 or null; `real`: any finite number or null."""
    column: str | None = None
    """Name of the Parquet column; default: the label's name."""
    description: str | None = None
    mean: float | None = None
    """Mean over the training split, without nulls: the rate of positives for a binary label."""

    @property
    def source(self) -> str:
        """Name of the Parquet column."""
        return self.column or self.name


class SplitSpec(Strict):
    """One split of a data set."""

    folder: str
    """Folder of Parquet files, relative to dataset.yaml and not outside of its folder."""
    rows: int | None = Field(default=None, ge=0)
    """Number of rows of the split, for information."""
    description: str | None = None

    @field_validator("folder")
    @classmethod
    def _inside(cls, folder: str) -> str:
        path = PurePosixPath(folder)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{folder!r} leads out of the data set's folder; name a folder in it.")
        return folder


class DatasetSpec(Strict):
    """The content of ``dataset.yaml``."""

    name: str
    description: str = ""
    licence: str = ""
    citation: str = ""
    splits: dict[str, SplitSpec]
    features: list[FeatureSpec]
    labels: list[LabelSpec]

    @model_validator(mode="after")
    def _names_fit(self) -> DatasetSpec:
        _refuse_duplicates("features", [feature.name for feature in self.features])
        _refuse_duplicates("labels", [label.name for label in self.labels])
        owners = {
            feature.name: feature
            for feature in self.features
            if feature.vocabulary_size is not None or feature.unbounded
        }
        for feature in self.features:
            if feature.vocabulary is not None and feature.vocabulary not in owners:
                raise ValueError(
                    f"feature {feature.name!r} shares the vocabulary of {feature.vocabulary!r}, which is no feature with a "
                    f"vocabulary of its own; {suggest(feature.vocabulary, owners)}."
                )
        return self

    def feature(self, name: str) -> FeatureSpec:
        """Return the feature called ``name``; raises KeyError."""
        return self.by_name[name]

    @cached_property
    def by_name(self) -> dict[str, FeatureSpec]:
        """The features by name."""
        return {feature.name: feature for feature in self.features}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> DatasetSpec:
        """Copy with other fields; pydantic would copy what is cached, too."""
        copy = super().model_copy(update=update, deep=deep)
        copy.__dict__.pop("by_name", None)
        return copy

    def names(self, kind: Literal["sparse", "sequence", "dense"]) -> list[str]:
        """Names of the features of one kind, in the order of the file."""
        return [feature.name for feature in self.features if feature.kind == kind]

    def vocabulary_owner(self, name: str) -> str:
        """Name of the feature that owns the vocabulary of the feature ``name``: itself, or another one."""
        return self.feature(name).vocabulary or name

    def vocabulary_size(self, name: str) -> int:
        """Vocabulary size of a sparse or sequence feature, own or shared; raises KeyError for a dense or unbounded one."""
        size = self.feature(self.vocabulary_owner(name)).vocabulary_size
        if size is None:
            raise KeyError(name)
        return size

    def with_rows(self, rows: Mapping[str, int]) -> DatasetSpec:
        """Copy in which unbounded features have vocabularies of the sizes ``rows``, by owner, as after mapping ids to rows."""
        features = [
            feature.model_copy(update={"vocabulary_size": rows[feature.name], "unbounded": None})
            if feature.name in rows
            else feature
            for feature in self.features
        ]
        return self.model_copy(update={"features": features})


def _refuse_duplicates(what: str, names: list[str]) -> None:
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise ValueError(f"{what} has {repeated[0]!r} more than once; rename or remove one.")
