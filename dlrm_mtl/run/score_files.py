"""Scores of evaluations in bins: the listener that writes them into the run's folder."""

from __future__ import annotations

import logging
from pathlib import Path

from dlrm_mtl.run.saved_scores import SavedScores, score_file, write_scores
from dlrm_mtl.training.events import Evaluation, Listener

logger = logging.getLogger(__name__)


class ScoreFiles(Listener):
    """Writer of scores/SPLIT.json: of the test split, and of the validation split after the best step so far.

    Args:
        folder: folder of the files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_evaluation(self, event: Evaluation) -> None:
        """Write the file of the split; a run does not end because that fails."""
        if event.split == "validation" and not event.is_best:
            return
        path = score_file(self.folder, event.split)
        try:
            write_scores(path, SavedScores(event.step, event.scores))
        except OSError as error:
            logger.warning("WARNING: %s: cannot be written (%s); reports will lack its curves", path, error.strerror)
