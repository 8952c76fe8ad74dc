"""The group ``prepare``, with a command for every adapter."""

from __future__ import annotations

from typing import Annotated

import typer

from dlrm_mtl.prepare.commands import AdapterGroup

prepare_app = typer.Typer(
    cls=AdapterGroup,
    help="Turn your own tables or a published data set into Parquet files and dataset.yaml.",
    no_args_is_help=True,
    subcommand_metavar="DATASET [OPTIONS]",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _load_adapters(modules: list[str] | None) -> None:
    from dlrm_mtl.core.plugins import load_plugins

    load_plugins(modules or [], "--plugin")


@prepare_app.callback()
def _prepare_options(
    plugins: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin",
            metavar="MODULE",
            callback=_load_adapters,
            is_eager=True,
            help="Module that registers adapters of your own; it is run. May be repeated.",
        ),
    ] = None,
) -> None:
    """Options before the data set."""
