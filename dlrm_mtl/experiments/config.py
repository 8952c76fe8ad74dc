"""What a sweep is: one YAML file, or the options of ``dlrm-mtl sweep``."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.schema import Strict, read_yaml, validate
from dlrm_mtl.core.yaml_text import parse_yaml


class Interval(Strict):
    """Interval of numbers to draw from."""

    low: float
    """Smallest number."""
    high: float
    """Largest number."""
    log: bool = False
    """Draw the logarithm evenly, as for learning rates."""
    integer: bool = False
    """Draw whole numbers."""

    @model_validator(mode="after")
    def _ordered(self) -> Interval:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}; exchange them.")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low:g} has no logarithm; choose a positive number, or leave out log.")
        return self


Choices = list[Any] | Interval
Point = dict[str, Any]
"""Values by key path of the configuration."""


class Method(Strict):
    """One of the methods that a sweep compares: settings of its own, and parameters to tune in addition to the common ones."""

    set: dict[str, Any] = Field(default_factory=dict)
    """Values by key path, such as `optimizer.dense: {name: adam}`."""
    parameters: dict[str, Choices] = Field(default_factory=dict)
    """Parameters that only this method has."""


class SweepConfig(Strict):
    """A sweep: trainings of one configuration with other values of some keys.

    With methods, every method is tuned by itself, on validation data. ``final_seeds`` then trains the best setting of each
    on seeds that tuning has not seen, and only these are shown on the test split.
    """

    config: str
    """Configuration of a run that all trainings begin from; relative to this file."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Values by key path for all trainings."""
    parameters: dict[str, Choices] = Field(default_factory=dict)
    """Values to try by key path: a list, or an interval `{low: 0.001, high: 1, log: true}`."""
    methods: dict[str, Method] = Field(default_factory=dict)
    """Methods to compare, by name."""
    search: Literal["grid", "random", "tpe"] = "grid"
    """`grid`: every combination. `random`, and `tpe` (Bergstra et al., NeurIPS 2011; by Optuna): `trials` points of each
    method."""
    trials: int | None = Field(default=None, gt=0)
    """Points of each method, for `random` and `tpe`: equal effort for all methods."""
    seeds: int | list[int] = 1
    """Seeds of every point: a list, or a number of seeds from 1. A point is judged by its mean."""
    final_seeds: int = Field(default=0, ge=0)
    """Trainings of the best point of each method on further seeds; the results are theirs."""
    metric: str | None = None
    """Metric on the validation split that chooses points, such as `mean/auc`. Default: that of `training.early_stopping`."""
    baseline: str | None = None
    """Method that the others are compared with, seed by seed. Default: the first one."""
    equal_effort: bool = False
    """Refuse a grid in which methods have unequal numbers of points."""
    prune: bool = False
    """Stop a training whose validation metric is below the median of earlier ones at the same step; for `random` and `tpe`."""
    keep_checkpoints: bool = False
    """Keep the checkpoints of all trainings, not only their metrics. They can then be evaluated and exported."""

    @model_validator(mode="after")
    def _complete(self) -> SweepConfig:
        for key, choices in self._all_parameters():
            if isinstance(choices, list) and not choices:
                raise ValueError(f"{key}: the list of values is empty; name at least one, or leave the key out.")
            if isinstance(choices, Interval) and self.search == "grid":
                raise ValueError(f"{key}: a grid needs a list of values; give one, or choose search: random or tpe.")
        if self.search != "grid" and self.trials is None:
            raise ValueError(f"search {self.search} needs trials, the number of points of each method; set it.")
        if self.search == "grid" and self.trials is not None:
            raise ValueError("trials goes with search: random or tpe; a grid has all its points.")
        if self.search != "grid" and not list(self._all_parameters()):
            raise ValueError(f"search {self.search} has no parameters to draw; name some under parameters.")
        if self.prune and self.search == "grid":
            raise ValueError("prune goes with search: random or tpe; a grid trains all its points to the end.")
        if isinstance(self.seeds, list) and len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {self.seeds} names one twice; name each once.")
        if not self.tuning_seeds:
            raise ValueError(f"seeds {self.seeds} names none; name at least one.")
        if self.baseline is not None and self.baseline not in self.all_methods:
            raise ValueError(f"baseline {self.baseline!r} is none of the methods {', '.join(self.all_methods)}.")
        if self.equal_effort and self.search == "grid":
            sizes = {name: len(list(grid(self.parameters_of(name)))) for name in self.all_methods}
            if len(set(sizes.values())) > 1:
                listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
                raise ValueError(
                    f"equal_effort: the methods have unequal numbers of points ({listed}); give each as many."
                )
        return self

    def _all_parameters(self) -> Iterator[tuple[str, Choices]]:
        for key, choices in self.parameters.items():
            yield f"parameters.{key}", choices
        for name, method in self.methods.items():
            for key, choices in method.parameters.items():
                yield f"methods.{name}.parameters.{key}", choices

    @property
    def all_methods(self) -> dict[str, Method]:
        """Methods by name; without any, one method without settings of its own."""
        return self.methods or {"all": Method()}

    @property
    def tuning_seeds(self) -> list[int]:
        """Seeds of every point."""
        return self.seeds if isinstance(self.seeds, list) else list(range(1, self.seeds + 1))

    @property
    def fresh_seeds(self) -> list[int]:
        """Seeds of the final trainings, none of which tuning has seen."""
        first = max(self.tuning_seeds) + 1
        return list(range(first, first + self.final_seeds))

    def parameters_of(self, method: str) -> dict[str, Choices]:
        """Parameters that are tuned for a method."""
        return {**self.parameters, **self.all_methods[method].parameters}

    def settings(self, method: str, point: Mapping[str, Any]) -> Point:
        """Values by key path of a training: common ones, those of the method, and the point's."""
        # The checkpoint of a training is chosen by the metric that chooses among trainings.
        watched = {} if self.metric is None else {"training.early_stopping.metric": self.metric}
        return {**watched, **self.set, **self.all_methods[method].set, **point}


