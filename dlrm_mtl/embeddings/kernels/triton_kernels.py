# mypy: allow-untyped-defs, allow-incomplete-defs
"""The Triton kernels of lookups and of the two-phase sparse update; :mod:`cuda` launches them.

Conventions:

- A width, or the place of a row in a buffer of floats, comes in *quads* of 4 elements. Every table's dim is a multiple of 4,
  and only from the factor 4 in the code can the compiler see that rows begin at 16 bytes, so that it moves 16 bytes at once.
- A tile is ROWS rows times COLUMNS columns. Tiles of rows never hold rows of two tables: what is known of a table is then a
  scalar of the program. A table wider than COLUMNS takes several rounds.
- No float is ever added by an atomic: each sum has one owner and one order, so that the same batch gives the same bits.
- ``spans`` [3, T + 1] int64 says where each table begins: in tiles, in touched rows, and in quads of the row gradients.
- Sizes that change from batch to batch are not specialized on, or each would compile its kernel anew.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LARGEST_FLOAT = tl.constexpr(3.4028234663852886e38)
_NON_FINITE = tl.constexpr(-1.0)
"""The same as ``layout.NON_FINITE``; kernels can read constexpr globals only."""


@triton.jit(do_not_specialize=["count", "steps"])
def _search(offsets, count, steps, value):
    """The largest k < count with offsets[k] <= value, for a scalar or a block; offsets[0] <= value must hold.

    Among equal offsets the last wins, so that empty stretches are passed over. ``steps`` >= log2(count).
    """
    low = value * 0
    high = low + count
    for _ in range(steps):
        middle = (low + high) // 2
        left = tl.load(offsets + middle) <= value
        low = tl.where(left, middle, low)
        high = tl.where(left, high, middle)
    return low


@triton.jit(do_not_specialize=["bags", "out_quads"])
def lookup_kernel(
    weights,
    indices,
    offsets,
    bag_weights,
    out,
    bags,
    out_quads,
    feature_tables,
    feature_columns,
    table_quads,
    weight_quads,
    row_offsets,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sum the rows of ROWS bags of one feature. Grid: (blocks of bags, features)."""
    feature = tl.program_id(1).to(tl.int64)
    bag = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = bag < bags
    table = tl.load(feature_tables + feature)
    dim = tl.load(table_quads + table) * 4
    rows = tl.load(row_offsets + table + 1) - tl.load(row_offsets + table)
    source = weights + tl.load(weight_quads + table) * 4
    target = out + (bag * out_quads * 4 + tl.load(feature_columns + feature) * 4)[:, None]
    bounds = offsets + feature * bags + bag
    first = tl.load(bounds, mask=valid, other=0)
    last = tl.load(bounds + 1, mask=valid, other=0)
    longest = tl.max(last - first, axis=0)
    for start in range(0, dim, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = column < dim
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for step in range(0, longest):
            at = first + step
            there = at < last
            row = tl.load(indices + at, mask=there, other=0)
            known = (row >= 0) & (row < rows)
            places = source + (row * dim)[:, None] + column[None, :]
            values = tl.load(places, mask=(there & known)[:, None] & inside[None, :], other=0.0).to(tl.float32)
            # An id outside its table cannot raise from here; NaN cannot go unnoticed, and reads nobody's memory.
            values = tl.where((there & (known == 0))[:, None], float("nan"), values)
            if WEIGHTED:
                values = values * tl.load(bag_weights + at, mask=there, other=0.0)[:, None]
            total += values
        tl.store(target + column[None, :], total, mask=valid[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["count", "segments", "steps", "bags", "bag_quads", "tables"])
def keys_kernel(
    indices,
    offsets,
    count,
    segments,
    steps,
    bags,
    bag_quads,
    segment_tables,
    segment_sources,
    table_quads,
    row_offsets,
    tables,
    keys,
    sources,
    POOLED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """For each id: its row among the rows of all tables, and where its gradient lies, in quads.

    POOLED: ``offsets`` bounds the bags, feature-major; all ids of a bag share a row of the output gradient. Otherwise it bounds
    stretches of ids, each of which has a row of its own. ``segment_*`` hold one entry per feature, or per stretch.
    """
    item = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = item < count
    segment = _search(offsets, segments, steps, tl.minimum(item, count - 1))
    if POOLED:
        feature = segment // bags
        within = (segment - feature * bags) * bag_quads
        table = tl.load(segment_tables + feature)
        source = tl.load(segment_sources + feature) + within
    else:
        table = tl.load(segment_tables + segment)
        within = (item - tl.load(offsets + segment)) * tl.load(table_quads + table)
        source = tl.load(segment_sources + segment) + within
    row = tl.load(indices + item, mask=valid, other=0)
    begin = tl.load(row_offsets + table)
    known = (row >= 0) & (row < tl.load(row_offsets + table + 1) - begin)
    # An id outside its table sorts behind all tables, where the host sees it.
    key = tl.where(known, begin + row, tl.load(row_offsets + tables))
    tl.store(keys + item, key.to(keys.dtype.element_ty), mask=valid)
    tl.store(sources + item, source, mask=valid)


@triton.jit(do_not_specialize=["count"])
def firsts_kernel(keys, count, firsts, SHORT: tl.constexpr, BLOCK: tl.constexpr):
    """Mark the first occurrence of each row in sorted ``keys``: 1, and 2^32 more where there are over SHORT of them.

    A running sum of this counts, in the low and in the high half, the rows and the long rows up to each place.
    """
    item = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = item < count
    key = tl.load(keys + item, mask=valid, other=-1)
    before = tl.load(keys + item - 1, mask=valid & (item > 0), other=-1)
    ahead = tl.load(keys + item + SHORT, mask=item + SHORT < count, other=-1)
    first = (key != before).to(tl.int64)
    longs = (ahead == key).to(tl.int64)
    tl.store(firsts + item, first * (1 + longs * 4294967296), mask=valid)


@triton.jit(do_not_specialize=["count", "tables", "steps"])
def starts_kernel(
    keys,
    order,
    running,
    sources,
    scales,
    row_offsets,
    count,
    tables,
    steps,
    rows,
    starts,
    long_entries,
    sorted_sources,
    sorted_scales,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write each touched row, where its occurrences start, and the list of long rows; put the occurrences in order."""
    item = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = item < count
    now = tl.load(running + item, mask=valid, other=0)
    before = tl.load(running + item - 1, mask=valid & (item > 0), other=0)
    entry = (now & 4294967295) - 1
    first = valid & (now != before)
    is_long = valid & ((now >> 32) != (before >> 32))
    key = tl.load(keys + item, mask=valid, other=0).to(tl.int64)
    table = _search(row_offsets, tables, steps, key)
    tl.store(rows + entry, key - tl.load(row_offsets + table), mask=first)
    tl.store(starts + entry, item, mask=first)
    tl.store(starts + entry + 1, item + 1, mask=item == count - 1)
    tl.store(long_entries + (now >> 32) - 1, entry, mask=is_long)
    place = tl.load(order + item, mask=valid, other=0)
    tl.store(sorted_sources + item, tl.load(sources + place, mask=valid, other=0), mask=valid)
    if WEIGHTED:
        tl.store(sorted_scales + item, tl.load(scales + place, mask=valid, other=0.0), mask=valid)


@triton.jit(do_not_specialize=["count", "tables", "steps"])
def sizes_kernel(keys, running, row_offsets, count, tables, steps, sizes, BLOCK: tl.constexpr):
    """Write ``sizes`` [T + 3]: where each table's touched rows begin, and U; how many long rows, and ids within tables."""
    table = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = table <= tables
    bound = tl.load(row_offsets + table, mask=valid, other=0)
    low = table * 0
    high = low + count
    for _ in range(steps):
        middle = (low + high) // 2
        less = (low < high) & (tl.load(keys + middle, mask=middle < count, other=0) < bound)
        high = tl.where(less | (low >= high), high, middle)
        low = tl.where(less, middle + 1, low)
    entries = tl.load(running + low - 1, mask=valid & (low > 0), other=0) & 4294967295
    tl.store(sizes + table, entries, mask=valid)
    tl.store(sizes + table + 2, low, mask=table == tables)
    longs = tl.load(running + count - 1) >> 32
    tl.store(sizes + table + 1, longs, mask=table == tables)


@triton.jit(do_not_specialize=["longs", "long_steps", "long_quads"])
def _occurrences(starts, entry, wanted, long_entries, longs, long_steps, long_quads, SHORT: tl.constexpr):
    """Where the occurrences of touched rows begin and end, and where the sums of long rows lie; nowhere if not ``wanted``."""
    first = tl.load(starts + entry, mask=wanted, other=0)
    last = tl.load(starts + entry + 1, mask=wanted, other=0)
    is_long = last - first > SHORT
    place = _search(long_entries, longs, long_steps, entry) * long_quads * 4
    return first, tl.where(is_long, first, last), place, is_long


@triton.jit
def _row_gradients(
    gradient,
    sources,
    scales,
    first,
    last,
    long_sums,
    place,
    is_long,
    column,
    inside,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """[ROWS, COLUMNS] gradients of touched rows: their occurrences summed one after the other, or the sums of long rows."""
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(0, tl.max(last - first, axis=0)):
        at = first + step
        there = at < last
        source = tl.load(sources + at, mask=there, other=0) * 4
        places = gradient + source[:, None] + column[None, :]
        values = tl.load(places, mask=there[:, None] & inside[None, :], other=0.0)
        if WEIGHTED:
            values = values * tl.load(scales + at, mask=there, other=0.0)[:, None]
        total += values
    return total + tl.load(
        long_sums + place[:, None] + column[None, :], mask=is_long[:, None] & inside[None, :], other=0.0
    )


@triton.jit(do_not_specialize=["longs", "long_steps", "long_quads", "tables", "steps"])
def sum_kernel(
    gradient,
    sources,
    scales,
    starts,
    long_sums,
    long_entries,
    longs,
    long_steps,
    long_quads,
    spans,
    tables,
    steps,
    table_quads,
    gradients,
    square_sums,
    maxima,
    WRITES: tl.constexpr,
    MEASURES: tl.constexpr,
    SHORT: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sum the gradients of ROWS rows. WRITES: write the sums. MEASURES: write their squares' sums and their maxima.

    Grid: (tiles,). Rows with more than SHORT occurrences were summed by the kernels below: one would hold up its whole tile.
    """
    tile = tl.program_id(0).to(tl.int64)
    table = _search(spans, tables, steps, tile)
    begin = tl.load(spans + (tables + 1) + table)
    entry = begin + (tile - tl.load(spans + table)) * ROWS + tl.arange(0, ROWS)
    valid = entry < tl.load(spans + (tables + 1) + table + 1)
    dim = tl.load(table_quads + table) * 4
    target = gradients + tl.load(spans + 2 * (tables + 1) + table) * 4 + ((entry - begin) * dim)[:, None]
    first, last, place, is_long = _occurrences(starts, entry, valid, long_entries, longs, long_steps, long_quads, SHORT)
    squares = tl.zeros((ROWS,), tl.float32)
    largest = tl.zeros((ROWS,), tl.float32)
    for start in range(0, dim, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = column < dim
        total = _row_gradients(
            gradient, sources, scales, first, last, long_sums, place, is_long, column, inside, WEIGHTED, ROWS, COLUMNS
        )
        if WRITES:
            tl.store(target + column[None, :], total, mask=valid[:, None] & inside[None, :])
        squares += tl.sum(total * total, axis=1)
        largest = tl.maximum(largest, tl.max(tl.abs(total), axis=1))
    if MEASURES:
        tl.store(square_sums + entry, squares, mask=valid)
        tl.store(maxima + entry, largest, mask=valid)


@triton.jit(do_not_specialize=["longs", "long_steps", "tables", "steps", "partial_quads"])
def piece_kernel(
    gradient,
    sources,
    scales,
    starts,
    long_entries,
    piece_sizes,
    piece_offsets,
    longs,
    long_steps,
    spans,
    tables,
    steps,
    table_quads,
    partials,
    partial_quads,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sum one piece of the occurrences of a long row. Grid: (at least as many programs as pieces,)."""
    piece = tl.program_id(0).to(tl.int64)
    if piece < tl.load(piece_offsets + longs):
        which = _search(piece_offsets, longs, long_steps, piece)
        entry = tl.load(long_entries + which)
        size = tl.load(piece_sizes + which)
        begin = tl.load(starts + entry) + (piece - tl.load(piece_offsets + which)) * size
        end = tl.minimum(begin + size, tl.load(starts + entry + 1))
        table = _search(spans + (tables + 1), tables, steps, entry)
        dim = tl.load(table_quads + table) * 4
        target = partials + piece * partial_quads * 4
        for start in range(0, dim, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            inside = column < dim
            total = tl.zeros((ROWS, COLUMNS), tl.float32)
            for step in range(begin, end, ROWS):
                at = step + tl.arange(0, ROWS)
                there = at < end
                source = tl.load(sources + at, mask=there, other=0) * 4
                places = gradient + source[:, None] + column[None, :]
                values = tl.load(places, mask=there[:, None] & inside[None, :], other=0.0)
                if WEIGHTED:
                    values = values * tl.load(scales + at, mask=there, other=0.0)[:, None]
                total += values
            tl.store(target + column, tl.sum(total, axis=0), mask=inside)


@triton.jit(do_not_specialize=["tables", "steps", "partial_quads"])
def combine_kernel(
    partials,
    partial_quads,
    long_entries,
    piece_offsets,
    spans,
    tables,
    steps,
    table_quads,
    long_sums,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sum the pieces of one long row. Grid: (long rows,)."""
    which = tl.program_id(0).to(tl.int64)
    begin = tl.load(piece_offsets + which)
    end = tl.load(piece_offsets + which + 1)
    table = _search(spans + (tables + 1), tables, steps, tl.load(long_entries + which))
    dim = tl.load(table_quads + table) * 4
    target = long_sums + which * partial_quads * 4
    for start in range(0, dim, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = column < dim
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for step in range(begin, end, ROWS):
            piece = step + tl.arange(0, ROWS)
            places = partials + (piece * partial_quads * 4)[:, None] + column[None, :]
            total += tl.load(places, mask=(piece < end)[:, None] & inside[None, :], other=0.0)
        tl.store(target + column, tl.sum(total, axis=0), mask=inside)


@triton.jit
def _root(state, mean_squares, eps, EPS_INSIDE: tl.constexpr, DELAYED: tl.constexpr):
    """What each row's gradient is divided by."""
    denominator = state
    if not DELAYED:
        denominator = denominator + mean_squares
    if EPS_INSIDE:
        root = tl.sqrt_rn(denominator + eps)
    else:
        root = tl.sqrt_rn(denominator) + eps
    return root


@triton.jit
def _direction(gradient, root):
    """The update before learning rate and factor: 0 where the gradient is 0, also where the root is."""
    still = gradient == 0
    return tl.where(still, 0.0, tl.div_rn(gradient, tl.where(still, 1.0, root)))


@triton.jit
def _largest_factor(weights, direction, lr, lambda_rel, lambda_abs):
    """Per coordinate: the largest factor at which it does not move too far; 1 where it does not move."""
    move = lr * tl.abs(direction)
    allowed = lambda_rel * tl.abs(weights) + lambda_abs
    clips = move > allowed
    return tl.where(clips, tl.div_rn(allowed, tl.where(clips, move, 1.0)), 1.0)


@triton.jit(do_not_specialize=["longs", "long_steps", "long_quads", "tables", "steps"])
def factors_kernel(
    weights,
    state,
    rows,
    gradient,
    sources,
    scales,
    starts,
    long_sums,
    long_entries,
    longs,
    long_steps,
    long_quads,
    mean_squares,
    maxima,
    spans,
    tables,
    steps,
    table_quads,
    weight_quads,
    row_offsets,
    lr,
    lambda_rel,
    lambda_abs,
    eps,
    minima,
    CLIPS: tl.constexpr,
    SHARED: tl.constexpr,
    BOUNDED: tl.constexpr,
    EPS_INSIDE: tl.constexpr,
    DELAYED: tl.constexpr,
    SHORT: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the smallest factor of each tile, or NON_FINITE, to ``minima``. Grid: (tiles,).

    SHARED: ``gradient`` is the gradient of the lookup, to be summed anew; otherwise it holds the rows' gradients.
    BOUNDED: ``maxima`` holds the largest gradient of each row. Rows that cannot move farther than lambda_abs are not read.
    """
    tile = tl.program_id(0).to(tl.int64)
    table = _search(spans, tables, steps, tile)
    begin = tl.load(spans + (tables + 1) + table)
    entry = begin + (tile - tl.load(spans + table)) * ROWS + tl.arange(0, ROWS)
    valid = entry < tl.load(spans + (tables + 1) + table + 1)
    squares = tl.load(mean_squares + entry, mask=valid, other=0.0)
    finite = tl.abs(squares) <= _LARGEST_FLOAT  # false for NaN, too
    smallest = tl.where(finite, 1.0, _NON_FINITE)
    if CLIPS:
        dim = tl.load(table_quads + table) * 4
        row = tl.load(rows + entry, mask=valid, other=0)
        accumulator = tl.load(state + tl.load(row_offsets + table) + row, mask=valid, other=1.0)
        root = _root(accumulator, squares, eps, EPS_INSIDE, DELAYED)
        end = dim
        wanted = valid
        if BOUNDED:
            # Rounding keeps order: no coordinate moves farther than this bound does, nor may any move less than lambda_abs.
            bound = lr * _direction(tl.load(maxima + entry, mask=valid, other=0.0), root)
            wanted = valid & ((bound <= lambda_abs) == 0)
            end = tl.where(tl.max(wanted.to(tl.int32), axis=0) > 0, dim, 0)
        source = weights + tl.load(weight_quads + table) * 4 + (row * dim)[:, None]
        written = gradient + tl.load(spans + 2 * (tables + 1) + table) * 4 + ((entry - begin) * dim)[:, None]
        if SHARED:
            first, last, place, is_long = _occurrences(
                starts, entry, wanted, long_entries, longs, long_steps, long_quads, SHORT
            )
        for start in range(0, end, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            inside = column < dim
            mask = wanted[:, None] & inside[None, :]
            if SHARED:
                total = _row_gradients(
                    gradient,
                    sources,
                    scales,
                    first,
                    last,
                    long_sums,
                    place,
                    is_long,
                    column,
                    inside,
                    WEIGHTED,
                    ROWS,
                    COLUMNS,
                )
            else:
                total = tl.load(written + column[None, :], mask=mask, other=0.0)
            values = tl.load(source + column[None, :], mask=mask, other=0.0).to(tl.float32)
            factor = _largest_factor(values, _direction(total, root[:, None]), lr, lambda_rel, lambda_abs)
            smallest = tl.minimum(smallest, tl.min(factor, axis=1))
    tl.store(minima + tile, tl.min(smallest, axis=0))


@triton.jit
def table_minima_kernel(minima, spans, result, BLOCK: tl.constexpr):
    """Write the smallest of each table's minima, 1 for a table without. Grid: (T,)."""
    table = tl.program_id(0)
    end = tl.load(spans + table + 1)
    smallest = tl.full((BLOCK,), 1.0, tl.float32)
    for start in range(tl.load(spans + table), end, BLOCK):
        tile = start + tl.arange(0, BLOCK)
        smallest = tl.minimum(smallest, tl.load(minima + tile, mask=tile < end, other=1.0))
    tl.store(result + table, tl.min(smallest, axis=0))


@triton.jit(do_not_specialize=["longs", "long_steps", "long_quads", "tables", "steps"])
def apply_kernel(
    weights,
    state,
    rows,
    gradient,
    sources,
    scales,
    starts,
    long_sums,
    long_entries,
    longs,
    long_steps,
    long_quads,
    mean_squares,
    factor,
    spans,
    tables,
    steps,
    table_quads,
    weight_quads,
    row_offsets,
    lr,
    lambda_rel,
    lambda_abs,
    eps,
    SHARED: tl.constexpr,
    ACCUMULATES: tl.constexpr,
    PER_ROW: tl.constexpr,
    EPS_INSIDE: tl.constexpr,
    DELAYED: tl.constexpr,
    SHORT: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Update the weights and accumulators of ROWS touched rows. Grid: (tiles,). SHARED as for ``factors_kernel``."""
    tile = tl.program_id(0).to(tl.int64)
    table = _search(spans, tables, steps, tile)
    begin = tl.load(spans + (tables + 1) + table)
    entry = begin + (tile - tl.load(spans + table)) * ROWS + tl.arange(0, ROWS)
    valid = entry < tl.load(spans + (tables + 1) + table + 1)
    dim = tl.load(table_quads + table) * 4
    row = tl.load(rows + entry, mask=valid, other=0)
    target = weights + tl.load(weight_quads + table) * 4 + (row * dim)[:, None]
    written = gradient + tl.load(spans + 2 * (tables + 1) + table) * 4 + ((entry - begin) * dim)[:, None]
    accumulators = state + tl.load(row_offsets + table) + row
    if SHARED:
        first, last, place, is_long = _occurrences(
            starts, entry, valid, long_entries, longs, long_steps, long_quads, SHORT
        )
    root = tl.full((ROWS,), 1.0, tl.float32)
    if ACCUMULATES:
        squares = tl.load(mean_squares + entry, mask=valid, other=0.0)
        accumulator = tl.load(accumulators, mask=valid, other=1.0)
        root = _root(accumulator, squares, eps, EPS_INSIDE, DELAYED)
        # Several threads may hold the same row: all must have read it before one of them writes it.
        tl.debug_barrier()
        tl.store(accumulators, accumulator + squares, mask=valid)
    scale = tl.full((ROWS,), 1.0, tl.float32)
    if PER_ROW:
        for start in range(0, dim, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            inside = column < dim
            mask = valid[:, None] & inside[None, :]
            if SHARED:
                total = _row_gradients(
                    gradient,
                    sources,
                    scales,
                    first,
                    last,
                    long_sums,
                    place,
                    is_long,
                    column,
                    inside,
                    WEIGHTED,
                    ROWS,
                    COLUMNS,
                )
            else:
                total = tl.load(written + column[None, :], mask=mask, other=0.0)
            values = tl.load(target + column[None, :], mask=mask, other=0.0).to(tl.float32)
            factors = _largest_factor(values, _direction(total, root[:, None]), lr, lambda_rel, lambda_abs)
            scale = tl.minimum(scale, tl.min(factors, axis=1))
        tl.debug_barrier()
    else:
        scale = scale * tl.load(factor + table)
    for start in range(0, dim, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = column < dim
        mask = valid[:, None] & inside[None, :]
        if SHARED:
            total = _row_gradients(
                gradient,
                sources,
                scales,
                first,
                last,
                long_sums,
                place,
                is_long,
                column,
                inside,
                WEIGHTED,
                ROWS,
                COLUMNS,
            )
        else:
            total = tl.load(written + column[None, :], mask=mask, other=0.0)
        if ACCUMULATES:
            total = _direction(total, root[:, None])
        values = tl.load(target + column[None, :], mask=mask, other=0.0).to(tl.float32)
        updated = values - (lr * scale)[:, None] * total
        tl.store(target + column[None, :], updated.to(weights.dtype.element_ty), mask=mask)
