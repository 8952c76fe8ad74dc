"""Private parts of PyTorch, TorchRec and FBGEMM that this package needs: one function or name each, with its reason.

No other file of the package uses private parts. tests/embeddings/test_compat.py fails, naming the function here, if
upstream changes one. Written for torch 2.13, torchrec 1.8 and fbgemm-gpu 1.8.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

# TorchRec's state dicts hold ShardedTensor, for which PyTorch has no public module.
from torch.distributed._shard.sharded_tensor import Shard as TensorShard
from torch.distributed._shard.sharded_tensor import ShardedTensor, ShardedTensorMetadata
from torch.distributed._shard.sharded_tensor.metadata import TensorProperties
from torch.distributed._shard.sharding_spec import ShardMetadata
from torchrec.distributed import comm
from torchrec.distributed.batched_embedding_kernel import (
    BatchedDenseEmbedding,
    BatchedDenseEmbeddingBag,
    BatchedFusedEmbedding,
    BatchedFusedEmbeddingBag,
)
from torchrec.distributed.embedding_types import ShardedEmbeddingTable
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.modules.embedding_configs import EmbeddingBagConfig

__all__ = ["ShardMetadata", "ShardedTensor", "ShardedTensorMetadata", "TensorProperties", "TensorShard"]

T = TypeVar("T")


def sharded_tensor(shards: list[TensorShard], metadata: ShardedTensorMetadata) -> ShardedTensor:
    """Make a sharded tensor from its local shards, without a collective operation.

    The public ``init_from_local_shards`` gathers metadata from all processes and needs a shard on each. State per row of a
    column-split table has shards only on some.
    """
    return ShardedTensor._init_from_local_shards_and_global_metadata(shards, metadata)


def become(instance: Any, kind: type[T]) -> T:
    """Turn ``instance`` into an instance of the subclass ``kind``, in place.

    TorchRec creates FBGEMM's modules deep inside a sharded module, without a factory for them. A new module would allocate
    the tables a second time.
    """
    instance.__class__ = kind
    return cast(T, instance)


def lookups_of(collection: Any) -> list[Any]:
    """Lookups of a sharded collection, one for each sharding type in it; they have no public name."""
    return list(collection._lookups)


def kernels_of(lookups: list[Any]) -> Iterator[Any]:
    """TorchRec's kernels in lookups; replicated tables are wrapped in DDP."""
    for lookup in lookups:
        yield from getattr(lookup, "module", lookup)._emb_modules


def table_configs(kernel: Any) -> list[ShardedEmbeddingTable]:
    """Tables of a kernel, with the locations of their shards."""
    return list(kernel._config.embedding_tables)


def tables_of(kernel: Any) -> nn.Module:
    """FBGEMM's module in a kernel, which holds the weights."""
    return cast(nn.Module, kernel._emb_module)


def tables_of_features(kernel: Any) -> list[int]:
    """Number of the table of each feature of a kernel."""
    return list(kernel._feature_table_map)


def is_fused(kernel: Any) -> bool:
    """Return True if a kernel updates its tables itself, which the two-phase update replaces."""
    return isinstance(kernel, (BatchedFusedEmbeddingBag, BatchedFusedEmbedding))


def is_dense(kernel: Any) -> bool:
    """Return True if a kernel holds replicated tables, whose gradient DDP reduces."""
    return isinstance(kernel, (BatchedDenseEmbeddingBag, BatchedDenseEmbedding))


def is_dense_unpooled(kernel: Any) -> bool:
    """Return True if a kernel holds replicated tables of an unpooled collection."""
    return isinstance(kernel, BatchedDenseEmbedding)


def row_state(tables: Any) -> Tensor:
    """FBGEMM's memory for one float per row, [rows] float32, on the device or the host."""
    state: Tensor = tables.momentum1_dev if tables.momentum1_dev.numel() else tables.momentum1_host
    return state.detach().flatten()


def bag_configs(collection: ShardedEmbeddingBagCollection) -> list[EmbeddingBagConfig]:
    """Configurations of a sharded collection's tables; the public method returns those of the unsharded module."""
    return list(collection._embedding_bag_configs)


def world_size(collection: ShardedEmbeddingBagCollection) -> int:
    """Return the number of processes that a sharded collection is spread over."""
    return collection._env.world_size


def set_pooling_of_split_rows(collection: ShardedEmbeddingBagCollection, features: dict[str, list[str]]) -> None:
    """Set the features that TorchRec divides after the output exchange, by pooling type.

    For split rows, TorchRec sums in the lookup and divides in the output. It omits grid_shard, and divides the means of all
    other tables in the collection once more (docs/two_phase.md).
    """
    collection._pooling_type_to_rs_features = features
    collection._has_mean_pooling_callback = bool(features["MEAN"])


def set_host_groups(
    within: dist.ProcessGroup | None, across: dist.ProcessGroup | None
) -> tuple[dist.ProcessGroup | None, dist.ProcessGroup | None]:
    """Set the groups of table_row_wise and grid_shard, and return the former ones.

    TorchRec makes them once for each program and offers no way to make them for another world.
    """
    former = comm._INTRA_PG, comm._CROSS_PG
    comm._INTRA_PG, comm._CROSS_PG = within, across
    return former


def name_of_group(group: dist.ProcessGroup) -> str:
    """Name under which torch registered ``group``; a group written in Python must know it."""
    return dist.distributed_c10d._world.pg_names[group]


def finished_work(result: Any) -> dist.Work:
    """Handle of a collective that is over, whose future holds ``result``; torch makes such handles in C++ only."""
    future: torch.futures.Future[Any] = torch.futures.Future()
    future.set_result(result)
    return cast(dist.Work, torch._C._distributed_c10d._create_work_from_future(future))  # type: ignore[attr-defined]


@contextmanager
def sharded_tensors_of_one_process() -> Iterator[None]:
    """Make sharded tensors from local shards alone, and let the next process hold the rest of the whole tensor.

    TorchRec's unpooled collections ask all processes for their shards by a private function. In a simulation there is nobody
    to ask.
    """
    asking = ShardedTensor.__dict__["_init_from_local_shards"]
    ShardedTensor._init_from_local_shards = classmethod(_with_the_rest)  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        ShardedTensor._init_from_local_shards = asking  # type: ignore[method-assign]


def _with_the_rest(kind: Any, shards: list[TensorShard], *size: Any, **options: Any) -> ShardedTensor:
    whole = torch.Size(size[0] if len(size) == 1 else size)
    own = [shard.metadata for shard in shards]
    cut = 0 if not own or own[0].shard_sizes[1] == whole[1] else 1  # the dimension that is divided
    place = f"rank:{(dist.get_rank() + 1) % dist.get_world_size()}/cpu"
    spans = sorted((part.shard_offsets[cut], part.shard_sizes[cut]) for part in own)
    rest, start = [], 0
    for first, length in [*spans, (whole[cut], 0)]:
        if first > start:
            offsets, sizes = [0, 0], list(whole)
            offsets[cut], sizes[cut] = start, first - start
            rest.append(ShardMetadata(offsets, sizes, place))
        start = first + length
    dtype = shards[0].tensor.dtype if shards else torch.float32
    return sharded_tensor(shards, ShardedTensorMetadata([*own, *rest], whole, TensorProperties(dtype=dtype)))
