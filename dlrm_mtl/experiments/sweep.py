"""A sweep: tune every method on validation data, then train the best setting of each on fresh seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from dlrm_mtl.config.load import load_config
from dlrm_mtl.console import Bar, say
from dlrm_mtl.core.cores import available_cores
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.yaml_text import parse_yaml, to_yaml
from dlrm_mtl.experiments.config import Interval, Point, SweepConfig, grid
from dlrm_mtl.experiments.pool import Ended, Evaluated, Pool
from dlrm_mtl.experiments.search import MedianRule, Search, build_search
from dlrm_mtl.experiments.trials import Ledger, Outcome, Trial
from dlrm_mtl.metrics import ALL_METRICS
from dlrm_mtl.storage.output import write_whole

SETTINGS = "sweep.yaml"
RESULTS = "results.json"
TRIALS = "trials"


@dataclass
class Tried:
    """A point of a method, and its trainings."""

    method: str
    number: int
    point: Point
    outcomes: list[Outcome] = field(default_factory=list)

    def complete(self, seeds: int) -> bool:
        """True if all ``seeds`` trainings came to an end of their own."""
        return len(self.outcomes) == seeds and all(outcome.status != "pruned" for outcome in self.outcomes)

    def value(self, metric: str, worst: float) -> float:
        """Mean of ``metric`` over seeds; a diverged training counts as ``worst``."""
        return statistics.fmean(outcome.value(metric, worst) for outcome in self.outcomes)


@dataclass
class SweepResult:
    """All that a sweep has trained."""

    config: SweepConfig
    metric: str
    """Validation metric that chose the points."""
    tried: list[Tried]
    finals: dict[str, list[Outcome]]
    """Trainings of each method's best point on fresh seeds."""
    failed: list[Outcome]
    """Trainings that ended by an error; they count for nothing."""

    @property
    def worst(self) -> float:
        """Value of a training that diverged."""
        return math.inf if lower_is_better(self.metric) else -math.inf

    def best(self, method: str) -> Tried | None:
        """Best point of a method by validation; None if none was trained to an end."""
        seeds = len(self.config.tuning_seeds)
        complete = [tried for tried in self.tried if tried.method == method and tried.complete(seeds)]
        if not complete:
            return None
        sign = 1.0 if lower_is_better(self.metric) else -1.0
        return min(complete, key=lambda tried: sign * tried.value(self.metric, self.worst))


def lower_is_better(metric: str) -> bool:
    """True if smaller values of ``TASK/METRIC`` are better."""
    return ALL_METRICS[metric.rpartition("/")[2]].lower_is_better


