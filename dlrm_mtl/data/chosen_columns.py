"""Columns of a data set that a run reads, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.data.config import DataConfig
from dlrm_mtl.data.spec import DatasetSpec, FeatureSpec, LabelSpec

ANY_ID = 2**64
"""Vocabulary size of features whose ids are any 64-bit integers."""


@dataclass(frozen=True)
class Selection:
    """Features, labels and weight that a run reads."""

    sparse: tuple[FeatureSpec, ...]
    """Sparse features, then sequence features: the keys of a batch's KeyedJaggedTensor, in order."""
    dense: tuple[FeatureSpec, ...]
    """Columns of a batch's dense tensor, in order."""
    labels: tuple[LabelSpec, ...]
    """Columns of a batch's labels and weights, in order."""
    weight: str | None
    """Parquet column with the weight of each row."""
    vocabulary_sizes: dict[str, int]
    """Vocabulary sizes by sparse or sequence feature; :data:`ANY_ID` for features in `data.unbounded`."""
    max_sequence_length: int
    dense_limit: float | None
    out_of_range: Literal["error", "unknown"]
    constants: Mapping[str, int | float | None] = field(default_factory=dict)
    """Values of features that are not read: those of `data.train_only` outside training."""

    @property
    def keys(self) -> list[str]:
        """Names of the sparse and sequence features, in order."""
        return [feature.name for feature in self.sparse]

    @property
    def feature_columns(self) -> list[str]:
        """Parquet columns of all features but constants, each once."""
        read = (feature for feature in (*self.sparse, *self.dense) if feature.name not in self.constants)
        return list(dict.fromkeys(feature.source for feature in read))

    @property
    def columns(self) -> list[str]:
        """All Parquet columns to read, each once."""
        weight = [self.weight] if self.weight is not None else []
        return list(dict.fromkeys([*self.feature_columns, *(label.source for label in self.labels), *weight]))


def select(spec: DatasetSpec, config: DataConfig, labels: Sequence[str], *, served: bool = False) -> Selection:
    """Resolve the names in ``config`` and ``labels``.

    Args:
        spec: description of the data set.
        config: features that the run reads.
        labels: names of the labels.
        served: True outside training: features in `data.train_only` are constant.

    Raises:
        UserError: a name is not in the data set, or a constant does not fit its feature.
    """
    sparse = [*_features(spec, "sparse", config.sparse), *_features(spec, "sequence", config.sequence)]
    known = {label.name: label for label in spec.labels}
    for name in labels:
        if name not in known:
            raise UserError(f"data set {spec.name}: there is no label {name!r}; {suggest(name, known)}.")
    dense = _features(spec, "dense", config.dense)
    sizes = _vocabulary_sizes(spec, config, [feature.name for feature in sparse])
    _check_constants(config.train_only, [*sparse, *dense], sizes)
    return Selection(
        sparse=tuple(sparse),
        dense=tuple(dense),
        labels=tuple(known[name] for name in labels),
        weight=config.weight,
        vocabulary_sizes=sizes,
        max_sequence_length=config.max_sequence_length,
        dense_limit=config.dense_limit,
        out_of_range=config.out_of_range,
        constants=config.train_only if served else {},
    )


def _check_constants(
    constants: Mapping[str, int | float | None], features: Sequence[FeatureSpec], sizes: Mapping[str, int]
) -> None:
    read = {feature.name: feature for feature in features}
    for name, value in constants.items():
        place = f"data.train_only.{name}"
        if name not in read:
            raise UserError(f"{place}: the run reads no feature of this name; {suggest(name, read)}.")
        if value is None or read[name].kind == "dense":
            continue
        if read[name].kind == "sequence":
            raise UserError(f"{place}: {value} is no constant for a sequence; give null, for none.")
        if not isinstance(value, int) or value not in _ids(sizes[name]):
            known = _ids(sizes[name])
            raise UserError(
                f"{place}: {value} is no id of the feature; give one from {known[0]} to {known[-1]}, or null for none."
            )


def _ids(size: int) -> range:
    """Ids of a vocabulary of this size."""
    return range(-(2**63), 2**63) if size == ANY_ID else range(size)


def _vocabulary_sizes(spec: DatasetSpec, config: DataConfig, names: list[str]) -> dict[str, int]:
    owners = {name: spec.vocabulary_owner(name) for name in names}
    for owner in config.unbounded:
        if owner not in owners.values():
            hint = suggest(owner, set(owners.values()))
            raise UserError(f"data.unbounded.{owner}: the run reads no ids with a vocabulary of this name; {hint}.")
    for owner in owners.values():
        if spec.feature(owner).unbounded and owner not in config.unbounded:
            raise UserError(
                f"data.unbounded: feature {owner!r} of data set {spec.name} has ids without a bound, so its table needs a "
                f"number of rows; add one, such as data.unbounded.{owner}=1000000."
            )
    return {name: ANY_ID if owner in config.unbounded else spec.vocabulary_size(name) for name, owner in owners.items()}


def _features(
    spec: DatasetSpec, kind: Literal["sparse", "sequence", "dense"], names: Sequence[str] | None
) -> list[FeatureSpec]:
    known = spec.names(kind)
    if names is None:
        names = known
    for position, name in enumerate(names):
        if name not in known:
            others = {feature.name: feature.kind for feature in spec.features}
            reason = f"is {others[name]}" if name in others else "does not exist"
            raise UserError(
                f"data.{kind}.{position}: feature {name!r} of data set {spec.name} {reason}; {suggest(name, known)}."
            )
        if name in names[:position]:
            raise UserError(f"data.{kind}.{position}: feature {name!r} is named twice; remove one.")
    return [spec.feature(name) for name in names]
