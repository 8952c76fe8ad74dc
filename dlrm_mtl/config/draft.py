"""Draft of a configuration for a data set, with reasons in comments: the output of ``dlrm-mtl init``."""

from __future__ import annotations

import math
import re
from pathlib import Path

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.yaml_text import to_yaml
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.spec import DATASET_FILE, DatasetSpec, LabelSpec
from dlrm_mtl.storage.output import output_file

STEPS = 100
"""Smallest number of steps of an epoch before batches grow."""
SMALLEST, LARGEST = 64, 4096
"""Limits of the batch size, in rows."""
UNBOUNDED_ROWS = 1_000_000
"""Table rows for ids without a vocabulary, if the data set does not state how many are distinct."""


def draft_config(path: str) -> str:
    """Text of a configuration for the data set in ``path``: all features, a task for every label, MMoE, Clippy.

    Args:
        path: folder of the data set or its dataset.yaml; path or URI.

    Raises:
        UserError: there is no data set, or none of its labels can be learned.
    """
    folder = path[: -len(DATASET_FILE)].rstrip("/") or "." if path.endswith(DATASET_FILE) else path
    spec = open_dataset(folder).spec
    learnable = [label for label in spec.labels if not _constant(label)]
    if not learnable:
        raise UserError(f"{folder}: no label has both values in the training rows; there is nothing to learn.")
    rows = spec.splits["train"].rows if "train" in spec.splits else None
    lines = [
        f"# A first run on {_comment(spec.name)}{f': {rows:,} training rows' if rows else ''}. Every key and its default:",
        "# dlrm-mtl config schema. Then: dlrm-mtl config check THIS_FILE, and dlrm-mtl train THIS_FILE.",
        f"name: {to_yaml(_plain(spec.name))}",
        "seed: 1",
        "data:",
        f"  path: {to_yaml(folder)}",
        f"  batch_size: {_batch_size(rows)}  # rows of a step, over all processes",
        *_unbounded(spec),
        "tasks:",
        *[line for label in learnable for line in _task(label)],
        *[
            f"  # {_comment(label.name)} is left out: it is the same in all training rows"
            for label in spec.labels
            if _constant(label)
        ],
        "model:",
        f"  embeddings: {{dim: {8 if rows and rows < 100_000 else 16}}}  # width of a row of every table",
        "  interaction: {name: dcnv2, layers: 1}",
        *_multitask(len(learnable)),
        "  tower: {layers: [32], norm: layer, dropout: 0.1}  # each task's own layers",
        "optimizer:  # Clippy for tables and layers; of both rates, try a third and three times as much first",
        "  sparse: {name: clippy_rowwise_adagrad, learning_rate: 0.1, initial_accumulator_value: 0.001}",
        "  dense: {name: clippy_adagrad, learning_rate: 0.1, initial_accumulator_value: 0.01}",
        "  schedule: {warmup_steps: 40, decay: cosine}",
        "training:",
        "  epochs: 2  # tables of ids overfit soon: look at the validation metrics before you raise it",
        *(["  early_stopping: {metric: mean/rmse}"] if all(label.kind == "real" for label in learnable) else []),
    ]
    return "\n".join(lines) + "\n"


def _constant(label: LabelSpec) -> bool:
    return label.kind == "binary" and label.mean in (0.0, 1.0)


def _task(label: LabelSpec) -> list[str]:
    if label.kind == "real":
        mean = "" if label.mean is None else f"  # mean {label.mean:.4g}"
        return [f"  - {to_yaml({'name': label.name, 'loss': 'mean_squared_error'})}{mean}"]
    rate = "" if label.mean is None else f"  # positive in {label.mean:.2%} of the rows"
    return [f"  - {to_yaml({'name': label.name})}{rate}"]


def _multitask(tasks: int) -> list[str]:
    if tasks == 1:
        return ["  multitask: {name: shared_bottom, layers: [64], norm: layer, dropout: 0.1}"]
    experts = max(4, tasks)
    return [
        f"  multitask: {{name: mmoe, experts: {experts}, layers: [64], norm: layer, dropout: 0.1}}  # others: dlrm-mtl models"
    ]


def _unbounded(spec: DatasetSpec) -> list[str]:
    rows = {feature.name: _rows(spec, feature.name) for feature in spec.features if feature.unbounded}
    if not rows:
        return []
    return [
        "  # Rows of the tables whose ids are not numbered; the least used ids make room.",
        f"  unbounded: {to_yaml(rows)}",
    ]


def _rows(spec: DatasetSpec, name: str) -> int:
    distinct = getattr(spec.feature(name).statistics, "distinct", None)
    return UNBOUNDED_ROWS if distinct is None else max(2, math.ceil(1.25 * distinct) + 1)


def _batch_size(rows: int | None) -> int:
    """Largest power of two that gives an epoch at least :data:`STEPS` steps, within limits."""
    if not rows:
        return 1024
    return min(LARGEST, max(SMALLEST, 2 ** int(math.log2(max(rows / STEPS, 1)))))


def _plain(name: str) -> str:
    """A name that is also valid for a folder."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._-") or "run"


def _comment(text: str) -> str:
    return " ".join(text.split())


def write_draft(path: str, output: Path) -> None:
    """Write :func:`draft_config` to ``output``, which must not exist.

    Raises:
        UserError: as :func:`draft_config`; or ``output`` exists, or cannot be written.
    """
    text = draft_config(path)
    if output.exists():
        raise UserError(f"{output}: this file is there already; remove it, or name another with --output.")
    with output_file(output) as file:
        file.write(text.encode())
