"""Shards of sharded tables on this process, their gradients, and the processes that hold columns of the same rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.distributed.embedding_types import ShardedEmbeddingTable
from torchrec.distributed.types import ShardMetadata

from dlrm_mtl.core.processes import TIMEOUT
from dlrm_mtl.embeddings.kernels.dispatch import kernels_for
from dlrm_mtl.embeddings.kernels.layout import RowGradients, TableGroup, empty_gradients
from dlrm_mtl.embeddings.rules.base import StateSpec
from dlrm_mtl.embeddings.torchrec import compat
from dlrm_mtl.embeddings.torchrec.lookups import CollectingTables
from dlrm_mtl.embeddings.torchrec.sharders import CollectingEmbeddingBagCollection, CollectingEmbeddingCollection

Sharded = CollectingEmbeddingBagCollection | CollectingEmbeddingCollection


@dataclass(frozen=True)
class Shard:
    """Part of one table on this process."""

    table: str
    """Full name of the table: path of its collection in the model, a dot, its own name."""
    row: int
    column: int
    """Row and column at which the part begins in the whole table."""
    columns: int
    """Number of columns of the whole table."""


@dataclass
class LocalTables:
    """Shards in one buffer that are looked up together."""

    shards: list[Shard]
    group: TableGroup
    source: CollectingTables | nn.Parameter
    """Source of gradients: the lookups, or the dense gradient of replicated tables."""
    states: dict[str, Tensor] = field(default_factory=dict)
    """State of the rule by name, float32: [sum of R_t] for state per row, of the size of the weights for state per element."""
    per_row: Tensor | None = None
    """[sum of R_t] float32: memory that FBGEMM keeps for the first state per row."""

    def allocate(self, specs: Sequence[StateSpec]) -> None:
        """Allocate the state of a rule, with its initial values."""
        for spec in specs:
            if spec.per == "row" and self.per_row is not None:
                self.states[spec.name], self.per_row = self.per_row, None
            else:
                size = int(self.group.row_offsets[-1]) if spec.per == "row" else self.group.weights.numel()
                self.states[spec.name] = torch.empty(size, device=self.group.weights.device)
            self.states[spec.name].fill_(spec.initial)

    def take_gradients(self) -> RowGradients:
        """Take the gradient since the last step."""
        kernels = kernels_for(self.group.weights.device)
        if isinstance(self.source, nn.Parameter):
            return self._from_dense(self.source.grad)
        pending, self.source.pending = self.source.pending, []
        if not pending:
            return empty_gradients(self.group)
        return pending[0] if len(pending) == 1 else kernels.merge(self.group, pending)

    def drop_gradients(self) -> None:
        """Drop the collected gradients."""
        if isinstance(self.source, nn.Parameter):
            self.source.grad = None
        else:
            self.source.pending = []

    def _from_dense(self, gradient: Tensor | None) -> RowGradients:
        """Rows with a nonzero gradient; no rule but Adam would move the others."""
        if gradient is None:
            return empty_gradients(self.group)
        rows, gradients, squares, counts = [], [], [], [0]
        flat = gradient.flatten()
        for table in range(self.group.tables):
            shape = self.group.table(table).shape
            start = int(self.group.weight_offsets[table])
            whole = flat[start : start + shape.numel()].view(shape)
            touched = (whole != 0).any(dim=1).nonzero().flatten()
            rows.append(touched)
            gradients.append(whole[touched].float())
            squares.append(gradients[-1].square().sum(dim=1))
            counts.append(len(touched))
        offsets = torch.tensor(counts).cumsum(0)
        flat_gradients = torch.cat([part.reshape(-1) for part in gradients])
        return RowGradients(torch.cat(rows), offsets, flat_gradients, torch.cat(squares))

    def state_of(self, spec: StateSpec, index: int) -> Tensor:
        """One shard's state as a view: [R_t] per row, [R_t, D_t] per element."""
        state, group = self.states[spec.name], self.group
        if spec.per == "row":
            return state[int(group.row_offsets[index]) : int(group.row_offsets[index + 1])]
        shape, start = group.table(index).shape, int(group.weight_offsets[index])
        return state[start : start + shape.numel()].view(shape)

    @cached_property
    def stretches(self) -> list[Stretch]:
        """The shards grouped into as few stretches of one width as possible, in order."""
        group = self.group
        dims, rows = group.dims.tolist(), group.row_offsets.tolist()
        starts = group.weight_offsets.tolist()
        found: list[Stretch] = []
        for index, (dim, start) in enumerate(zip(dims, starts, strict=True)):
            last = found[-1] if found else None
            if last is not None and last.dim == dim and start == last.start + (rows[index] - rows[last.first]) * dim:
                found[-1] = replace(last, end=index + 1)
            else:
                found.append(Stretch(index, index + 1, dim, start))
        return found


