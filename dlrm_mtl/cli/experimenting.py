"""Commands that train many times: ``sweep`` and ``stability``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlrm_mtl.cli.options import ConfigFile, Overrides, Plugins
from dlrm_mtl.core.errors import UserError

if TYPE_CHECKING:  # imported on use
    from dlrm_mtl.experiments.sweep import Sweep, SweepResult


def sweep(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="SWEEP|CONFIG", help="A sweep's YAML file (see docs/sweeps.md), or a run's configuration."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="The sweep's folder. Default: sweeps/NAME, after the file.", show_default=False)
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=A,B,..", help="Values of a key; all combinations are trained. May be repeated."),
    ] = None,
    interval: Annotated[
        list[str] | None,
        typer.Option(
            "--range",
            metavar="KEY=LOW..HIGH[:log][:int]",
            help="Interval of a key to draw from, with --trials. May be repeated.",
        ),
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Points to draw, in place of a grid.")] = None,
    search: Annotated[
        str | None, typer.Option(help="With --trials: `tpe` (by Optuna) or `random`. Default: tpe.", show_default=False)
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds of every point; it is judged by their mean.")] = None,
    final_seeds: Annotated[
        int | None, typer.Option(min=0, help="Trainings of the best point on further seeds.", show_default=False)
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="Validation metric that chooses, such as mean/auc. Default: that of early stopping."),
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="With --trials: stop trainings that are below the median of earlier ones.")
    ] = False,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="Trainings at a time. Default: the number of cores.", show_default=False)
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained page to this file, too.")] = None,
    overrides: Overrides = None,
    plugins: Plugins = None,
) -> None:
    """Train a configuration with other values of some keys, in parallel processes, and say which are best.

    Stopped or killed, the same command goes on where it stopped. Every training is a run that `compare` reads:
    `dlrm-mtl compare SWEEP/trials`. Choices are made on the validation split.
    """
    from dlrm_mtl.doctor import check_or_raise

    check_or_raise()
    from dlrm_mtl.core.plugins import load_plugins
    from dlrm_mtl.core.schema import validate
    from dlrm_mtl.experiments.config import (
        SweepConfig,
        is_sweep,
        parse_grid,
        parse_interval,
        parse_settings,
        read_sweep,
    )
    from dlrm_mtl.experiments.summary import show
    from dlrm_mtl.experiments.sweep import Sweep

    load_plugins(plugins or [], "--plugin")
    parameters = {**dict(map(parse_grid, grid or [])), **dict(map(parse_interval, interval or []))}
    if is_sweep(file):
        config = read_sweep(file).model_dump(mode="json")
    elif parameters:
        config = {"config": str(file)}
    else:
        raise UserError(
            f"{file}: is no sweep, and there is nothing to vary; add --grid KEY=A,B or --range KEY=LOW..HIGH --trials N."
        )
    options = {
        "trials": trials,
        "search": search or ("tpe" if trials is not None else None),
        "seeds": seeds,
        "final_seeds": final_seeds,
        "metric": metric,
        "prune": prune or None,
    }
    config |= {key: value for key, value in options.items() if value is not None}
    config["parameters"] = {**config.get("parameters", {}), **{k: _plain(v) for k, v in parameters.items()}}
    config["set"] = {**config.get("set", {}), **parse_settings(overrides or [])}
    folder = output or Path("sweeps") / file.stem
    study = Sweep(validate(SweepConfig, config, str(file)), folder, parallel, plugins=plugins or [])
    result = _run(study, folder)
    show(result, folder, html)
    if result.failed:
        raise SystemExit(1)


def _plain(value: object) -> object:
    from dlrm_mtl.experiments.config import Interval

    return value.model_dump() if isinstance(value, Interval) else value


def stability(
    config: ConfigFile,
    multiples: Annotated[
        str, typer.Option("--lr", metavar="A,B,..", help="Multiples of the configured learning rates.")
    ] = "0.5x,1x,2x,4x,8x",
    optimizers: Annotated[
        str,
        typer.Option(
            metavar="A,B,..",
            help="adagrad, adagrad+gc (clipping by norm), adagrad+agc (adaptive clipping), lamb, clippy; a threshold may "
            "follow, such as adagrad+gc:0.01.",
        ),
    ] = "adagrad,adagrad+gc,adagrad+agc,lamb,clippy",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each.")] = 5,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the trainings. Default: stability/NAME.", show_default=False)
    ] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="Trainings at a time. Default: the number of cores.", show_default=False)
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained page to this file, too.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers to this file, too.")] = None,
    figures: Annotated[Path | None, typer.Option(help="Write the plots of the page to this folder, as SVG.")] = None,
    overrides: Overrides = None,
    plugins: Plugins = None,
) -> None:
    """Train with several optimizers at rising learning rates, and say which diverge and what each reaches at best.

    Stopped or killed, the same command goes on where it stopped.
    """
    from dlrm_mtl.doctor import check_or_raise

    check_or_raise()
    import json

    from dlrm_mtl.core.plugins import load_plugins
    from dlrm_mtl.experiments.stability import analyse, settings_of, sweep_of
    from dlrm_mtl.experiments.stability_page import as_json, show
    from dlrm_mtl.experiments.sweep import Sweep
    from dlrm_mtl.reports.page import write_text

    load_plugins(plugins or [], "--plugin")
    settings = settings_of(optimizers.split(","), multiples.split(","))
    folder = output or Path("stability") / config.stem
    study = Sweep(
        sweep_of(config, settings, seeds, overrides or [], plugins or []), folder, parallel, plugins=plugins or []
    )
    result = _run(study, folder)
    results = analyse(result, folder, settings)
    show(results, result.metric, config, html, figures)
    if json_file is not None:
        write_text(json_file, json.dumps(as_json(results, result.metric), indent=1) + "\n")
    if result.failed:
        raise SystemExit(1)


def _run(study: Sweep, folder: Path) -> SweepResult:
    """Train; leave with a remark if the user stops it."""
    try:
        return study.run()
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on with {folder}", flush=True)
        raise SystemExit(130) from None
