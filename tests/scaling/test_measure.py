"""Measurement of this machine: a description that loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dlrm_mtl.scaling import measure
from dlrm_mtl.scaling.hardware import load_hardware


@pytest.mark.slow
def test_a_measured_description_loads(call: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    code, printed = call("hardware", "measure", "--output", path, "--name", "mine", "--processes", 2)
    assert code == 0, printed
    hardware = load_hardware(path)
    assert (hardware.name, hardware.processes_per_host) == ("mine", 2)
    assert hardware.streaming.rate > 1e8
    assert hardware.within_host.latency > 0


def test_the_text_is_the_description(tmp_path: Path) -> None:
    hardware = load_hardware("l4x8")
    path = tmp_path / "copy.yaml"
    path.write_text(measure.as_yaml(hardware))
    copy = load_hardware(path)
    assert copy.memory_per_process == hardware.memory_per_process
    assert copy.seconds_per_new_byte == pytest.approx(hardware.seconds_per_new_byte, rel=0.01)
    assert copy.overhead.table == hardware.overhead.table
    assert copy.random_rows.rate == pytest.approx(hardware.random_rows.rate, rel=0.01)
    assert copy.between_hosts.bandwidth.rate == pytest.approx(hardware.between_hosts.bandwidth.rate, rel=0.01)
    assert copy.matrix_product.rate("tf32") == pytest.approx(hardware.matrix_product.rate("tf32"), rel=0.01)


def test_rates_of_known_times() -> None:
    size = 1 << 26
    seconds = {"float32": 2.0, "tf32": 1.0, "bfloat16": 1.0, "streaming": 0.5, "random_rows": 0.25, "kernel": 1e-5}
    seconds |= {"new_memory": 0.125, "search": 0.25, "small": 1e-4, "large": 1e-4 + 2.0}
    # 8 tables take 50 us each, 8 collectives 200 us each beyond 100 us of latency, and two lookups and updates 10 us each.
    few = 4e-3 + 8 * 5e-5 + 8 * 3e-4
    seconds |= {"step of few tables": few, "step of more tables": few + 64 * 5e-5}
    seconds |= {"step of two types": few + 5 * 3e-4 + 2 * 1e-5}
    hardware = measure.describe("mine", "cpu", 4, seconds)
    assert hardware.matrix_product.rate("float32") == pytest.approx(2 * 1024**3 / 2, rel=0.01)
    assert hardware.streaming.rate == pytest.approx(4 * size, rel=0.01)
    assert hardware.random_rows.rate == pytest.approx(size / 2 * 320 / 256 / 0.25, rel=0.01)
    assert hardware.seconds_per_new_byte == pytest.approx(0.125 / size + 2 / (4 * size), rel=0.01)
    assert hardware.search_rate == pytest.approx(4 * size, rel=0.01)
    assert hardware.within_host.bandwidth.rate == pytest.approx((8 << 20) * 3 / 4 / 2, rel=0.01)
    assert hardware.overhead.table == pytest.approx(5e-5)
    assert hardware.overhead.collective == pytest.approx(2e-4)
    assert hardware.overhead.step == pytest.approx(4e-3)
    alone = measure.describe("mine", "cpu", 1, seconds)
    assert alone.overhead.collective == 0.0
    assert alone.overhead.step == pytest.approx(few - 2 * 5e-5, rel=0.01)
    noise = seconds | {"step of more tables": 1e-3, "step of two types": 1e-3}
    assert measure.describe("mine", "cpu", 4, noise).overhead.table == 0.0


def test_mistakes(call: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, printed = call("hardware", "measure", "--output", tmp_path / "no" / "mine.yaml")
    assert code == 2
    assert "there is no folder" in printed
    code, printed = call("hardware", "list")
    assert code == 0
    assert "h100x8" in printed
