"""The kernels in plain PyTorch: the reference in tests, and the fallback where native ones cannot be built."""

from __future__ import annotations

import torch
from torch import Tensor

from dlrm_mtl.embeddings.kernels.layout import NON_FINITE, RowGradients, TableGroup, Update


def lookup(group: TableGroup, indices: Tensor, offsets: Tensor, bags: int, bag_weights: Tensor | None = None) -> Tensor:
    """Sum the rows of each bag. The sums of a feature in ``group.means`` are divided by the bags' numbers of ids.

    Args:
        group: the tables.
        indices: [N] int64 rows within their tables, feature after feature.
        offsets: [F * B + 1] int64 start of each bag in ``indices``, feature-major.
        bags: B.
        bag_weights: [N] float32 factor of each id; None for 1.

    Returns:
        [B, sum of D over features] float32, feature after feature; zeros for an empty bag.

    Raises:
        IndexError: an id is not a row of its table.
    """
    columns = group.output_offsets()
    out = torch.zeros(bags, columns[-1], device=group.weights.device)
    for feature, table in enumerate(group.feature_tables.tolist()):
        ids, bag_of_id, factors = _feature(indices, offsets, bags, feature, bag_weights)
        rows = _rows(group, table, ids)
        if factors is not None:
            rows = rows * factors.unsqueeze(1)
        out[:, columns[feature] : columns[feature + 1]].index_add_(0, bag_of_id, rows)
        if group.means is not None and group.means[feature]:
            out[:, columns[feature] : columns[feature + 1]] /= _sizes(offsets, bags, feature)
    return out


def lookup_unpooled(group: TableGroup, indices: Tensor, lengths: list[int]) -> Tensor:
    """Read one row for each id.

    Args:
        group: the tables, all of one width D.
        indices: [N] int64, feature after feature.
        lengths: [F] number of ids of each feature.

    Returns:
        [N, D] float32, in the order of ``indices``.

    Raises:
        IndexError: an id is not a row of its table.
    """
    parts = zip(group.feature_tables.tolist(), indices.split(lengths), strict=True)
    return torch.cat([_rows(group, table, ids) for table, ids in parts])


def sort_pooled(
    group: TableGroup, indices: Tensor, offsets: Tensor, bags: int, bag_weights: Tensor | None = None
) -> object | None:
    """Sort a batch's ids ahead of :func:`collect`; does nothing here. Arguments as for :func:`lookup`."""
    return None


def collect(
    group: TableGroup,
    indices: Tensor,
    offsets: Tensor,
    bags: int,
    gradient: Tensor,
    bag_weights: Tensor | None = None,
    occurrences: object | None = None,
) -> RowGradients:
    """Sum the gradient of a lookup's output over all occurrences of each row.

    Args:
        group: the tables.
        indices: as for :func:`lookup`.
        offsets: as for :func:`lookup`.
        bags: B.
        gradient: [B, sum of D over features] float32, with respect to the output of :func:`lookup`.
        bag_weights: as for :func:`lookup`.
        occurrences: result of :func:`sort_pooled` for the same batch; unused here.
    """
    columns = group.output_offsets()
    per_table: list[tuple[Tensor, Tensor]] = []
    for table in range(group.tables):
        ids, grads = [], []
        for feature in (group.feature_tables == table).nonzero().flatten().tolist():
            feature_ids, bag_of_id, factors = _feature(indices, offsets, bags, feature, bag_weights)
            of_bags = gradient[:, columns[feature] : columns[feature + 1]]
            if group.means is not None and group.means[feature]:
                of_bags = of_bags / _sizes(offsets, bags, feature)
            grad = of_bags[bag_of_id]
            _check(group, table, feature_ids)
            ids.append(feature_ids)
            grads.append(grad if factors is None else grad * factors.unsqueeze(1))
        dim = int(group.dims[table])
        if ids:
            per_table.append(_sum_rows(torch.cat(ids), torch.cat(grads)))
        else:
            per_table.append((indices.new_empty(0), gradient.new_empty(0, dim)))
    return _row_gradients(per_table)


