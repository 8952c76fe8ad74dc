"""The kernels on CUDA: the functions of :mod:`reference`, with the same arguments, on Triton kernels.

Nothing but this module needs Triton. The ids of a batch are sorted by row, stably, so that all occurrences of a row lie
together in their old order, and every sum is taken in that order; equal input gives equal bits.

The number of touched rows is known on the device only. Callers get exact sizes, so the host has to wait for them once per
batch, in :func:`collect`. :func:`sort_pooled` in the forward pass lets the dense layers run meanwhile: by the time of
the backward pass the sizes have long arrived. Nothing else here waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import triton
from torch import Tensor

from dlrm_mtl.embeddings.kernels import triton_kernels as kernels
from dlrm_mtl.embeddings.kernels.layout import RowGradients, Rule, TableGroup, empty_gradients

TILE = 1024
"""Elements of a tile of rows times columns: 8 per thread of 4 warps."""
WIDEST_TILE = 256
"""Columns of a tile at most."""
SHORT = 32
"""A row with more occurrences than this is summed in pieces, by several programs."""
BLOCK = 1024
"""Items of a program that treats ids one by one."""

# Products are rounded before they are added, as on the CPU.
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@dataclass
class Occurrences:
    """The ids of a batch in the order of the rows they touch; which rows those are, and how many."""

    rows: Tensor
    """[N] int64: the U touched rows, each within its table, ascending, table after table; the rest is not set."""
    starts: Tensor
    """[N + 1] int64: where the occurrences of each touched row begin; the first U + 1 are set."""
    long_entries: Tensor
    """[at most N / SHORT] int64: the touched rows with more than SHORT occurrences, as places in ``rows``."""
    sources: Tensor
    """[N] int64: where the gradient of each occurrence begins, in quads."""
    scales: Tensor | None
    """[N] float32: factor of each occurrence."""
    sizes: Tensor
    """[T + 3] int64 on the CPU: where each table's rows begin in ``rows``, and U; how many long rows, and ids within tables.

    Valid once ``arrived`` has happened.
    """
    arrived: torch.cuda.Event | None
    """When ``sizes`` has reached the host; None on a CPU."""

    def host_sizes(self) -> list[int]:
        """Wait for ``sizes``."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.sizes.tolist()


class DeviceRowGradients(RowGradients):
    """Row gradients that are written out only when somebody reads :attr:`gradients`.

    A row that occurs once has the gradient of its bag, which the other rows of the bag share and the device's cache may hold.
    Until they are written out, the kernels sum the occurrences of a row each time they need its gradient, always in the same
    order.
    """

    def __init__(
        self, group: TableGroup, occurrences: Occurrences, gradient: Tensor, table_offsets: Tensor, longs: int
    ) -> None:
        """Take ``gradient``, of a lookup, for the ``occurrences``; ``longs`` of the rows are long."""
        plan, device, touched = _plan(group), gradient.device, int(table_offsets[-1])
        self.rows = occurrences.rows[:touched]
        self.table_offsets = table_offsets
        self.square_sums = torch.empty(touched, device=device)
        self.maxima = torch.empty(touched, device=device)
        """[U] float32: largest absolute value of each row's gradient over the columns here."""
        self.spans, self.tiles = _spans(group, plan, table_offsets)
        self._group = group
        self._floats = int((table_offsets.diff() * group.dims).sum())
        self._written: Tensor | None = None
        # A row's gradient is read up to three times. With many occurrences of each row, summing once is less to read.
        written = torch.empty(self._floats, device=device) if touched * 2 < len(occurrences.sources) else None
        self._sources: _Sources | None = _Sources(
            gradient, occurrences, longs, _sum_long_rows(plan, occurrences, gradient, longs, self.spans)
        )
        self._sum(written, measure=True)
        self._keep(written)

    @property
    def gradients(self) -> Tensor:  # type: ignore[override]
        """[sum of U_t * D_t] float32: the rows' gradients one after the other, in the order of ``rows``."""
        if self._written is None:
            written = torch.empty(self._floats, device=self.rows.device)
            self._sum(written, measure=False)
            self._keep(written)
            return written
        return self._written

    @property
    def sources(self) -> _Sources | None:
        """What to sum while the gradients are not written out."""
        return self._sources

    def _keep(self, written: Tensor | None) -> None:
        if written is not None:
            self._written, self._sources = written, None

    def _sum(self, written: Tensor | None, measure: bool) -> None:
        assert self._sources is not None
        plan = _plan(self._group)
        with torch.cuda.device_of(self.rows):
            kernels.sum_kernel[(self.tiles,)](
                *self._sources.arguments(plan),
                self.spans,
                plan.tables,
                plan.steps,
                plan.table_quads,
                self.maxima if written is None else written,
                self.square_sums,
                self.maxima,
                WRITES=written is not None,
                MEASURES=measure,
                **self._sources.options(plan),
            )


