"""Data of a training run, read through the run's contract and checked against it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from dlrm_mtl.config.metric_columns import check_metric_columns
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.processes import Process, first_process_only
from dlrm_mtl.data.contract import Contract, read_through
from dlrm_mtl.data.dataset import Dataset
from dlrm_mtl.data.reader import BatchLoader
from dlrm_mtl.run.contract import check_same_files, new_contract
from dlrm_mtl.run.folder import RunFolder
from dlrm_mtl.training.evaluation import Evaluator
from dlrm_mtl.training.loaders import training_loader


@dataclass(frozen=True)
class TrainingData:
    """A data set with the loaders of a training run."""

    dataset: Dataset
    contract: Contract
    train: BatchLoader | None
    """None where data are growing: each round has its own."""
    validation: Evaluator | None
    """None if there is no such split."""
    steps: int | None
    """Steps of the whole run; None where data are growing."""


def open_training_data(
    config: RunConfig, dataset: Dataset, contract: Contract | None, folder: RunFolder, process: Process
) -> TrainingData:
    """Open the data of a run; to be called on every process.

    Args:
        config: of the run.
        dataset: with its present description.
        contract: of a continued run; None for a new run, which gets one.
        folder: of the run.
        process: this one.

    Raises:
        UserError: the data set is not what the run was trained on, or lacks something that the run names.
    """
    known = contract
    if known is not None:
        dataset = read_through(known, dataset)
    split = None if config.data.growing else dataset.split("train")
    if known is not None and split is not None:
        first_process_only(partial(check_same_files, known, dataset, split, folder))
    train = training_loader(config, split, process) if split else None
    first_process_only(partial(check_metric_columns, config.metrics, dataset, ("validation", "test")))
    validation = None
    if "validation" in dataset.spec.splits:
        validation = Evaluator(config, dataset, "validation", process, sliced=False)
    if known is None:
        known = first_process_only(partial(new_contract, config, dataset, split))
    steps = config.training.total_steps(train.steps_per_epoch) if train else None
    return TrainingData(dataset, known, train, validation, steps)
