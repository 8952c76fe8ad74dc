"""Sharded tables whose backward pass collects the gradient instead of applying it.

FBGEMM updates tables inside the backward pass. Here only the lookup is replaced, and its storage, state and sharding are
kept: backward sums the gradient of each touched row and keeps it until
:class:`~dlrm_mtl.embeddings.two_phase.TwoPhaseOptimizer` takes a step. Several backward passes before a step add up.
"""

from __future__ import annotations

from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torchrec import EmbeddingBagCollection, EmbeddingCollection, PoolingType
from torchrec.distributed.embedding import EmbeddingCollectionSharder, ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder, ShardedEmbeddingBagCollection
from torchrec.distributed.types import ParameterSharding, QuantizedCommCodecs, ShardingEnv, ShardingType

from dlrm_mtl.embeddings.torchrec import compat
from dlrm_mtl.embeddings.torchrec.exchange import Exchanging
from dlrm_mtl.embeddings.torchrec.lookups import ROWS_SPLIT, keep_gradients

SHARDING_TYPES = [
    ShardingType.DATA_PARALLEL.value,
    ShardingType.TABLE_WISE.value,
    ShardingType.ROW_WISE.value,
    ShardingType.COLUMN_WISE.value,
    ShardingType.TABLE_ROW_WISE.value,
    ShardingType.TABLE_COLUMN_WISE.value,
    ShardingType.GRID_SHARD.value,
]

FUSED_PARAMS = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.0, "eps": 0.0}
"""FBGEMM's parameters: with this optimizer it keeps one float per row, which the two-phase update uses."""


class CollectingEmbeddingBagCollection(Exchanging, ShardedEmbeddingBagCollection):
    """TorchRec's sharded collection of pooled tables, with lookups that collect gradients."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # For split rows, TorchRec sums in the lookup and divides in the output. It omits grid_shard, and divides the means
        # of all other tables in the collection once more. So the features to divide are set here.
        names: dict[str, list[str]] = {PoolingType.MEAN.value: [], PoolingType.SUM.value: []}
        for config in compat.bag_configs(self):
            split = self.module_sharding_plan[config.name].sharding_type in ROWS_SPLIT
            pooling = config.pooling if split else PoolingType.SUM
            names[pooling.value].extend(config.feature_names)
        compat.set_pooling_of_split_rows(self, names)

    def _create_lookups(self) -> None:
        super()._create_lookups()
        keep_gradients(compat.lookups_of(self))


class CollectingEmbeddingCollection(Exchanging, ShardedEmbeddingCollection):
    """TorchRec's sharded collection of unpooled tables, with lookups that collect gradients."""

    def _create_lookups(self) -> None:
        super()._create_lookups()
        keep_gradients(compat.lookups_of(self))


class PooledSharder(EmbeddingBagCollectionSharder):
    """Sharder of :class:`EmbeddingBagCollection` for the two-phase update, by any of the seven types on CPU and CUDA."""

    def __init__(self, codecs: dict[str, QuantizedCommCodecs] | None = None) -> None:
        super().__init__(fused_params=dict(FUSED_PARAMS), qcomm_codecs_registry=codecs)

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Names of the sharding types; the stock sharder hides three of them on CPU."""
        return SHARDING_TYPES

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """Names of the kernels that hold whole tables in the device's memory."""
        return ["dense"] if sharding_type == ShardingType.DATA_PARALLEL.value else ["fused"]

    def shard(
        self,
        module: EmbeddingBagCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> CollectingEmbeddingBagCollection:
        """Shard ``module`` according to ``params``."""
        return CollectingEmbeddingBagCollection(
            module, params, env, self.fused_params, device, qcomm_codecs_registry=self.qcomm_codecs_registry
        )


class UnpooledSharder(EmbeddingCollectionSharder):
    """Sharder of :class:`EmbeddingCollection` for the two-phase update."""

    def __init__(self, codecs: dict[str, QuantizedCommCodecs] | None = None) -> None:
        super().__init__(fused_params=dict(FUSED_PARAMS), qcomm_codecs_registry=codecs)

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Names of TorchRec's sharding types for unpooled tables."""
        types = super().sharding_types("cuda")
        return [name for name in SHARDING_TYPES if name in types]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """Names of the kernels that hold whole tables in the device's memory."""
        return ["dense"] if sharding_type == ShardingType.DATA_PARALLEL.value else ["fused"]

    def shard(
        self,
        module: EmbeddingCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> CollectingEmbeddingCollection:
        """Shard ``module`` according to ``params``."""
        return CollectingEmbeddingCollection(
            module, params, env, self.fused_params, device, qcomm_codecs_registry=self.qcomm_codecs_registry
        )


def two_phase_sharders(codecs: dict[str, QuantizedCommCodecs] | None = None) -> list[Any]:
    """Sharders for ``DistributedModelParallel`` and the planner.

    Args:
        codecs: TorchRec's registry of number formats for the exchange of vectors and gradients; None for float32.
    """
    return [PooledSharder(codecs), UnpooledSharder(codecs)]
