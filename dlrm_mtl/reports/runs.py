"""Reading the files of runs, finished or still training."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.metrics import ALL_METRICS
from dlrm_mtl.metrics.score_bins import ScoreBins
from dlrm_mtl.reports.run_files import SPLITS, RunContent, numbers, read_config, read_content
from dlrm_mtl.run.folder import RunFiles

Floats = NDArray[np.float64]

DEFAULT_METRIC = "mean/auc"
"""Metric of the best step if a run's configuration names none."""


@dataclass(frozen=True)
class Curve:
    """A scalar by step; nan for null in the file."""

    steps: Floats
    values: Floats


@dataclass(frozen=True)
class RecordedRun:
    """A run's configuration, entries and results."""

    label: str
    path: Path
    config: dict[str, Any]
    """Values by key path, such as ``model.multitask.name``; list entries are addressed by name if they have one."""
    content: RunContent
    """What the other files hold."""

    @property
    def entries(self) -> list[dict[str, Any]]:
        """Complete lines of metrics.jsonl."""
        return self.content.entries

    @property
    def test(self) -> dict[str, float] | None:
        """Metrics on the test split; None if there are none yet."""
        return self.content.test

    @property
    def finished(self) -> bool:
        """True if the run has ended by itself."""
        last = self.content.history[-1] if self.content.history else {}
        return self.test is not None or last.get("event") == "end"

    @property
    def data(self) -> str:
        """The evaluated data: name and rows of the data set; its path for runs of earlier versions."""
        name, splits = self.content.dataset.get("name"), self.content.dataset.get("splits")
        if name is None or not isinstance(splits, dict):
            return str(self.config.get("data.path"))
        rows = {split: about.get("rows") for split, about in splits.items() if isinstance(about, dict)}
        sizes = [f"{rows[split]:,} {split}" for split in SPLITS if isinstance(rows.get(split), int)]
        return f"{name} ({' and '.join(sizes)} rows)" if sizes else str(name)

    @property
    def seed(self) -> Any:
        """Seed of the configuration."""
        return self.config.get("seed")

    @property
    def step(self) -> int:
        """Last recorded step."""
        return max((int(entry["step"]) for entry in self.entries), default=0)

    @cached_property
    def curves(self) -> dict[tuple[str, str], Curve]:
        """Every scalar by (kind, key), such as ("train", "loss/is_click")."""
        points: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        for entry in self.entries:
            for key, number in numbers(entry).items():
                points[entry["kind"], key].append((float(entry["step"]), number))
        curves = {}
        for name, values in points.items():
            curves[name] = Curve(*np.array(values).T)
        return curves

    @property
    def validation(self) -> dict[str, float] | None:
        """Metrics on the validation split after the best step so far; None if there are none yet."""
        return None if self._best_entry is None else numbers(self._best_entry)

    @property
    def validation_step(self) -> int | None:
        """Step of :attr:`validation`."""
        return None if self._best_entry is None else int(self._best_entry["step"])

    @cached_property
    def _best_entry(self) -> dict[str, Any] | None:
        found = [entry for entry in self.entries if entry["kind"] == "validation"]
        if not found:
            return None
        watched = str(self.config.get("training.early_stopping.metric", DEFAULT_METRIC))
        metric = ALL_METRICS.get(watched.rpartition("/")[2])
        sign = 1.0 if metric is not None and metric.lower_is_better else -1.0

        def badness(entry: dict[str, Any]) -> float:
            value = numbers(entry).get(watched, math.nan)
            return math.inf if math.isnan(value) else sign * value

        return min(found, key=badness)

    def metrics(self, split: str) -> dict[str, float]:
        """Metrics on a split; empty if there are none yet."""
        return (self.test if split == "test" else self.validation) or {}

    def scores(self, split: str) -> dict[str, ScoreBins]:
        """Scores in bins of the model whose metrics :meth:`metrics` gives, by task; empty if they were not kept."""
        saved = self.content.scores.get(split)
        step = self.content.test_step if split == "test" else self.validation_step
        return saved.tasks if saved is not None and saved.step == step else {}

    def total(self, key: str) -> float:
        """Sum of a scalar over the entries of training; 0 if there is none."""
        curve = self.curves.get(("train", key))
        return float(np.nansum(curve.values)) if curve else 0.0

    def last(self, key: str) -> float:
        """Last value of a scalar of training; nan if there is none."""
        curve = self.curves.get(("train", key))
        return float(curve.values[-1]) if curve else math.nan

    def mean_over_time(self, key: str) -> float:
        """Mean of a scalar of training, weighted by the seconds of each entry; nan if there is none."""
        curve, seconds = self.curves.get(("train", key)), self.curves.get(("train", "seconds"))
        if curve is None or seconds is None or len(curve.values) != len(seconds.values):
            return math.nan
        there = np.isfinite(curve.values) & np.isfinite(seconds.values)
        total = seconds.values[there].sum()
        return float((curve.values * seconds.values)[there].sum() / total) if total > 0 else math.nan


