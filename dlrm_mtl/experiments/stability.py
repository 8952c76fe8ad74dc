"""Optimizers at rising learning rates: which diverge, and what each reaches at its best rate.

In the manner of the experiments on Clippy (Tang et al., KDD 2023, arXiv 2302.09178, section 5): every optimizer is trained
at multiples of one base rate. Clipping by norm, adaptive clipping and LAMB scale the dense parameters only, as there; tables
have row-wise AdaGrad, and Clippy's row-wise form with Clippy.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.config.load import load_config
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.schema import validate
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.experiments.config import Point, SweepConfig, parse_settings
from dlrm_mtl.experiments.sweep import SweepResult, lower_is_better
from dlrm_mtl.experiments.trials import Outcome
from dlrm_mtl.reports.runs import RecordedRun, read_runs

Floats = NDArray[np.float64]

OPTIMIZERS: dict[str, tuple[Point, str, float | None]] = {
    # name -> dense optimizer, table optimizer, threshold of the dense one if it has any
    "adagrad": ({"name": "adagrad"}, "rowwise_adagrad", None),
    "adagrad+gc": ({"name": "layerwise_adagrad", "scale": "gradient_norm"}, "rowwise_adagrad", 0.1),
    "adagrad+agc": ({"name": "layerwise_adagrad", "scale": "adaptive"}, "rowwise_adagrad", 0.01),
    "lamb": ({"name": "layerwise_adagrad", "scale": "lamb"}, "rowwise_adagrad", 0.01),
    "clippy": ({"name": "clippy_adagrad"}, "clippy_rowwise_adagrad", None),
}
LEVEL = 20
"""Log entries whose median a spike is compared with."""
SPIKE = 1.5
"""Ratio to that median from which on an entry belongs to a micro-divergence."""


@dataclass(frozen=True)
class Setting:
    """One optimizer at one rate."""

    optimizer: str
    multiple: float
    """Multiple of the base rates."""

    @property
    def name(self) -> str:
        """Name among the methods of the sweep."""
        return f"{self.optimizer}@{self.multiple:g}x"


@dataclass
class SettingResult:
    """The trainings of a setting."""

    setting: Setting
    outcomes: list[Outcome] = field(default_factory=list)
    runs: list[RecordedRun] = field(default_factory=list)
    diverged: list[bool] = field(default_factory=list)
    micro: list[int] = field(default_factory=list)

    def values(self, split: str, key: str) -> list[float]:
        """A metric of every training."""
        return [getattr(outcome, split).get(key, math.nan) for outcome in self.outcomes]


def settings_of(optimizers: Sequence[str], multiples: Sequence[str]) -> list[Setting]:
    """Every optimizer at every rate.

    Args:
        optimizers: names in :data:`OPTIMIZERS`, with ``:THRESHOLD`` behind it for another threshold than the usual one.
        multiples: texts such as ``0.5x``.

    Raises:
        UserError: a name or a multiple has another form, or one stands twice.
    """
    for name in optimizers:
        base, colon, threshold = name.partition(":")
        if base not in OPTIMIZERS:
            raise UserError(f"--optimizers {name}: there is no such optimizer; {suggest(base, OPTIMIZERS)}.")
        if colon and (OPTIMIZERS[base][2] is None or not _positive(threshold)):
            raise UserError(f"--optimizers {name}: {base} takes no threshold {threshold!r}; write {base} alone.")
    factors = []
    for text in multiples:
        found = re.fullmatch(r"([0-9.]+)x", text.strip())
        if found is None or not _positive(found[1]):
            raise UserError(f"--lr {text}: is no multiple of the configured rates; write one such as 2x.")
        factors.append(float(found[1]))
    for texts, option in ((list(optimizers), "--optimizers"), ([f"{factor:g}x" for factor in factors], "--lr")):
        twice = next((text for text in texts if texts.count(text) > 1), None)
        if twice is not None:
            raise UserError(f"{option}: {twice} stands there twice; name each once.")
    if not optimizers or not factors:
        raise UserError("--optimizers and --lr: name at least one of each.")
    return [Setting(name, factor) for name in optimizers for factor in factors]


def _positive(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False


def sweep_of(
    config: Path, settings: Sequence[Setting], seeds: int, overrides: Sequence[str], plugins: Sequence[str]
) -> SweepConfig:
    """The trainings as a sweep: a method for each setting, one point of each.

    Raises:
        UserError: the configuration is not valid.
    """
    loaded = load_config(config, overrides, plugins)
    dense, sparse = loaded.optimizer.dense, loaded.optimizer.sparse
    methods = {}
    for setting in settings:
        base, _, given = setting.optimizer.partition(":")
        dense_part, table_rule, threshold = OPTIMIZERS[base]
        # The accumulators begin alike, so that the optimizers differ in their clipping alone.
        of_dense = {
            **dense_part,
            "learning_rate": rate(dense) * setting.multiple,
            **_kept(dense, "initial_accumulator_value", 0.1),
        }
        if threshold is not None:
            of_dense["threshold"] = float(given) if given else threshold
        of_tables = {
            "name": table_rule,
            "learning_rate": rate(sparse) * setting.multiple,
            **_kept(sparse, "initial_accumulator_value", 0.1),
        }
        methods[setting.name] = {"set": {"optimizer.dense": of_dense, "optimizer.sparse": of_tables}}
    content = {"config": str(config), "methods": methods, "seeds": seeds, "set": parse_settings(overrides)}
    return validate(SweepConfig, content, str(config))


def rate(part: Any) -> float:
    """Learning rate of an optimizer's configuration."""
    return float(part.learning_rate)


