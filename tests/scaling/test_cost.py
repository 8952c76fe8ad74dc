"""The time of a step, against sums written out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dlrm_mtl.scaling.cost import PARTS, collective_time, step_time, traffic
from dlrm_mtl.scaling.hardware import Bandwidth, Hardware
from dlrm_mtl.scaling.work import Collective, RankWork

HARDWARE = Hardware.model_validate({
    "name": "round", "device": "cuda", "processes_per_host": 2, "memory_per_process": 10, "memory_per_host": 20,
    "matrix_product": {"float32": 1000, "tf32": 2000, "bfloat16": 4000}, "streaming": 100, "random_rows": 10,
    "within_host": {"bandwidth": 8, "latency": 1}, "between_hosts": {"bandwidth": 2, "latency": 3},
    "overhead": {"step": 5, "collective": 0.5, "kernel": 0.25},
})  # fmt: skip

WORK = RankWork(
    rows_read=10, row_bytes_read=400, rows_updated=5, row_bytes_updated=100, dense_flops=5000, dense_bytes=300,
    table_bytes=1000, state_bytes=100, collectives=(), kernels=2, feature_bytes=40,
)  # fmt: skip


def collective(kind: str, span: str, sent: int, received: int) -> Collective:
    return Collective(kind, "pooled", span, sent, received)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "span", "inside", "outside"),
    [  # 3 hosts x 2 processes, 600 bytes
        ("all_to_all", "world", 100, 400),
        ("all_to_all", "host", 300, 0),
        ("all_to_all", "across_hosts", 0, 400),
        ("all_gather", "world", 300, 200),
        ("reduce_scatter", "host", 300, 0),
        ("reduce_scatter", "across_hosts", 0, 400),
        ("all_reduce", "world", 600, 400),
    ],
)
def test_traffic(kind: str, span: str, inside: float, outside: float) -> None:
    assert traffic(collective(kind, span, 600, 60), 3, 2) == pytest.approx((inside, outside))
    assert traffic(collective(kind, span, 60, 600), 3, 2) == pytest.approx((inside, outside))


def test_collectives() -> None:
    ordered = 2 * 600 / 100
    assert collective_time(HARDWARE, collective("all_to_all", "world", 600, 60), 3, 2) == pytest.approx(
        0.5 + 3 + ordered + 200
    )
    assert collective_time(HARDWARE, collective("all_to_all", "host", 60, 600), 3, 2) == pytest.approx(
        0.5 + 1 + ordered + 300 / 8
    )
    assert collective_time(HARDWARE, collective("all_gather", "host", 60, 600), 3, 2) == pytest.approx(
        0.5 + 1 + 300 / 8
    )
    assert collective_time(HARDWARE, collective("all_reduce", "world", 600, 600), 1, 1) == 0.0
    assert collective_time(HARDWARE, collective("all_reduce", "across_hosts", 600, 600), 1, 4) == 0.0


def test_gloo_sums_whole_tensors_to_scatter_them() -> None:
    scatter, sum_ = collective("reduce_scatter", "host", 600, 300), collective("all_reduce", "host", 600, 600)
    assert collective_time(HARDWARE, scatter, 3, 2) == pytest.approx(0.5 + 1 + 300 / 8)
    gloo = HARDWARE.model_copy(update={"device": "cpu", "new_memory": Bandwidth(peak=20)})
    copies = 600 / 100 + 600 / 20 + 2 * 300 / 100
    assert collective_time(gloo, scatter, 3, 2) == pytest.approx(collective_time(gloo, sum_, 3, 2) + copies)


def test_parts_of_one_process() -> None:
    time = step_time(HARDWARE, [WORK])
    assert time.parts == pytest.approx({
        "overhead": 5, "ids": 0, "lookup": 104.5, "pooled": 0, "dense part": 10.8, "dense exchange": 0, "gradients": 0,
        "whole gradients": 0, "row gradients": 105, "update": 126.5, "step": 0,
    })  # fmt: skip
    assert time.total == pytest.approx(351.8)
    assert time.bound == "update"
    assert time.waiting == pytest.approx(0)
    assert step_time(HARDWARE, [WORK], precision="bfloat16").parts["dense part"] == pytest.approx(5000 / 4000 + 5.8)


def test_whole_gradients_of_replicated_tables() -> None:
    work = replace(WORK, gradient_bytes_made=600, gradient_bytes_searched=300)
    assert step_time(HARDWARE, [work]).parts["whole gradients"] == pytest.approx(600 * 3 / 100 + 300 * 1.5 / 100)
    slow = HARDWARE.model_copy(update={"new_memory": Bandwidth(peak=20), "search": Bandwidth(peak=10)})
    time = step_time(slow, [work])
    assert time.parts["whole gradients"] == pytest.approx(600 / 20 + 600 * 2 / 100 + 300 / 10)
    assert time.total == pytest.approx(step_time(slow, [WORK]).total + 72)


def test_overhead_grows_with_the_tables() -> None:
    overhead = HARDWARE.overhead.model_copy(update={"table": 0.5})
    hardware = HARDWARE.model_copy(update={"overhead": overhead})
    assert step_time(hardware, [replace(WORK, tables=6)]).parts["overhead"] == 5 + 6 * 0.5


def test_each_part_waits_for_its_slowest_process() -> None:
    reader = replace(WORK, row_bytes_read=800)
    updater = replace(WORK, row_bytes_updated=200, table_bytes=2100)
    time = step_time(HARDWARE, [WORK, reader, updater, WORK], hosts=2)
    assert time.parts["lookup"] == pytest.approx(144.5)
    assert time.parts["update"] == pytest.approx(156.5)
    assert (time.slowest["lookup"], time.slowest["update"]) == (1, 2)
    assert time.total == pytest.approx(sum(time.parts[part] for part in PARTS))
    assert time.total > max(time.of_ranks)
    assert time.spreads["memory"].imbalance == pytest.approx(2200 / 1375)
    assert time.spreads["rows"].imbalance == 1.0
    assert 0 < time.waiting < 1


def test_hosts_divide_processes() -> None:
    with pytest.raises(ValueError, match="hosts: 2 must divide the number of processes, 3"):
        step_time(HARDWARE, [WORK] * 3, hosts=2)
