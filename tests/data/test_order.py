"""The order of training, without files."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.order import block_order, cut, own_lanes, row_order, schedule, steps_per_epoch

group_rows = st.lists(st.integers(0, 30), max_size=12)


@given(groups=group_rows, lanes=st.integers(1, 9), block_rows=st.integers(1, 40))
def test_lanes_hold_every_row_once_in_equal_parts(groups: list[int], lanes: int, block_rows: int) -> None:
    parts = cut(groups, lanes, block_rows)
    seen = [
        (piece.group, row)
        for lane in parts
        for block in lane.blocks
        for piece in block.pieces
        for row in range(piece.start, piece.stop)
    ]
    assert seen == [(group, row) for group, rows in enumerate(groups) for row in range(rows)]
    assert max(lane.rows for lane in parts) - min(lane.rows for lane in parts) <= 1
    for block in (block for lane in parts for block in lane.blocks):
        assert block.rows <= block_rows or len(block.pieces) == 1


@given(
    groups=group_rows,
    lanes=st.integers(1, 5),
    block_rows=st.integers(1, 40),
    batch=st.integers(1, 9),
    start=st.integers(0, 6),
    shuffle=st.booleans(),
)
def test_schedule_covers_every_row_of_a_lane_once(
    groups: list[int], lanes: int, block_rows: int, batch: int, start: int, shuffle: bool
) -> None:
    parts = cut(groups, lanes, block_rows)
    steps = steps_per_epoch(parts, batch)
    for lane in parts:
        order = block_order(5, 1, lane, shuffle)
        taken = list(schedule(lane, order, batch, 0))
        assert len(taken) <= steps
        assert all(sum(part.stop - part.start for part in slices) == batch for slices in taken[:-1])
        rows = [
            (part.block, int(row))
            for slices in taken
            for part in slices
            for row in row_order(5, 1, lane, part.block, shuffle)[part.start : part.stop]
        ]
        assert sorted(rows) == [
            (block, row) for block in range(len(lane.blocks)) for row in range(lane.blocks[block].rows)
        ]
        assert shuffle or rows == sorted(rows)
        assert list(schedule(lane, order, batch, start)) == taken[start:]


def test_orders_depend_on_seed_epoch_lane_and_block() -> None:
    first, second = cut([1000, 1000, 1000, 1000], 2, 1000)
    orders = [
        row_order(1, 0, first, 0, True),
        row_order(2, 0, first, 0, True),
        row_order(1, 1, first, 0, True),
        row_order(1, 0, second, 0, True),
        row_order(1, 0, first, 1, True),
    ]
    assert len({order.tobytes() for order in orders}) == len(orders)
    assert np.array_equal(orders[0], row_order(1, 0, first, 0, True))


def test_the_order_never_changes_with_a_version_of_numpy() -> None:
    lane = cut([100_000], 1, 100_000)[0]
    assert row_order(7, 3, cut([10], 1, 10)[0], 0, True).tolist() == [6, 3, 8, 5, 9, 0, 1, 7, 4, 2]
    digest = hashlib.sha256(row_order(7, 3, lane, 0, True).astype("<i8").tobytes()).hexdigest()
    assert digest == "32de784baea35922ccf825dd529d658860580a7298c7cc6d7a56fd0c9b3ec7e3"


@given(lanes=st.integers(1, 24), data=st.data())
def test_processes_own_consecutive_lanes(lanes: int, data: st.DataObject) -> None:
    world_size = data.draw(st.sampled_from([size for size in range(1, lanes + 1) if lanes % size == 0]))
    own = [lane for rank in range(world_size) for lane in own_lanes(lanes, rank, world_size)]
    assert own == list(range(lanes))


@pytest.mark.parametrize(
    ("lanes", "world_size", "parts"),
    [
        (8, 3, ["8 lanes", "3 processes", "start 2 or 4 processes", "set data.lanes to 6 or 9"]),
        (2, 4, ["start 2 processes", "to 4"]),
    ],
)
def test_a_world_size_that_does_not_divide_the_lanes_is_refused(lanes: int, world_size: int, parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        own_lanes(lanes, 0, world_size)
    for part in parts:
        assert part in str(error.value)
