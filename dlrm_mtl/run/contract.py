"""The data contract in a run's folder and checkpoints: made when a run starts, checked at every use."""

from __future__ import annotations

import json
import os
from pathlib import Path

from dlrm_mtl.checkpoint.state import RunState
from dlrm_mtl.config.load import know_all_parts
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.schema import validate
from dlrm_mtl.data.contract import Contract, check_training_files, digest, make_contract, read_through, training_files
from dlrm_mtl.data.dataset import Dataset, Split, open_dataset
from dlrm_mtl.data.spec import DatasetSpec, SplitSpec
from dlrm_mtl.data.vocabularies import vocabularies_digest
from dlrm_mtl.run.folder import RunFolder
from dlrm_mtl.run.settings import setting_differences
from dlrm_mtl.storage.filesystems import locate
from dlrm_mtl.tasks.targets import label_columns

PREDICTION_KEYS = (
    "tasks",
    "model",
    "data.sparse",
    "data.sequence",
    "data.dense",
    "data.max_sequence_length",
    "data.dense_limit",
    "data.unbounded",
    "data.train_only",
)
"""Keys of a configuration that determine predictions: evaluation and prediction refuse other values."""


def new_contract(config: RunConfig, dataset: Dataset, split: Split | None) -> Contract:
    """Make the contract of a run that starts on ``dataset``.

    Args:
        config: configuration of the run.
        dataset: data set with its current description.
        split: training split; None for growing data.

    Raises:
        UserError: the data set lacks a name of the run, or a file cannot be read.
    """
    tasks = [task.name for task in config.tasks]
    path = config.data.path if "://" in config.data.path else str(Path(config.data.path).absolute())
    contract = make_contract(path, dataset.spec, config.data, label_columns(config.tasks), tasks)
    known = vocabularies_digest(dataset.filesystem, dataset.path)
    contract = contract.model_copy(update={"vocabularies": known})
    if split is None:
        return contract
    files = training_files(split, dataset.folder(split.name))
    return contract.model_copy(update={"training_digest": digest(files), "training_files": files})


def saved_contract(state: RunState, place: str) -> Contract | None:
    """Contract in a checkpoint of the run at ``place``; None in a checkpoint of an earlier version."""
    return validate(Contract, state.contract, f"{place}: contract") if state.contract else None


def saved_config(state: RunState, place: str) -> RunConfig | None:
    """Configuration in a checkpoint of the run at ``place``; None in a checkpoint of an earlier version."""
    if not state.config:
        return None
    know_all_parts()
    return validate(RunConfig, state.config, f"{place}: configuration in the checkpoint")


def enter(contract: Contract, config: RunConfig, state: RunState) -> None:
    """Store the contract and the configuration of a run in its state, which checkpoints hold."""
    state.contract = contract.model_dump(mode="json", exclude_none=True, exclude={"training_files"})
    state.config = config.model_dump(mode="json")


def write_contract(folder: RunFolder, contract: Contract) -> None:
    """Write contract.json, for people and for the names of files."""
    content = contract.model_dump(mode="json", exclude_none=True)
    folder.write(folder.contract, json.dumps(content, indent=1, ensure_ascii=False))


def check_same_files(contract: Contract, dataset: Dataset, split: Split, folder: RunFolder) -> None:
    """Check that a run continues with its original training files; for one process.

    Raises:
        UserError: the first file that is missing, new or changed.
    """
    place = dataset.folder(split.name)
    now = training_files(split, place)
    if contract.training_digest in (None, digest(now)):
        return
    try:
        known = Contract.model_validate_json(folder.store.read(folder.contract.name) or b"").training_files or []
    except ValueError:
        known = []
    if digest(known) == contract.training_digest:
        check_training_files(known, now, place)
    raise UserError(
        f"{place}: its files are not those that this run was trained on: put them back to resume, or start anew with another "
        "--output."
    )


def in_full(config: RunConfig, contract: Contract | None) -> RunConfig:
    """``config`` with all feature names written out."""
    if contract is None:
        return config
    kinds = ("sparse", "sequence", "dense")
    named = {kind: getattr(contract, kind) for kind in kinds if getattr(config.data, kind) is None}
    return config.model_copy(update={"data": config.data.model_copy(update=named)})


def config_in_use(config: RunConfig, state: RunState, place: str) -> RunConfig:
    """Configuration for the use of a checkpoint: ``config`` with the known place of the data set.

    Raises:
        UserError: a key that determines predictions differs from the trained run.
    """
    trained = saved_config(state, place)
    if trained is None:
        return config
    contract = saved_contract(state, place)
    for key, was, now in setting_differences(in_full(trained, contract), in_full(config, contract)):
        if any(key == prefix or key.startswith(f"{prefix}.") for prefix in PREDICTION_KEYS):
            raise UserError(
                f"{place}: {key} was {was} when this run was trained, and is now {now}, so that another model would predict; "
                "leave it as it was."
            )
    path = config.data.path
    if contract is not None and path == trained.data.path and "://" not in path and not os.path.isdir(path):
        return config.model_copy(update={"data": config.data.model_copy(update={"path": contract.path})})
    return config


def dataset_in_use(config: RunConfig, contract: Contract | None, source: str | Path | None = None) -> Dataset:
    """The run's data set, read through its contract if it has one; or the files ``source``, see :func:`other_files`.

    Raises:
        UserError: it does not exist, or differs from the one that the run was trained on.
    """
    if source is not None and contract is not None:
        return other_files(source, contract)
    dataset = open_dataset(config.data.path)
    if source is not None:
        return other_files(source, dataset.spec)
    return dataset if contract is None else read_through(contract, dataset)


def other_files(source: str | Path, described: Contract | DatasetSpec) -> Dataset:
    """Parquet files as the only split ``input`` of a data set with the run's description.

    Args:
        source: a file, or a folder of them; path or URI.
        described: the run's contract or data set.
    """
    spec = described.dataset if isinstance(described, Contract) else described
    filesystem, path = locate(source)
    spec = spec.model_copy(update={"splits": {"input": SplitSpec(folder=".")}})
    return OtherFiles(filesystem, path, spec)


class OtherFiles(Dataset):
    """A data set without its own dataset.yaml."""

    def folder(self, name: str) -> str:
        """The file or folder, for any split."""
        return self.path