@dataclass(frozen=True)
class _Sources:
    """Where kernels find the gradients of rows: of their occurrences, and the sums of long rows."""

    gradient: Tensor
    occurrences: Occurrences
    longs: int
    long_sums: Tensor
    """[longs, widest D] float32."""

    def arguments(self, plan: _Plan) -> tuple[Tensor | int, ...]:
        """Positional arguments of the kernels, from ``gradient`` to ``long_quads``."""
        some = self.occurrences
        scales = some.sources if some.scales is None else some.scales
        steps = self.longs.bit_length()
        places = (self.long_sums, some.long_entries, self.longs, steps, plan.widest_quads)
        return (self.gradient, some.sources, scales, some.starts, *places)

    def options(self, plan: _Plan) -> dict[str, Any]:
        """Keyword arguments of the kernels."""
        return {"WEIGHTED": self.occurrences.scales is not None, "SHORT": SHORT, **plan.tile}


def _row_arguments(gradients: RowGradients, plan: _Plan) -> tuple[tuple[Tensor | int, ...], dict[str, Any]]:
    """Arguments by which the kernels of the update find the rows' gradients."""
    sources = gradients.sources if isinstance(gradients, DeviceRowGradients) else None
    if sources is not None:
        return sources.arguments(plan), {"SHARED": True, **sources.options(plan)}
    written, unused = gradients.gradients, gradients.rows
    arguments = (written, unused, unused, unused, written, unused, 0, 0, plan.widest_quads)
    return arguments, {"SHARED": False, "WEIGHTED": False, "SHORT": SHORT, **plan.tile}


def lookup(group: TableGroup, indices: Tensor, offsets: Tensor, bags: int, bag_weights: Tensor | None = None) -> Tensor:
    """Sum the rows of each bag; as :func:`reference.lookup`.

    An id outside its table gives NaN: there is no way to raise without waiting for the device. :func:`collect` raises.
    """
    plan = _plan(group)
    features = len(group.feature_tables)
    out = torch.empty(bags, plan.width, device=group.weights.device)
    if out.numel():
        with torch.cuda.device_of(group.weights):
            kernels.lookup_kernel[(triton.cdiv(bags, plan.tile_rows), features)](
                group.weights,
                indices.contiguous(),
                offsets.contiguous(),
                group.weights if bag_weights is None else bag_weights.float().contiguous(),
                out,
                bags,
                plan.width // 4,
                plan.feature_tables,
                plan.feature_columns,
                plan.table_quads,
                plan.weight_quads,
                plan.row_offsets,
                WEIGHTED=bag_weights is not None,
                **plan.tile,
            )
    return out


