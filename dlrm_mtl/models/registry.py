"""The models that a configuration can name.

A new model is one new file in models/classical/, or in a plugin: a :class:`~dlrm_mtl.models.base.RankingModelConfig`, and a
:class:`~dlrm_mtl.models.base.RankingModel` that is made from it and the :class:`~dlrm_mtl.models.base.ModelInputs`, registered
as ``model``. (A new multitask architecture or interaction is a part of the model `ranker`.)
"""

from __future__ import annotations

from typing import Annotated

from dlrm_mtl.core.parts import Part
from dlrm_mtl.core.registry import registry
from dlrm_mtl.models.base import ModelInputs, RankingModel, RankingModelConfig

AnyModelConfig = Annotated[RankingModelConfig, Part("model", default="ranker")]
"""The configuration of any model."""


def build_ranking_model(config: RankingModelConfig, inputs: ModelInputs) -> RankingModel:
    """The model that ``config`` describes, tables on the meta device.

    Raises:
        UserError: it does not fit the data set or the tasks.
    """
    model: RankingModel = registry("model").of_config(config).part(config, inputs)
    return model
