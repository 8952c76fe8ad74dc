"""The ``model`` part of a run's configuration, for the model with exchangeable parts."""

from __future__ import annotations

from typing import Literal

from dlrm_mtl.embeddings.config import EmbeddingsConfig
from dlrm_mtl.models.base import RankingModelConfig
from dlrm_mtl.models.blocks import StackConfig
from dlrm_mtl.models.dense_norm import DenseNorm
from dlrm_mtl.models.interactions import InteractionConfig
from dlrm_mtl.models.interactions.dcnv2 import DCNv2Config
from dlrm_mtl.models.multitask import DEFAULT, MultitaskConfig


class ModelConfig(RankingModelConfig):
    """Tables, interaction, multitask architecture and towers."""

    name: Literal["ranker"] = "ranker"
    """Name of this model; may be omitted."""
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    """Embedding tables."""
    embedding_dropout: float = 0.0
    """Fraction of the pooled features that is dropped in training, in [0, 1)."""
    dense_norm: DenseNorm = "standardise"
    """Scaling of dense features: `none`, `standardise` (mean and deviation in dataset.yaml), or standardised and then
    `batch` or `layer` normalisation. With `batch` the model depends on the number of processes."""
    dense: StackConfig = StackConfig(layers=[])
    """Layers between the dense features and the interaction; none by default."""
    interaction: InteractionConfig = DCNv2Config()
    """Combination of pooled and dense features."""
    multitask: MultitaskConfig = DEFAULT
    """Multitask architecture."""
    tower: StackConfig = StackConfig(layers=[32])
    """Layers of each task's tower, below its logit."""

    @property
    def title(self) -> str:
        """Name of the architecture."""
        return self.multitask.name
