"""Columns that metrics need beside the inputs of the model: those of groups and of slices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.carried_columns import CarriedColumn, ColumnEncoder, GroupIds, Numbers, ValueCodes
from dlrm_mtl.data.dataset import Dataset
from dlrm_mtl.data.file_checks import check_carried
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.metrics.config import MetricsConfig, SliceConfig

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class MetricColumns:
    """The columns of one split that the metrics of a configuration need."""

    groups: Sequence[str] = ()
    """Columns of groups, as the configuration names them."""
    slices: Sequence[SliceConfig] = ()
    carried: Sequence[CarriedColumn] = ()
    """Columns to read, in the order of ``Batch.carried``: those of groups, then those of slices."""

    @classmethod
    def of(cls, config: MetricsConfig, spec: DatasetSpec, *, sliced: bool = True) -> MetricColumns:
        """Find the columns.

        Args:
            config: the ``metrics`` part of the configuration.
            spec: description of the data set.
            sliced: False to leave slices out.

        Raises:
            UserError: a column holds lists.
        """
        slices = config.slices if sliced else []
        carried = []
        for number, name in enumerate(config.gauc):
            place = f"metrics.gauc.{number}"
            feature = spec.by_name.get(name)
            unknown = None if feature is None or feature.kind == "dense" else 0
            carried.append(CarriedColumn(source_column(spec, name, place), place, GroupIds(unknown)))
        for number, each in enumerate(slices):
            place = f"metrics.slices.{number}.column"
            encoder = Numbers() if each.numeric else ValueCodes()
            carried.append(CarriedColumn(source_column(spec, each.column, place), place, encoder))
        return cls(config.gauc, slices, carried)

    @property
    def group_places(self) -> dict[str, int]:
        """Place of each column of groups in the carried columns."""
        return {name: place for place, name in enumerate(self.groups)}

    def sliced(self, carried: Ids) -> Iterator[tuple[SliceConfig, ColumnEncoder, Ids]]:
        """Every way to make slices, with the encoder and the codes [N] of its column."""
        first = len(self.groups)
        for config, column, codes in zip(self.slices, self.carried[first:], carried[first:], strict=True):
            yield config, column.encoder, codes


def check_metric_columns(config: MetricsConfig, dataset: Dataset, splits: Iterable[str]) -> None:
    """Check that the files of ``splits``, as far as the data set has them, have all columns of the metrics.

    Raises:
        UserError: a column is missing, or its type does not fit.
    """
    columns = MetricColumns.of(config, dataset.spec)
    for split in splits:
        if columns.carried and split in dataset.spec.splits:
            for file in dataset.split(split).files:
                check_carried(file, columns.carried)


def source_column(spec: DatasetSpec, name: str, place: str) -> str:
    """Parquet column of a feature, of a label, or called ``name`` itself.

    Raises:
        UserError: it is a sequence feature.
    """
    feature = spec.by_name.get(name)
    if feature is not None:
        if feature.kind == "sequence":
            raise UserError(f"{place}: {name!r} holds lists of ids, where a row needs one value; name another column.")
        return feature.source
    labels = {label.name: label.source for label in spec.labels}
    return labels.get(name, name)
