"""Calibration of published versions: the maps of a bundle that was exported of the same run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dlrm_mtl.checkpoint.format import sha256
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.serve.bundle import check_bundle, read_model
from dlrm_mtl.serve.calibration import CALIBRATION_FILE, BundleCalibration, read_calibration
from dlrm_mtl.serve.scorer import Scorer
from dlrm_mtl.tasks.config import TaskConfig

Meanings = tuple[tuple[str, str], ...]
"""Name of each task, and a text of what it predicts."""


@dataclass(frozen=True)
class FollowedCalibration:
    """Maps of predictions for versions of a run. Picklable.

    Args:
        place: folder of the bundle that they come from.
        run: name of its run.
        tasks: its tasks.
        maps: the maps.
        digest: short name that distinguishes the maps.
    """

    place: str
    run: str
    tasks: Meanings
    maps: BundleCalibration
    digest: str

    def put_on(self, scorer: Scorer) -> None:
        """Calibrate what ``scorer`` returns; raises :class:`UserError` if it is that of another run or of other tasks."""
        for what, own, other in (
            ("the names of the runs", self.run, scorer.name),
            ("the tasks", self.tasks, _meanings(scorer.task_configs)),
        ):
            if own != other:
                raise UserError(
                    f"--calibration {self.place}: {what} of this bundle and of the published versions differ; export one of "
                    "their run with --calibrate."
                )
        scorer.calibration = self.maps


def calibration_of(bundle: str | Path, plugins: Sequence[str] = ()) -> FollowedCalibration:
    """The calibration of a bundle, whose bytes are checked.

    Args:
        bundle: folder of an export with a calibration.
        plugins: modules with parts of the model that the user trusts.

    Raises:
        UserError: there is no bundle, it is damaged, or has no calibration.
    """
    folder = Path(bundle)
    check_bundle(folder)
    served, maps = read_model(folder, list(plugins)), read_calibration(folder)
    if maps is None:
        raise UserError(f"--calibration {bundle}: this bundle has no calibration; export one with --calibrate.")
    digest = sha256((folder / CALIBRATION_FILE).read_bytes())[:8]
    return FollowedCalibration(str(bundle), served.name, _meanings(served.tasks), maps, digest)


def _meanings(tasks: Sequence[TaskConfig]) -> Meanings:
    kept = {"label", "only_where", "product_of"}
    return tuple((task.name, f"{task.kind} {task.model_dump_json(include=kept)}") for task in tasks)
