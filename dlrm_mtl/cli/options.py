"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Argument(help="The run's YAML file, such as configs/kuairand_mmoe.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as training.epochs=3. May be repeated."),
]
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin", metavar="MODULE", help="Module that registers parts of your own; it is run. May be repeated."
    ),
]
RunPath = Annotated[
    str, typer.Argument(metavar="RUN", help="The folder of a trained run, such as runs/kuairand_mmoe; path or URI.")
]
CheckpointName = Annotated[
    str | None,
    typer.Option(
        "--checkpoint", help="`best`, `latest` or `step_N`. Default: the best one; the latest if none is known."
    ),
]
PolicyOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[FEATURE=]POLICY",
        help="`refuse`, `default` (as null) or `unknown` (as id 0), for one feature or all. May be repeated.",
    ),
]