def sort_pooled(
    group: TableGroup, indices: Tensor, offsets: Tensor, bags: int, bag_weights: Tensor | None = None
) -> Occurrences | None:
    """Sort the ids of a pooled lookup by the rows they touch; None if there are none. Does not wait for the device.

    Args:
        group: the tables.
        indices: as for :func:`lookup`.
        offsets: as for :func:`lookup`; from 0 to N.
        bags: B.
        bag_weights: as for :func:`lookup`.
    """
    plan = _plan(group)
    segments = _Segments(offsets, bags, plan.width // 4, plan.feature_tables, plan.feature_columns, pooled=True)
    return _sort(group, plan, indices, segments, bag_weights)


def sort_unpooled(group: TableGroup, indices: Tensor, lengths: list[int]) -> Occurrences | None:
    """As :func:`sort_pooled`, for lookups that return one row per id; arguments as for :func:`collect_unpooled`."""
    plan = _plan(group)
    begins = [0]
    for length in lengths:
        begins.append(begins[-1] + length)
    offsets = torch.tensor(begins).to(indices.device, non_blocking=True)
    # Tables of one width: the gradient of an id begins at its place times that width.
    return _sort(
        group,
        plan,
        indices,
        _Segments(offsets, 1, 0, plan.feature_tables, offsets[:-1] * plan.widest_quads, pooled=False),
    )


def collect(
    group: TableGroup,
    indices: Tensor,
    offsets: Tensor,
    bags: int,
    gradient: Tensor,
    bag_weights: Tensor | None = None,
    occurrences: Occurrences | None = None,
) -> RowGradients:
    """Sum the gradient of a lookup's output over all occurrences of each row; as :func:`reference.collect`.

    Waits for the number of touched rows.

    Args:
        group: the tables.
        indices: as for :func:`lookup`.
        offsets: as for :func:`lookup`.
        bags: B.
        gradient: [B, sum of D over features] float32. The result may refer to it until the step: it must not change.
        bag_weights: as for :func:`lookup`.
        occurrences: what :func:`sort_pooled` returned for the same arguments, if it was called before.

    Raises:
        IndexError: an id lies outside its table.
    """
    occurrences = occurrences or sort_pooled(group, indices, offsets, bags, bag_weights)
    if occurrences is None:
        return empty_gradients(group)
    if not _ids_known(occurrences):
        _refuse(group, indices, offsets[::bags].tolist())
    return _sum(group, occurrences, gradient)


def collect_unpooled(
    group: TableGroup,
    indices: Tensor,
    lengths: list[int],
    gradient: Tensor,
    occurrences: Occurrences | None = None,
) -> RowGradients:
    """As :func:`collect`, for lookups that return one row per id; as :func:`reference.collect_unpooled`.

    Args:
        group: the tables, all of one width D.
        indices: [N] int64, feature after feature.
        lengths: [F] number of ids of each feature.
        gradient: [N, D] float32; must not change until the step.
        occurrences: what :func:`sort_unpooled` returned for the same arguments, if it was called before.

    Raises:
        IndexError: an id lies outside its table.
    """
    occurrences = occurrences or sort_unpooled(group, indices, lengths)
    if occurrences is None:
        return empty_gradients(group)
    if not _ids_known(occurrences):
        _refuse(group, indices, [sum(lengths[:feature]) for feature in range(len(lengths) + 1)])
    return _sum(group, occurrences, gradient)


def merge(group: TableGroup, parts: list[RowGradients]) -> RowGradients:
    """Add the gradients of several backward passes; as :func:`reference.merge`. Waits for the number of rows."""
    parts = [part for part in parts if len(part.rows)]
    if not parts:
        return empty_gradients(group)
    if len(parts) == 1:
        return parts[0]
    plan = _plan(group)
    device = group.weights.device
    # Each table of each part is a stretch of ids with gradients of their own.
    counts = torch.cat([part.table_offsets.diff() for part in parts])
    offsets = _running_sum(counts).to(device, non_blocking=True)
    sources = _running_sum(counts * (group.dims // 4).repeat(len(parts)))[:-1].to(device, non_blocking=True)
    tables = torch.arange(group.tables, device=device).repeat(len(parts))
    rows = torch.cat([part.rows for part in parts])
    occurrences = _sort(group, plan, rows, _Segments(offsets, 1, 0, tables, sources, pooled=False))
    assert occurrences is not None
    return _sum(group, occurrences, torch.cat([part.gradients for part in parts]))


def factors(
    group: TableGroup, state: Tensor, gradients: RowGradients, mean_squares: Tensor, rule: Rule, lr: float
) -> Tensor:
    """Find the largest factor of each table; as :func:`reference.factors`. Does not wait for the device."""
    plan = _plan(group)
    if not len(gradients.rows):
        return torch.ones(group.tables, device=group.weights.device)
    spans, tiles = _place(group, plan, gradients)
    arguments, options = _row_arguments(gradients, plan)
    maxima = gradients.maxima if isinstance(gradients, DeviceRowGradients) else None
    minima = torch.empty(tiles, device=group.weights.device)
    result = torch.empty(group.tables, device=group.weights.device)
    with torch.cuda.device_of(group.weights):
        kernels.factors_kernel[(tiles,)](
            group.weights,
            state,
            gradients.rows,
            *arguments,
            mean_squares.contiguous(),
            mean_squares if maxima is None else maxima,
            spans,
            plan.tables,
            plan.steps,
            plan.table_quads,
            plan.weight_quads,
            plan.row_offsets,
            float(lr),
            float(rule.lambda_rel),
            float(rule.lambda_abs),
            float(rule.eps),
            minima,
            CLIPS=rule.kind == "clippy" and not rule.per_row,
            BOUNDED=maxima is not None,
            EPS_INSIDE=rule.eps_inside,
            DELAYED=rule.delayed,
            **options,
        )
        kernels.table_minima_kernel[(group.tables,)](minima, spans, result, BLOCK=BLOCK, **_OPTIONS)
    return result


def apply(
    group: TableGroup,
    state: Tensor,
    gradients: RowGradients,
    mean_squares: Tensor,
    factor: Tensor,
    rule: Rule,
    lr: float,
) -> None:
    """Update weights and accumulators of the touched rows in place; as :func:`reference.apply`. Does not wait."""
    if not len(gradients.rows):
        return
    plan = _plan(group)
    spans, tiles = _place(group, plan, gradients)
    arguments, options = _row_arguments(gradients, plan)
    with torch.cuda.device_of(group.weights):
        kernels.apply_kernel[(tiles,)](
            group.weights,
            state,
            gradients.rows,
            *arguments,
            mean_squares.contiguous(),
            factor.contiguous(),
            spans,
            plan.tables,
            plan.steps,
            plan.table_quads,
            plan.weight_quads,
            plan.row_offsets,
            float(lr),
            float(rule.lambda_rel),
            float(rule.lambda_abs),
            float(rule.eps),
            ACCUMULATES=rule.kind != "sgd",
            PER_ROW=rule.kind == "clippy" and rule.per_row,
            EPS_INSIDE=rule.eps_inside,
            DELAYED=rule.delayed,
            **options,
        )


@dataclass(frozen=True)
class _Plan:
    """What the kernels need to know of a :class:`TableGroup`, on its device."""

    table_quads: Tensor
    """[T] int64: D_t / 4."""
    weight_quads: Tensor
    """[T] int64: where each table begins in the weights, in quads."""
    row_offsets: Tensor
    """[T + 1] int64."""
    feature_tables: Tensor
    """[F] int64."""
    feature_columns: Tensor
    """[F] int64: first column of each feature in a pooled output, in quads."""
    tables: int
    steps: int
    """Halvings that find one of T tables."""
    total_rows: int
    width: int
    """Columns of a pooled output."""
    widest_quads: int
    """D of the widest table, in quads."""
    tile_rows: int
    tile_columns: int

    @property
    def tile(self) -> dict[str, Any]:
        """Keyword arguments of the kernels that treat tiles."""
        return {"ROWS": self.tile_rows, "COLUMNS": self.tile_columns, **_OPTIONS}


# A group is used for thousands of batches; what is derived from it goes when it goes.
_plans: WeakKeyDictionary[TableGroup, _Plan] = WeakKeyDictionary()


def _plan(group: TableGroup) -> _Plan:
    plan = _plans.get(group)
    if plan is None:
        plan = _plans[group] = _make_plan(group)
    return plan


def _make_plan(group: TableGroup) -> _Plan:
    for table, dim in enumerate(group.dims.tolist()):
        if dim < 4 or dim % 4:
            raise ValueError(f"table {table} has dim {dim}: the CUDA kernels need a positive multiple of 4")
    if (group.weight_offsets % 4).any():
        raise ValueError(f"weight_offsets {group.weight_offsets.tolist()} must be multiples of 4")
    device = group.weights.device
    columns = group.output_offsets()
    # Tables share a launch. A tile as wide as the mean wastes few threads on narrow tables; wide ones take some rounds.
    mean = int(group.dims.float().mean().ceil()) if group.tables else 4
    tile_columns = min(max(triton.next_power_of_2(mean), 4), WIDEST_TILE)
    return _Plan(
        table_quads=(group.dims // 4).to(device),
        weight_quads=(group.weight_offsets // 4).to(device),
        row_offsets=group.row_offsets.to(device),
        feature_tables=group.feature_tables.to(device),
        feature_columns=torch.tensor(columns[:-1], dtype=torch.int64).to(device) // 4,
        tables=group.tables,
        steps=group.tables.bit_length(),
        total_rows=int(group.row_offsets[-1]),
        width=columns[-1],
        widest_quads=int(group.dims.max()) // 4 if group.tables else 0,
        tile_rows=TILE // tile_columns,
        tile_columns=tile_columns,
    )


@dataclass(frozen=True)
class _Segments:
    """Stretches of ids, and where the gradients of each stretch lie; see ``keys_kernel``."""

    offsets: Tensor
    bags: int
    bag_quads: int
    tables: Tensor
    sources: Tensor
    pooled: bool


def _sort(
    group: TableGroup, plan: _Plan, indices: Tensor, segments: _Segments, scales: Tensor | None = None
) -> Occurrences | None:
    count, device, tables = len(indices), indices.device, group.tables
    if not count:
        return None

    def integers(size: int) -> Tensor:
        return torch.empty(size, dtype=torch.int64, device=device)

    # Radix sort takes time by the bytes of a key.
    narrow = plan.total_rows < torch.iinfo(torch.int32).max
    keys = torch.empty(count, dtype=torch.int32 if narrow else torch.int64, device=device)
    unsorted_sources, firsts = integers(count), integers(count)
    number = len(segments.offsets) - 1
    grid = (triton.cdiv(count, BLOCK),)
    with torch.cuda.device_of(indices):
        kernels.keys_kernel[grid](
            indices.contiguous(),
            segments.offsets.contiguous(),
            count,
            number,
            number.bit_length(),
            segments.bags,
            segments.bag_quads,
            segments.tables,
            segments.sources,
            plan.table_quads,
            plan.row_offsets,
            tables,
            keys,
            unsorted_sources,
            POOLED=segments.pooled,
            BLOCK=BLOCK,
            **_OPTIONS,
        )
        keys, order = torch.sort(keys, stable=True)
        kernels.firsts_kernel[grid](keys, count, firsts, SHORT=SHORT, BLOCK=BLOCK, **_OPTIONS)
        running = firsts.cumsum(0)
        result = Occurrences(
            rows=integers(count),
            starts=integers(count + 1),
            long_entries=integers(count // (SHORT + 1) + 1),
            sources=firsts,  # no longer needed
            scales=None if scales is None else torch.empty(count, device=device),
            sizes=torch.empty(tables + 3, dtype=torch.int64, pin_memory=device.type == "cuda"),
            arrived=torch.cuda.Event() if device.type == "cuda" else None,
        )
        kernels.starts_kernel[grid](
            keys,
            order,
            running,
            unsorted_sources,
            unsorted_sources if scales is None else scales.float().contiguous(),
            plan.row_offsets,
            count,
            tables,
            plan.steps,
            result.rows,
            result.starts,
            result.long_entries,
            result.sources,
            result.sources if result.scales is None else result.scales,
            WEIGHTED=scales is not None,
            BLOCK=BLOCK,
            **_OPTIONS,
        )
        sizes = integers(tables + 3)
        lanes = min(triton.next_power_of_2(tables + 1), BLOCK)
        kernels.sizes_kernel[(triton.cdiv(tables + 1, lanes),)](
            keys, running, plan.row_offsets, count, tables, count.bit_length(), sizes, BLOCK=lanes, **_OPTIONS
        )
        result.sizes.copy_(sizes, non_blocking=True)
        if result.arrived is not None:
            result.arrived.record()
    return result


def _ids_known(occurrences: Occurrences) -> bool:
    return occurrences.host_sizes()[-1] == len(occurrences.sources)


def _refuse(group: TableGroup, indices: Tensor, feature_offsets: list[int]) -> None:
    for feature, table in enumerate(group.feature_tables.tolist()):
        rows = int(group.row_offsets[table + 1] - group.row_offsets[table])
        ids = indices[feature_offsets[feature] : feature_offsets[feature + 1]]
        wrong = ids[(ids < 0) | (ids >= rows)]
        if len(wrong):
            raise IndexError(f"feature {feature} has id {int(wrong[0])}; its table {table} has rows 0 to {rows - 1}")
    raise IndexError("the offsets of the bags do not span all ids")


def _sum(group: TableGroup, occurrences: Occurrences, gradient: Tensor) -> DeviceRowGradients:
    *table_offsets, longs, _ = occurrences.host_sizes()
    return DeviceRowGradients(group, occurrences, gradient.float().contiguous(), torch.tensor(table_offsets), longs)


def _sum_long_rows(plan: _Plan, occurrences: Occurrences, gradient: Tensor, longs: int, spans: Tensor) -> Tensor:
    """[longs, widest D] sums of the rows with more than SHORT occurrences."""
    if not longs:
        return gradient
    # A row with n occurrences is cut into about sqrt(n) pieces of about sqrt(n): neither the sum of a piece nor the sum
    # of the pieces takes one program long. The cut depends on n alone, and so does the order of the sum.
    entries = occurrences.long_entries[:longs]
    lengths = occurrences.starts[entries + 1] - occurrences.starts[entries]
    sizes = lengths.double().sqrt().ceil().long().clamp(min=SHORT)
    piece_offsets = _running_sum((lengths + sizes - 1) // sizes)
    most_pieces = len(occurrences.sources) // SHORT + longs
    partials = torch.empty(most_pieces, plan.widest_quads * 4, device=gradient.device)
    sums = torch.empty(longs, plan.widest_quads * 4, device=gradient.device)
    with torch.cuda.device_of(gradient):
        kernels.piece_kernel[(most_pieces,)](
            gradient,
            occurrences.sources,
            occurrences.sources if occurrences.scales is None else occurrences.scales,
            occurrences.starts,
            entries,
            sizes,
            piece_offsets,
            longs,
            longs.bit_length(),
            spans,
            plan.tables,
            plan.steps,
            plan.table_quads,
            partials,
            plan.widest_quads,
            WEIGHTED=occurrences.scales is not None,
            **plan.tile,
        )
        kernels.combine_kernel[(longs,)](
            partials,
            plan.widest_quads,
            entries,
            piece_offsets,
            spans,
            plan.tables,
            plan.steps,
            plan.table_quads,
            sums,
            **plan.tile,
        )
    return sums


def _place(group: TableGroup, plan: _Plan, gradients: RowGradients) -> tuple[Tensor, int]:
    if isinstance(gradients, DeviceRowGradients):
        return gradients.spans, gradients.tiles
    return _spans(group, plan, gradients.table_offsets)


def _spans(group: TableGroup, plan: _Plan, table_offsets: Tensor) -> tuple[Tensor, int]:
    """The fields of :class:`DeviceRowGradients`."""
    counts = table_offsets.diff()
    tiles = _running_sum((counts + plan.tile_rows - 1) // plan.tile_rows)
    spans = torch.stack([tiles, table_offsets, _running_sum(counts * (group.dims // 4))])
    return spans.to(group.weights.device, non_blocking=True), int(tiles[-1])


def _running_sum(values: Tensor) -> Tensor:
    """[n + 1] sums of the first 0 to n of ``values`` [n]."""
    sums = values.new_zeros(len(values) + 1)
    torch.cumsum(values, 0, out=sums[1:])
    return sums
