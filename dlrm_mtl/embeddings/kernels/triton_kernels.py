# mypy: allow-untyped-defs, allow-incomplete-defs
"""Triton kernels of lookups and of the two-phase sparse update; :mod:`cuda` launches them.

Conventions:

- A width, or the position of a row in a buffer of floats, is in *quads* of 4 elements. Every table's dim is a multiple of
  4. The factor 4 in the code tells the compiler that rows begin at multiples of 16 bytes, so it moves 16 bytes at once.
- A position in the gradient of a lookup is in *units*, the greatest common divisor of the tables' dims, so that 32 bits
  suffice.
- A tile is ROWS rows times COLUMNS columns. A tile never holds rows of two tables, so a table's data are scalars of the
  program. A table wider than COLUMNS takes several rounds. ``_tile`` assigns tiles to programs.
- No float is added by an atomic: each sum has one owner and one order, so the same batch gives the same bits.
- ``sizes`` [2 T + 4] int64: start of each table's touched rows, and U; start of the repeated ones among them, and their
  number; number of ids inside their tables; number of long rows.
- ``lists`` int32: seven lists of ``room`` elements each, see ``cuda.Occurrences``, and the counts of the blocks.
- Kernels are not specialized on sizes that change from batch to batch, which would compile a kernel for each size.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LARGEST_FLOAT = tl.constexpr(3.4028234663852886e38)
_NON_FINITE = tl.constexpr(-1.0)
"""Equal to ``layout.NON_FINITE``; kernels can read only constexpr globals."""

_PLACES = tl.constexpr(0)
_ENTRIES = tl.constexpr(1)
_BEGINS = tl.constexpr(2)
_ENDS = tl.constexpr(3)
_LONGS = tl.constexpr(4)
_SOURCES = tl.constexpr(5)
_UNSORTED = tl.constexpr(6)
_COUNTS = tl.constexpr(7)

# One number holds three counts of a block of at most 1024 items: rows, repeated rows, long rows.
_REPEATED = tl.constexpr(11)
_LONG = tl.constexpr(21)
_ROWS_MASK = tl.constexpr(2**11 - 1)
_REPEATED_MASK = tl.constexpr(2**10 - 1)


@triton.jit
def _search(offsets, first, count, value):
    """Largest k in [first, first + count) with offsets[k] <= value, for a scalar or a block.

    offsets[first] <= value must hold. Among equal offsets the last wins, so that empty segments are skipped.
    """
    low = value * 0 + first
    high = low + count
    left = count
    while left > 0:
        middle = (low + high) // 2
        below = tl.load(offsets + middle) <= value
        low = tl.where(below, middle, low)
        high = tl.where(below, high, middle)
        left = left // 2
    return low


@triton.jit
def _tile(offsets, tables, ROWS: tl.constexpr):
    """Table of this program, its ROWS entries, and a mask of the entries that exist.

    The tiles of table t, whose entries begin at o, begin at tile o // ROWS + t. That is enough for all its entries, and
    needs no sum over the tiles of earlier tables. There are at most U // ROWS + T tiles.
    """
    tile = tl.program_id(0)
    low = tile * 0
    high = low + tables
    left = tables
    while left > 0:
        middle = (low + high) // 2
        below = tl.load(offsets + middle).to(tl.int32) // ROWS + middle <= tile
        low = tl.where(below, middle, low)
        high = tl.where(below, high, middle)
        left = left // 2
    begin = tl.load(offsets + low).to(tl.int32)
    entry = begin + (tile - begin // ROWS - low) * ROWS + tl.arange(0, ROWS)
    return low, entry, entry < tl.load(offsets + low + 1).to(tl.int32)


@triton.jit(do_not_specialize=["bags", "out_quads", "unit_quads"])
def lookup_kernel(
    weights,
    indices,
    offsets,
    bag_weights,
    out,
    feature_tables,
    feature_units,
    table_quads,
    weight_quads,
    row_offsets,
    bags,
    out_quads,
    unit_quads,
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
    target = out + (bag * out_quads * 4 + tl.load(feature_units + feature) * unit_quads * 4)[:, None]
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
            # A kernel cannot raise for an id outside its table. NaN is noticed, and no foreign memory is read.
            values = tl.where((there & (known == 0))[:, None], float("nan"), values)
            if WEIGHTED:
                values = values * tl.load(bag_weights + at, mask=there, other=0.0)[:, None]
            total += values
        tl.store(target + column[None, :], total, mask=valid[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["count", "segments", "bags", "bag_units", "room_quads", "tables"])
def keys_kernel(
    indices,
    offsets,
    segment_tables,
    segment_sources,
    table_units,
    row_offsets,
    keys,
    lists,
    count,
    segments,
    bags,
    bag_units,
    room_quads,
    tables,
    POOLED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Row of each id among the rows of all tables, and the location of its gradient, in units.

    POOLED: ``offsets`` bounds the bags, feature-major; all ids of a bag share a row of the output gradient. Otherwise it
    bounds segments of ids, and each id has its own row. ``segment_*`` hold one entry per feature, or per segment.
    """
    start = tl.program_id(0) * BLOCK
    item = start + tl.arange(0, BLOCK)
    valid = item < count
    # A block of ids meets few segments: only its ends are searched among all segments.
    lowest = _search(offsets, 0, segments, start)
    highest = _search(offsets, lowest, segments - lowest, tl.minimum(start + BLOCK, count) - 1)
    segment = _search(offsets, lowest, highest - lowest + 1, tl.minimum(item, count - 1))
    if POOLED:
        feature = segment // bags
        within = (segment - feature * bags) * bag_units
        table = tl.load(segment_tables + feature)
        source = tl.load(segment_sources + feature) + within
    else:
        table = tl.load(segment_tables + segment)
        within = (item - tl.load(offsets + segment)) * tl.load(table_units + table)
        source = tl.load(segment_sources + segment) + within
    row = tl.load(indices + item, mask=valid, other=0)
    begin = tl.load(row_offsets + table)
    known = (row >= 0) & (row < tl.load(row_offsets + table + 1) - begin)
    # An id outside its table sorts behind all tables, where the host detects it.
    key = tl.where(known, begin + row, tl.load(row_offsets + tables))
    tl.store(keys + item, key.to(keys.dtype.element_ty), mask=valid)
    tl.store(lists + _UNSORTED * room_quads.to(tl.int64) * 4 + item, source.to(tl.int32), mask=valid)


