"""Commands that look before a run: ``doctor``, ``models``, ``plan``, ``profile``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlrm_mtl.cli.options import ConfigFile, Overrides, Plugins
from dlrm_mtl.cli.voice import speaks
from dlrm_mtl.core.errors import UserError


def doctor(
    distributed: Annotated[
        bool,
        typer.Option("--distributed", help="Check between the processes of a job that is started like a training."),
    ] = False,
    path: Annotated[
        list[str] | None,
        typer.Option(
            help="With --distributed: file or folder that all hosts must see alike, such as the data set; path or URI. May be "
            "repeated."
        ),
    ] = None,
    output: Annotated[
        list[str] | None,
        typer.Option(
            help="With --distributed: folder that all hosts must share and write to, such as the run's. May be repeated."
        ),
    ] = None,
) -> None:
    """Print versions, devices and backends, and check that they fit together; exit code 1 if they don't.

    With --distributed, started like `train`: check sums, bandwidth, clocks, versions and paths between the processes of a job;
    exit code 2 if something is wrong.
    """
    if distributed:
        from dlrm_mtl.doctor import check_or_raise

        check_or_raise()
        from dlrm_mtl.job_check.report import check_job

        check_job(path or [], output or [])
        return
    if path or output:
        raise UserError(f"--{'path' if path else 'output'}: goes with --distributed; add it.")
    from rich.console import Console

    from dlrm_mtl.doctor import hints, problems, report

    console = Console(highlight=False)
    console.print(report())
    found = problems(thorough=True)
    for problem in found:
        console.print(f"problem: {problem}", soft_wrap=True)
    for hint in hints():
        console.print(f"hint: {hint}", soft_wrap=True)
    if found:
        raise SystemExit(1)
    console.print("All is well.")


def models(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="A run's YAML file, such as configs/kuairand_mmoe.yaml.")
    ] = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plugins: Plugins = None,
) -> None:
    """List the multitask architectures; with a configuration, what each would cost in the place of the one it names."""
    from dlrm_mtl.core.plugins import load_plugins
    from dlrm_mtl.run.show_models import list_models, show_costs

    load_plugins(plugins or [], "--plugin")
    if config is not None:
        show_costs(config, overrides, as_json)
    elif overrides:
        raise UserError("--set: there is no configuration to override; name one, such as configs/kuairand_mmoe.yaml.")
    else:
        list_models(as_json)


def plan(
    config: ConfigFile,
    hardware: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Hardware of the hosts, such as h100x8, or a file of `hardware measure`: adds the expected time of a step.",
        ),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Number of all processes of the run. Default: the hardware's, or 1.")
    ] = None,
    hosts: Annotated[int, typer.Option(min=1, help="Number of hosts, which share the processes equally.")] = 1,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory of a host, such as 64GB. Default: this machine's.")
    ] = None,
    gpu_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Memory of a GPU, one for each process, such as 80GB. Default: this machine's, if any."
        ),
    ] = None,
    planner: Annotated[
        str | None,
        typer.Option(
            help="`cost`: by the expected time of a step; `torchrec`: as in a run without sharding.plan. Default: `cost` with "
            "--hardware or --write."
        ),
    ] = None,
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the plan, for `sharding.plan` of a training.")
    ] = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plugins: Plugins = None,
) -> None:
    """Show where the tables of a run would live, and what every process would hold, without training.

    With --hardware also how long a step would take, and what bounds it. One process plans for any number of them, and for
    machines other than this one.
    """
    if planner not in (None, "cost", "torchrec"):
        raise UserError(f"--planner {planner}: there is no such planner; choose cost or torchrec.")
    if hardware is None and planner is None and write is None:
        from dlrm_mtl.run.plan import show_plan

        show_plan(config, overrides, plugins, processes or 1, hosts, memory, gpu_memory, as_json)
        return
    from dlrm_mtl.scaling.plan_page import show_cluster_plan

    show_cluster_plan(
        config, overrides, plugins, processes, hosts, memory, gpu_memory, hardware, planner, write, as_json
    )


def profile(
    config: ConfigFile,
    steps: Annotated[int, typer.Option(min=1, help="Number of steps to measure, after a few others.")] = 20,
    output: Annotated[
        Path | None, typer.Option(help="Folder for a trace of each process, for https://ui.perfetto.dev.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained page to this file, too.")] = None,
    overrides: Overrides = None,
    plugins: Plugins = None,
) -> None:
    """Show where the time of a training step goes: phases, operators, rows per second, memory. No run is left behind.

    Alone it uses one process. For several: torchrun --nproc-per-node 2 -m dlrm_mtl profile CONFIG.
    """
    from dlrm_mtl.reports.step_profile import show_profile
    from dlrm_mtl.training.interruption import Interrupted

    try:
        show_profile(config, overrides, plugins, steps, output, html)
    except Interrupted as stopped:
        if speaks():
            print(stopped, flush=True)
        raise SystemExit(128 + stopped.number) from None
