"""Optimizer of sharded tables: statistics, factors and finiteness over all processes first, then the update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.optim.keyed import KeyedOptimizer

from dlrm_mtl.core.phases import phase
from dlrm_mtl.embeddings.kernels import cpu, cpu_elements
from dlrm_mtl.embeddings.kernels.dispatch import kernels_for
from dlrm_mtl.embeddings.kernels.layout import NON_FINITE, RowGradients, Update
from dlrm_mtl.embeddings.rules.base import StateSpec, TableRule, TouchedRows
from dlrm_mtl.embeddings.torchrec.compat import (
    ShardedTensor,
    ShardedTensorMetadata,
    ShardMetadata,
    TensorProperties,
    TensorShard,
    sharded_tensor,
)
from dlrm_mtl.embeddings.torchrec.shards import (
    ColumnPeers,
    LocalTables,
    Stretch,
    local_tables,
    placements,
    sharded_collections,
)
from dlrm_mtl.embeddings.touched_rows import TouchedMarks


@dataclass
class StepReport:
    """Result of the last step; the same on every process."""

    skipped: bool = False
    """True if a gradient was not finite, so that nothing changed."""
    non_finite: list[str] = field(default_factory=list)
    """Tables whose gradient was not finite; ``dense`` means all other parameters."""
    factors: dict[str, float] = field(default_factory=dict)
    """Clipping factor of each table, in (0, 1]; 1 without clipping."""

    smallest_other: float = 1.0
    """Smallest factor outside the tables."""
    flag: int = 0
    """Largest flag that any process has passed to the step."""
    largest_moves: dict[str, float] = field(default_factory=dict)
    """Largest change of any coordinate of each table, if measured."""

    more: dict[str, float] = field(default_factory=dict)
    """Scalars that a training loop adds about parameters outside the tables."""

    def scalars(self) -> dict[str, float]:
        """Factors and moves by the table's own name, for a log."""
        scalars = {f"factor/{name.rpartition('.')[2]}": value for name, value in self.factors.items()}
        scalars.update({f"largest_move/{name.rpartition('.')[2]}": value for name, value in self.largest_moves.items()})
        return scalars | self.more

    @property
    def clipped(self) -> bool:
        """True if any factor is below 1."""
        return not self.skipped and any(factor < 1.0 for factor in [self.smallest_other, *self.factors.values()])


