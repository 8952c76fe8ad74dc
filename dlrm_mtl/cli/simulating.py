"""The command that simulates a run on many processes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlrm_mtl.cli.options import ConfigFile, Overrides, Plugins


def simulate(
    config: ConfigFile,
    worlds: Annotated[
        list[int] | None,
        typer.Option(
            "--world-size", min=1, max=1024, help="Number of processes. May be repeated.", show_default="8", metavar="N"
        ),
    ] = None,
    sharding: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE", help="Sharding type of all tables. May be repeated. Default: as configured, and every type."
        ),
    ] = None,
    hardware: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="Hardware of a host: a known one, or a YAML file.")
    ] = "h100x8",
    per_host: Annotated[
        int | None, typer.Option(min=1, help="Processes of a host. Default: the hardware's.", show_default=False)
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures to this file.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a self-contained page to this file, too.")
    ] = None,
    overrides: Overrides = None,
    plugins: Plugins = None,
) -> None:
    """Simulate a training step on 1 to 1,024 processes: bytes, rows, memory and balance for each sharding type, and its time.

    Steps of three of the processes are run for real, on this one: TorchRec's sharded module with the ids that it would get.
    """
    from dlrm_mtl.scaling.report import show_simulation

    show_simulation(config, overrides, plugins, worlds or [8], sharding or [], hardware, per_host, json_file, html)
