"""Descriptions of hardware: those of the package, and mistakes in one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.scaling.hardware import Hardware, known_hardware, load_hardware

OWN: dict[str, Any] = {
    "name": "mine", "device": "cuda", "processes_per_host": 4, "memory_per_process": "80GB", "memory_per_host": "1TiB",
    "matrix_product": {"float32": "20Tflop/s", "tf32": {"peak": "100Tflop/s", "efficiency": 0.5}, "bfloat16": 3e14},
    "streaming": "2TB/s", "random_rows": {"peak": 2e12, "efficiency": 0.25},
    "within_host": {"bandwidth": "100GB/s", "latency": "10us"}, "between_hosts": {"bandwidth": "5e9", "latency": 2e-5},
    "overhead": {"step": "1ms", "collective": "20us", "kernel": 0},
}  # fmt: skip


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**OWN, **changes}))
    return path


def test_all_that_ship_are_whole_and_in_order() -> None:
    assert {"cpu", "a100x8", "h100x8", "h200x8", "l4x8"} <= set(known_hardware())
    for name in known_hardware():
        hardware = load_hardware(name)
        assert hardware.name == name
        assert hardware.matrix_product.rate("float32") <= hardware.matrix_product.rate("tf32")
        assert hardware.random_rows.rate < hardware.streaming.rate
        assert hardware.within_host.bandwidth.rate > hardware.between_hosts.bandwidth.rate
        assert hardware.within_host.latency < hardware.between_hosts.latency


def test_units_and_efficiencies(tmp_path: Path) -> None:
    hardware = load_hardware(written(tmp_path))
    assert (hardware.memory_per_process, hardware.memory_per_host) == (80 * 10**9, 2**40)
    assert hardware.matrix_product.rate("float32") == 20e12
    assert hardware.matrix_product.rate("tf32") == 50e12
    assert hardware.matrix_product.rate("bfloat16") == 3e14
    assert (hardware.streaming.rate, hardware.random_rows.rate) == (2e12, 5e11)
    assert hardware.between_hosts.bandwidth.rate == 5e9
    assert hardware.within_host.latency == pytest.approx(1e-5)
    assert hardware.overhead.step == pytest.approx(1e-3)


def test_a_dump_is_a_description(tmp_path: Path) -> None:
    hardware = load_hardware("h100x8")
    path = tmp_path / "copy.yaml"
    path.write_text(yaml.safe_dump(hardware.model_dump()))
    assert load_hardware(path) == hardware
    assert isinstance(load_hardware(path), Hardware)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"streming": 1}, "streming: there is no key 'streming' here; did you mean 'streaming'?"),
        ({"streaming": "-1TB/s"}, "streaming: '-1TB/s' is not a figure in B/s; write one such as 3.35TB/s."),
        ({"streaming": -1}, "streaming.peak: -1 does not fit"),
        ({"random_rows": "2TB"}, "'2TB' is not a figure in B/s"),
        ({"random_rows": {"peak": 1, "efficiency": 2}}, "random_rows.efficiency: 2 does not fit"),
        ({"memory_per_process": "80"}, "'80' is no amount of memory; write one such as 80GB or 64GiB."),
        ({"within_host": {"bandwidth": 1}}, "within_host.latency: this key is required; add it."),
        ({"device": "tpu"}, "device: 'tpu' is not a choice"),
        ({"device": "cpu", "memory_per_process": "1TB"}, "memory_per_process 1000000000000 times processes_per_host 4"),
    ],
)
def test_mistakes(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        load_hardware(written(tmp_path, **changes))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="h100x4: there is no such hardware; did you mean 'h100x8'"):
        load_hardware("h100x4")
    with pytest.raises(UserError, match="there is no such file"):
        load_hardware(tmp_path / "none.yaml")
    path = written(tmp_path)
    path.write_text("name: x\n")
    with pytest.raises(UserError, match="streaming: this key is required"):
        load_hardware(path)