@dataclass(frozen=True)
class Stretch:
    """Tables ``first`` to ``end`` - 1 of a group, contiguous and of one width: together one matrix."""

    first: int
    end: int
    dim: int
    start: int
    """Start of the matrix in the weights, in elements."""


def sharded_collections(model: nn.Module) -> dict[str, Sharded]:
    """Sharded collections in ``model`` by path, without the wrappers' names."""
    found: dict[str, Sharded] = {}
    for path, module in model.named_modules():
        if isinstance(module, (CollectingEmbeddingBagCollection, CollectingEmbeddingCollection)):
            parts = [part for part in path.split(".") if part not in ("_dmp_wrapped_module", "module")]
            found[".".join(parts)] = module
    return found


def local_tables(collections: dict[str, Sharded], specs: Sequence[StateSpec]) -> list[LocalTables]:
    """All shards of ``collections`` on this process, with state for ``specs``."""
    result = []
    for path, collection in collections.items():
        for kernel in compat.kernels_of(compat.lookups_of(collection)):
            configs, module = compat.table_configs(kernel), compat.tables_of(kernel)
            if isinstance(module, CollectingTables):
                local = LocalTables(_shards(path, configs), module.group, module, per_row=compat.row_state(module))
            elif compat.is_dense(kernel):
                weights = module.weights
                assert isinstance(weights, nn.Parameter)
                local = _replicated(path, configs, weights)
            else:
                raise ValueError(f"tables {[c.name for c in configs]} have a compute kernel without a two-phase update")
            local.allocate(specs)
            result.append(local)
    return result


def _shards(path: str, configs: list[ShardedEmbeddingTable]) -> list[Shard]:
    shards = []
    for config in configs:
        offsets = config.local_metadata.shard_offsets if config.local_metadata else [0, 0]
        shards.append(Shard(f"{path}.{config.name}", offsets[0], offsets[1], config.embedding_dim))
    return shards


def _replicated(path: str, configs: list[ShardedEmbeddingTable], weights: nn.Parameter) -> LocalTables:
    rows = torch.tensor([0, *(config.local_rows for config in configs)]).cumsum(0)
    sizes = [config.local_rows * config.local_cols for config in configs]
    features = [index for index, config in enumerate(configs) for _ in range(config.num_features())]
    group = TableGroup(
        weights=weights.detach().flatten(),
        weight_offsets=torch.tensor([0, *sizes]).cumsum(0)[:-1],
        row_offsets=rows,
        dims=torch.tensor([config.local_cols for config in configs]),
        feature_tables=torch.tensor(features),
    )
    return LocalTables(_shards(path, configs), group, weights)


def placements(collections: dict[str, Sharded]) -> dict[str, list[ShardMetadata]]:
    """Locations of the parts of every table, by full name; empty for replicated tables."""
    return {
        f"{path}.{name}": list(sharding.sharding_spec.shards) if sharding.sharding_spec else []  # type: ignore[attr-defined]
        for path, collection in collections.items()
        for name, sharding in collection.module_sharding_plan.items()
    }


