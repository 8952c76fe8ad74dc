"""The models that a configuration can name.

A new model is one file with a ``...Config`` and a :class:`~dlrm_mtl.models.base.RankingModel`, and one line in each of the two
tables below. (A new multitask architecture or interaction is a part of the model `ranker`, see their own tables.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from dlrm_mtl.models.base import ModelInputs, RankingModel
from dlrm_mtl.models.classical.logistic_regression import LogisticRegression, LogisticRegressionConfig
from dlrm_mtl.models.classical.multitask_net import MultitaskNet, MultitaskNetConfig
from dlrm_mtl.models.classical.ncf import NCF, NCFConfig
from dlrm_mtl.models.classical.neumf import NeuMF, NeuMFConfig
from dlrm_mtl.models.composed import MultitaskRanker
from dlrm_mtl.models.config import ModelConfig

_Model = Annotated[
    ModelConfig | LogisticRegressionConfig | NCFConfig | NeuMFConfig | MultitaskNetConfig, Field(discriminator="name")
]

MODELS: dict[type, Callable[[Any, ModelInputs], RankingModel]] = {
    ModelConfig: MultitaskRanker,
    LogisticRegressionConfig: LogisticRegression,
    NCFConfig: NCF,
    NeuMFConfig: NeuMF,
    MultitaskNetConfig: MultitaskNet,
}


def _ranker_by_default(value: Any) -> Any:
    return {"name": "ranker", **value} if isinstance(value, dict) else value


AnyModelConfig = Annotated[_Model, BeforeValidator(_ranker_by_default, json_schema_input_type=_Model)]


def build_ranking_model(config: AnyModelConfig, inputs: ModelInputs) -> RankingModel:
    """The model that ``config`` describes, tables on the meta device.

    Raises:
        UserError: it does not fit the data set or the tasks.
    """
    return MODELS[type(config)](config, inputs)


def describe_model(config: AnyModelConfig) -> str:
    """The name of the model, or of its architecture where there is one to choose."""
    return config.multitask.name if isinstance(config, ModelConfig) else config.name
