"""The commands ``dlrm-mtl checkpoint ...``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.memory import size_text

app = typer.Typer(help="List, check, show and remove the checkpoints of a run.", no_args_is_help=True)

RunPath = Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run; path or URI.")]
Name = Annotated[
    str | None, typer.Option("--checkpoint", help="`best`, `latest` or `step_N`, such as step_60. Default: all.")
]


@app.command("list")
def list_command(run: RunPath, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List all checkpoints: step, size, format, and which one `latest` and `best` name."""
    from dataclasses import asdict

    from rich.table import Table

    from dlrm_mtl.console import console
    from dlrm_mtl.run.inspect_checkpoints import list_checkpoints, open_checkpoints

    found = list_checkpoints(open_checkpoints(run))
    if as_json:
        console().print(json.dumps([asdict(each) for each in found], indent=1), soft_wrap=True)
        return
    table = Table(
        "checkpoint", "step", "size", "files", "format", "", title=f"{run}: checkpoints", title_justify="left"
    )
    for each in found:
        said = ", ".join([*each.pointers, *(["damaged"] if each.problem and each.problem != "incomplete" else [])])
        said = "incomplete" if each.problem == "incomplete" else said
        format = "" if each.format is None else str(each.format)
        table.add_row(each.name, f"{each.step:,}", size_text(each.size), str(each.files), format, said)
    console().print(table)
    for each in found:
        if each.problem and each.problem != "incomplete":
            console().print(each.problem, soft_wrap=True)


@app.command()
def verify(run: RunPath, checkpoint: Name = None) -> None:
    """Check every byte of the checkpoints; exit code 2 if one is damaged, with the file and the tensor."""
    from dlrm_mtl.console import console
    from dlrm_mtl.run.inspect_checkpoints import open_checkpoints, verify_checkpoints

    damaged = []
    results = verify_checkpoints(open_checkpoints(run), checkpoint)
    for name, opened in results.items():
        if isinstance(opened, UserError):
            damaged.append(str(opened))
            continue
        size = sum(tensor.size for tensor in opened.index.tensors.values())
        unchecked = "" if opened.index.format > 1 else "; format 1 has no checksums, so it could be read, no more"
        console().print(
            f"{name}: good, {len(opened.index.tensors)} tensors, {size_text(size)}{unchecked}", soft_wrap=True
        )
    if damaged:
        raise UserError("\nerror: ".join(damaged))
    if not results:
        raise UserError(f"{run}: there is no complete checkpoint yet.")


@app.command()
def show(
    run: RunPath,
    checkpoint: Annotated[str, typer.Option("--checkpoint", help="`best`, `latest` or `step_N`.")] = "latest",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: state, contract, configuration.")] = False,
) -> None:
    """Show what is in a checkpoint: the state of the run, and every tensor with its shape and size."""
    from rich.table import Table

    from dlrm_mtl.console import console
    from dlrm_mtl.run.inspect_checkpoints import open_checkpoints

    checkpoints = open_checkpoints(run)
    opened = checkpoints.open(checkpoints.find(checkpoint))
    state = opened.state.as_dict()
    if as_json:
        tensors = {
            name: {"dtype": tensor.dtype, "shape": list(tensor.shape)} for name, tensor in opened.index.tensors.items()
        }
        content = {"name": opened.name, "format": opened.index.format, "state": state, "tensors": tensors}
        console().print(json.dumps(content, indent=1), soft_wrap=True, markup=False)
        return
    table = Table("tensor", "type", "shape", "size", "parts", title=f"{run}: {opened.name}", title_justify="left")
    for name, tensor in opened.index.tensors.items():
        shape = " x ".join(f"{each:,}" for each in tensor.shape) or "one value"
        table.add_row(name, tensor.dtype, shape, size_text(tensor.size), str(len(tensor.chunks)))
    console().print(table)
    counters = {key: value for key, value in state.items() if isinstance(value, (int, float))}
    console().print(", ".join(f"{key} {value:,}" for key, value in counters.items()), soft_wrap=True)
    contract = state["contract"]
    if contract:
        features = len(contract["sparse"]) + len(contract["sequence"]) + len(contract["dense"])
        console().print(
            f"trained on {contract['dataset']['name']}: {features} features; tasks {', '.join(contract['tasks'])}",
            soft_wrap=True,
            markup=False,
        )


@app.command()
def prune(
    run: RunPath,
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest to keep, besides the best one.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove old checkpoints. The latest and the best one stay; if the latest is damaged, nothing is removed."""
    from dlrm_mtl.console import console
    from dlrm_mtl.run import inspect_checkpoints

    checkpoints = inspect_checkpoints.open_checkpoints(run)
    names = inspect_checkpoints.superfluous(checkpoints, keep)
    if not dry_run:
        inspect_checkpoints.prune(checkpoints, names)
    done = "would be removed" if dry_run else "removed"
    console().print(f"{run}: {done}: {', '.join(names) or 'nothing'}", soft_wrap=True, markup=False)
