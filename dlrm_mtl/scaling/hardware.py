"""Hardware of a cluster as figures: memory, arithmetic, bandwidths, latencies. One YAML file for each kind of host."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.memory import parse_size
from dlrm_mtl.core.schema import Strict, mapping_of, read_yaml, validate
from dlrm_mtl.core.suggest import suggest

Precision = Literal["float32", "tf32", "bfloat16"]

_PREFIXES = {
    "n": 1e-9,
    "u": 1e-6,
    "µ": 1e-6,
    "m": 1e-3,
    "": 1.0,
    "k": 1e3,
    "K": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "P": 1e15,
}


def _in_unit(value: object, unit: str, example: str) -> object:
    """A number, or the number in a text such as ``3.35TB/s``."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(rf"\s*(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*(?:([nuµmkKMGTP]?)(?:{unit}))?\s*", value)
    if not match:
        raise ValueError(f"{value!r} is not a figure in {unit}; write one such as {example}.")
    return float(match.group(1)) * _PREFIXES[match.group(2) or ""]


def _seconds(value: object) -> object:
    return _in_unit(value, "s", "12us")


def _size(value: object) -> object:
    if isinstance(value, str):
        size = parse_size(value)
        if size is None:
            raise ValueError(f"{value!r} is no amount of memory; write one such as 80GB or 64GiB.")
        return size
    return value


Seconds = Annotated[float, BeforeValidator(_seconds, json_schema_input_type=float | str), Field(ge=0)]
"""Time in seconds: a number, or a text such as `12us`."""

Size = Annotated[int, BeforeValidator(_size, json_schema_input_type=int | str), Field(gt=0)]
"""Bytes: a number, or a text such as `80GB`."""


class HardwareRate(Strict):
    """A rate: the data sheet's peak, and the part of it that programs reach."""

    peak: float = Field(gt=0)
    """Operations or bytes per second."""
    efficiency: float = Field(default=1.0, gt=0, le=1)
    """Part of the peak that is reached; 1 for a measured figure."""

    @property
    def rate(self) -> float:
        """Operations or bytes per second that programs reach."""
        return self.peak * self.efficiency


class Bandwidth(HardwareRate):
    """Bytes per second: a number, a text such as `3.35TB/s`, or `{peak: 3.35TB/s, efficiency: 0.8}`."""

    @model_validator(mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return _figure(value, "B/s", "3.35TB/s")


class Arithmetic(HardwareRate):
    """Floating-point operations per second: a number, a text such as `60Tflop/s`, or with an efficiency."""

    @model_validator(mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return _figure(value, "flop/s", "60Tflop/s")


def _figure(value: Any, unit: str, example: str) -> Any:
    if isinstance(value, dict):
        return {**value, "peak": _in_unit(value["peak"], unit, example)} if "peak" in value else value
    return {"peak": _in_unit(value, unit, example)} if isinstance(value, (int, float, str)) else value


class MatrixProduct(Strict):
    """Rates of dense matrix products of one process, in flop/s; a product and a sum are two operations."""

    float32: Arithmetic
    """Operands of 32 bits."""
    tf32: Arithmetic
    """Operands rounded to 19 bits; the same as float32 where a device has no such mode."""
    bfloat16: Arithmetic
    """Operands of 16 bits."""

    def rate(self, precision: Precision) -> float:
        """Operations per second at ``precision``."""
        figure: Arithmetic = getattr(self, precision)
        return figure.rate


class Link(Strict):
    """Communication of one process with others while all processes communicate, in one direction."""

    bandwidth: Bandwidth
    """Bytes per second that a process sends while it receives as many."""
    latency: Seconds
    """Time of a collective without data."""


class Overhead(Strict):
    """Fixed times that no amount of data changes, of one process."""

    step: Seconds
    """Of a training step: the loop, the losses, the launch of dense layers."""
    collective: Seconds
    """Of a collective, on the process that issues it; the link's latency comes on top."""
    kernel: Seconds
    """Of a lookup or an update of one group of tables."""
    table: Seconds = 0.0
    """Of each table of the model: the host splits ids and vectors by table, whichever process holds it."""


class Hardware(Strict):
    """One kind of host, and the network between such hosts. Figures are of one process unless they say otherwise."""

    name: str
    """Name of the hardware."""
    device: Literal["cpu", "cuda"]
    """Device of the tables and the dense part."""
    processes_per_host: int = Field(gt=0)
    """Number of processes of a host; one for each GPU."""
    memory_per_process: Size
    """Memory of the device of a process; on a CPU, its share of the host's memory."""
    memory_per_host: Size
    """Memory of a host, which its processes share."""
    matrix_product: MatrixProduct
    """Rates of dense matrix products."""
    streaming: Bandwidth
    """Bytes per second of reading or writing in sequence."""
    random_rows: Bandwidth
    """Bytes per second of reading or writing rows at random places of a table, where a row counts 64 bytes more than it has."""
    new_memory: Bandwidth | None = None
    """Bytes per second of writing to newly allocated memory, its allocation included; as streaming by default."""
    search: Bandwidth | None = None
    """Bytes per second of a search of a whole gradient for rows that are not zero; by default two thirds of streaming, as it
    reads a byte, and writes and reads the result of a comparison for each number."""
    within_host: Link
    """Communication with processes of the same host."""
    between_hosts: Link
    """Communication with processes of other hosts: a process's part of its host's network."""
    overhead: Overhead
    """Fixed times."""

    @property
    def seconds_per_new_byte(self) -> float:
        """Seconds that a byte of a gradient takes that is written to new memory, and copied from there."""
        new = self.streaming.rate if self.new_memory is None else self.new_memory.rate
        return 1 / new + 2 / self.streaming.rate

    @property
    def search_rate(self) -> float:
        """Bytes per second of a search of a whole gradient."""
        return self.streaming.rate / 1.5 if self.search is None else self.search.rate

    @model_validator(mode="after")
    def _processes_fit_into_a_host(self) -> Hardware:
        if self.device == "cpu" and self.memory_per_process * self.processes_per_host > self.memory_per_host:
            raise ValueError(
                f"memory_per_process {self.memory_per_process} times processes_per_host {self.processes_per_host} is more than "
                f"memory_per_host {self.memory_per_host}; lower one of the former, as processes on a CPU share their host's."
            )
        return self


def known_hardware() -> list[str]:
    """Names of the hardware that the package describes."""
    folder = files("dlrm_mtl.scaling") / "machines"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_hardware(name_or_path: str | Path) -> Hardware:
    """Hardware by its name, such as ``h100x8``, or from a YAML file with the fields of :class:`Hardware`.

    Raises:
        UserError: there is no such hardware, or the file is not one.
    """
    text = str(name_or_path)
    if text in known_hardware():
        resource = files("dlrm_mtl.scaling") / "machines" / f"{text}.yaml"
        return validate(Hardware, mapping_of(resource.read_text(encoding="utf-8"), text), text)
    path = Path(text)
    if not (path.suffix in (".yaml", ".yml") or "/" in text or path.is_file()):
        raise UserError(
            f"--hardware {text}: there is no such hardware; {suggest(text, known_hardware())}, or name a YAML file."
        )
    return validate(Hardware, read_yaml(path), text)
