"""The file of an evaluation's scores in bins, which reports draw curves from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from dlrm_mtl.metrics.score_bins import ScoreBins
from dlrm_mtl.storage.output import write_whole


@dataclass(frozen=True)
class SavedScores:
    """Content of the file."""

    step: int
    """Steps of training that the evaluated model has taken."""
    tasks: dict[str, ScoreBins]


def score_file(folder: Path, split: str) -> Path:
    """File of a split in ``folder``."""
    return folder / f"{split}.json"


def write_scores(path: Path, scores: SavedScores) -> None:
    """Write the file atomically; raises :class:`OSError` if that fails."""
    content = {"step": scores.step, "tasks": {task: bins.as_json() for task, bins in scores.tasks.items()}}
    write_whole(path, json.dumps(content, separators=(",", ":")))


def read_scores(path: Path) -> SavedScores:
    """Read the file.

    Raises:
        OSError: it cannot be read, or there is none.
        ValueError: it holds something else.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    try:
        tasks = {str(task): ScoreBins.from_json(own) for task, own in content["tasks"].items()}
        return SavedScores(int(content["step"]), tasks)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no scores: {error!r}") from None