def grid(parameters: Mapping[str, Choices]) -> Iterator[Point]:
    """Every combination of the listed values; one empty point without parameters."""
    lists = [choices for choices in parameters.values() if isinstance(choices, list)]
    for values in itertools.product(*lists):
        yield dict(zip(parameters, values, strict=True))


def read_sweep(path: Path) -> SweepConfig:
    """Read a sweep's YAML file; the path of its configuration becomes relative to the working folder.

    Raises:
        UserError: with one sentence per mistake.
    """
    content = read_yaml(path)
    sweep = validate(SweepConfig, content, str(path))
    return sweep.model_copy(update={"config": str(path.parent / sweep.config)})


def is_sweep(path: Path) -> bool:
    """True if a YAML file describes a sweep: it has the key ``config``, which no configuration of a run has."""
    return path.is_file() and "config" in read_yaml(path)


def parse_settings(options: Sequence[str]) -> Point:
    """Values by key path of ``--set KEY=VALUE``; a value is YAML.

    Raises:
        UserError: an option has another form.
    """
    settings = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {option}: this is not of the form key.path=value, such as training.epochs=3.")
        try:
            settings[key.strip()] = parse_yaml(text)
        except ValueError:
            raise UserError(f"--set {option}: the value {text!r} is not YAML; quote it.") from None
    return settings


def parse_grid(option: str) -> tuple[str, list[Any]]:
    """Key and values of ``--grid KEY=A,B,C``; a value is YAML, and commas in brackets do not divide.

    Raises:
        UserError: the option has another form, or no value.
    """
    key, equals, text = option.partition("=")
    if not equals or not key.strip():
        raise UserError(
            f"--grid {option}: this is not of the form KEY=A,B, such as optimizer.dense.learning_rate=0.1,0.2."
        )
    try:
        values = parse_yaml(f"[{text}]")
    except ValueError:
        raise UserError(f"--grid {option}: {text!r} is no list of YAML values; divide them by commas.") from None
    if not isinstance(values, list) or not values:
        raise UserError(f"--grid {option}: there is no value; name at least one.")
    return key.strip(), values


def parse_interval(option: str) -> tuple[str, Interval]:
    """Key and interval of ``--range KEY=LOW..HIGH``, drawn by logarithm with ``:log`` at the end, whole with ``:int``.

    Raises:
        UserError: the option has another form.
    """
    key, equals, text = option.partition("=")
    bounds, *marks = text.split(":")
    low, dots, high = bounds.partition("..")
    try:
        if not equals or not key.strip() or not dots or not set(marks) <= {"log", "int"}:
            raise ValueError
        content = {"low": float(low), "high": float(high), "log": "log" in marks, "integer": "int" in marks}
    except ValueError:
        raise UserError(
            f"--range {option}: this is not of the form KEY=LOW..HIGH[:log][:int], such as "
            "optimizer.dense.learning_rate=0.001..1:log."
        ) from None
    return key.strip(), validate(Interval, content, f"--range {key.strip()}")
