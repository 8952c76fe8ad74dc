"""The command ``dlrm-mtl``, one file for each group of commands, which import their work on use so that ``--help`` is quick."""

from __future__ import annotations

import gc
import io
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

import dlrm_mtl
from dlrm_mtl.cli import (
    checking,
    comparing,
    experimenting,
    exporting,
    inspecting,
    preparing,
    scoring,
    serving,
    simulating,
    training,
    using,
)
from dlrm_mtl.cli.checkpoints import app as checkpoint_app
from dlrm_mtl.cli.hardware import app as hardware_app
from dlrm_mtl.cli.voice import show_remarks, speaks
from dlrm_mtl.core.errors import EXIT_CODE, PeerLostError, UserError
from dlrm_mtl.core.extras import extras_named
from dlrm_mtl.core.uri_secrets import refuse_secrets

COMMANDS: dict[str, Callable[..., None]] = {
    # name -> function, in the order of --help
    "init": training.init,
    "train": training.train,
    "evaluate": using.evaluate,
    "predict": using.predict,
    "export": exporting.export,
    "apply": exporting.apply,
    "score": scoring.score,
    "export-graph": exporting.export_graph,
    "export-tables": exporting.export_tables,
    "serve": serving.serve,
    "skew": scoring.skew,
    "compare": comparing.compare,
    "report": comparing.report,
    "sweep": experimenting.sweep,
    "stability": experimenting.stability,
    "tune-score": scoring.tune_score_command,
    "doctor": inspecting.doctor,
    "models": inspecting.models,
    "plan": inspecting.plan,
    "simulate": simulating.simulate,
    "profile": inspecting.profile,
}
GROUPS = {
    "config": checking.config_app,
    "data": checking.data_app,
    "checkpoint": checkpoint_app,
    "hardware": hardware_app,
    "bundle": checking.bundle_app,
    "prepare": preparing.prepare_app,
}

app = typer.Typer(
    help="Train and use multitask ranking models on sharded embedding tables.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, command in COMMANDS.items():
    app.command(name)(command)
for name, group in GROUPS.items():
    app.add_typer(group, name=name)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"dlrm-mtl {dlrm_mtl.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version, and leave.")
    ] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """Run the command line; a user's mistake is printed as it is and leaves with exit code 2."""
    # Whole lines, also under a launcher that asks Python not to buffer: lines of two processes must not mix.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, write_through=False)
    # Of a lost connection PyTorch prints the stacks of its own C++ functions, beside the exception.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # its profiler says when it starts and stops
    code = 0
    show_remarks()
    try:
        for argument in sys.argv[1:]:
            refuse_secrets(argument)
        with extras_named():
            app()
    except UserError as error:
        if speaks() or error.local:
            print(f"error: {error}", file=sys.stderr, flush=True)
        code = EXIT_CODE
    except PeerLostError as error:
        if str(error):
            print(f"error: {error}", file=sys.stderr, flush=True)
        code = 1
    finally:
        # A model keeps its process group, and both lie in cycles: gloo's threads would run on while the interpreter ends, which
        # now and then aborts the process.
        gc.collect()
    sys.exit(code)
