"""The data contract of a run: a record of its data set, so that later changes of the data set do not change the run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.schema import Strict
from dlrm_mtl.data.chosen_columns import select
from dlrm_mtl.data.config import DataConfig
from dlrm_mtl.data.dataset import FOOTER_THREADS, DataFile, Dataset, Split, read_again
from dlrm_mtl.data.spec import DATASET_FILE, DatasetSpec, DenseStatistics, FeatureSpec, LabelSpec

REMEDY = "name the data set that it was trained on, or train a new run on this one"

logger = logging.getLogger(__name__)


class TrainingFile(Strict):
    """A Parquet file of the training split."""

    name: str
    """Path relative to the split's folder."""
    size: int
    """Size in bytes."""
    rows: int
    footer: str
    """SHA-256 of the file's footer, which holds offsets, sizes and statistics of all columns."""


class Contract(Strict):
    """Record of a run's training data: the description of its data set, and the names that the run reads, in order."""

    format: int = 1
    path: str
    """Folder of the data set, as an absolute path or a URI."""
    dataset: DatasetSpec
    """Content of its dataset.yaml."""
    sparse: list[str]
    """Names of the sparse features that the run reads, in order."""
    sequence: list[str]
    """Names of the sequence features that the run reads, in order."""
    dense: list[str]
    """Names of the dense features that the run reads, in order."""
    labels: list[str]
    """Names of the labels, in order."""
    tasks: list[str]
    """Names of the tasks, in order."""
    training_digest: str | None = None
    """SHA-256 of the list of training files; None for growing data, whose files the run's state records."""
    vocabularies: str | None = None
    """SHA-256 of vocabularies.parquet, which knows the value behind every id; None without this file."""
    training_files: list[TrainingFile] | None = None
    """Files of the training split; omitted in checkpoints."""

    @property
    def features(self) -> list[FeatureSpec]:
        """Features that the run reads: sparse, sequence, dense."""
        return [self.dataset.feature(name) for name in (*self.sparse, *self.sequence, *self.dense)]


def make_contract(
    path: str, spec: DatasetSpec, config: DataConfig, labels: Sequence[str], tasks: Sequence[str]
) -> Contract:
    """Contract of a run on a data set, without its files.

    Args:
        path: absolute path of the data set.
        spec: description of the data set.
        config: features and columns that the run reads.
        labels: names of the labels.
        tasks: names of the tasks.

    Raises:
        UserError: the data set lacks a name that the run reads.
    """
    chosen = select(spec, config, labels)
    kinds = {
        kind: [feature.name for feature in chosen.sparse if feature.kind == kind] for kind in ("sparse", "sequence")
    }
    return Contract(
        path=path,
        dataset=spec,
        sparse=kinds["sparse"],
        sequence=kinds["sequence"],
        dense=[feature.name for feature in chosen.dense],
        labels=[label.name for label in chosen.labels],
        tasks=list(tasks),
    )


def read_through(contract: Contract, dataset: Dataset) -> Dataset:
    """Files of ``dataset``, described by the contract's features, order and statistics.

    Columns that the run does not read may differ, and so may the order of features and the statistics: the run uses its
    own.

    Raises:
        UserError: the first feature or label of the run whose definition has changed.
    """
    place = f"{dataset.path}/{DATASET_FILE}"
    for what, was, now in _differences(contract, dataset.spec):
        raise UserError(f"{place}: {what} was {was} when this run was trained, and is {now}; {REMEDY}.")
    for feature in contract.features:
        if _scale(feature) != _scale(dataset.spec.feature(feature.name)):
            logger.info(
                "note: %s: feature %r has other statistics than when this run was trained, which keeps its own",
                place,
                feature.name,
            )
    spec = contract.dataset.model_copy(update={"splits": dataset.spec.splits})
    return dataclasses.replace(dataset, spec=spec)


def _scale(feature: FeatureSpec) -> tuple[float, float] | None:
    """Mean and standard deviation by which the reader standardises a dense feature."""
    statistics = feature.statistics
    return (statistics.mean, statistics.std) if isinstance(statistics, DenseStatistics) else None


Difference = tuple[str, object, object]
"""Subject of a difference, its old value, and its new value."""