def collect_unpooled(group: TableGroup, indices: Tensor, lengths: list[int], gradient: Tensor) -> RowGradients:
    """Sum the gradient of a lookup that returns one row per id, over all occurrences of each row.

    Args:
        group: the tables, all of one width D.
        indices: [N] int64, feature after feature.
        lengths: [F] number of ids of each feature.
        gradient: [N, D] float32.
    """
    ids, grads = indices.split(lengths), gradient.split(lengths)
    per_table: list[tuple[Tensor, Tensor]] = []
    for table in range(group.tables):
        features = (group.feature_tables == table).nonzero().flatten().tolist()
        mine = [ids[feature] for feature in features] or [indices.new_empty(0)]
        _check(group, table, torch.cat(mine))
        theirs = [grads[feature] for feature in features] or [gradient.new_empty(0, gradient.shape[1])]
        per_table.append(_sum_rows(torch.cat(mine), torch.cat(theirs)))
    return _row_gradients(per_table)


def merge(group: TableGroup, parts: list[RowGradients]) -> RowGradients:
    """Add the gradients of several backward passes (gradient accumulation)."""
    per_table = []
    for table in range(group.tables):
        rows = torch.cat([part.part(part.rows, table) for part in parts])
        per_table.append(_sum_rows(rows, torch.cat([part.gradient(group, table) for part in parts])))
    return _row_gradients(per_table)


def grams(group: TableGroup, gradients: RowGradients, tasks: int) -> Tensor:
    """Inner products of several tasks' gradients, summed over each table's rows.

    Args:
        group: the tables, ``tasks`` times as wide as their weights.
        gradients: each row's concatenated gradients of all tasks.
        tasks: number of tasks T.

    Returns:
        [tables, T, T] float64.
    """
    return torch.stack([rows_gram(gradients.gradient(group, index), tasks) for index in range(group.tables)])


