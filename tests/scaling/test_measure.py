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
    assert copy.random_rows.rate == pytest.approx(hardware.random_rows.rate, rel=0.01)
    assert copy.between_hosts.bandwidth.rate == pytest.approx(hardware.between_hosts.bandwidth.rate, rel=0.01)
    assert copy.matrix_product.rate("tf32") == pytest.approx(hardware.matrix_product.rate("tf32"), rel=0.01)


def test_mistakes(call: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, printed = call("hardware", "measure", "--output", tmp_path / "no" / "mine.yaml")
    assert code == 2
    assert "there is no folder" in printed
    code, printed = call("hardware", "list")
    assert code == 0
    assert "h100x8" in printed