def _differences(contract: Contract, now: DatasetSpec) -> Iterator[Difference]:
    features = {feature.name: feature for feature in now.features}
    for feature in contract.features:
        what = f"feature {feature.name!r}"
        found = features.get(feature.name)
        if found is None:
            yield what, feature.kind, "not there"
            continue
        yield from _fields(what, feature, found, ("kind", "transform"))
        if feature.source != found.source:
            yield f"the column of {what}", repr(feature.source), repr(found.source)
        if feature.kind == "dense":
            continue
        owners = contract.dataset.vocabulary_owner(feature.name), now.vocabulary_owner(feature.name)
        if owners[0] != owners[1]:
            yield f"the vocabulary of {what}", f"that of {owners[0]!r}", f"that of {owners[1]!r}"
        fields = ("vocabulary_size", "unbounded", "fingerprint")
        yield from _fields(
            f"feature {owners[0]!r}", contract.dataset.feature(owners[0]), now.feature(owners[0]), fields
        )
    labels = {label.name: label for label in now.labels}
    for name in contract.labels:
        label = next(label for label in contract.dataset.labels if label.name == name)
        if name not in labels:
            yield f"label {name!r}", label.kind, "not there"
        else:
            yield from _fields(f"label {name!r}", label, labels[name], ("kind",))
            if label.source != labels[name].source:
                yield f"the column of label {name!r}", repr(label.source), repr(labels[name].source)


def _fields(
    what: str, was: FeatureSpec | LabelSpec, now: FeatureSpec | LabelSpec, names: Sequence[str]
) -> Iterator[Difference]:
    for name in names:
        before, after = getattr(was, name), getattr(now, name)
        if name == "unbounded":
            before, after = bool(before), bool(after)
        if name in ("fingerprint", "transform") and (before is None or after is None):
            continue  # optional in dataset.yaml
        if before != after:
            yield f"{name} of {what}", repr(before), repr(after)


def training_files(split: Split, folder: str) -> list[TrainingFile]:
    """Files of a split in ``folder``, with fingerprints; only footers are read.

    Raises:
        UserError: a file cannot be read.
    """

    def describe(file: DataFile) -> TrainingFile:
        footer = read_again(lambda: _footer(file), file.filesystem, file.path)
        return TrainingFile(
            name=file.path[len(folder) :].lstrip("/"),
            size=file.size,
            rows=file.rows,
            footer=hashlib.sha256(footer).hexdigest(),
        )

    with ThreadPoolExecutor(min(FOOTER_THREADS, len(split.files))) as pool:
        return list(pool.map(describe, split.files))


def digest(files: Sequence[TrainingFile]) -> str:
    """SHA-256 of a list of files."""
    return hashlib.sha256(json.dumps([file.model_dump() for file in files]).encode()).hexdigest()


def _footer(file: DataFile) -> bytes:
    with file.filesystem.open_input_file(file.path) as source:
        length = int.from_bytes(source.read_at(4, file.size - 8), "little")
        return bytes(source.read_at(length, file.size - 8 - length))


def check_training_files(was: Sequence[TrainingFile], now: Sequence[TrainingFile], folder: str) -> None:
    """Check that a run continues with its original training files.

    Raises:
        UserError: the first file that is missing, new or changed.
    """
    end = "the rows that this run was trained on are gone: put them back to resume, or start anew with another --output"
    names = {file.name: file for file in now}
    for file in was:
        found = names.pop(file.name, None)
        if found is None:
            raise UserError(f"{folder}/{file.name}: this file is not there any more, so {end}.")
        if found != file:
            key = next(key for key in ("rows", "size", "footer") if getattr(found, key) != getattr(file, key))
            values = [
                f"{getattr(each, key):,}" if key != "footer" else getattr(each, key)[:12] for each in (file, found)
            ]
            raise UserError(f"{folder}/{file.name}: {key} was {values[0]} and is now {values[1]}, so {end}.")
    for name in names:
        raise UserError(
            f"{folder}/{name}: this file is new since the run began, so that rows would be skipped or read twice; move it "
            "away to resume, or see data.growing for data that grows."
        )
