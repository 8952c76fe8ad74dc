"""Loaders of a run, one for every split and process."""

from __future__ import annotations

from collections.abc import Sequence

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.processes import Process, on_every_process, one_by_one
from dlrm_mtl.data.carried_columns import CarriedColumn
from dlrm_mtl.data.dataset import Dataset, Split
from dlrm_mtl.data.negatives.rewrite import Negatives
from dlrm_mtl.data.negatives.statistics import ItemStatistics, merge, read_statistics
from dlrm_mtl.data.order import own_lanes
from dlrm_mtl.data.reader import BatchLoader
from dlrm_mtl.tasks.targets import label_columns


def make_loader(
    config: RunConfig, dataset: Dataset, split: str, process: Process, carried: Sequence[CarriedColumn] = ()
) -> BatchLoader:
    """Loader of one split for evaluation on this process: features in `data.train_only` are constant."""
    return split_loader(config, dataset.split(split), process, served=True, carried=carried)


def training_loader(config: RunConfig, split: Split, process: Process) -> BatchLoader:
    """Loader of training rows, with negatives if the configuration has any. Every process must call this.

    The statistics for negatives come from ``split``: every process reads a part of it.
    """
    if config.data.negatives is None:
        return split_loader(config, split, process)
    own_lanes(config.data.lanes, process.rank, process.world_size)  # a mistake is reported before the split is read
    labels = label_columns(config.tasks)
    own: list[ItemStatistics] = []
    on_every_process(lambda: own.append(read_statistics(split, config.data, labels, process.rank, process.world_size)))
    statistics = merge(one_by_one(own.pop()))
    assert statistics is not None
    return split_loader(config, split, process, Negatives(split.spec, config.data, labels, statistics, config.seed))


def split_loader(
    config: RunConfig,
    split: Split,
    process: Process,
    negatives: Negatives | None = None,
    *,
    served: bool = False,
    carried: Sequence[CarriedColumn] = (),
) -> BatchLoader:
    """Loader of an open split for this process: shuffled for training, in file order otherwise.

    Args:
        config: configuration of the run.
        split: files to read.
        process: this process.
        negatives: rewriter that adds rows with drawn items.
        served: True outside training: features in `data.train_only` are constant.
        carried: columns to read beside the inputs, for ``Batch.carried``.
    """
    training = split.name == "train"
    size = config.data.batch_size // config.training.micro_batches if training else config.data.evaluation_batch_size
    return BatchLoader(
        split,
        config.data,
        labels=label_columns(config.tasks),
        seed=config.seed,
        rank=process.rank,
        world_size=process.world_size,
        batch_size=size,
        shuffle=config.data.shuffle and training,
        negatives=negatives,
        pin=process.device.type == "cuda",
        served=served,
        carried=carried,
    )
