"""The ``model`` part of a run's configuration."""

from __future__ import annotations

from dlrm_mtl.config.strict import Strict
from dlrm_mtl.embeddings.config import EmbeddingsConfig
from dlrm_mtl.models.blocks import StackConfig
from dlrm_mtl.models.interactions import DCNv2Config, InteractionConfig
from dlrm_mtl.models.multitask import MMoEConfig, MultitaskConfig


class ModelConfig(Strict):
    """Tables, interaction, multitask architecture and towers."""

    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    """The embedding tables."""
    embedding_dropout: float = 0.0
    """Share of the pooled features that is dropped in training, in [0, 1)."""
    dense: StackConfig = StackConfig(layers=[])
    """Layers that the dense features pass before the interaction; none by default."""
    interaction: InteractionConfig = DCNv2Config()
    """How pooled and dense features meet."""
    multitask: MultitaskConfig = MMoEConfig(layers=[128, 64])
    """The multitask architecture."""
    tower: StackConfig = StackConfig(layers=[32])
    """Layers of each task's tower, before its logit."""
