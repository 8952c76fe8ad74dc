"""The models that a configuration can name.

A new model is one new file in models/classical/, or in a plugin: a :class:`~dlrm_mtl.models.base.RankingModelConfig`, and a
:class:`~dlrm_mtl.models.base.RankingModel` built from it and the :class:`~dlrm_mtl.models.base.ModelInputs`, registered as
``model``. (A new multitask architecture or interaction is a part of the model `ranker`.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from torch import nn

from dlrm_mtl.core.parts import Part
from dlrm_mtl.core.registry import registry
from dlrm_mtl.embeddings.tables import TableSet, torchrec_tables
from dlrm_mtl.models.base import ModelInputs, RankingModel, RankingModelConfig

Collections = tuple[nn.Module | None, nn.Module | None]
"""Modules that look up rows in pooled and in unpooled tables, see :meth:`~dlrm_mtl.models.feature_lookup.FeatureLookup.use`."""
AnyModelConfig = Annotated[RankingModelConfig, Part("model", default="ranker")]
"""Configuration of any model."""


def build_ranking_model(
    config: RankingModelConfig, inputs: ModelInputs, tables: Callable[[TableSet], Collections] = torchrec_tables
) -> RankingModel:
    """Build the model of ``config``.

    Args:
        config: configuration of the model.
        inputs: features and tasks of the run.
        tables: factory of the modules that hold the tables: by default TorchRec's collections on the meta device, to be
            sharded.

    Raises:
        UserError: the model does not fit the data set or the tasks.
    """
    model: RankingModel = registry("model").of_config(config).part(config, inputs)
    model.lookup.use(*tables(model.lookup.table_set))
    return model