@triton.jit
def _neighbours(keys, item, count, SHORT: tl.constexpr):
    """Sorted keys of ``item`` and its neighbours; masks of items that are the first of a row, a repeated row or a long row."""
    valid = item < count
    key = tl.load(keys + item, mask=valid, other=-1)
    before = tl.load(keys + item - 1, mask=valid & (item > 0), other=-1)
    after = tl.load(keys + item + 1, mask=item + 1 < count, other=-1)
    ahead = tl.load(keys + item + SHORT, mask=item + SHORT < count, other=-1)
    first = valid & (key != before)
    repeated = first & (key == after)
    is_long = first & (key == ahead)
    packed = first.to(tl.int32) + (repeated.to(tl.int32) << _REPEATED) + (is_long.to(tl.int32) << _LONG)
    return key, before, after, first, repeated, is_long, packed


@triton.jit(do_not_specialize=["count", "room_quads"])
def count_kernel(keys, lists, count, room_quads, SHORT: tl.constexpr, BLOCK: tl.constexpr):
    """Count the rows, repeated rows and long rows that begin in each block of sorted ``keys``. Grid: (blocks,)."""
    item = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    _, _, _, _, _, _, packed = _neighbours(keys, item, count, SHORT)
    tl.store(lists + _COUNTS * room_quads.to(tl.int64) * 4 + tl.program_id(0), tl.sum(packed, axis=0))