class Sweep:
    """A sweep in its folder: ``sweep.yaml``, ``trials/`` with a run for each training, ``trials.jsonl``, ``results.json``.

    Args:
        config: the sweep.
        folder: its folder; if it holds the same sweep, that goes on.
        parallel: trainings at a time; default: one for each core.
        threads: threads of each training; default: the cores divided by ``parallel``.
        plugins: modules that register parts.

    Raises:
        UserError: the folder holds another sweep, or a setting is not valid.
    """

    def __init__(
        self,
        config: SweepConfig,
        folder: Path,
        parallel: int | None = None,
        threads: int | None = None,
        plugins: Sequence[str] = (),
    ) -> None:
        self.config, self.folder, self.plugins = config, folder, list(plugins)
        cores = available_cores()
        self.parallel = parallel or cores
        self.threads = threads or max(cores // self.parallel, 1)
        self.metric = self._checked()
        self._claim()
        self.ledger = Ledger(folder / "trials.jsonl")

    def run(self) -> SweepResult:
        """Train what is missing; return everything.

        Raises:
            UserError: the first three trainings all failed.
            KeyboardInterrupt: the user stops the sweep; running trainings have saved checkpoints.
        """
        seeds, methods = self.config.tuning_seeds, list(self.config.all_methods)
        result = SweepResult(self.config, self.metric, [], {}, [])
        points = {name: len(list(grid(self.config.parameters_of(name)))) for name in methods}
        total = sum((self.config.trials or points[name]) * len(seeds) + self.config.final_seeds for name in methods)
        bar = Bar("sweep", total, shown=True)
        with bar, self._pool() as pool:
            try:
                self._train(pool, bar, result, self._tuning(result))
                self._train(pool, bar, result, self._final(result))
            finally:
                self._write(result)
        return result

    def _pool(self) -> Pool:
        return Pool(
            self.folder / TRIALS,
            self.config.config,
            self.parallel,
            self.threads,
            self.plugins,
            self.config.keep_checkpoints,
        )

    def _train(self, pool: Pool, bar: Bar, result: SweepResult, trials: Iterator[tuple[Trial, Tried | None]]) -> None:
        """Run trainings until there are none; file each outcome with its point."""
        places: dict[str, Tried | None] = {}
        rule = MedianRule(lower_is_better(self.metric))
        exhausted = False
        while True:
            while pool.free and not exhausted:
                found = next(trials, None)
                if found is None:
                    exhausted = True
                    break
                trial, place = found
                places[trial.name] = place
                known = self.ledger.settled(trial.name)
                if known is not None:
                    self._file(result, trial, known, place)
                    bar.update(self._done(result), self._text(result))
                else:
                    pool.start(trial)
            if not pool.running:
                if exhausted:
                    return
                continue
            for event in pool.events():
                if isinstance(event, Evaluated):
                    first = event.trial.seed == self.config.tuning_seeds[0] and event.trial.purpose == "tuning"
                    value = event.metrics.get(self.metric, math.nan)
                    pool.answer(event.trial, self.config.prune and first and rule.hopeless(event.step, value))
                else:
                    self._ended(result, event, places[event.trial.name])
                    bar.update(self._done(result), self._text(result))
                    exhausted = False  # a search may have new points

    def _ended(self, result: SweepResult, event: Ended, place: Tried | None) -> None:
        self.ledger.add(event.outcome)
        if event.outcome.status == "failed":
            say(f"{event.trial.name} failed: {event.outcome.reason}")
        self._file(result, event.trial, event.outcome, place)
        if len(result.failed) == 3 and not result.finals and not any(tried.outcomes for tried in result.tried):
            raise UserError(f"the first trainings failed: {result.failed[0].reason}")

    def _file(self, result: SweepResult, trial: Trial, outcome: Outcome, place: Tried | None) -> None:
        if outcome.status == "failed":
            result.failed.append(outcome)
            if place is not None and trial.purpose == "tuning":
                self._searches[trial.method].tell(place.number, math.nan)
            return
        if place is None:
            finals = result.finals.setdefault(trial.method, [])
            finals.append(outcome)
            finals.sort(key=lambda each: each.name)
            return
        told = any(each.status == "pruned" for each in place.outcomes)
        place.outcomes.append(outcome)
        place.outcomes.sort(key=lambda each: each.name)  # trainings end in any order
        last = outcome.status == "pruned" or len(place.outcomes) == len(self.config.tuning_seeds)
        if last and not told:
            value = place.value(self.metric, result.worst)
            self._searches[trial.method].tell(place.number, value if math.isfinite(value) else math.nan)

    def _tuning(self, result: SweepResult) -> Iterator[tuple[Trial, Tried | None]]:
        """Trainings that tune: the methods in turn, so that all are shown early."""
        self._searches: dict[str, Search] = {
            name: build_search(self.config, name, self.folder, lower_is_better(self.metric))
            for name in self.config.all_methods
        }
        points = self._points(result)
        if self.config.search == "grid":  # seed by seed, so that a sweep that is stopped has compared all points
            every = list(points)
            for seed in self.config.tuning_seeds:
                for tried in every:
                    yield self._trial(tried, seed), tried
            return
        for tried in points:
            for seed in self.config.tuning_seeds:
                if any(outcome.status == "pruned" for outcome in tried.outcomes):
                    break
                yield self._trial(tried, seed), tried

    def _points(self, result: SweepResult) -> Iterator[Tried]:
        """Points to tune, the methods in turn, so that all are shown early; they are added to ``result``."""
        left = list(self._searches)
        while left:
            for method in list(left):
                asked = self._searches[method].ask()
                if asked is None:
                    left.remove(method)
                    continue
                tried = Tried(method, *asked)
                result.tried.append(tried)
                yield tried

    def _trial(self, tried: Tried, seed: int) -> Trial:
        settings = self.config.settings(tried.method, tried.point)
        return Trial(f"{tried.method}-{tried.number:03d}-seed{seed}", tried.method, tried.point, settings, seed)

    def _final(self, result: SweepResult) -> Iterator[tuple[Trial, Tried | None]]:
        for seed in self.config.fresh_seeds:
            for method in self.config.all_methods:
                best = result.best(method)
                if best is None:
                    continue
                settings = self.config.settings(method, best.point)
                name = f"{method}-final-seed{seed}"
                yield Trial(name, method, best.point, settings, seed, "final"), None

    def _checked(self) -> str:
        """Check every setting before anything is trained; return the metric."""
        metric = ""
        for method in self.config.all_methods:
            for point in corners(self.config, method):
                settings = self.config.settings(method, point)
                trial = Trial("check", method, point, settings, 1)
                loaded = load_config(self.config.config, trial.overrides(), self.plugins)
                metric = loaded.training.early_stopping.metric
        return metric

    def _claim(self) -> None:
        """Make the folder, or see that it holds this sweep."""
        content = self.config.model_dump(mode="json")
        path = self.folder / SETTINGS
        if path.is_file():
            before = parse_yaml(path.read_text(encoding="utf-8"))
            # More seeds or points only add trainings.
            free = {"final_seeds", "trials", "keep_checkpoints"}
            changed = sorted(key for key in content if key not in free and before.get(key) != content[key])
            if changed:
                raise UserError(
                    f"{self.folder}: holds another sweep (other {', '.join(changed)}); name another --output, or remove it."
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, yaml.safe_dump(content, sort_keys=False))

    def _done(self, result: SweepResult) -> int:
        return (
            sum(len(tried.outcomes) for tried in result.tried)
            + sum(map(len, result.finals.values()))
            + len(result.failed)
        )

    def _text(self, result: SweepResult) -> str:
        values = [
            (tried.value(self.metric, result.worst), tried)
            for name in self.config.all_methods
            if (tried := result.best(name)) is not None
        ]
        if not values:
            return ""
        value, tried = (min if lower_is_better(self.metric) else max)(values, key=lambda each: each[0])
        words = [tried.method] if tried.method != "all" else []
        where = ", ".join([*words, *([describe(tried.point)] if tried.point else [])])
        return f"best {self.metric} {value:.4f}" + (f" ({where})" if where else "")

    def _write(self, result: SweepResult) -> None:
        result.finals = {name: result.finals[name] for name in self.config.all_methods if name in result.finals}
        from dlrm_mtl.experiments.summary import as_json

        write_whole(self.folder / RESULTS, json.dumps(as_json(result), indent=1) + "\n")


def corners(config: SweepConfig, method: str) -> Iterator[Point]:
    """Points that show if all values of a method are valid: each value once, the others at their first."""
    parameters = config.parameters_of(method)
    ends = {
        key: [int(c.low) if c.integer else c.low, int(c.high) if c.integer else c.high]
        if isinstance(c, Interval)
        else c
        for key, c in parameters.items()
    }
    first = {key: values[0] for key, values in ends.items()}
    yield first
    for key, values in ends.items():
        for value in values[1:]:
            yield {**first, key: value}


def describe(point: Point) -> str:
    """A point in a few words, such as ``learning_rate=0.01, dim=8``."""
    return ", ".join(f"{key.rpartition('.')[2]}={to_yaml(value)}" for key, value in point.items())
