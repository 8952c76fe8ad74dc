"""The ``model`` part of a run's configuration, for the model whose parts are to be chosen."""

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
    """This model; it need not be named."""
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    """The embedding tables."""
    embedding_dropout: float = 0.0
    """Share of the pooled features that is dropped in training, in [0, 1)."""
    dense_norm: DenseNorm = "standardise"
    """How dense features are brought to one scale: `none`, `standardise` (mean and deviation in dataset.yaml), or standardised
    and then `batch` or `layer` normalisation. With `batch` the model depends on the number of processes."""
    dense: StackConfig = StackConfig(layers=[])
    """Layers that the dense features pass before the interaction; none by default."""
    interaction: InteractionConfig = DCNv2Config()
    """How pooled and dense features meet."""
    multitask: MultitaskConfig = DEFAULT
    """The multitask architecture."""
    tower: StackConfig = StackConfig(layers=[32])
    """Layers of each task's tower, before its logit."""

    @property
    def title(self) -> str:
        """The name of the architecture."""
        return self.multitask.name
