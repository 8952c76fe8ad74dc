"""Frame of the studies that are sweeps: trainings that go on after a kill, figures as JSON, tables as Markdown, plots as SVG.

A study is a class with one or more sweep files (see docs/sweeps.md), ``measure``, which makes JSON of the trainings, and
``show``, which makes tables and plots of the JSON alone. The figures in a study's page are those that are stored beside the
study, so that tests can compare the page with them.
"""

from __future__ import annotations

import argparse
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from dlrm_mtl.console import say
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.spec import DATASET_FILE
from dlrm_mtl.experiments.config import SweepConfig, read_sweep
from dlrm_mtl.experiments.summary import source_line
from dlrm_mtl.experiments.sweep import TRIALS, Sweep
from dlrm_mtl.reports.page import PageTable, write_text
from dlrm_mtl.reports.runs import RecordedRun, read_runs

STORED = "figures.json"
"""File of a study's figures, beside it."""
QUICK_STEPS = 4
"""Steps of every training with ``--quick``."""


@dataclass(frozen=True)
class Training:
    """A finished training of a sweep."""

    method: str
    point: Mapping[str, Any]
    """Tuned values by key path, one for each key below a tuned one."""
    seed: int
    final: bool
    """True for a training on a fresh seed, after tuning."""
    run: RecordedRun


@dataclass(frozen=True)
class Shown:
    """Tables and plots of a study."""

    tables: Sequence[PageTable] = ()
    plots: Mapping[str, str] = field(default_factory=dict)
    """SVG by name."""

    def markdown(self) -> str:
        """All tables, each under its caption."""
        return "\n\n".join(map(markdown, self.tables)) + "\n"


