"""The module that is exported: lookup in plain operations, which any runtime has, and the model's own layers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dlrm_mtl.embeddings.tables import TableSet
from dlrm_mtl.models.base import RankingModel
from dlrm_mtl.serve.calibration import CalibrationMap
from dlrm_mtl.serve.graphs.calibrate import GraphCalibration
from dlrm_mtl.serve.graphs.inputs import DENSE
from dlrm_mtl.tasks.config import TaskConfig
from dlrm_mtl.tasks.targets import predictions


class ServingGraph(nn.Module):
    """Predictions of all tasks, calibrated as in the bundle.

    The inputs are those of :class:`~dlrm_mtl.serve.graphs.inputs.GraphInputs`.

    Args:
        model: the model, in evaluation.
        tasks: its tasks.
        tables: weights [rows, dim] float32 by name of the table.
        keys: features with ids.
        dense: names of the numbers.
        constants: ids [1, n] and their number [1], or a number [1] float32, of the features that are no inputs, by name.
        calibration: maps of the tasks that are calibrated.
    """

    def __init__(
        self,
        model: RankingModel,
        tasks: Sequence[TaskConfig],
        tables: Mapping[str, Tensor],
        keys: Sequence[str],
        dense: Sequence[str],
        constants: Mapping[str, Sequence[Tensor]],
        calibration: Mapping[str, CalibrationMap],
    ) -> None:
        super().__init__()
        self.model, self.tasks = model, list(tasks)
        self.keys, self.dense = list(keys), list(dense)
        self.lookup = GraphLookup(model.lookup.table_set, tables, keys)
        self.calibration = nn.ModuleList(
            GraphCalibration(calibration[task.name]) if task.name in calibration else nn.Identity() for task in tasks
        )
        self.constants = {name: list(values) for name, values in constants.items()}
        for name, values in constants.items():
            for place, value in enumerate(values):
                self.register_buffer(self._constant(name, place), value)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Predictions [B] by task."""
        rows = next(iter(inputs.values())).shape[0]
        given = dict(inputs)
        for name, values in self.constants.items():
            stored = [getattr(self, self._constant(name, place)) for place in range(len(values))]
            if len(stored) == 2:
                given[f"{name}.ids"] = stored[0].expand(rows, -1)
                given[f"{name}.lengths"] = stored[1].expand(rows)
        features = self.lookup(given, rows)
        logits = self.model.logits_of(features, self._numbers(given, rows))
        scores = predictions(logits, self.tasks)
        columns = zip(self.tasks, self.calibration, scores.unbind(1), strict=True)
        return {task.name: calibrated(column) for task, calibrated, column in columns}

    def _numbers(self, given: Mapping[str, Tensor], rows: int) -> Tensor:
        """All numbers [B, D], constants among them."""
        columns, place = [], 0
        for name in self.dense:
            if name in self.constants:
                columns.append(getattr(self, self._constant(name, 0)).expand(rows))
            else:
                columns.append(given[DENSE][:, place])
                place += 1
        if place == len(columns) and place:
            return given[DENSE]
        return torch.stack(columns, dim=1) if columns else torch.zeros(rows, 0)

    def _constant(self, name: str, place: int) -> str:
        return f"constant_{list(self.constants).index(name)}_{place}"


class GraphLookup(nn.Module):
    """:class:`~dlrm_mtl.models.feature_lookup.FeatureLookup` in operations that every exporter knows, on padded ids.

    A feature without inputs, such as items that only training draws, has an empty bag in every row.

    Args:
        tables: tables of the model.
        weights: [rows, dim] float32 by name of the table.
        keys: features with inputs.
    """

    def __init__(self, tables: TableSet, weights: Mapping[str, Tensor], keys: Sequence[str]) -> None:
        super().__init__()
        self.table_set, self.keys = tables, list(keys)
        self.names = [f"table_{n}_{re.sub('[^a-zA-Z0-9]', '_', table.name)}" for n, table in enumerate(tables.configs)]
        for name, table in zip(self.names, tables.configs, strict=True):
            self.register_buffer(name, weights[table.name])

    def forward(self, given: Mapping[str, Tensor], rows: int) -> Tensor:
        """Vectors of all features [B, W]."""
        columns = []
        for name, table in zip(self.names, self.table_set.configs, strict=True):
            weights: Tensor = getattr(self, name)
            for feature in table.feature_names:
                if feature not in self.keys:
                    columns.append(weights.new_zeros(rows, table.embedding_dim))
                    continue
                ids, lengths = given[f"{feature}.ids"], given[f"{feature}.lengths"]
                if feature in self.table_set.lengths:
                    columns.append(_flattened(weights, ids, lengths, self.table_set.lengths[feature]))
                    continue
                sums = _vectors(weights, ids, torch.arange(ids.shape[1]) < lengths.unsqueeze(1)).sum(dim=1)
                means = feature in self.table_set.means
                columns.append(sums / lengths.clamp(min=1).unsqueeze(1) if means else sums)
        return torch.cat(columns, dim=1)


def _vectors(weights: Tensor, ids: Tensor, there: Tensor) -> Tensor:
    """Rows [B, L, D] of ``ids`` [B, L], zero where ``there`` [B, L] is False."""
    return torch.where(there.unsqueeze(2), weights[torch.where(there, ids, 0)], 0.0)


def _flattened(weights: Tensor, ids: Tensor, lengths: Tensor, count: int) -> Tensor:
    """[B, count x D]: vectors of each row's last ids, the last one first."""
    places = lengths.unsqueeze(1) - 1 - torch.arange(count)  # [B, count]
    return _vectors(weights, ids.gather(1, places.clamp(min=0)), places >= 0).flatten(1)