class TwoPhaseOptimizer(KeyedOptimizer):
    """Optimizer of the tables of a model sharded with :func:`~dlrm_mtl.embeddings.torchrec.sharders.two_phase_sharders`.

    Gradients of all backward passes since the last step add up. A step does not depend on the number of processes or the
    sharding plan, and changes nothing if any gradient is not finite. The rule's state is [rows] or [rows, dim] float32 by
    table, in sharded tensors that can be loaded under another plan.

    Args:
        model: a ``DistributedModelParallel``; every process must construct the optimizer.
        rule: the update; its learning rate is a param group's ``lr``, which schedulers may change.
        rates: factor in [0, 1] of the learning rate, by the table's own name; 1 for the others. A table with 0 is frozen: its
            gradients are dropped, so that it keeps weights and state and limits no step.

    Raises:
        ValueError: the model holds no tables that collect gradients, or no table of a name in ``rates``.
    """

    def __init__(self, model: nn.Module, rule: TableRule, rates: Mapping[str, float] | None = None) -> None:
        collections = sharded_collections(model)
        if not collections:
            raise ValueError(
                "the model has no tables for the two-phase update: shard it with sharders=two_phase_sharders()"
            )
        self.rule = rule
        self.collections = collections
        self.tables = local_tables(collections, rule.states)
        places = placements(collections)
        self.peers = ColumnPeers(places, self.tables)
        self.names = sorted(places)
        self.rates = _by_full_name(self.names, rates or {})
        """Factor of the learning rate by full name of the table."""
        self._slow = any(0 < rate < 1 for rate in self.rates.values())
        self.steps = 0
        self.touched: TouchedMarks | None = None
        """Marks of the rows that steps have changed; None until :meth:`mark_touched`."""
        self.report = StepReport()
        self._native = rule.native()
        self._elements = rule.native_elements()
        self._checked = self._native or Update(kind="sgd")  # for any rule, the kernels check finiteness
        self._device = self.tables[0].group.weights.device if self.tables else torch.device("cpu")
        own: dict[str, list[tuple[LocalTables, int]]] = {name: [] for name in self.names}
        for local in self.tables:
            for index, shard in enumerate(local.shards):
                own[shard.table].append((local, index))
        params, state = {}, {}
        for path, collection in collections.items():
            for key, weight in collection.state_dict().items():
                if not key.endswith(".weight"):
                    continue
                name = f"{path}.{key.split('.')[-2]}"
                params[name] = weight
                state[weight] = {
                    spec.name: self._tensor_of(spec, weight, places[name], own[name]) for spec in rule.states
                }
        super().__init__(params, state, [{"params": list(params.values()), "lr": rule.learning_rate}])

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], float] | None = None,
        *,
        others: Tensor | None = None,
        measure: bool = False,
        flag: int = 0,
    ) -> None:
        """Apply the gradients collected since the last step, and set ``report``.

        Args:
            closure: recomputes the loss, as in any PyTorch optimizer.
            others: 0-dim float32; smallest factor of the parameters outside the tables, or NON_FINITE if a gradient there
                is not finite on this process, so that no table changes either. Default: 1.
            measure: True to report the largest moves, which takes another pass over the touched rows.
            flag: a number from 0 to 2^24 - 1. Every process's report has the largest one; it needs no exchange of its own.
        """
        if closure is not None:
            with torch.enable_grad():
                closure()
        with phase("two-phase step"):
            rate = float(self.param_groups[0]["lr"])
            with phase("row gradients"):
                gradients = [self._unfrozen(local, self._taken(local)) for local in self.tables]
            with phase("row statistics"):
                means = self._mean_squares(gradients)
            with phase("factors"):
                own = self._factors(gradients, means, rate)
            with phase("agreement"):
                dense, *by_table, least = self._agree(own, others, flag).tolist()
            broken = [name for name, factor in zip(self.names, by_table, strict=True) if factor <= NON_FINITE]
            if dense <= NON_FINITE:
                broken.append("dense")
            self.report = StepReport(bool(broken), broken, dict(zip(self.names, by_table, strict=True)), dense)
            self.report.flag = -int(least)
            if not broken:
                self.steps += 1
                if measure and self._native is not None:
                    self.report.largest_moves = self._largest_moves(gradients, means, self.report.factors, rate)
                with phase("apply"):
                    self._apply(gradients, means, self.report.factors, rate)
                if self.touched is not None:
                    self.touched.add(gradients)
        self.zero_grad()

    def mark_touched(self) -> TouchedMarks:
        """Mark the rows that change from now on, in one byte for each local row."""
        if self.touched is None:
            self.touched = TouchedMarks(self.tables)
        return self.touched

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the collected gradients."""
        for local in self.tables:
            local.drop_gradients()

    def _mean_squares(self, gradients: list[RowGradients]) -> list[Tensor]:
        """Mean square of each touched row over the whole row, [U], for each of the local tables."""
        sums = [gradient.square_sums for gradient in gradients]
        if self.peers.any:
            self.peers.reduce(gradients, sums)
        means = []
        for local, gradient, total in zip(self.tables, gradients, sums, strict=True):
            counts = gradient.table_offsets.diff().to(total.device)
            widths = torch.tensor([float(shard.columns) for shard in local.shards], device=total.device)
            means.append(total / torch.repeat_interleave(widths, counts, output_size=len(total)))
        return means

    def _factors(self, gradients: list[RowGradients], means: list[Tensor], rate: float) -> Tensor:
        """[tables] largest factor allowed by the rows on this process, or NON_FINITE."""
        result = torch.ones(len(self.names), device=self._device)
        number = {name: index for index, name in enumerate(self.names)}
        for local, gradient, mean in zip(self.tables, gradients, means, strict=True):
            kernels = kernels_for(local.group.weights.device)
            factors = kernels.factors(local.group, self._kernel_state(local), gradient, mean, self._checked, rate)
            if self._native is None and self.rule.clips:
                factors = torch.minimum(factors, self._factors_of_rule(local, gradient, mean, rate))
            elif self._slow:  # at a smaller rate a larger factor is safe
                factors = torch.where(factors > NON_FINITE, (factors / self._rates_of(local)).clamp(max=1.0), factors)
            index = torch.tensor([number[shard.table] for shard in local.shards], device=factors.device)
            result.scatter_reduce_(0, index, factors, "amin")
        return result

    def _factors_of_rule(self, local: LocalTables, gradient: RowGradients, mean: Tensor, rate: float) -> Tensor:
        """[T] largest factors of the tables of ``local``, by the rule's own function."""
        result = torch.ones(local.group.tables, device=mean.device)
        for part in self._parts(local, gradient, mean):
            largest = self.rule.largest_factors(part.touched, rate * part.rate)
            result.scatter_reduce_(0, part.tables, largest, "amin")
        return result

    def _largest_moves(
        self, gradients: list[RowGradients], means: list[Tensor], factors: dict[str, float], rate: float
    ) -> dict[str, float]:
        """Largest change of any coordinate of each table in the coming update."""
        moves = dict.fromkeys(self.names, 0.0)
        for local, gradient, mean in zip(self.tables, gradients, means, strict=True):
            for slower in {self.rates[shard.table] for shard in local.shards}:
                here = kernels_for(mean.device).largest_moves(
                    local.group, self._kernel_state(local), gradient, mean, self._checked, rate * slower
                )
                for shard, move in zip(local.shards, here.tolist(), strict=True):
                    if self.rates[shard.table] == slower:
                        moves[shard.table] = max(moves[shard.table], move * factors[shard.table])
        everywhere = torch.tensor([moves[name] for name in self.names], device=self._device)
        dist.all_reduce(everywhere, dist.ReduceOp.MAX)
        return dict(zip(self.names, everywhere.tolist(), strict=True))

    def _agree(self, factors: Tensor, others: Tensor | None, flag: int) -> Tensor:
        """[tables + 2] minima over all processes of ``others``, the factors and minus the flag: the step's only all-reduce."""
        first = factors.new_ones(1) if others is None else others.to(factors).reshape(1)
        numbers = torch.cat([first, factors, factors.new_tensor([-float(flag)])])
        dist.all_reduce(numbers, dist.ReduceOp.MIN)
        return numbers

    def _apply(
        self, gradients: list[RowGradients], means: list[Tensor], factors: dict[str, float], rate: float
    ) -> None:
        update = self._native
        if update is not None and update.per_row and (self.peers.any or self._slow):
            update = self._scale_rows(gradients, means, update, rate)
        for local, gradient, mean in zip(self.tables, gradients, means, strict=True):
            factor = torch.tensor([factors[shard.table] for shard in local.shards], device=mean.device)
            if update is None and self._elements and kernels_for(mean.device) is cpu:
                rates = [rate * self.rates[shard.table] for shard in local.shards]
                states = [local.states[spec.name] for spec in self.rule.states]
                cpu_elements.apply(local.group, states, gradient, mean, self._elements, rates, self.steps)
            elif update is None:
                self._apply_rule(local, gradient, mean, factor, rate)
            else:
                if self._slow:
                    factor *= self._rates_of(local)
                kernels = kernels_for(local.group.weights.device)
                kernels.apply(local.group, self._kernel_state(local), gradient, mean, factor, update, rate)

    def _scale_rows(self, gradients: list[RowGradients], means: list[Tensor], rule: Update, rate: float) -> Update:
        """Multiply every row's gradient by its own factor, over all columns; return the rule for the remaining update."""
        factors = [
            kernels_for(mean.device).row_factors(local.group, self._kernel_state(local), gradient, mean, rule, rate)
            for local, gradient, mean in zip(self.tables, gradients, means, strict=True)
        ]
        self.peers.reduce(gradients, factors, minimum=True)
        for local, gradient, factor in zip(self.tables, gradients, factors, strict=True):
            for index, shard in enumerate(local.shards):
                own = gradient.part(factor, index)
                if self._slow:  # at a smaller rate a larger factor is safe
                    own = (own / (self.rates[shard.table] or 1.0)).clamp(max=1.0)
                gradient.gradient(local.group, index).mul_(own.unsqueeze(1))
        return Update(kind="adagrad", eps=rule.eps, eps_inside=rule.eps_inside, delayed=rule.delayed)

    def _apply_rule(
        self, local: LocalTables, gradient: RowGradients, mean: Tensor, factor: Tensor, rate: float
    ) -> None:
        """Update touched rows by the rule's own function, all tables of one width and rate at once."""
        for part in self._parts(local, gradient, mean):
            touched = part.touched
            self.rule.update(touched, rate * part.rate, self.steps, factor[part.tables])
            weights = self._matrix(local, local.group.weights, part.stretch)
            weights[part.rows] = touched.weights.to(weights.dtype)
            for spec in self.rule.states:
                self._whole_state(local, spec, part.stretch)[part.rows] = touched.states[spec.name]

    def _parts(self, local: LocalTables, gradient: RowGradients, mean: Tensor) -> Iterator[_Part]:
        """Touched rows of ``local`` by width and rate."""
        for stretch in local.stretches:
            touched, rows, tables = self._touched(local, gradient, mean, stretch)
            if not len(rows):
                continue
            rates = [self.rates[shard.table] for shard in local.shards]
            distinct = sorted(set(rates[stretch.first : stretch.end]) - {0.0})
            if len(distinct) == 1:
                yield _Part(stretch, touched, rows, tables, distinct[0])
                continue
            by_row = torch.tensor(rates, dtype=torch.float64)[tables.cpu()].to(rows.device)
            for rate in distinct:
                own = (by_row == rate).nonzero().flatten()
                some = TouchedRows(
                    touched.weights[own],
                    touched.gradients[own],
                    touched.mean_squares[own],
                    {name: state[own] for name, state in touched.states.items()},
                )
                if len(own):
                    yield _Part(stretch, some, rows[own], tables[own], rate)

    def _taken(self, local: LocalTables) -> RowGradients:
        """The collected gradients of the rows that the rule updates."""
        gradient = local.take_gradients()
        return gradient.of_all_rows(local.group) if self.rule.moves_all_rows else gradient

    def _unfrozen(self, local: LocalTables, gradient: RowGradients) -> RowGradients:
        """``gradient`` without the rows of frozen tables."""
        kept = [self.rates[shard.table] > 0 for shard in local.shards]
        return gradient if all(kept) else gradient.only(local.group, kept)

    def _rates_of(self, local: LocalTables) -> Tensor:
        """[T] factor of the learning rate of each table; 1 for frozen ones, which touch no row."""
        rates = [self.rates[shard.table] or 1.0 for shard in local.shards]
        return torch.tensor(rates, device=local.group.weights.device)

    def _touched(
        self, local: LocalTables, gradient: RowGradients, mean: Tensor, stretch: Stretch
    ) -> tuple[TouchedRows, Tensor, Tensor]:
        """Touched rows of a stretch, their numbers in its matrix [U], and the table of each [U]."""
        group, first, end = local.group, stretch.first, stretch.end
        counts = gradient.table_offsets[first : end + 1].diff()
        shifts = group.row_offsets[first:end] - group.row_offsets[first]
        touched = slice(int(gradient.table_offsets[first]), int(gradient.table_offsets[end]))
        tables = torch.repeat_interleave(torch.arange(first, end), counts).to(mean.device)
        rows = gradient.rows[touched] + torch.repeat_interleave(shifts, counts).to(mean.device)
        ahead = int((gradient.table_offsets[: first + 1].diff() * group.dims[:first]).sum())
        gradients = gradient.gradients[ahead : ahead + len(rows) * stretch.dim].view(-1, stretch.dim)
        weights = self._matrix(local, group.weights, stretch)[rows].float()
        states = {spec.name: self._whole_state(local, spec, stretch)[rows] for spec in self.rule.states}
        return TouchedRows(weights, gradients, mean[touched], states), rows, tables

    def _matrix(self, local: LocalTables, values: Tensor, stretch: Stretch) -> Tensor:
        """Tables of a stretch as one matrix, in a tensor with the layout of the weights."""
        offsets = local.group.row_offsets
        size = int(offsets[stretch.end] - offsets[stretch.first]) * stretch.dim
        return values[stretch.start : stretch.start + size].view(-1, stretch.dim)

    def _whole_state(self, local: LocalTables, spec: StateSpec, stretch: Stretch) -> Tensor:
        state, offsets = local.states[spec.name], local.group.row_offsets
        if spec.per == "element":
            return self._matrix(local, state, stretch)
        return state[int(offsets[stretch.first]) : int(offsets[stretch.end])]

    def _kernel_state(self, local: LocalTables) -> Tensor:
        """The state per row that native kernels use; empty for kernels without state."""
        if self._checked.kind == "sgd":
            return local.group.weights.new_empty(0, dtype=torch.float32)
        return local.states[self.rule.states[0].name]

    def state_by_table(self) -> dict[str, dict[str, Any]]:
        """State of every table by full name, as live tensors. Call :meth:`loaded` after filling them."""
        return {name: self.state[weight] for name, weight in self.params.items() if self.state[weight]}

    def loaded(self, steps: int) -> None:
        """Complete loaded state, with its number of steps. Every process must call this."""
        self.steps = steps
        for spec in self.rule.states:
            if spec.per == "row":
                self.peers.share_state(self.tables, spec)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the result of ``state_dict`` under the same plan."""
        super().load_state_dict(state_dict)
        self.loaded(self.steps)

    def _tensor_of(
        self, spec: StateSpec, weight: Any, places: list[ShardMetadata], own: list[tuple[LocalTables, int]]
    ) -> Any:
        """State of a table as a sharded tensor, or as a plain one for a replicated table."""
        parts = [(local.shards[index], local.state_of(spec, index)) for local, index in own]
        if not isinstance(weight, ShardedTensor):
            return parts[0][1]
        if spec.per == "element":
            return _like(weight, [TensorShard(state, _place(weight, shard)) for shard, state in parts])
        firsts = [part for part in places if part.shard_offsets[1] == 0]
        return _sharded(weight, [(shard.row, state) for shard, state in parts if shard.column == 0], firsts)


@dataclass(frozen=True)
class _Part:
    """Touched rows of tables of one width and one rate."""

    stretch: Stretch
    touched: TouchedRows
    rows: Tensor
    """[U] int64: row in the stretch's matrix."""
    tables: Tensor
    """[U] int64: table within its group."""
    rate: float
    """Factor of the learning rate."""


