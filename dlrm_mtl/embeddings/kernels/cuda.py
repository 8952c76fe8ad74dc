"""Kernels on CUDA: the functions of :mod:`reference`, with the same arguments, in Triton.

Only this module and its parts need Triton. The ids of a batch are sorted by row, stably: all occurrences of a row are
contiguous in their old order, and every sum is taken in that order. Equal input gives equal bits.

Most rows of a batch occur once. Their gradient is that of their bag, which the kernels read in place; only the gradients of
*repeated* rows are summed and stored.

The number of touched rows is known only on the device. Callers get exact sizes, so the host waits for them once per batch,
in :func:`collect`. Calling :func:`sort_pooled` in the forward pass lets the dense layers run meanwhile: the sizes have
arrived long before the backward pass. No other function here waits for the device.
"""

from __future__ import annotations

from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from dlrm_mtl.embeddings.kernels import triton_kernels as kernels
from dlrm_mtl.embeddings.kernels.cuda_plan import Plan, plan_of
from dlrm_mtl.embeddings.kernels.cuda_sorting import (
    BLOCK,
    OPTIONS,
    SHORT,
    Occurrences,
    Segments,
    blocks_of,
    sort_by_row,
)
from dlrm_mtl.embeddings.kernels.layout import RowGradients, TableGroup, Update, empty_gradients
from dlrm_mtl.embeddings.kernels.triton_launch import Kernel, on

PIECE = 128
"""Smallest number of occurrences in a piece."""
CHUNK = 256
"""Number of rows that a program searches for factors."""
_lookup = Kernel(kernels.lookup_kernel, **OPTIONS)
_measure = Kernel(kernels.measure_kernel, **OPTIONS)
_sum_repeated = Kernel(kernels.sum_kernel, **OPTIONS)
_sum_pieces = Kernel(kernels.piece_kernel, **{**OPTIONS, "num_warps": 2})
_combine = Kernel(kernels.combine_kernel, **OPTIONS)
_rows = Kernel(kernels.row_kernel, **OPTIONS)
_factors = Kernel(kernels.factor_kernel, **OPTIONS)
_table_minima = Kernel(kernels.table_minima_kernel, **OPTIONS)
_apply = Kernel(kernels.apply_kernel, **OPTIONS)


