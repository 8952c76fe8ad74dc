"""Calibration in an export: fitted on the validation split, measured on the test split."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.processes import Process
from dlrm_mtl.data.dataset import Dataset
from dlrm_mtl.serve.calibration import BundleCalibration, Measured
from dlrm_mtl.serve.fit_calibration import LabelledPredictions, choices_of, fit, measure_calibration
from dlrm_mtl.tasks.targets import Targets, predictions
from dlrm_mtl.training.loaders import make_loader
from dlrm_mtl.training.sharded_model import ShardedModel

FITTED_ON = "validation"
MEASURED_ON = "test"

logger = logging.getLogger(__name__)


def calibrated(
    options: Sequence[str], config: RunConfig, dataset: Dataset, model: ShardedModel, process: Process
) -> BundleCalibration:
    """Calibration of the tasks that ``options`` name, see :func:`~dlrm_mtl.serve.fit_calibration.choices_of`.

    Raises:
        UserError: an option is wrong, the data set has no validation split, or a map cannot be fitted to it.
    """
    choices = choices_of(options, config.tasks)
    if not choices:
        raise UserError(f"--calibrate {options[0]}: the run has no binary task to calibrate; leave it out.")
    splits = dataset.spec.splits
    fitted = any(choice.kept is None for choice in choices.values())
    if fitted and FITTED_ON not in splits:
        raise UserError(f"{dataset.path}: has no split {FITTED_ON} to fit a calibration on; choose negatives:SHARE.")
    data = labelled_predictions(config, dataset, FITTED_ON, model, process) if fitted else {}
    nothing = LabelledPredictions(*(np.empty(0) for _ in range(3)))
    maps = {task: fit(choice, data.get(task, nothing), task, FITTED_ON) for task, choice in choices.items()}
    measured: dict[str, Measured] = {}
    if MEASURED_ON in splits:
        data = labelled_predictions(config, dataset, MEASURED_ON, model, process)
        measured = {task: measure_calibration(found, data[task]) for task, found in maps.items()}
    return BundleCalibration(
        tasks=maps, fitted_on=FITTED_ON, measured_on=MEASURED_ON if measured else None, measured=measured
    )


@torch.no_grad()
def labelled_predictions(
    config: RunConfig, dataset: Dataset, split: str, model: ShardedModel, process: Process
) -> dict[str, LabelledPredictions]:
    """Raw predictions of the binary tasks for the rows of a split in which they are defined; for one process."""
    targets = Targets(config.tasks)
    model.module.eval()
    parts = []
    for batch in make_loader(config, dataset, split, process).epoch(0):
        made = predictions(model.module(batch.to(process.device)), config.tasks).cpu()
        parts.append(torch.stack([made, *targets(batch.labels, batch.weights)]))  # [3, B, T]
    everything = torch.cat(parts, dim=1).numpy().astype(np.float64) if parts else np.empty((3, 0, len(config.tasks)))
    found = {}
    for column, task in enumerate(config.tasks):
        if task.kind == "binary":
            own = everything[:, :, column]
            found[task.name] = LabelledPredictions(*own[:, own[2] > 0])
    return found


def report_calibration(calibration: BundleCalibration) -> None:
    """Log the errors of every task, before and after."""
    for task, found in calibration.tasks.items():
        origin = "" if found.method == "negatives" else f", fitted on {calibration.fitted_on}"
        errors = calibration.measured.get(task)
        if errors is None:
            logger.info("calibration of %s: %s%s; not measured, as there is no other split", task, found.method, origin)
            continue
        changes = [("ECE", errors.ece), ("norm. entropy", errors.ne), ("log loss", errors.log_loss)]
        text = ", ".join(f"{name} {_shown(before)} -> {_shown(after)}" for name, (before, after) in changes)
        logger.info(
            "calibration of %s: %s%s; on %s rows of %s: %s",
            *(task, found.method, origin, f"{errors.rows:,}", calibration.measured_on, text),
        )


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
