"""The commands ``dlrm-mtl hardware ...``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlrm_mtl.core.errors import UserError

app = typer.Typer(help="Figures of hardware, for dlrm-mtl plan --hardware.", no_args_is_help=True)


@app.command("list")
def list_command() -> None:
    """List the hardware that the package describes."""
    from dlrm_mtl.scaling.hardware import known_hardware, load_hardware

    for name in known_hardware():
        hardware = load_hardware(name)
        memory = f"{hardware.memory_per_process / 1e9:,.0f} GB each"
        typer.echo(f"{name:10} {hardware.processes_per_host} process(es) a host, {hardware.device}, {memory}")


@app.command("measure")
def measure(
    output: Annotated[Path, typer.Option(metavar="FILE", help="YAML file to write.")],
    name: Annotated[str, typer.Option(help="Name of the hardware.")] = "measured",
    processes: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of processes at work at the same time. Default: one per GPU, or two on a CPU."
        ),
    ] = None,
) -> None:
    """Measure this machine: matrix products, memory, rows at random places, and exchanges between its processes."""
    import torch

    from dlrm_mtl.scaling.measure import as_yaml, measure_hardware

    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}; make it first.")
    text = as_yaml(measure_hardware(name, processes or torch.cuda.device_count() or 2))
    output.write_text(text, encoding="utf-8")
    typer.echo(text + f"written to {output}: dlrm-mtl plan CONFIG --hardware {output}")
