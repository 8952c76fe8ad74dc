"""The groups ``config``, ``bundle`` and ``data``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlrm_mtl.cli.options import ConfigFile, Overrides, Plugins

config_app = typer.Typer(help="Check configuration files, and print their schema.", no_args_is_help=True)
bundle_app = typer.Typer(help="Check bundles.", no_args_is_help=True)
data_app = typer.Typer(help="Look into data sets.", no_args_is_help=True)


@config_app.command("check")
def config_check(file: ConfigFile, overrides: Overrides = None, plugins: Plugins = None) -> None:
    """Check a configuration file, beside its data set's dataset.yaml if that is there, and say what is wrong with it."""
    from dlrm_mtl.config.check import check_against_data_set, check_pretrained
    from dlrm_mtl.config.load import load_config

    loaded = load_config(file, overrides, plugins)
    check_against_data_set(loaded, str(file))
    check_pretrained(loaded, str(file))
    if loaded.init_from is not None:
        from dlrm_mtl.run.warm_source import source_of

        source_of(loaded.init_from)
    tasks = ", ".join(task.name for task in loaded.tasks)
    print(f"{file}: valid; run {loaded.name!r}, tasks {tasks}, {loaded.model.title} on {loaded.data.path}")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of configuration files, for editors."""
    from dlrm_mtl.config.load import json_schema

    print(json_schema())


@bundle_app.command("verify")
def bundle_verify(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="The folder that `export` wrote.")],
) -> None:
    """Check every byte of a bundle, those of its tables too; exit code 2 if one was changed, with the file and the page."""
    from dlrm_mtl.console import console
    from dlrm_mtl.core.memory import size_text
    from dlrm_mtl.serve.bundle import verify_bundle

    version, size = verify_bundle(Path(bundle))
    console().print(f"{bundle}: version {version}, {size_text(size)} checked", soft_wrap=True, markup=False)


@data_app.command("describe")
def data_describe(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="The data set's folder, which holds dataset.yaml.")],
    html: Annotated[Path | None, typer.Option(help="Write a self-contained page with plots to this file, too.")] = None,
    split: Annotated[
        str | None, typer.Option(help="The split that features are described over. Default: train.")
    ] = None,
    memory: Annotated[str, typer.Option(help="Memory to use; what does not fit goes to temporary files.")] = "2GB",
) -> None:
    """Show what is in a data set: rows, label rates, and how the values of every feature are spread."""
    from dlrm_mtl.reports.dataset_report import describe_dataset

    describe_dataset(folder, html, split, memory)
