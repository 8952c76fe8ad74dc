"""The tables of a trained model in the format that a bundle stores, and the quality of the model with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlrm_mtl.config.check import check_tasks
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.processes import Process
from dlrm_mtl.data.chosen_columns import select
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.embeddings.row_formats import FORMATS, FormatName
from dlrm_mtl.embeddings.torchrec.compat import ShardedTensor
from dlrm_mtl.run.contract import Contract, dataset_in_use
from dlrm_mtl.serve.quality import (
    DEFAULT_LIMITS,
    LARGEST_VOCABULARY,
    QualityLimits,
    QualityReport,
    compare_quality,
    score_split,
)
from dlrm_mtl.serve.tables import check_format
from dlrm_mtl.training.loaders import make_loader
from dlrm_mtl.training.sharded_model import ShardedModel

EVALUATION_SPLITS = ("input", "test", "validation")
"""Splits that quality is measured on, in order of preference; ``input`` means files outside the data set."""
PIECE = 1 << 16
"""Number of rows that are decoded at a time."""


@dataclass(frozen=True)
class TableOptions:
    """How an export stores the tables."""

    format: FormatName = "fp32"
    auc: float | None = None
    """Largest absolute change of a task's AUC; default: by the format."""
    loss: float | None = None
    """Largest relative increase of a task's normalised entropy or RMSE; default: by the format."""
    evaluate_on: str | Path | None = None
    """Parquet file or folder with labels for the quality report; default: the run's test split, else validation."""

    def check(self) -> None:
        """Refuse options that have no effect or are out of range; raises :class:`UserError`."""
        check_format(self.format)
        for option, value in (("--max-auc-change", self.auc), ("--max-loss-change", self.loss)):
            if value is not None and not value >= 0:
                raise UserError(f"{option} {value:g}: a limit is 0 or more; correct it.")
        given = [self.auc, self.loss, self.evaluate_on]
        if self.format == "fp32" and any(each is not None for each in given):
            raise UserError(
                "--tables fp32: nothing is rounded, so there is no quality report; leave out --max-auc-change, "
                "--max-loss-change and --evaluate-on, or choose another format."
            )

    @property
    def limits(self) -> QualityLimits:
        """Limits of the format, with those that are given."""
        limits = DEFAULT_LIMITS[self.format]
        given = {"auc": self.auc, "loss": self.loss}
        return limits.model_copy(update={key: value for key, value in given.items() if value is not None})


def whole_tables(model: ShardedModel) -> dict[str, Tensor]:
    """Whole tables, and the ids of rows, ordered by name."""
    ids = {f"ids.{name}": _whole(each["ids"]) for name, each in model.ids.state().items()}
    return dict(sorted((_weights(model) | ids).items()))


@torch.no_grad()
def tables_in_format(
    options: TableOptions,
    model: ShardedModel,
    config: RunConfig,
    contract: Contract | None,
    process: Process,
) -> tuple[dict[str, Tensor], QualityReport]:
    """Tables in a format, and the ids of rows, ordered by name; and the quality of the model with them.

    The model's own tables get the values of the stored rows. So what it says from now on is what the bundle must say.

    Raises:
        UserError: a value cannot be stored, there are no rows with labels, or a metric changes by more than its limit.
    """
    dataset = dataset_in_use(config, contract, options.evaluate_on)
    split = next((name for name in EVALUATION_SPLITS if name in dataset.spec.splits), None)
    if split is None:
        raise UserError(
            f"{dataset.path}: has neither a test nor a validation split to compare the tables on; name rows with labels by "
            "--evaluate-on."
        )
    check_tasks(config, dataset.spec)
    loader = make_loader(config, dataset, split, process)
    features = _slicing_features(config, dataset.spec)
    before = score_split(model, loader, config.tasks, features)
    stored, size = _encoded(options.format, model)
    after = score_split(model, loader, config.tasks, [])
    report = QualityReport(
        tables=options.format,
        split=split if options.evaluate_on is None else str(options.evaluate_on),
        bytes_fp32=size,
        bytes_stored=sum(tensor.nbytes for name, tensor in stored.items() if name.startswith("tables.")),
        limits=options.limits,
        tasks=compare_quality(before, after, config.tasks),
    )
    return stored, report


def _encoded(name: FormatName, model: ShardedModel) -> tuple[dict[str, Tensor], int]:
    """Tables in a format, and the ids of rows, ordered by name; and the size in bytes of the tables in float32."""
    format, size = FORMATS[name], 0
    stored = whole_tables(model)
    for key, weight in _weights(model).items():
        dim = weight.shape[1]
        try:
            rows = format.encode(weight.cpu())
        except ValueError as error:
            raise UserError(f"--tables {name}: table {key.removeprefix('tables.')}: {error}; choose fp32.") from None
        for start in range(0, len(weight), PIECE):
            weight[start : start + PIECE].copy_(format.decode(rows[start : start + PIECE], dim))
        stored[key] = rows.view(torch.float16) if name == "fp16" else rows
        size += weight.numel() * 4
    return stored, size


def _weights(model: ShardedModel) -> dict[str, Tensor]:
    """Whole tables by their names in a bundle; changing one changes the model."""
    return {f"tables.{name}": _whole(weight) for name, weight in model.table_weights().items()}


def _whole(tensor: Any) -> Tensor:
    """Whole tensor, of which the only process holds one shard."""
    whole: Tensor = tensor
    if isinstance(tensor, ShardedTensor):
        (shard,) = tensor.local_shards()
        whole = shard.tensor
    return whole


def _slicing_features(config: RunConfig, spec: DatasetSpec) -> Sequence[str]:
    """Features with one id of a small vocabulary in each row."""
    return [
        feature.name
        for feature in select(spec, config.data, []).sparse
        if feature.kind == "sparse"
        and spec.vocabulary_owner(feature.name) not in config.data.unbounded
        and spec.vocabulary_size(feature.name) <= LARGEST_VOCABULARY
    ]
