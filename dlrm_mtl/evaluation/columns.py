"""Columns that metrics need beside the inputs of the model: those of slices."""

from __future__ import annotations

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.carried_columns import CarriedColumn, Numbers, ValueCodes
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.metrics.config import MetricsConfig


class MetricColumns:
    """The columns of one split that the metrics of a configuration need.

    Args:
        config: the ``metrics`` part of the configuration.
        spec: description of the data set.
        sliced: False to leave slices out.

    Raises:
        UserError: a column holds lists.
    """

    def __init__(self, config: MetricsConfig, spec: DatasetSpec, *, sliced: bool = True) -> None:
        self.slices = config.slices if sliced else []
        self.carried: list[CarriedColumn] = []
        """Columns to read, in the order of ``Batch.carried``: those of slices."""
        for number, each in enumerate(self.slices):
            place = f"metrics.slices.{number}.column"
            encoder = Numbers() if each.numeric else ValueCodes()
            self.carried.append(CarriedColumn(source_column(spec, each.column, place), place, encoder))


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
