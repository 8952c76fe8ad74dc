"""Sharded tables whose backward pass collects the gradient instead of applying it.

FBGEMM updates tables inside the backward pass. Here its storage, state and sharding stay, and only the lookup is replaced:
backward sums the gradient of each touched row and keeps it until :class:`~dlrm_mtl.embeddings.two_phase.TwoPhaseOptimizer`
takes a step. Several backward passes before a step add up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    DenseTableBatchedEmbeddingBagsCodegen,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingCollection, PoolingType
from torchrec.distributed.batched_embedding_kernel import (
    BatchedDenseEmbedding,
    BatchedFusedEmbedding,
    BatchedFusedEmbeddingBag,
)
from torchrec.distributed.embedding import EmbeddingCollectionSharder, ShardedEmbeddingCollection
from torchrec.distributed.embedding_types import ShardedEmbeddingTable
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder, ShardedEmbeddingBagCollection
from torchrec.distributed.types import ParameterSharding, ShardingEnv, ShardingType

from dlrm_mtl.embeddings.kernels.dispatch import kernels_for
from dlrm_mtl.embeddings.kernels.layout import RowGradients, TableGroup

SHARDING_TYPES = [
    ShardingType.DATA_PARALLEL.value,
    ShardingType.TABLE_WISE.value,
    ShardingType.ROW_WISE.value,
    ShardingType.COLUMN_WISE.value,
    ShardingType.TABLE_ROW_WISE.value,
    ShardingType.TABLE_COLUMN_WISE.value,
    ShardingType.GRID_SHARD.value,
]

ROWS_SPLIT = {ShardingType.ROW_WISE.value, ShardingType.TABLE_ROW_WISE.value, ShardingType.GRID_SHARD.value}

FUSED_PARAMS = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.0, "eps": 0.0}
"""What FBGEMM is told: with this optimizer it keeps one float per row, which the two-phase update uses."""


@dataclass
class Apart:
    """One lookup, and the gradients of its output that came back, one after the other."""

    indices: Tensor
    bags: Tensor | list[int]
    """[F * B + 1] offsets of a pooled lookup; the number of ids of each feature of an unpooled one."""
    weights: Tensor | None
    gradients: list[Tensor] = field(default_factory=list)
    """Each like the output: one per backward pass, which is one per task."""
    occurrences: Any = None
    """What the kernels' ``sort_pooled`` returned, if they have one and :meth:`sort` was called."""

    def sort(self, group: TableGroup) -> None:
        """Sort the ids of a pooled lookup before it: a GPU has then long done so when gradients come back."""
        sort = getattr(kernels_for(group.weights.device), "sort_pooled", None)
        if sort is not None and len(group.feature_tables):
            bags = (len(self.bags) - 1) // len(group.feature_tables)
            self.occurrences = sort(group, self.indices, self.bags, bags, self.weights)

    def collect(self, group: TableGroup) -> RowGradients:
        """Sum the gradients by row. Of T tasks at once: then ``group`` is :func:`wider` by T, and a row holds T gradients."""
        kernels = kernels_for(group.weights.device)
        if isinstance(self.bags, list):
            return kernels.collect_unpooled(group, self.indices, self.bags, _beside(self.gradients, [1]))
        widths = (group.dims // len(self.gradients))[group.feature_tables].tolist()
        bags = (len(self.bags) - 1) // max(len(widths), 1)
        # They say where gradients lie, which is somewhere else if there are several.
        known = {"occurrences": self.occurrences} if self.occurrences is not None and len(self.gradients) == 1 else {}
        gradient = _beside(self.gradients, widths)
        return kernels.collect(group, self.indices, self.bags, bags, gradient, self.weights, **known)

    def combined(self, group: TableGroup, coefficients: Tensor) -> Apart:
        """The lookup with one gradient: for each table the sum of the tasks' with their coefficients, [tables, T] float32."""
        of_feature = coefficients[group.feature_tables.to(coefficients.device)]
        repeats = self.bags if isinstance(self.bags, list) else group.dims[group.feature_tables].tolist()
        spread = of_feature.repeat_interleave(torch.tensor(repeats, device=coefficients.device), dim=0)
        factors = [factor.unsqueeze(1) if isinstance(self.bags, list) else factor for factor in spread.unbind(dim=1)]
        total = self.gradients[0] * factors[0]
        for gradient, factor in zip(self.gradients[1:], factors[1:], strict=True):
            total.addcmul_(gradient, factor)
        return replace(self, gradients=[total])


def _beside(gradients: list[Tensor], widths: list[int]) -> Tensor:
    """For every feature, of these widths, the tasks' columns side by side; one number of columns stands for them all."""
    if len(gradients) == 1:
        return gradients[0]
    if len(set(widths)) == 1:
        rows, columns = gradients[0].shape
        width = widths[0] if len(widths) > 1 else columns
        split = [gradient.view(rows, -1, width) for gradient in gradients]
        return torch.stack(split, dim=2).view(rows, len(gradients) * columns)
    features = zip(*(gradient.split(widths, dim=1) for gradient in gradients), strict=True)
    return torch.cat([part for feature in features for part in feature], dim=1)


def wider(group: TableGroup, times: int) -> TableGroup:
    """Tables of the same rows with several times the columns, for gradients only: they have no weights of their own."""
    weights = group.weights[:1].expand(group.weights.numel() * times) if group.weights.numel() else group.weights
    return TableGroup(
        weights, group.weight_offsets * times, group.row_offsets, group.dims * times, group.feature_tables
    )


class CollectingTables(SplitTableBatchedEmbeddingBagsCodegen):
    """FBGEMM's tables with another lookup. Made by :func:`collect_gradients` from a stock module, in place."""

    group: TableGroup
    pending: list[RowGradients]
    apart: list[Apart] | None
    """Where several tasks send back a gradient each through one forward pass: what came back; None to add them up."""

    def came_back(self, lookup: Apart, gradient: Tensor) -> None:
        """Take the gradient of the output of ``lookup``."""
        gradient = gradient.float().contiguous()
        if self.apart is None:
            self.pending.append(replace(lookup, gradients=[gradient]).collect(self.group))
            return
        if not lookup.gradients:
            self.apart.append(lookup)
        lookup.gradients.append(gradient)

    def forward(  # type: ignore[override]
        self, indices: Tensor, offsets: Tensor, per_sample_weights: Tensor | None = None, *rest: Any, **options: Any
    ) -> Tensor:
        """Look up ids; see the kernels' ``lookup`` for shapes. Unpooled tables return one row [N, D] per id."""
        given = sorted(name for name, value in options.items() if value is not None)
        if any(value is not None for value in rest) or given:
            raise ValueError(
                f"the two-phase update has no {', '.join(given) or 'such argument'}: use batches of one size"
            )
        if per_sample_weights is not None and per_sample_weights.requires_grad:
            raise ValueError("the two-phase update gives no gradient to per-sample weights: detach them")
        indices, offsets = indices.long(), offsets.long()
        if self.pooling_mode == PoolingMode.NONE:
            return _UnpooledLookup.apply(self.placeholder_autograd_tensor, self, indices, offsets)
        weights = None if per_sample_weights is None else per_sample_weights.float()
        if self.pooling_mode == PoolingMode.MEAN:
            lengths = offsets.diff()
            share = torch.repeat_interleave(1.0 / lengths.clamp(min=1), lengths, output_size=len(indices))
            weights = share if weights is None else weights * share
        lookup = Apart(indices, offsets, weights)
        if torch.is_grad_enabled():
            lookup.sort(self.group)
        return _PooledLookup.apply(self.placeholder_autograd_tensor, self, lookup)


class _PooledLookup(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        placeholder: Tensor,
        tables: CollectingTables,
        lookup: Apart,
    ) -> Tensor:
        group, offsets = tables.group, lookup.bags
        assert isinstance(offsets, Tensor)
        ctx.tables, ctx.lookup = tables, lookup
        bags = (len(offsets) - 1) // len(group.feature_tables)
        return kernels_for(group.weights.device).lookup(group, lookup.indices, offsets, bags, lookup.weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        ctx.tables.came_back(ctx.lookup, gradients[0])
        return None, None, None


class _UnpooledLookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, placeholder: Tensor, tables: CollectingTables, indices: Tensor, offsets: Tensor) -> Tensor:
        group = tables.group
        bags = (len(offsets) - 1) // len(group.feature_tables)
        lengths = offsets[::bags].diff().tolist() if bags else [0] * len(group.feature_tables)
        ctx.tables, ctx.lookup = tables, Apart(indices, lengths, None)
        return kernels_for(group.weights.device).lookup_unpooled(group, indices, lengths)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        ctx.tables.came_back(ctx.lookup, gradients[0])
        return None, None, None, None


class ReplicatedUnpooledTables(DenseTableBatchedEmbeddingBagsCodegen):
    """Unpooled tables of which every process holds a full copy. FBGEMM's own lookup returns rows too many on CPU."""

    shapes: list[tuple[int, int]]
    table_of_feature: list[int]

    def forward(  # type: ignore[override]
        self, indices: Tensor, offsets: Tensor, *rest: Any, **options: Any
    ) -> Tensor:
        """Return one row [N, D] per id; the gradient is dense, so that DDP can reduce it."""
        sizes = [rows * columns for rows, columns in self.shapes]
        parts = self.weights.split(sizes)
        tables = [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        bags = (len(offsets) - 1) // len(self.table_of_feature)
        lengths = offsets[::bags].diff().tolist() if bags else [0] * len(self.table_of_feature)
        ids = indices.long().split(lengths)
        return torch.cat(
            [nn.functional.embedding(i, tables[t]) for t, i in zip(self.table_of_feature, ids, strict=True)]
        )


def collect_gradients(tables: SplitTableBatchedEmbeddingBagsCodegen, names: list[str]) -> None:
    """Turn FBGEMM's tables into :class:`CollectingTables`, in place.

    Raises:
        ValueError: tables that are cached, on SSD or in a number format other than float32 and float16, or of an uneven width.
    """
    for name, (_, dim, location, _) in zip(names, tables.embedding_specs, strict=True):
        if location not in (EmbeddingLocation.HOST, EmbeddingLocation.DEVICE):
            raise ValueError(
                f"table {name} lies in {EmbeddingLocation(location).name}, where the two-phase update cannot reach it: "
                "give it the compute kernel `fused`"
            )
        if dim % 4:
            raise ValueError(f"table {name} has {dim} columns on this process: choose a multiple of 4")
    weights = tables.weights_dev if tables.weights_dev.numel() else tables.weights_host
    if weights.dtype not in (torch.float32, torch.float16):
        raise ValueError(f"tables {', '.join(names)} hold {weights.dtype}: choose float32 or float16")
    rows = torch.tensor([0, *(spec[0] for spec in tables.embedding_specs)])
    tables.__class__ = CollectingTables
    collecting: CollectingTables = tables  # type: ignore[assignment]
    collecting.pending, collecting.apart = [], None
    collecting.group = TableGroup(
        weights=weights.detach().flatten(),
        weight_offsets=torch.tensor([int(offset) for offset in tables.weights_physical_offsets[: len(rows) - 1]]),
        row_offsets=rows.cumsum(0),
        dims=torch.tensor([spec[1] for spec in tables.embedding_specs]),
        feature_tables=torch.tensor(tables.feature_table_map),
    )


def kernels_of(lookups: list[Any]) -> Iterator[Any]:
    """TorchRec's kernels in the lookups of a sharded module; lookups of replicated tables are wrapped in DDP."""
    for lookup in lookups:
        yield from getattr(lookup, "module", lookup)._emb_modules


def _replace(lookups: list[Any]) -> None:
    for kernel in kernels_of(lookups):
        if isinstance(kernel, (BatchedFusedEmbeddingBag, BatchedFusedEmbedding)):
            configs: list[ShardedEmbeddingTable] = kernel._config.embedding_tables
            collect_gradients(kernel._emb_module, [config.name for config in configs])
        elif isinstance(kernel, BatchedDenseEmbedding):
            kernel._emb_module.__class__ = ReplicatedUnpooledTables
            kernel._emb_module.table_of_feature = list(kernel._feature_table_map)
            kernel._emb_module.shapes = [(c.local_rows, c.local_cols) for c in kernel._config.embedding_tables]


class CollectingEmbeddingBagCollection(ShardedEmbeddingBagCollection):
    """TorchRec's sharded collection of pooled tables, with lookups that collect gradients."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Where rows are split, TorchRec sums in the lookup and divides in the output. It forgets grid_shard, and divides the
        # means of all other tables in the collection once more: name what to divide, and what not.
        names: dict[str, list[str]] = {PoolingType.MEAN.value: [], PoolingType.SUM.value: []}
        for config in self._embedding_bag_configs:
            split = self.module_sharding_plan[config.name].sharding_type in ROWS_SPLIT
            pooling = config.pooling if split else PoolingType.SUM
            names[pooling.value].extend(config.feature_names)
        self._pooling_type_to_rs_features = names
        self._has_mean_pooling_callback = bool(names[PoolingType.MEAN.value])

    def _create_lookups(self) -> None:
        super()._create_lookups()
        _replace(self._lookups)


class CollectingEmbeddingCollection(ShardedEmbeddingCollection):
    """TorchRec's sharded collection of unpooled tables, with lookups that collect gradients."""

    def _create_lookups(self) -> None:
        super()._create_lookups()
        _replace(self._lookups)


class PooledSharder(EmbeddingBagCollectionSharder):
    """Shards :class:`EmbeddingBagCollection` for the two-phase update, by any of the seven types on CPU and CUDA."""

    def __init__(self) -> None:
        super().__init__(fused_params=dict(FUSED_PARAMS))

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """The names of the sharding types; the stock sharder hides three of them on CPU."""
        return SHARDING_TYPES

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """Whole tables in the device's memory."""
        return ["dense"] if sharding_type == ShardingType.DATA_PARALLEL.value else ["fused"]

    def shard(
        self,
        module: EmbeddingBagCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> CollectingEmbeddingBagCollection:
        """Shard ``module`` as ``params`` says."""
        return CollectingEmbeddingBagCollection(
            module, params, env, self.fused_params, device, qcomm_codecs_registry=self.qcomm_codecs_registry
        )


class UnpooledSharder(EmbeddingCollectionSharder):
    """Shards :class:`EmbeddingCollection` for the two-phase update."""

    def __init__(self) -> None:
        super().__init__(fused_params=dict(FUSED_PARAMS))

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """The names of the sharding types that TorchRec has for unpooled tables."""
        types = super().sharding_types("cuda")
        return [name for name in SHARDING_TYPES if name in types]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """Whole tables in the device's memory."""
        return ["dense"] if sharding_type == ShardingType.DATA_PARALLEL.value else ["fused"]

    def shard(
        self,
        module: EmbeddingCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> CollectingEmbeddingCollection:
        """Shard ``module`` as ``params`` says."""
        return CollectingEmbeddingCollection(
            module, params, env, self.fused_params, device, qcomm_codecs_registry=self.qcomm_codecs_registry
        )


def two_phase_sharders() -> list[Any]:
    """Sharders for ``DistributedModelParallel`` and the planner."""
    return [PooledSharder(), UnpooledSharder()]