class Study(ABC):
    """A study of one or more sweeps.

    Args:
        folder: folder of the study, with the sweeps' files and the stored figures.
    """

    name: ClassVar[str]
    sweeps: ClassVar[Sequence[str]] = ("sweep.yaml",)
    """Files of the sweeps."""
    raw: ClassVar[str | None] = None
    """What ``--data`` must hold; None for a study that needs no files of others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self, raw: Path | None, output: Path) -> Mapping[str, Mapping[str, Any]]:
        """Prepare data below ``output``, unless it is there.

        Returns:
            Values by key path for the trainings of each sweep, by the stem of its file; a sweep that is left out is not run.

        Raises:
            UserError: ``raw`` does not hold the files.
        """
        return {Path(file).stem: {} for file in self.sweeps}

    @abstractmethod
    def measure(self, trainings: Mapping[str, Sequence[Training]], output: Path) -> dict[str, Any]:
        """Figures of the finished trainings, by sweep in the order of seeds, as JSON."""

    @abstractmethod
    def show(self, figures: Mapping[str, Any]) -> Shown:
        """Tables and plots of the figures."""

    def stored(self) -> dict[str, Any]:
        """The figures beside the study.

        Raises:
            UserError: there are none.
        """
        path = self.folder / STORED
        if not path.is_file():
            raise UserError(f"{path}: there are no figures yet; run the study without --stored.")
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found


def run(study: Study, arguments: Sequence[str], about: str) -> None:
    """The command line of a study.

    Raises:
        UserError: a user's mistake, or trainings failed.
    """
    parser = argparse.ArgumentParser(
        f"python -m studies {study.name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Stopped or killed, the same command goes on.",
    )
    if study.raw is not None:
        parser.add_argument("--data", type=Path, metavar="FOLDER", help=f"with {study.raw}")
    add = parser.add_argument
    add("--output", type=Path, metavar="FOLDER", help=f"for data and trainings; default: runs/{study.name}")
    add("--parallel", type=int, metavar="N", help="trainings at a time, one thread each; default: one for each core")
    add("--quick", action="store_true", help="a few steps of one seed: to see that it works, not what comes out")
    add("--finished", action="store_true", help="show what is finished, and train nothing")
    add("--stored", action="store_true", help="show the figures of the study's page, and train nothing")
    add("--json", type=Path, metavar="FILE", help="where to write the figures")
    add("--plots", type=Path, metavar="FOLDER", help="where to write the plots, as SVG")
    options = parser.parse_args(arguments)
    if options.stored:
        figures = study.stored()
    else:
        output = options.output or Path("runs") / (f"{study.name}_quick" if options.quick else study.name)
        figures = _train(study, output, options)
    shown = study.show(figures)
    print(shown.markdown())
    if options.json:
        write_text(options.json, json.dumps(figures, indent=1) + "\n")
    for name, svg in shown.plots.items() if options.plots else ():
        write_text(options.plots / f"{name}.svg", svg)


def _train(study: Study, output: Path, options: argparse.Namespace) -> dict[str, Any]:
    if options.parallel is not None and options.parallel < 1:
        raise UserError(f"--parallel {options.parallel}: give 1 or more.")
    settings = study.prepare(getattr(options, "data", None), output)
    trainings = {}
    for file in study.sweeps:
        name = Path(file).stem
        if name not in settings:
            continue
        config = read_sweep(study.folder / file)
        config = config.model_copy(update={"set": {**config.set, **settings[name]}})
        if options.quick:
            config = _quick(config)
        folder = output / name
        if not options.finished:
            try:
                failed = Sweep(config, folder, options.parallel, threads=1).run().failed
            except KeyboardInterrupt:
                say("stopped; the same command goes on")
                raise SystemExit(130) from None
            if failed:
                raise UserError(f"{failed[0].name}: {failed[0].reason}")
        trainings[name] = finished(config, folder)
    if not any(trainings.values()):
        raise UserError(f"{output}: no training is finished yet; run the study without --finished.")
    return {"study": study.name, "versions": source_line(), **study.measure(trainings, output)}


def _quick(config: SweepConfig) -> SweepConfig:
    """The same sweep with one seed and a few steps."""
    steps = {"training.max_steps": QUICK_STEPS, "training.evaluate_every": 2, "training.log_every": 1}
    first = {key: values[:1] for key, values in config.parameters.items() if isinstance(values, list)}
    changes: dict[str, Any] = {"set": {**config.set, **steps}, "seeds": 1, "final_seeds": min(config.final_seeds, 1)}
    return config.model_copy(update={**changes, "parameters": {**config.parameters, **first}})


def finished(config: SweepConfig, folder: Path) -> list[Training]:
    """Finished trainings of the sweep in ``folder``, by seed, methods in their order."""
    ledger = folder / "trials.jsonl"
    lines = ledger.read_text(encoding="utf-8").splitlines(keepends=True) if ledger.is_file() else []
    names = {
        outcome["name"]: None
        for outcome in (json.loads(line) for line in lines if line.endswith("\n"))
        if outcome["status"] == "finished"
    }
    order = list(config.all_methods)
    found = []
    for name in names:
        front, _, seed = name.rpartition("-seed")
        method, _, number = front.rpartition("-")
        [recorded] = read_runs([folder / TRIALS / name])
        tuned = tuple(config.parameters_of(method))
        point = {
            key: value for key, value in recorded.config.items() if f"{key}.".startswith(tuple(f"{t}." for t in tuned))
        }
        found.append(Training(method, point, int(seed), number == "final", recorded))
    return sorted(found, key=lambda each: (each.seed, order.index(each.method)))


def need_data(raw: Path | None, what: str) -> Path:
    """``raw``, if it is named.

    Raises:
        UserError: it is not.
    """
    if raw is None:
        raise UserError(f"--data FOLDER: is needed the first time; name the folder with {what}.")
    return raw


def prepared(folder: Path) -> bool:
    """True if a data set is complete in ``folder``."""
    return (folder / DATASET_FILE).is_file()


def markdown(table: PageTable) -> str:
    """A table in Markdown, its caption above."""
    marks = [" --- " if position < table.text_columns else " ---: " for position in range(len(table.columns))]
    rows = [
        "| " + " | ".join(f"**{cell.text}**" if cell.strong and cell.text else cell.text for cell in row) + " |"
        for row in table.cells()
    ]
    head = ["| " + " | ".join(table.columns) + " |", "|" + "|".join(marks) + "|"]
    return "\n".join([*([table.caption, ""] if table.caption else []), *head, *rows])