class ColumnPeers:
    """Reduction over the columns of rows that are split by columns: sum or minimum of one number per row.

    Every part of a row sees the same ids, so the touched rows of all parts are the same, in the same order. Parts on one
    process are combined there; processes that hold parts of the same rows share a process group.
    """

    def __init__(self, places: dict[str, list[ShardMetadata]], tables: list[LocalTables]) -> None:
        ranks: dict[tuple[str, int], set[int]] = defaultdict(set)
        columns: dict[tuple[str, int], set[int]] = defaultdict(set)
        for table, parts in places.items():
            for part in parts:
                ranks[table, part.shard_offsets[0]].add(part.placement.rank())  # type: ignore[union-attr]
                columns[table, part.shard_offsets[0]].add(part.shard_offsets[1])
        # In the order of the plan, which is the same on every process, as are the exchanges of ids.
        split = [key for key in ranks if len(columns[key]) > 1]
        teams = sorted({tuple(sorted(ranks[key])) for key in split if len(ranks[key]) > 1})
        # Every process must take part in the creation of every group, in the same order.
        self._groups = {team: dist.new_group(list(team), timeout=TIMEOUT) for team in teams}
        local: dict[tuple[str, int], list[Parts]] = {key: [] for key in split}
        for number, own in enumerate(tables):
            for index, shard in enumerate(own.shards):
                if (shard.table, shard.row) in local:
                    local[shard.table, shard.row].append(Parts(number, index, index + 1))
        self._rounds: dict[tuple[int, ...], list[list[Parts]]] = defaultdict(list)
        """For each team, the local parts of the rows that it shares; the parts of a list have the same rows."""
        for key in split:
            if local[key]:
                self._rounds[tuple(sorted(ranks[key]))].append(local[key])
        self._joined = {team: joined(rows) for team, rows in self._rounds.items()}

    @property
    def any(self) -> bool:
        """True if columns of any table are split."""
        return bool(self._rounds)

    def reduce(self, gradients: list[RowGradients], values: list[Tensor], minimum: bool = False) -> None:
        """Replace ``values`` [U] of split rows by their sums (or minima) over all columns, in place."""
        offsets = [each.table_offsets.tolist() for each in gradients]
        for team in sorted(self._rounds):
            combined, views = [], []
            for parts in self._joined[team]:
                own = [values[part.number][part.rows(offsets)] for part in parts]
                views.append(own)
                if len(own) == 1:
                    combined.append(own[0])
                else:
                    combined.append(torch.stack(own).amin(dim=0) if minimum else torch.stack(own).sum(dim=0))
            flat = torch.cat(combined)
            if team in self._groups:
                dist.all_reduce(flat, dist.ReduceOp.MIN if minimum else dist.ReduceOp.SUM, group=self._groups[team])
            for own, total in zip(views, flat.split([len(part) for part in combined]), strict=True):
                for view in own:
                    view.copy_(total)

    def share_state(self, tables: list[LocalTables], spec: StateSpec) -> None:
        """Copy state per row from the part with the first columns to the others, after loading it."""
        for team in sorted(self._rounds):
            for parts in self._rounds[team]:
                members = [
                    (tables[part.number].shards[part.first].column, tables[part.number].state_of(spec, part.first))
                    for part in parts
                ]
                value = torch.zeros_like(members[0][1])
                for column, state in members:
                    if column == 0:
                        value.copy_(state)
                if team in self._groups:
                    dist.all_reduce(value, group=self._groups[team])
                for _, state in members:
                    state.copy_(value)


@dataclass(frozen=True)
class Parts:
    """Consecutive shards ``first`` to ``end`` - 1 of the local tables ``number``."""

    number: int
    first: int
    end: int

    def rows(self, offsets: Sequence[Sequence[int]]) -> slice:
        """Touched rows of the shards, by the offsets of the touched rows of all local tables."""
        return slice(offsets[self.number][self.first], offsets[self.number][self.end])


def joined(rows: Sequence[Sequence[Parts]]) -> list[list[Parts]]:
    """``rows`` with neighbours joined whose every part follows that of the one before."""
    found: list[list[Parts]] = []
    for parts in rows:
        last = found[-1] if found else []
        if len(last) == len(parts) and all(
            one.number == other.number and one.end == other.first for one, other in zip(last, parts, strict=True)
        ):
            found[-1] = [replace(one, end=other.end) for one, other in zip(last, parts, strict=True)]
        else:
            found.append(list(parts))
    return found
