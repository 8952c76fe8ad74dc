"""Lookups in sharded tables whose backward pass keeps the gradient of each touched row instead of applying it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    DenseTableBatchedEmbeddingBagsCodegen,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.types import ShardingType

from dlrm_mtl.core.phases import phase
from dlrm_mtl.embeddings.kernels.dispatch import kernels_for
from dlrm_mtl.embeddings.kernels.layout import RowGradients, TableGroup
from dlrm_mtl.embeddings.tables import pooled_columns
from dlrm_mtl.embeddings.torchrec import compat

ROWS_SPLIT = {ShardingType.ROW_WISE.value, ShardingType.TABLE_ROW_WISE.value, ShardingType.GRID_SHARD.value}
"""Sharding types that spread the rows of a table over processes."""


@dataclass
class PendingLookup:
    """A lookup that waits for the gradients of its output."""

    indices: Tensor
    bags: Tensor | list[int]
    """[F * B + 1] offsets of a pooled lookup; number of ids of each feature of an unpooled one."""
    weights: Tensor | None
    gradients: list[Tensor] = field(default_factory=list)
    """Gradients of the shape of the output: one per backward pass, which is one per task."""
    occurrences: object | None = None
    """Result of the kernels' ``sort_pooled``, if :meth:`sort` was called and the kernels use it."""

    def sort(self, group: TableGroup) -> None:
        """Sort the ids of a pooled lookup in advance, so that a GPU has done so when gradients come back."""
        if len(group.feature_tables):
            assert isinstance(self.bags, Tensor)
            bags = (len(self.bags) - 1) // len(group.feature_tables)
            kernels = kernels_for(group.weights.device)
            self.occurrences = kernels.sort_pooled(group, self.indices, self.bags, bags, self.weights)

    def collect(self, group: TableGroup) -> RowGradients:
        """Sum the gradients by row. For T tasks, ``group`` must be :func:`widen` by T, and a row holds T gradients."""
        kernels = kernels_for(group.weights.device)
        if isinstance(self.bags, list):
            return kernels.collect_unpooled(group, self.indices, self.bags, interleave_tasks(self.gradients, [1]))
        widths = (group.dims // len(self.gradients))[group.feature_tables].tolist()
        bags = (len(self.bags) - 1) // max(len(widths), 1)
        # The order contains positions of gradients, which differ if there are several.
        known = self.occurrences if len(self.gradients) == 1 else None
        gradient = interleave_tasks(self.gradients, widths)
        return kernels.collect(group, self.indices, self.bags, bags, gradient, self.weights, known)

    def combined(self, group: TableGroup, coefficients: Tensor) -> PendingLookup:
        """The lookup with one gradient: the tasks' gradients weighted by each table's coefficients, [tables, T] float32."""
        of_feature = coefficients[group.feature_tables.to(coefficients.device)]
        repeats = self.bags if isinstance(self.bags, list) else group.dims[group.feature_tables].tolist()
        spread = of_feature.repeat_interleave(torch.tensor(repeats, device=coefficients.device), dim=0)
        factors = [factor.unsqueeze(1) if isinstance(self.bags, list) else factor for factor in spread.unbind(dim=1)]
        total = self.gradients[0] * factors[0]
        for gradient, factor in zip(self.gradients[1:], factors[1:], strict=True):
            total.addcmul_(gradient, factor)
        return replace(self, gradients=[total])


def interleave_tasks(gradients: list[Tensor], widths: list[int]) -> Tensor:
    """Gradients of several tasks as columns: all tasks' columns for the first feature, then for the second, and so on.

    Args:
        gradients: [B, sum of widths] of each task.
        widths: columns of each feature; a single number is the width of all features.
    """
    if len(gradients) == 1:
        return gradients[0]
    if len(set(widths)) == 1:
        rows, columns = gradients[0].shape
        width = widths[0] if len(widths) > 1 else columns
        split = [gradient.view(rows, -1, width) for gradient in gradients]
        return torch.stack(split, dim=2).view(rows, len(gradients) * columns)
    features = zip(*(gradient.split(widths, dim=1) for gradient in gradients), strict=True)
    return torch.cat([part for feature in features for part in feature], dim=1)


def widen(group: TableGroup, times: int) -> TableGroup:
    """Tables of the same rows with ``times`` the columns, for gradients of several tasks; they have no weights."""
    weights = group.weights[:1].expand(group.weights.numel() * times) if group.weights.numel() else group.weights
    return TableGroup(
        weights=weights,
        weight_offsets=group.weight_offsets * times,
        row_offsets=group.row_offsets,
        dims=group.dims * times,
        feature_tables=group.feature_tables,
        means=group.means,
    )


class CollectingTables(SplitTableBatchedEmbeddingBagsCodegen):
    """FBGEMM's tables with another lookup; :func:`collect_gradients` makes it from a stock module, in place."""

    group: TableGroup
    pending: list[RowGradients]
    waiting: list[PendingLookup] | None
    """Lookups whose output gets a gradient from each of several tasks; None if all gradients are summed."""

    def on_output_gradient(self, lookup: PendingLookup, gradient: Tensor) -> None:
        """Keep the gradient of the output of ``lookup``."""
        gradient = gradient.float().contiguous()
        if self.waiting is None:
            with phase("row gradients"):
                self.pending.append(replace(lookup, gradients=[gradient]).collect(self.group))
            return
        if not lookup.gradients:
            self.waiting.append(lookup)
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
        with phase("lookup"):
            return self._look_up(indices, offsets, per_sample_weights)

    def _look_up(self, indices: Tensor, offsets: Tensor, per_sample_weights: Tensor | None) -> Tensor:
        if self.pooling_mode == PoolingMode.NONE:
            return _UnpooledLookup.apply(self.placeholder_autograd_tensor, self, indices, offsets)
        weights = None if per_sample_weights is None else per_sample_weights.float()
        if self.pooling_mode == PoolingMode.MEAN:
            lengths = offsets.diff()
            share = torch.repeat_interleave(1.0 / lengths.clamp(min=1), lengths, output_size=len(indices))
            weights = share if weights is None else weights * share
        lookup = PendingLookup(indices, offsets, weights)
        if torch.is_grad_enabled():
            lookup.sort(self.group)
        return _PooledLookup.apply(self.placeholder_autograd_tensor, self, lookup)


class _PooledLookup(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        placeholder: Tensor,
        tables: CollectingTables,
        lookup: PendingLookup,
    ) -> Tensor:
        group, offsets = tables.group, lookup.bags
        assert isinstance(offsets, Tensor)
        ctx.tables, ctx.lookup = tables, lookup
        bags = (len(offsets) - 1) // len(group.feature_tables)
        return kernels_for(group.weights.device).lookup(group, lookup.indices, offsets, bags, lookup.weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        ctx.tables.on_output_gradient(ctx.lookup, gradients[0])
        return None, None, None


class _UnpooledLookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, placeholder: Tensor, tables: CollectingTables, indices: Tensor, offsets: Tensor) -> Tensor:
        group = tables.group
        bags = (len(offsets) - 1) // len(group.feature_tables)
        lengths = offsets[::bags].diff().tolist() if bags else [0] * len(group.feature_tables)
        ctx.tables, ctx.lookup = tables, PendingLookup(indices, lengths, None)
        return kernels_for(group.weights.device).lookup_unpooled(group, indices, lengths)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        ctx.tables.on_output_gradient(ctx.lookup, gradients[0])
        return None, None, None, None


class ReplicatedUnpooledTables(DenseTableBatchedEmbeddingBagsCodegen):
    """Replicated unpooled tables. FBGEMM's own lookup returns too many rows on CPU."""

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
        ValueError: tables are cached, on SSD, in a number format other than float32 and float16, or have a width that is
            not a multiple of 4.
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
    collecting = compat.become(tables, CollectingTables)
    collecting.pending, collecting.waiting = [], None
    collecting.group = TableGroup(
        weights=weights.detach().flatten(),
        weight_offsets=torch.tensor([int(offset) for offset in tables.weights_physical_offsets[: len(rows) - 1]]),
        row_offsets=rows.cumsum(0),
        dims=torch.tensor([spec[1] for spec in tables.embedding_specs]),
        feature_tables=torch.tensor(tables.feature_table_map),
    )


def average_in_lookup(collection: Any, means: Collection[str]) -> frozenset[str]:
    """Let the lookups of a sharded collection of pooled tables divide the sums of features, where bags are whole there.

    Every process must call this. Tables on a GPU cannot; tables whose rows are split over processes, and replicated ones,
    keep their sums.

    Args:
        collection: the sharded collection, whose tables sum.
        means: features to average.

    Returns:
        Names of the columns, of tables on any process, as in the KeyedTensor of the result, that are means from now on.
    """
    whole = {config.name for config in compat.bag_configs(collection) if _bags_are_whole(collection, config.name)}
    for kernel in compat.kernels_of(compat.lookups_of(collection)):
        tables = compat.tables_of(kernel)
        if not isinstance(tables, CollectingTables):
            continue
        flags = [
            config.name in whole and feature in means
            for config in compat.table_configs(kernel)
            for feature in config.feature_names
        ]
        if any(flags):
            tables.group = replace(tables.group, means=torch.tensor(flags))
    # Also those of tables that only other processes hold.
    columns = pooled_columns(compat.bag_configs(collection))
    return frozenset(column.key for column in columns if column.table in whole and column.feature in means)


def _bags_are_whole(collection: ShardedEmbeddingBagCollection, table: str) -> bool:
    """True if the process that holds a table looks up all ids of a bag.

    Never for replicated tables, whose lookup is FBGEMM's own.
    """
    kind = collection.module_sharding_plan[table].sharding_type
    if kind == ShardingType.DATA_PARALLEL.value:
        return False
    return kind not in ROWS_SPLIT or compat.world_size(collection) == 1


def keep_gradients(lookups: list[Any]) -> None:
    """Replace the lookups of a sharded collection, in place, by lookups that keep their gradients."""
    for kernel in compat.kernels_of(lookups):
        tables, configs = compat.tables_of(kernel), compat.table_configs(kernel)
        if compat.is_fused(kernel):
            collect_gradients(tables, [config.name for config in configs])
        elif compat.is_dense_unpooled(kernel):
            replicated = compat.become(tables, ReplicatedUnpooledTables)
            replicated.table_of_feature = compat.tables_of_features(kernel)
            replicated.shapes = [(config.local_rows, config.local_cols) for config in configs]