def same_data(runs: Sequence[RecordedRun]) -> bool:
    """True if the runs were evaluated on the same data, so that their metrics compare."""
    described = [run.data for run in runs if run.content.dataset]
    paths = {run.config.get("data.path") for run in runs}
    return len(set(described)) < 2 and (len(described) == len(runs) or len(paths) < 2)


@dataclass(frozen=True)
class Skipped:
    """A folder that cannot be shown."""

    reason: str
    """Sentence that names it."""
    named: bool
    """True if the user named it, False if it was found in a folder of runs."""


def read_runs(folders: Sequence[str | PathLike[str]]) -> list[RecordedRun]:
    """Read runs.

    Args:
        folders: folders of runs, or folders whose subfolders are runs.

    Raises:
        UserError: a folder holds no run, or one is named twice.
    """
    runs, skipped = find_runs(folders)
    if skipped:
        raise UserError(skipped[0].reason)
    return runs


def find_runs(folders: Sequence[str | PathLike[str]]) -> tuple[list[RecordedRun], list[Skipped]]:
    """Read the runs that can be read, and say why others cannot.

    Args:
        folders: folders of runs, or folders whose subfolders are runs.

    Raises:
        UserError: a run is named twice.
    """
    places = [(run, run == Path(folder)) for folder in folders for run in _runs_in(Path(folder))]
    resolved = [path.resolve() for path, _ in places]
    for position, path in enumerate(resolved):
        if path in resolved[:position]:
            raise UserError(f"compare: {places[position][0]} is named twice; name every run once.")
    names = [path.name for path in resolved]
    runs, skipped = [], []
    for path, (given, named) in zip(resolved, places, strict=True):
        label = path.name if names.count(path.name) == 1 else str(given)
        try:
            runs.append(RecordedRun(label, given, flatten(read_config(given)), read_content(given)))
        except UserError as error:
            skipped.append(Skipped(str(error), named))
    return runs, skipped


def _runs_in(path: Path) -> list[Path]:
    """The folder of a run itself, or the runs directly in it, also those that have lost their configuration."""
    if RunFiles(path).config.is_file() or not path.is_dir():
        return [path]
    return sorted(inner for inner in path.iterdir() if _is_run(RunFiles(inner))) or [path]


def _is_run(files: RunFiles) -> bool:
    return any(file.is_file() for file in (files.config, files.metrics, files.contract, files.plan))


def flatten(content: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as single values by key path."""
    if isinstance(content, dict) and content:
        items = [(str(key), value) for key, value in content.items()]
    elif isinstance(content, list) and content and all(isinstance(entry, dict) for entry in content):
        named = [str(entry.get("name", position)) for position, entry in enumerate(content)]
        unique = len(set(named)) == len(named)
        items = [
            (name if unique else str(position), entry)
            for position, (name, entry) in enumerate(zip(named, content, strict=True))
        ]
    else:
        return {prefix: content}
    flat = {}
    for key, value in items:
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else key))
    return flat
