"""Files of a run, read as far as they can be: what is damaged or missing becomes a sentence."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.json_text import parse_lines
from dlrm_mtl.core.schema import read_yaml
from dlrm_mtl.run.folder import NO_RUN, RunFiles
from dlrm_mtl.run.saved_scores import SavedScores, read_scores, score_file

SPLITS = ("validation", "test")
LARGEST = 1e300
"""Largest number in a file that counts as one."""


@dataclass
class RunContent:
    """What the files of a run hold, except for its configuration."""

    entries: list[dict[str, Any]]
    """Entries of metrics.jsonl by step."""
    test: dict[str, float] | None = None
    """Metrics on the test split, from results.json."""
    test_step: int | None = None
    """Step of the model that was evaluated on the test split."""
    slices: dict[str, Any] = field(default_factory=dict)
    """Metrics by slice, from results.json: a list for each split."""
    scores: dict[str, SavedScores] = field(default_factory=dict)
    """Scores in bins, by split."""
    plan: list[dict[str, Any]] = field(default_factory=list)
    """Placement of each table."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Starts, resumptions and ends."""
    dataset: dict[str, Any] = field(default_factory=dict)
    """Description of the data set, from the contract; empty for a run of an earlier version."""
    problems: list[str] = field(default_factory=list)
    """What could not be read, a sentence each."""


def read_config(path: Path) -> dict[str, Any]:
    """Configuration of the run in folder ``path``.

    Raises:
        UserError: there is no run, or one of another program.
    """
    file = RunFiles(path).config
    if not file.is_file():
        raise UserError(f"{path}: {NO_RUN}, or a folder of such folders.")
    try:
        content = read_yaml(file)
    except RecursionError:
        raise UserError(f"{file}: is nested too deeply; name the folder of a run of dlrm-mtl.") from None
    if not {"data", "tasks"} <= content.keys():
        raise UserError(
            f"{file}: is not the configuration of a run of dlrm-mtl, which has data and tasks; name another folder."
        )
    return content


def read_content(path: Path) -> RunContent:
    """Read the other files of the run in folder ``path``; never fails."""
    files = RunFiles(path)
    content = RunContent([])
    content.entries = _entries(files.metrics, content.problems)
    results = _json(files.results, dict, content.problems)
    if isinstance(results.get("test"), dict):
        content.test, content.test_step = numbers(results["test"]), _step(results)
    slices = results.get("slices")
    content.slices = slices if isinstance(slices, dict) else {}
    for split in SPLITS:
        file = score_file(files.scores, split)
        try:
            content.scores[split] = read_scores(file)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError):
            content.problems.append(f"{file}: cannot be read, so its curves are missing")
    content.plan = [entry for entry in _json(files.plan, list, content.problems) if isinstance(entry, dict)]
    content.history = parse_lines(_text(files.history, content.problems) or "")
    dataset = _json(files.contract, dict, content.problems).get("dataset")
    content.dataset = dataset if isinstance(dataset, dict) else {}
    return content


def numbers(entry: dict[str, Any]) -> dict[str, float]:
    """The scalars of an entry; nan for null."""
    return {
        key: math.nan if value is None else float(value)
        for key, value in entry.items()
        if key not in ("kind", "step") and _is_number(value)
    }


def _is_number(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < LARGEST
    return value is None or isinstance(value, int | float)


def _step(entry: dict[str, Any]) -> int | None:
    step = entry.get("step")
    return step if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < LARGEST else None


def _entries(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """Entries in the order of steps; a last line that a training run is writing is no problem."""
    lines = (_text(path, problems) or "").splitlines(keepends=True)
    entries, damaged = [], 0
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if isinstance(entry, dict) and isinstance(entry.get("kind"), str) and _step(entry) is not None:
            entries.append(entry)
        elif line.endswith("\n"):
            damaged += 1
    if damaged:
        problems.append(f"{path}: {damaged} of its {len(lines)} lines cannot be read, and are left out")
    return sorted(entries, key=lambda entry: entry["step"])


def _json(path: Path, kind: type[Any], problems: list[str]) -> Any:
    """Content of a JSON file that may be missing, a ``kind``."""
    text = _text(path, problems)
    if text is None:
        return kind()
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, kind):
        problems.append(f"{path}: is damaged or not yet complete, and is left out")
        return kind()
    return content


def _text(path: Path, problems: list[str]) -> str | None:
    """Text of a file; None if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        problems.append(f"{path}: cannot be read ({error.strerror}), and is left out")
        return None