def _by_full_name(names: list[str], rates: Mapping[str, float]) -> dict[str, float]:
    """``rates`` by full name, 1 for tables that it does not name."""
    own = {name.rpartition(".")[2]: name for name in names}
    for name, rate in rates.items():
        if name not in own:
            raise ValueError(f"rates: there is no table {name!r}; there are {', '.join(own)}")
        if not 0 <= rate <= 1:
            raise ValueError(f"rates: that of {name!r} is {rate} and must be from 0 to 1")
    return {full: float(rates.get(name, 1.0)) for name, full in own.items()}


def _sharded(weight: ShardedTensor, local: list[tuple[int, Tensor]], places: list[ShardMetadata]) -> ShardedTensor:
    """A sharded [rows] tensor whose parts are placed with the first columns of the table."""
    metadata = [
        ShardMetadata([part.shard_offsets[0]], [part.shard_sizes[0]], str(part.placement))
        for part in places
        if part.shard_sizes[0]
    ]
    of_row = {part.shard_offsets[0]: part for part in metadata}
    shards = [TensorShard(tensor, of_row[row]) for row, tensor in local if len(tensor)]
    whole = ShardedTensorMetadata(metadata, torch.Size([weight.size(0)]), TensorProperties(dtype=torch.float32))
    return sharded_tensor(shards, whole)


def _place(weight: ShardedTensor, shard: Any) -> ShardMetadata:
    for part in weight.metadata().shards_metadata:
        if list(part.shard_offsets) == [shard.row, shard.column]:
            return part
    raise AssertionError(f"no part of {shard.table} begins at row {shard.row}, column {shard.column}")


def _like(weight: ShardedTensor, shards: list[TensorShard]) -> ShardedTensor:
    metadata = weight.metadata()
    properties = TensorProperties(dtype=torch.float32)
    whole = ShardedTensorMetadata(metadata.shards_metadata, metadata.size, properties)
    return sharded_tensor(shards, whole)
