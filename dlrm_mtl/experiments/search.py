"""Points of a method to try: a grid, or draws by Optuna that survive a kill."""

from __future__ import annotations

import logging
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dlrm_mtl.core.yaml_text import to_yaml
from dlrm_mtl.experiments.config import Choices, Interval, Point, SweepConfig, grid

if TYPE_CHECKING:
    import optuna

STARTUP = 5
"""Finished points before a training may be stopped early."""


class Search(Protocol):
    """Source of points; each has a number from 0."""

    def ask(self) -> tuple[int, Point] | None:
        """Return the next point, or None if there is none now."""

    def tell(self, number: int, value: float) -> None:
        """Take the value of a point."""


class Grid:
    """All combinations, in the order of the lists.

    Args:
        parameters: lists of values by key path.
    """

    def __init__(self, parameters: Mapping[str, Choices]) -> None:
        self.points = list(grid(parameters))
        self._asked = 0

    def ask(self) -> tuple[int, Point] | None:
        """Return the next point, or None after the last."""
        if self._asked == len(self.points):
            return None
        self._asked += 1
        return self._asked - 1, self.points[self._asked - 1]

    def tell(self, number: int, value: float) -> None:
        """Do nothing: the points do not depend on values."""


class Drawn:
    """Points that Optuna draws, at random or by a tree-structured Parzen estimator; kept in a file.

    Points that were being trained when the file was last used come first. Draws depend on the seed and on the values known
    at the time, so that a sweep with one process is reproducible.

    Args:
        sweep: the sweep.
        method: method to tune.
        path: file of the draws.
        lower_is_better: direction of the metric.
    """

    def __init__(self, sweep: SweepConfig, method: str, path: Path, lower_is_better: bool) -> None:
        import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(logging.ERROR)
        self.parameters = sweep.parameters_of(method)
        assert sweep.trials is not None
        self.trials = sweep.trials
        seed = min(sweep.tuning_seeds)
        samplers = optuna.samplers
        sampler = (
            samplers.RandomSampler(seed=seed)
            if sweep.search == "random"
            else samplers.TPESampler(seed=seed, constant_liar=True)
        )
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
        self.study = optuna.create_study(
            study_name=method,
            storage=storage,
            sampler=sampler,
            direction="minimize" if lower_is_better else "maximize",
            load_if_exists=True,
        )
        running = optuna.trial.TrialState.RUNNING
        self._waiting = [trial.number for trial in self.study.get_trials(states=[running])]
        self._open: dict[int, Any] = {}

    def ask(self) -> tuple[int, Point] | None:
        """Return a point that was not finished, or a new one; None after ``trials`` of them."""
        if self._waiting:
            number = self._waiting.pop(0)
            frozen = self.study.trials[number]
            return number, {key: self._choice(key, value) for key, value in frozen.params.items()}
        if len(self.study.trials) >= self.trials:
            return None
        trial = self.study.ask()
        return trial.number, {key: self._suggest(trial, key) for key in self.parameters}

    def tell(self, number: int, value: float) -> None:
        """Take the value of a point."""
        import optuna

        if math.isnan(value):
            self.study.tell(number, state=optuna.trial.TrialState.FAIL)
        else:
            self.study.tell(number, value)

    def _suggest(self, trial: optuna.trial.Trial, key: str) -> Any:
        choices = self.parameters[key]
        if isinstance(choices, list):
            return self._choice(key, trial.suggest_categorical(key, [to_yaml(value) for value in choices]))
        if choices.integer:
            return trial.suggest_int(key, int(choices.low), int(choices.high), log=choices.log)
        return trial.suggest_float(key, choices.low, choices.high, log=choices.log)

    def _choice(self, key: str, value: Any) -> Any:
        """The value that stands behind a categorical's text."""
        choices = self.parameters[key]
        if isinstance(choices, Interval):
            return value
        return next(choice for choice in choices if to_yaml(choice) == value)


def build_search(sweep: SweepConfig, method: str, folder: Path, lower_is_better: bool) -> Search:
    """The search that a sweep asks for."""
    if sweep.search == "grid":
        return Grid(sweep.parameters_of(method))
    return Drawn(sweep, method, folder / f"search_{method}.log", lower_is_better)


class MedianRule:
    """Stop a training that is worse than the median of finished ones at the same step (Golovin et al., KDD 2017).

    Args:
        lower_is_better: direction of the metric.
    """

    def __init__(self, lower_is_better: bool) -> None:
        self._sign = -1.0 if lower_is_better else 1.0
        self._at: dict[int, list[float]] = defaultdict(list)

    def hopeless(self, step: int, value: float) -> bool:
        """True if a training with this value after ``step`` steps should stop. The value is remembered."""
        others, own = self._at[step], self._sign * value
        stop = math.isnan(value) or (len(others) >= STARTUP and own < statistics.median(others))
        if not math.isnan(value):
            others.append(own)
        return stop
