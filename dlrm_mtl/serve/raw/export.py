"""Raw rows in an exported bundle: their description, the values behind ids, and golden raw rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.chosen_columns import select
from dlrm_mtl.data.config import DataConfig
from dlrm_mtl.data.contract import Contract
from dlrm_mtl.data.dataset import Dataset, open_dataset
from dlrm_mtl.data.raw_source import RECIPE_FILE, ColumnFacts
from dlrm_mtl.data.spec import DatasetSpec, FeatureSpec
from dlrm_mtl.data.vocabularies import VOCABULARIES_FILE, Values, vocabularies_digest
from dlrm_mtl.serve.raw.description import RawRows
from dlrm_mtl.serve.raw.golden import raw_rows_of
from dlrm_mtl.serve.raw.lookup import ValueIds
from dlrm_mtl.serve.raw.recipe import arrange_all, describe_raw, exists

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RawExport:
    """What a bundle holds on raw rows."""

    raw: RawRows
    tensors: dict[str, Tensor]
    """Values and ids, see :mod:`dlrm_mtl.serve.raw.lookup`."""
    features: Sequence[FeatureSpec]
    vocabularies: dict[str, Values]

    def golden(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Raw rows that read as the golden ``rows``; features that cannot be inverted are left out and logged."""
        lookups = {owner: ValueIds.load(self.tensors, owner, seed) for owner, seed in self.raw.seeds.items()}
        found, lacking = raw_rows_of(self.raw, self.features, self.vocabularies, lookups, rows)
        if lacking:
            logger.info("note: golden rows have no raw values of %s", ", ".join(lacking))
        return found


def raw_export(data: DataConfig, contract: Contract | None, spec: DatasetSpec) -> RawExport | None:
    """Raw rows of a run's data set; None if they are not known.

    Args:
        data: features that the run reads, and the place of the data set.
        contract: contract of the run; None for runs of earlier versions.
        spec: description of the data set in the contract.

    Raises:
        UserError: the recipe is not that of the data that the run was trained on.
    """
    path = data.path
    try:
        dataset = open_dataset(path)
        recipe, known = exists(dataset, RECIPE_FILE), exists(dataset, VOCABULARIES_FILE)
        digest = vocabularies_digest(dataset.filesystem, dataset.path)
    except UserError as error:
        logger.info("note: the bundle scores prepared rows only: %s", error)
        return None
    if contract is not None and digest != contract.vocabularies:
        logger.info(
            "note: the bundle scores prepared rows only: %s/%s is not the one of the run's training",
            path,
            VOCABULARIES_FILE,
        )
        return None
    if not recipe and not known:
        return None
    return raw_rows_in(dataset, data, spec)


def raw_rows_in(dataset: Dataset, data: DataConfig, spec: DatasetSpec, columns: ColumnFacts | None = None) -> RawExport:
    """Raw rows by the recipe and the vocabularies in the folder of a data set.

    Args:
        dataset: the data set.
        data: features that the run reads.
        spec: description of the data set in the contract.
        columns: facts about the training files; default: read from them.

    Raises:
        UserError: the recipe is not that of the data that the run was trained on.
    """
    chosen = select(spec, data, [], served=True)
    features = [each for each in (*chosen.sparse, *chosen.dense) if each.name not in chosen.constants]
    raw, vocabularies = describe_raw(dataset, spec, features, columns)
    raw, tensors = arrange_all(raw, vocabularies)
    return RawExport(raw, tensors, features, vocabularies)
