"""A training of an experiment, and its outcome."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from dlrm_mtl.core.yaml_text import to_yaml

Status = Literal["finished", "diverged", "pruned", "failed"]
FINAL: tuple[Status, ...] = ("finished", "diverged", "pruned")
"""Outcomes that starting the experiment again does not change."""


@dataclass(frozen=True)
class Trial:
    """One training."""

    name: str
    """Name of its folder, unique in the experiment."""
    method: str
    point: dict[str, Any]
    """Tuned values by key path."""
    settings: dict[str, Any]
    """All values by key path that differ from the common configuration."""
    seed: int
    purpose: Literal["tuning", "final"] = "tuning"

    def overrides(self) -> list[str]:
        """``key=value`` for the configuration."""
        values = {**self.settings, "seed": self.seed, "name": self.name}
        return [f"{key}={to_yaml(value)}" for key, value in values.items()]


@dataclass(frozen=True)
class Outcome:
    """What became of a training."""

    name: str
    status: Status
    reason: str = ""
    """Sentence of a training that did not finish."""
    validation: dict[str, float] = field(default_factory=dict)
    """Metrics on the validation split after the best step, by ``TASK/METRIC``."""
    test: dict[str, float] = field(default_factory=dict)
    """Metrics on the test split, if there is one."""
    best_step: int = 0
    seconds: float = 0.0
    """Wall time of the process."""

    def value(self, metric: str, worst: float) -> float:
        """``metric`` on the validation split; ``worst`` if the training diverged or the metric is not defined."""
        found = self.validation.get(metric, math.nan)
        return worst if math.isnan(found) or self.status == "diverged" else found


class Ledger:
    """Outcomes of an experiment in ``trials.jsonl``, one line each; a line cut short by a kill is ignored.

    Args:
        path: the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[str, Outcome] = {}
        """The last outcome of each training by name."""
        if not path.is_file():
            return
        content = path.read_text(encoding="utf-8")
        for line in content.splitlines(keepends=True):
            if line.endswith("\n"):
                read = json.loads(line)
                for part in ("validation", "test"):
                    read[part] = {key: math.nan if value is None else value for key, value in read[part].items()}
                self.outcomes[read["name"]] = Outcome(**read)
        if content and not content.endswith("\n"):
            path.write_text("".join(line for line in content.splitlines(keepends=True) if line.endswith("\n")))

    def add(self, outcome: Outcome) -> None:
        """Append an outcome."""
        content = asdict(outcome)
        for part in ("validation", "test"):
            content[part] = {key: None if math.isnan(value) else value for key, value in content[part].items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(content) + "\n")
        self.outcomes[outcome.name] = outcome

    def settled(self, name: str) -> Outcome | None:
        """The outcome of a training that need not be started again."""
        found = self.outcomes.get(name)
        return found if found is not None and found.status in FINAL else None
