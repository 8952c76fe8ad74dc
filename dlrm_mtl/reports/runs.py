"""Reading the files of runs, finished or still training."""

from __future__ import annotations

import json
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
from dlrm_mtl.core.schema import read_yaml
from dlrm_mtl.metrics import ALL_METRICS
from dlrm_mtl.run.folder import NO_RUN, RunFiles

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
    entries: list[dict[str, Any]]
    """Complete lines of metrics.jsonl."""
    test: dict[str, float] | None
    """Metrics on the test split; None if there are none yet."""

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
            for key, value in entry.items():
                if key in ("kind", "step") or not (value is None or isinstance(value, int | float)):
                    continue
                number = math.nan if value is None else float(value)
                points[entry["kind"], key].append((float(entry["step"]), number))
        curves = {}
        for name, values in points.items():
            steps, numbers = np.array(values).T
            curves[name] = Curve(steps, numbers)
        return curves

    @cached_property
    def validation(self) -> dict[str, float] | None:
        """Metrics on the validation split after the best step so far; None if there are none yet."""
        found = [entry for entry in self.entries if entry["kind"] == "validation"]
        if not found:
            return None
        watched = str(self.config.get("training.early_stopping.metric", DEFAULT_METRIC))
        metric = ALL_METRICS.get(watched.rpartition("/")[2])
        sign = 1.0 if metric is not None and metric.lower_is_better else -1.0

        def badness(entry: dict[str, Any]) -> float:
            value = entry.get(watched)
            return math.inf if value is None else sign * float(value)

        return _numbers(min(found, key=badness))

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


def read_runs(folders: Sequence[str | PathLike[str]]) -> list[RecordedRun]:
    """Read runs.

    Args:
        folders: folders of runs, or folders whose subfolders are runs.

    Raises:
        UserError: a folder holds no run, or one is named twice.
    """
    paths = [run for folder in folders for run in _runs_in(Path(folder))]
    resolved = [path.resolve() for path in paths]
    for position, path in enumerate(resolved):
        if path in resolved[:position]:
            raise UserError(f"compare: {paths[position]} is named twice; name every run once.")
    names = [path.name for path in resolved]
    labels = [
        path.name if names.count(path.name) == 1 else str(given) for path, given in zip(resolved, paths, strict=True)
    ]
    return [_read_run(path, label) for path, label in zip(paths, labels, strict=True)]


def _runs_in(path: Path) -> list[Path]:
    """The folder of a run itself, or the runs directly in it."""
    if RunFiles(path).config.is_file() or not path.is_dir():
        return [path]
    return sorted(inner for inner in path.iterdir() if RunFiles(inner).config.is_file()) or [path]


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


def _read_run(path: Path, label: str) -> RecordedRun:
    folder = RunFiles(path)
    if not folder.config.is_file():
        raise UserError(f"{path}: {NO_RUN}, or a folder of such folders.")
    return RecordedRun(
        label, path, flatten(read_yaml(folder.config)), _read_entries(folder.metrics), _read_results(folder.results)
    )


def _read_entries(path: Path) -> list[dict[str, Any]]:
    """Entries in the order of steps; an incomplete last line of a training run is ignored."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a run that you may read.") from None
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int) and isinstance(entry.get("kind"), str):
            entries.append(entry)
    return sorted(entries, key=lambda entry: entry["step"])


def _read_results(path: Path) -> dict[str, float] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # not there yet, or being written
    return _numbers(content["test"]) if isinstance(content, dict) and isinstance(content.get("test"), dict) else None


def _numbers(entry: dict[str, Any]) -> dict[str, float]:
    return {
        key: math.nan if value is None else float(value)
        for key, value in entry.items()
        if key not in ("kind", "step") and (value is None or isinstance(value, int | float))
    }