class DeviceRowGradients(RowGradients):
    """Row gradients that are written out only when :attr:`gradients` is read.

    The gradient of a row that occurs once is that of its bag. The other rows of the bag share it, and the device's cache
    may hold it.
    """

    def __init__(
        self, group: TableGroup, plan: Plan, occurrences: Occurrences, gradient: Tensor, measures: Tensor | None
    ) -> None:
        """Keep ``gradient``, of a lookup's output, for the ``occurrences``; ``measures`` of its bags are optional."""
        device, sizes, tables = gradient.device, occurrences.host_sizes(), plan.tables
        self._group = group
        self._written: Tensor | None = None
        touched, repeated, longs = sizes[tables], sizes[2 * tables + 1], sizes[2 * tables + 3]
        self.rows = occurrences.rows[:touched]
        self.table_offsets = occurrences.arriving[: tables + 1]
        self.square_sums = torch.empty(touched, device=device)
        self.maxima = torch.empty(touched, device=device)
        """[U] float32: largest absolute value of each row's gradient over the local columns."""
        self.sizes = occurrences.sizes
        bases, floats = plan.bases(sizes[tables + 1 : 2 * tables + 2])
        self.sources: _Sources | None = _Sources(
            gradient, occurrences, torch.empty(floats, device=device) if repeated else gradient, bases
        )
        """Location of the gradients while they are not written out; None afterwards."""
        if longs:
            self._sum_long(plan, longs)
        self._sum(plan, repeated, measures)
        if measures is None:
            self._walk(plan, self.square_sums, plan.equal_bases, writes=False)

    @property
    def gradients(self) -> Tensor:  # type: ignore[override]
        """[sum of U_t * D_t] float32: concatenated gradients of the rows, in the order of ``rows``."""
        if self._written is None:
            plan = plan_of(self._group)
            bases, floats = plan.bases(self.table_offsets.tolist())
            written = torch.empty(floats, device=self.rows.device)
            with on(self.rows.device):
                self._walk(plan, written, bases, writes=True)
            self._written, self.sources = written, None
        return self._written

    def _sum(self, plan: Plan, repeated: int, measures: Tensor | None) -> None:
        """Sum and measure the repeated rows that are not long; measure rows that occur once, if their bags are measured."""
        assert self.sources is not None
        gradient, some, sums, bases = self.sources
        touched = len(self.square_sums)
        tiles = repeated // plan.tile_rows + plan.tables if repeated else 0
        blocks = 0 if measures is None else blocks_of(touched, BLOCK)
        if tiles + blocks == 0:
            return
        _sum_repeated(
            (tiles + blocks,),
            (
                *(gradient, some.lists, gradient if some.scales is None else some.scales, some.sizes, bases),
                *(plan.table_quads, gradient if measures is None else measures, sums, self.square_sums, self.maxima),
            ),
            (
                tiles,
                touched,
                plan.tables,
                some.room // 4,
                plan.unit_quads,
                0 if measures is None else measures.shape[1],
            ),
            SHORT=SHORT,
            WEIGHTED=some.scales is not None,
            BLOCK=BLOCK,
            **plan.tile,
        )

    def _sum_long(self, plan: Plan, longs: int) -> None:
        """Sum and measure the rows with more than SHORT occurrences."""
        assert self.sources is not None
        gradient, some, sums, bases = self.sources
        pieces = some.count // PIECE + longs
        partials = torch.empty(pieces, plan.widest_quads * 4, device=gradient.device)
        _sum_pieces(
            (pieces,),
            (
                *(gradient, some.lists, gradient if some.scales is None else some.scales, some.sizes),
                *(plan.table_quads, partials),
            ),
            (longs, plan.tables, some.room // 4, plan.unit_quads, plan.widest_quads),
            PIECE=PIECE,
            WEIGHTED=some.scales is not None,
            ROWS=max(plan.tile_rows // 2, 1),
            COLUMNS=plan.tile["COLUMNS"],
        )
        _combine(
            (longs,),
            (partials, some.lists, some.sizes, bases, plan.table_quads, sums, self.square_sums, self.maxima),
            (plan.tables, some.room // 4, plan.widest_quads),
            PIECE=PIECE,
            **plan.tile,
        )

    def _walk(self, plan: Plan, written: Tensor, bases: Tensor, writes: bool) -> None:
        """Write out all rows, or measure the rows that occur once."""
        assert self.sources is not None
        gradient, some, sums, sum_bases = self.sources
        _rows(
            (len(self.rows) // plan.tile_rows + plan.tables,),
            (
                *(gradient, some.lists, gradient if some.scales is None else some.scales, sums, sum_bases, some.sizes),
                *(bases, plan.table_quads, written, self.square_sums, self.maxima),
            ),
            (plan.tables, plan.unit_quads),
            WRITES=writes,
            WEIGHTED=some.scales is not None,
            **plan.tile,
        )


class _Sources(NamedTuple):
    """Location of the rows' gradients for the kernels."""

    gradient: Tensor
    """Gradient of the lookup's output."""
    occurrences: Occurrences
    sums: Tensor
    """Concatenated gradients of the repeated rows; arbitrary if there are none."""
    bases: Tensor
    """[T] int64: number to add to a repeated row's number times its quads to get the position of its sum, in quads."""


def _measure_bags(plan: Plan, gradient: Tensor) -> Tensor:
    """[2, units of the gradient] float32: square sums and largest absolute values, at the start of each bag's gradient."""
    bags = len(gradient)
    measures = torch.empty(2, bags * plan.width_units, device=gradient.device)
    _measure(
        (blocks_of(bags, plan.tile_rows), plan.features),
        (gradient, plan.feature_tables, plan.feature_units, plan.table_quads, measures),
        (bags, plan.width_units, plan.unit_quads, measures.shape[1]),
        **plan.tile,
    )
    return measures


class _Rows(NamedTuple):
    """Arguments of the update kernels: rows and their gradients."""

    tensors: tuple[Tensor, ...]
    """Tensors from ``rows`` to ``sizes``, in the order of the kernels' arguments."""
    maxima: Tensor | None
    shared: bool
    weighted: bool

    @classmethod
    def of(cls, gradients: RowGradients, plan: Plan) -> _Rows:
        """Make the arguments from :class:`DeviceRowGradients`, or from any other row gradients."""
        rows = gradients.rows
        if not isinstance(gradients, DeviceRowGradients):
            written = gradients.gradients.float().contiguous()
            sizes = gradients.table_offsets.to(rows.device)
            bases, _ = plan.bases(gradients.table_offsets.tolist())
            return cls((rows, written, sizes, written, written, bases, sizes), None, False, False)
        if gradients.sources is None:
            written, sizes = gradients.gradients, gradients.sizes
            bases, _ = plan.bases(gradients.table_offsets.tolist())
            return cls((rows, written, sizes, written, written, bases, sizes), gradients.maxima, False, False)
        gradient, some, sums, bases = gradients.sources
        scales = gradient if some.scales is None else some.scales
        tensors = rows, gradient, some.lists, scales, sums, bases, some.sizes
        return cls(tensors, gradients.maxima, True, some.scales is not None)


def lookup(group: TableGroup, indices: Tensor, offsets: Tensor, bags: int, bag_weights: Tensor | None = None) -> Tensor:
    """Sum the rows of each bag, see :func:`reference.lookup`.

    An id outside its table gives NaN, since raising would need to wait for the device. :func:`collect` raises.
    """
    plan = plan_of(group)
    out = torch.empty(bags, plan.width, device=group.weights.device)
    if out.numel():
        weights = group.weights if bag_weights is None else bag_weights.float().contiguous()
        with on(group.weights.device):
            _lookup(
                (blocks_of(bags, plan.tile_rows), plan.features),
                (
                    *(group.weights, indices.contiguous(), offsets.contiguous(), weights, out),
                    *(plan.feature_tables, plan.feature_units, plan.table_quads, plan.weight_quads, plan.row_offsets),
                ),
                (bags, plan.width // 4, plan.unit_quads),
                WEIGHTED=bag_weights is not None,
                **plan.tile,
            )
    return out


def sort_pooled(
    group: TableGroup, indices: Tensor, offsets: Tensor, bags: int, bag_weights: Tensor | None = None
) -> Occurrences | None:
    """Sort the ids of a pooled lookup by their rows; None if there are no ids. Does not wait for the device.

    Args:
        group: the tables.
        indices: as for :func:`lookup`.
        offsets: as for :func:`lookup`; from 0 to N.
        bags: B.
        bag_weights: as for :func:`lookup`.

    Raises:
        ValueError: there are too many ids for 32 bits.
    """
    plan = plan_of(group)
    segments = Segments(offsets, bags, plan.width_units, plan.feature_tables, plan.feature_units, pooled=True)
    return sort_by_row(plan, indices, segments, bag_weights)


def sort_unpooled(group: TableGroup, indices: Tensor, lengths: list[int]) -> Occurrences | None:
    """Sort the ids of an unpooled lookup, see :func:`sort_pooled`; arguments as for :func:`collect_unpooled`."""
    plan = plan_of(group)
    begins = [0]
    for length in lengths:
        begins.append(begins[-1] + length)
    offsets = torch.tensor(begins).to(indices.device, non_blocking=True)
    # All tables have one width, which is the unit: the gradient of an id begins at its position.
    return sort_by_row(plan, indices, Segments(offsets, 1, 0, plan.feature_tables, offsets, pooled=False))


def collect(
    group: TableGroup,
    indices: Tensor,
    offsets: Tensor,
    bags: int,
    gradient: Tensor,
    bag_weights: Tensor | None = None,
    occurrences: Occurrences | None = None,
) -> RowGradients:
    """Sum the gradient of a lookup's output over all occurrences of each row, see :func:`reference.collect`.

    Waits for the number of touched rows.

    Args:
        group: the tables.
        indices: as for :func:`lookup`.
        offsets: as for :func:`lookup`.
        bags: B.
        gradient: [B, sum of D over features] float32. The result may refer to it until the step: it must not change.
        bag_weights: as for :func:`lookup`.
        occurrences: result of :func:`sort_pooled` for the same arguments, if available. Its tables may be narrower than
            ``group``, all by the same factor.

    Raises:
        IndexError: an id is outside its table.
        ValueError: there are too many ids for 32 bits.
    """
    occurrences = occurrences or sort_pooled(group, indices, offsets, bags, bag_weights)
    if occurrences is None:
        return empty_gradients(group)
    gradients = _collect(group, occurrences, gradient, pooled=True)
    if gradients is None:
        _refuse(group, indices, offsets[::bags].tolist())
    return gradients


def collect_unpooled(
    group: TableGroup,
    indices: Tensor,
    lengths: list[int],
    gradient: Tensor,
    occurrences: Occurrences | None = None,
) -> RowGradients:
    """Sum the gradient of a lookup that returns one row per id, see :func:`reference.collect_unpooled`.

    Args:
        group: the tables, all of one width D.
        indices: [N] int64, feature after feature.
        lengths: [F] number of ids of each feature.
        gradient: [N, D] float32; must not change until the step.
        occurrences: result of :func:`sort_unpooled` for the same arguments, if available.

    Raises:
        IndexError: an id is outside its table.
        ValueError: there are too many ids for 32 bits.
    """
    occurrences = occurrences or sort_unpooled(group, indices, lengths)
    if occurrences is None:
        return empty_gradients(group)
    gradients = _collect(group, occurrences, gradient, pooled=False)
    if gradients is None:
        _refuse(group, indices, [sum(lengths[:feature]) for feature in range(len(lengths) + 1)])
    return gradients


def merge(group: TableGroup, parts: list[RowGradients]) -> RowGradients:
    """Add the gradients of several backward passes, see :func:`reference.merge`. Waits for the number of rows."""
    parts = [part for part in parts if len(part.rows)]
    if not parts:
        return empty_gradients(group)
    if len(parts) == 1:
        return parts[0]
    plan = plan_of(group)
    device = group.weights.device
    # Each table of each part is a segment of ids, each with its own gradient.
    counts = torch.cat([part.table_offsets.diff() for part in parts])
    units = (group.dims // 4 // plan.unit_quads).repeat(len(parts))
    offsets = _running_sum(counts).to(device, non_blocking=True)
    sources = _running_sum(counts * units).to(device, non_blocking=True)
    tables = torch.arange(group.tables, device=device).repeat(len(parts))
    rows = torch.cat([part.rows for part in parts])
    occurrences = sort_by_row(plan, rows, Segments(offsets, 1, 0, tables, sources, pooled=False))
    assert occurrences is not None
    merged = _collect(group, occurrences, torch.cat([part.gradients for part in parts]), pooled=False)
    assert merged is not None
    return merged


def factors(
    group: TableGroup, state: Tensor, gradients: RowGradients, mean_squares: Tensor, rule: Update, lr: float
) -> Tensor:
    """Find the largest factor of each table, see :func:`reference.factors`. Does not wait for the device."""
    plan = plan_of(group)
    touched = len(gradients.rows)
    if not touched:
        return torch.ones(group.tables, device=group.weights.device)
    with on(group.weights.device):
        rows = _Rows.of(gradients, plan)
        tiles = touched // CHUNK + plan.tables
        minima = torch.empty(tiles, device=group.weights.device)
        result = torch.empty(plan.tables, device=group.weights.device)
        mean_squares = mean_squares.contiguous()
        _factors(
            (tiles,),
            (
                *(group.weights, state, *rows.tensors, mean_squares),
                *(mean_squares if rows.maxima is None else rows.maxima,),
                *(plan.table_quads, plan.weight_quads, plan.row_offsets, minima),
            ),
            (
                *(plan.tables, plan.unit_quads),
                *(float(lr), float(rule.lambda_rel), float(rule.lambda_abs), float(rule.eps)),
            ),
            CLIPS=rule.kind == "clippy" and not rule.per_row,
            SHARED=rows.shared,
            BOUNDED=rows.maxima is not None,
            EPS_INSIDE=rule.eps_inside,
            DELAYED=rule.delayed,
            WEIGHTED=rows.weighted,
            CHUNK=CHUNK,
            **plan.tile,
        )
        _table_minima((plan.tables,), (minima, rows.tensors[-1], result), (plan.tables,), CHUNK=CHUNK, BLOCK=BLOCK)
    return result


def apply(
    group: TableGroup,
    state: Tensor,
    gradients: RowGradients,
    mean_squares: Tensor,
    factor: Tensor,
    rule: Update,
    lr: float,
) -> None:
    """Update weights and accumulators of the touched rows in place, see :func:`reference.apply`.

    Does not wait for the device.
    """
    touched = len(gradients.rows)
    if not touched:
        return
    plan = plan_of(group)
    with on(group.weights.device):
        rows = _Rows.of(gradients, plan)
        _apply(
            (touched // plan.tile_rows + plan.tables,),
            (
                *(group.weights, state, *rows.tensors, mean_squares.contiguous(), factor.contiguous()),
                *(plan.table_quads, plan.weight_quads, plan.row_offsets),
            ),
            (
                *(plan.tables, plan.unit_quads),
                *(float(lr), float(rule.lambda_rel), float(rule.lambda_abs), float(rule.eps)),
            ),
            SHARED=rows.shared,
            ACCUMULATES=rule.kind != "sgd",
            PER_ROW=rule.kind == "clippy" and rule.per_row,
            EPS_INSIDE=rule.eps_inside,
            DELAYED=rule.delayed,
            WEIGHTED=rows.weighted,
            **plan.tile,
        )


def _collect(group: TableGroup, occurrences: Occurrences, gradient: Tensor, pooled: bool) -> DeviceRowGradients | None:
    """Row gradients of a lookup; None if an id is outside its table."""
    plan = plan_of(group)
    gradient = gradient.float().contiguous()
    with on(gradient.device):
        # A bag is measured once for all its rows, without waiting for the sizes.
        once = pooled and plan.dense and occurrences.scales is None
        measures = _measure_bags(plan, gradient) if once else None
        if occurrences.host_sizes()[-2] != occurrences.count:
            return None
        return DeviceRowGradients(group, plan, occurrences, gradient, measures)


def _refuse(group: TableGroup, indices: Tensor, feature_offsets: list[int]) -> NoReturn:
    for feature, table in enumerate(group.feature_tables.tolist()):
        rows = int(group.row_offsets[table + 1] - group.row_offsets[table])
        ids = indices[feature_offsets[feature] : feature_offsets[feature + 1]]
        wrong = ids[(ids < 0) | (ids >= rows)]
        if len(wrong):
            raise IndexError(f"feature {feature} has id {int(wrong[0])}; its table {table} has rows 0 to {rows - 1}")
    raise IndexError("the offsets of the bags do not span all ids")


def _running_sum(values: Tensor) -> Tensor:
    """[n + 1] sums of the first 0 to n of ``values`` [n]."""
    sums = values.new_zeros(len(values) + 1)
    torch.cumsum(values, 0, out=sums[1:])
    return sums