def rows_gram(rows: Tensor, tasks: int, counts: Tensor | None = None) -> Tensor:
    """[T, T] float64: inner products of the tasks' parts of ``rows`` [n, T * d] float32, each weighted by ``counts`` [n]."""
    parts = rows.unflatten(1, (tasks, rows.shape[1] // tasks))
    # Products of one row in single precision, exact enough for several hundred columns; sums in double precision.
    products = torch.bmm(parts, parts.transpose(1, 2)).double()
    if counts is None:
        return products.sum(dim=0)
    return (counts.double() @ products.flatten(1)).view(tasks, tasks)


def factors(
    group: TableGroup, state: Tensor, gradients: RowGradients, mean_squares: Tensor, rule: Update, lr: float
) -> Tensor:
    """Find the largest factor of each table at which no touched local coordinate moves too far.

    Args:
        group: the tables.
        state: [sum of R_t] float32 accumulators, table after table; not changed.
        gradients: result of :func:`collect`.
        mean_squares: [U] float32 mean of the squares of each row's gradient over the whole row.
        rule: the update.
        lr: learning rate.

    Returns:
        [T] float32 in [0, 1], or NON_FINITE for a table with a mean square that is not finite. 1 for rules that do not clip,
        and for per-row factors.
    """
    result = torch.ones(group.tables, device=group.weights.device)
    for table in range(group.tables):
        squares = gradients.part(mean_squares, table)
        if not bool(torch.isfinite(squares).all()):
            result[table] = NON_FINITE
        elif rule.kind == "clippy" and not rule.per_row and len(squares):
            direction = _direction(group, state, gradients, mean_squares, rule, table)
            weights = group.table(table)[gradients.part(gradients.rows, table)].float()
            result[table] = _largest_factor(weights, direction, rule, lr).min()
    return result


def row_factors(
    group: TableGroup, state: Tensor, gradients: RowGradients, mean_squares: Tensor, rule: Update, lr: float
) -> Tensor:
    """[U] largest factor of each touched row, over the local columns; arguments as for :func:`factors`."""
    result = torch.ones_like(mean_squares)
    for table in range(group.tables):
        rows = gradients.part(gradients.rows, table)
        if len(rows):
            direction = _direction(group, state, gradients, mean_squares, rule, table)
            largest = _largest_factor(group.table(table)[rows].float(), direction, rule, lr)
            gradients.part(result, table).copy_(largest.amin(dim=1))
    return result


def largest_moves(
    group: TableGroup, state: Tensor, gradients: RowGradients, mean_squares: Tensor, rule: Update, lr: float
) -> Tensor:
    """[T] largest change of any coordinate, before the table's factor; arguments as for :func:`factors`."""
    result = torch.zeros(group.tables, device=group.weights.device)
    for table in range(group.tables):
        rows = gradients.part(gradients.rows, table)
        if len(rows):
            direction = _direction(group, state, gradients, mean_squares, rule, table)
            if rule.kind == "clippy" and rule.per_row:
                weights = group.table(table)[rows].float()
                direction = direction * _largest_factor(weights, direction, rule, lr).amin(dim=1, keepdim=True)
            result[table] = lr * direction.abs().max()
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
    """Update weights and accumulators of the touched rows in place.

    Args:
        group: the tables.
        state: [sum of R_t] float32 accumulators.
        gradients: result of :func:`collect`.
        mean_squares: as for :func:`factors`.
        factor: [T] float32: each table's factor over the global batch.
        rule: the update.
        lr: learning rate.
    """
    for table in range(group.tables):
        rows = gradients.part(gradients.rows, table)
        if not len(rows):
            continue
        direction = _direction(group, state, gradients, mean_squares, rule, table)
        weights = group.table(table)
        touched = weights[rows].float()
        scale = factor[table]
        if rule.kind == "clippy" and rule.per_row:
            scale = _largest_factor(touched, direction, rule, lr).amin(dim=1, keepdim=True)
        weights[rows] = (touched - lr * scale * direction).to(weights.dtype)
        if rule.kind != "sgd":
            accumulators = state[int(group.row_offsets[table]) : int(group.row_offsets[table + 1])]
            accumulators[rows] += gradients.part(mean_squares, table)


def _direction(
    group: TableGroup, state: Tensor, gradients: RowGradients, mean_squares: Tensor, rule: Update, table: int
) -> Tensor:
    """[U_t, D_t] update before learning rate and factor."""
    gradient = gradients.gradient(group, table)
    if rule.kind == "sgd":
        return gradient
    accumulators = state[int(group.row_offsets[table]) : int(group.row_offsets[table + 1])]
    denominator = accumulators[gradients.part(gradients.rows, table)]
    if not rule.delayed:
        denominator = denominator + gradients.part(mean_squares, table)
    root = (denominator + rule.eps).sqrt() if rule.eps_inside else denominator.sqrt() + rule.eps
    return torch.where(gradient == 0, torch.zeros_like(gradient), gradient / root.unsqueeze(1))


def _largest_factor(weights: Tensor, direction: Tensor, rule: Update, lr: float) -> Tensor:
    """Largest factor per coordinate: min(1, (lambda_rel |w| + lambda_abs) / (lr |r|)); 1 if the coordinate does not move."""
    move = lr * direction.abs()
    allowed = rule.lambda_rel * weights.abs() + rule.lambda_abs
    return torch.where(move > allowed, allowed / move, torch.ones_like(move))


def _rows(group: TableGroup, table: int, ids: Tensor) -> Tensor:
    """[n, D_t] float32 rows of a table."""
    _check(group, table, ids)
    return group.table(table)[ids].float()


def _check(group: TableGroup, table: int, ids: Tensor) -> None:
    """Refuse ids outside the table: PyTorch would count negative ones from the end, and names no table."""
    rows = int(group.row_offsets[table + 1] - group.row_offsets[table])
    wrong = ids[(ids < 0) | (ids >= rows)]
    if len(wrong):
        raise IndexError(f"id {int(wrong[0])} is not a row of table {table}")


def _sizes(offsets: Tensor, bags: int, feature: int) -> Tensor:
    """[B, 1] numbers of ids in the bags of a feature, 1 for an empty bag."""
    return offsets[feature * bags : (feature + 1) * bags + 1].diff().clamp(min=1).unsqueeze(1)


def _feature(
    indices: Tensor, offsets: Tensor, bags: int, feature: int, bag_weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Ids of one feature, the bag of each, and their factors."""
    bounds = offsets[feature * bags : (feature + 1) * bags + 1]
    first, last = int(bounds[0]), int(bounds[-1])
    bag_of_id = torch.repeat_interleave(
        torch.arange(bags, device=indices.device), bounds.diff(), output_size=last - first
    )
    return indices[first:last], bag_of_id, None if bag_weights is None else bag_weights[first:last]


def _sum_rows(ids: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct ids, ascending, and the sums of their gradients."""
    rows, inverse = torch.unique(ids, return_inverse=True)
    return rows, gradients.new_zeros(len(rows), gradients.shape[1]).index_add_(0, inverse, gradients)


def _row_gradients(per_table: list[tuple[Tensor, Tensor]]) -> RowGradients:
    sizes = torch.tensor([0, *(len(rows) for rows, _ in per_table)], dtype=torch.int64)
    return RowGradients(
        rows=torch.cat([rows for rows, _ in per_table]),
        table_offsets=sizes.cumsum(0),
        gradients=torch.cat([gradients.reshape(-1) for _, gradients in per_table]),
        square_sums=torch.cat([gradients.square().sum(dim=1) for _, gradients in per_table]),
    )