def _kept(part: Any, key: str, default: float) -> dict[str, float]:
    return {key: float(getattr(part, key, default))}


def analyse(result: SweepResult, folder: Path, settings: Sequence[Setting]) -> list[SettingResult]:
    """Judge every training by its log.

    Args:
        result: the sweep of :func:`sweep_of`.
        folder: its folder.
        settings: its settings.
    """
    by_name = {setting.name: SettingResult(setting) for setting in settings}
    for tried in result.tried:
        own = by_name[tried.method]
        for outcome in tried.outcomes:
            [run] = read_runs([folder / "trials" / outcome.name])
            losses = training_loss(run)
            own.outcomes.append(outcome)
            own.runs.append(run)
            own.diverged.append(outcome.status == "diverged" or has_diverged(run))
            own.micro.append(micro_divergences(losses))
    return list(by_name.values())


def training_loss(run: RecordedRun) -> Floats:
    """Sum over tasks of the training loss, by log entry; nan where every step was skipped."""
    curves = [curve.values for (kind, key), curve in run.curves.items() if kind == "train" and key.startswith("loss/")]
    if not curves:
        return np.empty(0)
    return np.sum(curves, axis=0)


def has_diverged(run: RecordedRun) -> bool:
    """True if a training ends without a finite loss, or no better than constant predictions.

    The constants are the mean labels of the validation split, with which the log loss there is the entropy of the labels.
    Tasks that have no entropy, such as regressions, are judged by the training loss: see :func:`ends_above_its_start`.
    """
    losses = training_loss(run)
    if len(losses) and not np.isfinite(losses[-_tail(losses) :]).all():
        return True
    last = next((entry for entry in reversed(run.entries) if entry["kind"] == "validation"), None)
    if last is None:
        return ends_above_its_start(losses)
    tasks = [key.removesuffix("/normalized_entropy") for key in last if key.endswith("/normalized_entropy")]
    tasks = [task for task in tasks if task != "mean"]
    if not tasks:
        return ends_above_its_start(losses)
    reached = [(last.get(f"{task}/log_loss"), last[f"{task}/normalized_entropy"]) for task in tasks]
    if any(loss is None for loss, _ in reached):
        return True
    known = [(loss, ratio) for loss, ratio in reached if ratio]  # null where all labels are alike
    return bool(known) and sum(loss for loss, _ in known) >= sum(loss / ratio for loss, ratio in known)


def ends_above_its_start(losses: Floats) -> bool:
    """True if the median of the last tenth of the losses, at least three, is above the first one."""
    return len(losses) > 0 and float(np.median(losses[-_tail(losses) :])) > float(losses[0])


def _tail(losses: Floats) -> int:
    return max(len(losses) // 10, 3)


def micro_divergences(losses: Floats) -> int:
    """Number of times the loss rose above :data:`SPIKE` times the median of the :data:`LEVEL` entries before, and came back."""
    count, inside, level = 0, False, math.nan
    for position in range(3, len(losses)):
        if not inside:
            level = float(np.median(losses[max(position - LEVEL, 0) : position]))
            inside = not losses[position] <= SPIKE * level
        elif losses[position] <= SPIKE * level:
            inside, count = False, count + 1
    return count


def best_of(results: Sequence[SettingResult], optimizer: str, metric: str) -> SettingResult | None:
    """The rate with the best mean metric on the validation split among those at which no training diverged."""
    own = [each for each in results if each.setting.optimizer == optimizer and each.outcomes and not any(each.diverged)]
    own = [each for each in own if all(math.isfinite(value) for value in each.values("validation", metric))]
    if not own:
        return None
    sign = 1.0 if lower_is_better(metric) else -1.0
    return min(own, key=lambda each: sign * statistics.fmean(each.values("validation", metric)))


def factors(run: RecordedRun) -> Mapping[str, Any]:
    """Clipping factors over time by name of the parameter or table, with the most clipped first."""
    found = {
        key.removeprefix("factor/"): curve
        for (kind, key), curve in run.curves.items()
        if kind == "train" and key.startswith("factor/")
    }
    order = sorted(found, key=lambda name: float(np.nanmean(np.log(np.maximum(found[name].values, 1e-12)))))
    return {name: found[name] for name in order}