@triton.jit(do_not_specialize=["count", "room_quads", "tables"])
def lists_kernel(
    keys,
    order,
    unsorted_scales,
    row_offsets,
    rows,
    lists,
    scales,
    sizes,
    count,
    room_quads,
    tables,
    SHORT: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write ``rows``, ``lists``, ``scales`` and ``sizes`` from sorted ``keys``. Grid: (blocks,)."""
    program = tl.program_id(0)
    start = program * BLOCK
    item = start + tl.arange(0, BLOCK)
    valid = item < count
    room = room_quads.to(tl.int64) * 4
    key, before, after, first, repeated, is_long, packed = _neighbours(keys, item, count, SHORT)
    # Counts of the blocks before this one: few numbers, in the cache. Adding them here saves a launch.
    rows_before = tl.zeros((BLOCK,), tl.int32)
    repeated_before = tl.zeros((BLOCK,), tl.int32)
    longs_before = tl.zeros((BLOCK,), tl.int32)
    for skip in range(0, program, BLOCK):
        block = skip + tl.arange(0, BLOCK)
        counts = tl.load(lists + _COUNTS * room + block, mask=block < program, other=0)
        rows_before += counts & _ROWS_MASK
        repeated_before += (counts >> _REPEATED) & _REPEATED_MASK
        longs_before += counts >> _LONG
    ranks = tl.cumsum(packed, axis=0)
    entry = tl.sum(rows_before, axis=0) + (ranks & _ROWS_MASK) - 1
    repeats = tl.sum(repeated_before, axis=0) + ((ranks >> _REPEATED) & _REPEATED_MASK)
    longs = tl.sum(longs_before, axis=0) + (ranks >> _LONG)
    repeat = repeats - 1
    place = tl.load(order + item, mask=valid, other=0)
    source = tl.load(lists + _UNSORTED * room + place, mask=valid, other=0)
    among = valid & ((key == before) | (key == after))
    tl.store(lists + _PLACES * room + entry, tl.where(repeated, -1 - repeat, source), mask=first)
    tl.store(lists + _ENTRIES * room + repeat, entry, mask=repeated)
    tl.store(lists + _BEGINS * room + repeat, item, mask=repeated)
    tl.store(lists + _ENDS * room + repeat, item + 1, mask=among & (key != after))
    tl.store(lists + _LONGS * room + longs - 1, repeat, mask=is_long)
    tl.store(lists + _SOURCES * room + item, source, mask=among)
    if WEIGHTED:
        scale = tl.load(unsorted_scales + place, mask=valid, other=0.0)
        tl.store(scales + entry, tl.where(repeated, 1.0, scale), mask=first)
        tl.store(scales + room + item, scale, mask=among)

    # Ids outside their tables count as rows of one more table. Most blocks are within one table.
    lowest = _search(row_offsets, 0, tables + 1, tl.load(keys + start).to(tl.int64))
    highest = _search(
        row_offsets, lowest, tables + 1 - lowest, tl.load(keys + tl.minimum(start + BLOCK, count) - 1).to(tl.int64)
    )
    wide = key.to(tl.int64)
    table = _search(row_offsets, lowest, highest - lowest + 1, tl.maximum(wide, 0))
    begin = tl.load(row_offsets + table)
    tl.store(rows + entry, wide - begin, mask=first)
    crossing = first & (before.to(tl.int64) < begin)
    if tl.sum(crossing.to(tl.int32), axis=0) > 0:
        previous = _search(row_offsets, 0, tables + 1, tl.maximum(before.to(tl.int64), 0))
        previous = tl.where(item == 0, -1, previous)
        for back in range(0, tl.max(tl.where(crossing, table - previous, 0), axis=0)):
            mine = crossing & (table - back > previous)
            tl.store(sizes + table - back, entry, mask=mine)
            tl.store(sizes + tables + 1 + table - back, repeats - repeated.to(tl.int32), mask=mine)
        tl.store(sizes + 2 * tables + 2 + table * 0, item, mask=crossing & (table == tables))
    if start + BLOCK >= count:
        final = item == count - 1
        for ahead in range(0, tl.max(tl.where(final, tables - table, 0), axis=0)):
            mine = final & (table + 1 + ahead <= tables)
            tl.store(sizes + table + 1 + ahead, entry + 1, mask=mine)
            tl.store(sizes + tables + 1 + table + 1 + ahead, repeats, mask=mine)
        tl.store(sizes + 2 * tables + 2 + table * 0, item + 1, mask=final & (table < tables))
        tl.store(sizes + 2 * tables + 3 + table * 0, longs, mask=final)


@triton.jit(do_not_specialize=["bags", "bag_units", "unit_quads", "units"])
def measure_kernel(
    gradient,
    feature_tables,
    feature_units,
    table_quads,
    measures,
    bags,
    bag_units,
    unit_quads,
    units,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Measure each bag's gradient: its sum of squares in the first row, its largest absolute value in the second.

    Rows that occur once have the measures of their bag. Grid: (blocks of bags, features).
    """
    feature = tl.program_id(1)
    bag = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = bag < bags
    dim = (tl.load(table_quads + tl.load(feature_tables + feature)) * 4).to(tl.int32)
    unit = bag * bag_units + tl.load(feature_units + feature)
    source = gradient + unit.to(tl.int64) * unit_quads * 4
    squares = tl.zeros((ROWS,), tl.float32)
    largest = tl.zeros((ROWS,), tl.float32)
    for start in range(0, dim, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        values = tl.load(source[:, None] + column[None, :], mask=valid[:, None] & (column < dim)[None, :], other=0.0)
        squares += tl.sum(values * values, axis=1)
        largest = tl.maximum(largest, tl.max(tl.abs(values), axis=1))
    tl.store(measures + unit, squares, mask=valid)
    tl.store(measures + units + unit, largest, mask=valid)


@triton.jit(do_not_specialize=["tiles", "touched", "tables", "room_quads", "unit_quads", "units"])
def sum_kernel(
    gradient,
    lists,
    scales,
    sizes,
    bases,
    table_quads,
    measures,
    sums,
    square_sums,
    maxima,
    tiles,
    touched,
    tables,
    room_quads,
    unit_quads,
    units,
    SHORT: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sum and measure the repeated rows, and copy the measures of rows that occur once from their bags.

    The first ``tiles`` programs process ROWS repeated rows each, the others BLOCK of all rows. Long rows have kernels of
    their own: one would delay its whole tile.
    """
    program = tl.program_id(0)
    if program >= tiles:
        every = (program - tiles) * BLOCK + tl.arange(0, BLOCK)
        place = tl.load(lists + every, mask=every < touched, other=-1)
        once = place >= 0
        tl.store(square_sums + every, tl.load(measures + place, mask=once), mask=once)
        tl.store(maxima + every, tl.load(measures + units + place, mask=once), mask=once)
    else:
        table, repeat, valid = _tile(sizes + tables + 1, tables, ROWS)
        room = room_quads.to(tl.int64) * 4
        quads = tl.load(table_quads + table)
        dim = quads * 4
        first = tl.load(lists + _BEGINS * room + repeat, mask=valid, other=0)
        last = tl.load(lists + _ENDS * room + repeat, mask=valid, other=0)
        entry = tl.load(lists + _ENTRIES * room + repeat, mask=valid, other=0)
        valid = valid & (last - first <= SHORT)
        last = tl.where(valid, last, first)
        longest = tl.max(last - first, axis=0)
        target = sums + (tl.load(bases + table) + repeat * quads) * 4
        sources = lists + _SOURCES * room
        squares = tl.zeros((ROWS,), tl.float32)
        largest = tl.zeros((ROWS,), tl.float32)
        for start in range(0, dim, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            inside = column < dim
            total = tl.zeros((ROWS, COLUMNS), tl.float32)
            for step in range(0, longest, 2):
                # Two loads at a time are in flight; they are added in their order.
                at = first + step
                there = at < last
                then = at + 1 < last
                one = tl.load(sources + at, mask=there, other=0).to(tl.int64) * unit_quads * 4
                two = tl.load(sources + at + 1, mask=then, other=0).to(tl.int64) * unit_quads * 4
                these = tl.load(
                    gradient + one[:, None] + column[None, :], mask=there[:, None] & inside[None, :], other=0.0
                )
                those = tl.load(
                    gradient + two[:, None] + column[None, :], mask=then[:, None] & inside[None, :], other=0.0
                )
                if WEIGHTED:
                    these = these * tl.load(scales + room + at, mask=there, other=0.0)[:, None]
                    those = those * tl.load(scales + room + at + 1, mask=then, other=0.0)[:, None]
                total += these
                total += those
            tl.store(target[:, None] + column[None, :], total, mask=valid[:, None] & inside[None, :])
            squares += tl.sum(total * total, axis=1)
            largest = tl.maximum(largest, tl.max(tl.abs(total), axis=1))
        tl.store(square_sums + entry, squares, mask=valid)
        tl.store(maxima + entry, largest, mask=valid)


@triton.jit
def _pieces(begin, end, PIECE: tl.constexpr):
    """Size and number of the pieces in which a long row is summed.

    About sqrt(n) pieces of about sqrt(n) occurrences each, so that neither the sum of a piece nor the sum of the pieces
    takes one program long. The cut, and thus the order of the sum, depends only on n.
    """
    length = end - begin
    size = tl.maximum(tl.sqrt_rn(length.to(tl.float32)).to(tl.int32) + 1, PIECE)
    return size, (length + size - 1) // size


@triton.jit(do_not_specialize=["longs", "tables", "room_quads", "unit_quads", "partial_quads"])
def piece_kernel(
    gradient,
    lists,
    scales,
    sizes,
    table_quads,
    partials,
    longs,
    tables,
    room_quads,
    unit_quads,
    partial_quads,
    PIECE: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sum one piece of the occurrences of a long row. Grid: (N // PIECE + long rows,); some programs have no piece.

    The pieces of long row i, whose occurrences begin at b, are numbered from b // PIECE + i.
    """
    piece = tl.program_id(0)
    room = room_quads.to(tl.int64) * 4
    low = piece * 0
    high = low + longs
    left = longs
    while left > 0:
        middle = (low + high) // 2
        begin = tl.load(lists + _BEGINS * room + tl.load(lists + _LONGS * room + middle))
        below = begin // PIECE + middle <= piece
        low = tl.where(below, middle, low)
        high = tl.where(below, high, middle)
        left = left // 2
    repeat = tl.load(lists + _LONGS * room + low)
    begin = tl.load(lists + _BEGINS * room + repeat)
    end = tl.load(lists + _ENDS * room + repeat)
    size, pieces = _pieces(begin, end, PIECE)
    number = piece - begin // PIECE - low
    if (number >= 0) & (number < pieces):
        table = _search(sizes + tables + 1, 0, tables, repeat)
        dim = tl.load(table_quads + table) * 4
        first = begin + number * size
        end = tl.minimum(first + size, end)
        target = partials + piece.to(tl.int64) * partial_quads * 4
        for start in range(0, dim, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            inside = column < dim
            total = tl.zeros((ROWS, COLUMNS), tl.float32)
            for step in range(first, end, ROWS):
                at = step + tl.arange(0, ROWS)
                there = at < end
                source = tl.load(lists + _SOURCES * room + at, mask=there, other=0).to(tl.int64) * unit_quads * 4
                places = gradient + source[:, None] + column[None, :]
                values = tl.load(places, mask=there[:, None] & inside[None, :], other=0.0)
                if WEIGHTED:
                    values = values * tl.load(scales + room + at, mask=there, other=0.0)[:, None]
                total += values
            tl.store(target + column, tl.sum(total, axis=0), mask=inside)


@triton.jit(do_not_specialize=["tables", "room_quads", "partial_quads"])
def combine_kernel(
    partials,
    lists,
    sizes,
    bases,
    table_quads,
    sums,
    square_sums,
    maxima,
    tables,
    room_quads,
    partial_quads,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sum the pieces of one long row, and measure the sum. Grid: (long rows,)."""
    which = tl.program_id(0)
    room = room_quads.to(tl.int64) * 4
    repeat = tl.load(lists + _LONGS * room + which)
    begin = tl.load(lists + _BEGINS * room + repeat)
    _, pieces = _pieces(begin, tl.load(lists + _ENDS * room + repeat), PIECE)
    table = _search(sizes + tables + 1, 0, tables, repeat)
    quads = tl.load(table_quads + table)
    source = partials + (begin // PIECE + which).to(tl.int64) * partial_quads * 4
    target = sums + (tl.load(bases + table) + repeat * quads) * 4
    squares = tl.zeros((COLUMNS,), tl.float32)
    largest = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, quads * 4, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = column < quads * 4
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for step in range(0, pieces, ROWS):
            piece = step + tl.arange(0, ROWS)
            places = source + (piece.to(tl.int64) * partial_quads * 4)[:, None] + column[None, :]
            total += tl.load(places, mask=(piece < pieces)[:, None] & inside[None, :], other=0.0)
        whole = tl.sum(total, axis=0)
        tl.store(target + column, whole, mask=inside)
        squares += whole * whole
        largest = tl.maximum(largest, tl.abs(whole))
    entry = tl.load(lists + _ENTRIES * room + repeat)
    tl.store(square_sums + entry, tl.sum(squares, axis=0))
    tl.store(maxima + entry, tl.max(largest, axis=0))


@triton.jit
def _sources(gradient, lists, sums, bases, table, entry, valid, quads, unit_quads, SHARED: tl.constexpr):
    """[ROWS] start of each touched row's gradient: in its bag or in the sums; the row's own if not SHARED."""
    base = tl.load(bases + table)
    if SHARED:
        place = tl.load(lists + entry, mask=valid, other=0)
        sources = tl.where(
            place >= 0, gradient + place.to(tl.int64) * unit_quads * 4, sums + (base + (-1 - place) * quads) * 4
        )
    else:
        sources = gradient + (base + entry * quads) * 4
    return sources


@triton.jit(do_not_specialize=["tables", "unit_quads"])
def row_kernel(
    gradient,
    lists,
    scales,
    sums,
    sum_bases,
    sizes,
    bases,
    table_quads,
    written,
    square_sums,
    maxima,
    tables,
    unit_quads,
    WRITES: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """WRITES: write out the gradients of ROWS touched rows. Otherwise: measure the rows that occur once. Grid: (tiles,)."""
    table, entry, valid = _tile(sizes, tables, ROWS)
    quads = tl.load(table_quads + table)
    dim = quads * 4
    source = _sources(gradient, lists, sums, sum_bases, table, entry, valid, quads, unit_quads, True)
    target = written + (tl.load(bases + table) + entry * quads) * 4
    if not WRITES:
        valid = valid & (tl.load(lists + entry, mask=valid, other=-1) >= 0)
    squares = tl.zeros((ROWS,), tl.float32)
    largest = tl.zeros((ROWS,), tl.float32)
    for start in range(0, dim, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = valid[:, None] & (column < dim)[None, :]
        values = tl.load(source[:, None] + column[None, :], mask=mask, other=0.0)
        if WEIGHTED:
            values = values * tl.load(scales + entry, mask=valid, other=0.0)[:, None]
        if WRITES:
            tl.store(target[:, None] + column[None, :], values, mask=mask)
        else:
            squares += tl.sum(values * values, axis=1)
            largest = tl.maximum(largest, tl.max(tl.abs(values), axis=1))
    if not WRITES:
        tl.store(square_sums + entry, squares, mask=valid)
        tl.store(maxima + entry, largest, mask=valid)


@triton.jit
def _root(state, mean_squares, eps, EPS_INSIDE: tl.constexpr, DELAYED: tl.constexpr):
    """Divisor of each row's gradient."""
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
    """Update before learning rate and factor; 0 where the gradient is 0, even if the root is 0."""
    still = gradient == 0
    return tl.where(still, 0.0, tl.div_rn(gradient, tl.where(still, 1.0, root)))


@triton.jit
def _largest_factor(weights, direction, lr, lambda_rel, lambda_abs):
    """Largest factor per coordinate at which it does not move too far; 1 if it does not move."""
    move = lr * tl.abs(direction)
    allowed = lambda_rel * tl.abs(weights) + lambda_abs
    clips = move > allowed
    return tl.where(clips, tl.div_rn(allowed, tl.where(clips, move, 1.0)), 1.0)


@triton.jit
def _movers(
    state, rows, mean_squares, maxima, entry, valid, lr, lambda_abs, eps,
    BOUNDED: tl.constexpr, EPS_INSIDE: tl.constexpr, DELAYED: tl.constexpr,
):  # fmt: skip
    """Rows within their table, divisors of their gradients, and a mask of rows that may move farther than lambda_abs."""
    squares = tl.load(mean_squares + entry, mask=valid, other=0.0)
    row = tl.load(rows + entry, mask=valid, other=0)
    root = _root(tl.load(state + row, mask=valid, other=1.0), squares, eps, EPS_INSIDE, DELAYED)
    wanted = valid
    if BOUNDED:
        # Rounding is monotonic: no coordinate moves farther than this bound, and every limit is at least lambda_abs.
        bound = lr * _direction(tl.load(maxima + entry, mask=valid, other=0.0), root)
        wanted = valid & ((bound <= lambda_abs) == 0)
    return row, root, wanted


@triton.jit(do_not_specialize=["tables", "unit_quads"])
def factor_kernel(
    weights,
    state,
    rows,
    gradient,
    lists,
    scales,
    sums,
    bases,
    sizes,
    mean_squares,
    maxima,
    table_quads,
    weight_quads,
    row_offsets,
    minima,
    tables,
    unit_quads,
    lr,
    lambda_rel,
    lambda_abs,
    eps,
    CLIPS: tl.constexpr,
    SHARED: tl.constexpr,
    BOUNDED: tl.constexpr,
    EPS_INSIDE: tl.constexpr,
    DELAYED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the smallest factor of CHUNK rows, or NON_FINITE, to ``minima``. Grid: (tiles of CHUNK rows,).

    SHARED: ``gradient`` is the gradient of the lookup; otherwise it holds the rows' gradients. BOUNDED: ``maxima`` holds
    the largest gradient of each row. Rows that cannot move farther than lambda_abs are not read.
    """
    table, entry, valid = _tile(sizes, tables, CHUNK)
    squares = tl.load(mean_squares + entry, mask=valid, other=0.0)
    finite = tl.abs(squares) <= _LARGEST_FLOAT  # also false for NaN
    smallest = tl.min(tl.where(finite, 1.0, _NON_FINITE), axis=0)
    if CLIPS:
        state += tl.load(row_offsets + table)
        _, _, wanted = _movers(
            state, rows, mean_squares, maxima, entry, valid, lr, lambda_abs, eps, BOUNDED, EPS_INSIDE, DELAYED
        )
        if tl.max(wanted.to(tl.int32), axis=0) > 0:
            quads = tl.load(table_quads + table)
            dim = quads * 4
            origin = weights + tl.load(weight_quads + table) * 4
            begin = tl.min(entry, axis=0)
            end = tl.load(sizes + table + 1).to(tl.int32)
            for skip in range(0, CHUNK, ROWS):
                few = begin + skip + tl.arange(0, ROWS)
                row, root, moving = _movers(
                    state, rows, mean_squares, maxima, few, few < end, lr, lambda_abs, eps, BOUNDED, EPS_INSIDE, DELAYED
                )
                if tl.max(moving.to(tl.int32), axis=0) > 0:
                    source = _sources(gradient, lists, sums, bases, table, few, moving, quads, unit_quads, SHARED)
                    place = origin + row * dim
                    for start in range(0, dim, COLUMNS):
                        column = start + tl.arange(0, COLUMNS)
                        mask = moving[:, None] & (column < dim)[None, :]
                        values = tl.load(place[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
                        total = tl.load(source[:, None] + column[None, :], mask=mask, other=0.0)
                        if WEIGHTED:
                            total = total * tl.load(scales + few, mask=moving, other=0.0)[:, None]
                        factor = _largest_factor(values, _direction(total, root[:, None]), lr, lambda_rel, lambda_abs)
                        smallest = tl.minimum(smallest, tl.min(tl.min(factor, axis=1), axis=0))
    tl.store(minima + tl.program_id(0), smallest)


@triton.jit(do_not_specialize=["tables"])
def table_minima_kernel(minima, sizes, result, tables, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """Write the smallest of each table's minima, 1 for a table without minima. Grid: (T,)."""
    table = tl.program_id(0)
    begin = tl.load(sizes + table).to(tl.int32)
    entries = tl.load(sizes + table + 1).to(tl.int32) - begin
    first = begin // CHUNK + table
    end = first + (entries + CHUNK - 1) // CHUNK
    smallest = tl.full((BLOCK,), 1.0, tl.float32)
    for start in range(first, end, BLOCK):
        tile = start + tl.arange(0, BLOCK)
        smallest = tl.minimum(smallest, tl.load(minima + tile, mask=tile < end, other=1.0))
    tl.store(result + table, tl.min(smallest, axis=0))


@triton.jit(do_not_specialize=["tables", "unit_quads"])
def apply_kernel(
    weights,
    state,
    rows,
    gradient,
    lists,
    scales,
    sums,
    bases,
    sizes,
    mean_squares,
    factor,
    table_quads,
    weight_quads,
    row_offsets,
    tables,
    unit_quads,
    lr,
    lambda_rel,
    lambda_abs,
    eps,
    SHARED: tl.constexpr,
    ACCUMULATES: tl.constexpr,
    PER_ROW: tl.constexpr,
    EPS_INSIDE: tl.constexpr,
    DELAYED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Update the weights and accumulators of ROWS touched rows. Grid: (tiles,). SHARED as for ``factor_kernel``."""
    table, entry, valid = _tile(sizes, tables, ROWS)
    quads = tl.load(table_quads + table)
    dim = (quads * 4).to(tl.int32)
    row = tl.load(rows + entry, mask=valid, other=0)
    target = weights + tl.load(weight_quads + table) * 4 + row * dim
    source = _sources(gradient, lists, sums, bases, table, entry, valid, quads, unit_quads, SHARED)
    own = tl.full((ROWS,), 1.0, tl.float32)
    if WEIGHTED:
        own = tl.load(scales + entry, mask=valid, other=0.0)
    # The first columns are loaded while the row's divisor is computed.
    column = tl.arange(0, COLUMNS)
    mask = valid[:, None] & (column < dim)[None, :]
    values = tl.load(target[:, None] + column[None, :], mask=mask, other=0.0)
    total = tl.load(source[:, None] + column[None, :], mask=mask, other=0.0)
    root = tl.full((ROWS,), 1.0, tl.float32)
    if ACCUMULATES:
        accumulators = state + tl.load(row_offsets + table) + row
        squares = tl.load(mean_squares + entry, mask=valid, other=0.0)
        accumulator = tl.load(accumulators, mask=valid, other=1.0)
        root = _root(accumulator, squares, eps, EPS_INSIDE, DELAYED)
        # Several threads may hold the same row: all must read it before one of them writes it.
        tl.debug_barrier()
        tl.store(accumulators, accumulator + squares, mask=valid)
    scale = tl.full((ROWS,), 1.0, tl.float32)
    if PER_ROW:
        for start in range(0, dim, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            mask = valid[:, None] & (column < dim)[None, :]
            some = tl.load(source[:, None] + column[None, :], mask=mask, other=0.0)
            if WEIGHTED:
                some = some * own[:, None]
            now = tl.load(target[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
            factors = _largest_factor(now, _direction(some, root[:, None]), lr, lambda_rel, lambda_abs)
            scale = tl.minimum(scale, tl.min(factors, axis=1))
        tl.debug_barrier()
    else:
        scale = scale * tl.load(factor + table)
    for start in range(0, dim, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = valid[:, None] & (column < dim)[None, :]
        if start > 0:
            values = tl.load(target[:, None] + column[None, :], mask=mask, other=0.0)
            total = tl.load(source[:, None] + column[None, :], mask=mask, other=0.0)
        update = total
        if WEIGHTED:
            update = update * own[:, None]
        if ACCUMULATES:
            update = _direction(update, root[:, None])
        updated = values.to(tl.float32) - (lr * scale)[:, None] * update
        tl.store(target[:, None] + column[None, :], updated.to(weights.dtype.element_ty), mask=mask)
