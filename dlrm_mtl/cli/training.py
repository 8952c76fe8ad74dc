"""Commands that train: ``init`` and ``train``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from dlrm_mtl.cli.options import ConfigFile, Overrides, Plugins
from dlrm_mtl.cli.voice import speaks


def init(
    data_set: Annotated[
        str, typer.Argument(metavar="DATASET", help="The data set's folder, which holds dataset.yaml; path or URI.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="YAML file to write, such as run.yaml. Default: print it.")
    ] = None,
) -> None:
    """Draft a first configuration for a data set: a task for every label, all features, sizes that fit."""
    from dlrm_mtl.config.draft import draft_config, write_draft

    if output is None:
        print(draft_config(data_set), end="")
    else:
        write_draft(data_set, output)
        print(f"{output}: written; look through it, then: dlrm-mtl train {shlex.quote(str(output))}")


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    output: Annotated[
        str | None,
        typer.Option(
            help="The run's folder; path, or URI of an object store. Default: runs/NAME, from the configuration."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the latest checkpoint in the run's folder, if any.")
    ] = False,
    plugins: Plugins = None,
    fallback: Annotated[
        bool,
        typer.Option(
            "--fallback", help="With --resume: where the latest checkpoint is damaged, take the newest good one."
        ),
    ] = False,
    set_on_resume: Annotated[
        list[str] | None,
        typer.Option(
            "--set-on-resume",
            metavar="KEY=VALUE",
            help="With --resume: change a key on purpose that decides on the result. Kept in history.jsonl. May be repeated.",
        ),
    ] = None,
) -> None:
    """Train a model and evaluate its best checkpoint on the test split.

    Alone it uses one process. For several: torchrun --nproc-per-node 2 -m dlrm_mtl train CONFIG, or torchx run
    launchers/train.py:ddp, on one host or many.
    """
    from dlrm_mtl.doctor import check_or_raise

    check_or_raise()
    from dlrm_mtl.config.load import load_config

    changed = set_on_resume or []
    loaded = load_config(config, [*(overrides or []), *changed], plugins)
    from dlrm_mtl.run.show import ShowProgress
    from dlrm_mtl.run.train import run_training
    from dlrm_mtl.training.interruption import Interrupted

    folder = output or f"runs/{loaded.name}"
    try:
        run_training(loaded, folder, resume, [ShowProgress()], fallback=fallback, changed=changed)
    except Interrupted as stopped:
        if speaks():
            how = (
                f"; resume from it with the run's folder {folder} as --output, and --resume"
                if stopped.resumable
                else ""
            )
            print(f"{stopped}{how}", flush=True)
        raise SystemExit(128 + stopped.number) from None
