"""Export of a checkpoint of a run as a bundle."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.processes import process_group
from dlrm_mtl.embeddings.config import ShardingConfig
from dlrm_mtl.run.contract import config_in_use, dataset_in_use, in_full, saved_contract
from dlrm_mtl.run.predict import trained_run
from dlrm_mtl.serve.bundle import (
    DENSE_FILE,
    GOLDEN_FILE,
    MODEL_FILE,
    QUALITY_FILE,
    TABLES_FILE,
    VALUES_FILE,
    new_bundle,
    write_file,
)
from dlrm_mtl.serve.calibration import CALIBRATION_FILE
from dlrm_mtl.serve.description import describe_model
from dlrm_mtl.serve.export_calibration import calibrated, report_calibration
from dlrm_mtl.serve.golden import write_golden
from dlrm_mtl.serve.raw.export import raw_export
from dlrm_mtl.serve.scorer import Scorer
from dlrm_mtl.serve.table_export import TableOptions, tables_in_format, whole_tables
from dlrm_mtl.serve.tensor_files import write_tensors
from dlrm_mtl.storage.output import write_whole
from dlrm_mtl.training.build import build_model
from dlrm_mtl.training.golden_rows import GoldenRows
from dlrm_mtl.training.publisher import ONLY_TRAINING
from dlrm_mtl.training.sharded_model import ShardedModel
from dlrm_mtl.training.tensors import RunTensors

logger = logging.getLogger(__name__)


def export_run(
    run: str | Path,
    output: str | Path,
    checkpoint: str | None = None,
    overrides: Sequence[str] = (),
    golden: str | Path | None = None,
    calibrate: Sequence[str] = (),
    tables: TableOptions = TableOptions(),  # noqa: B008  (immutable)
) -> str:
    """Write the bundle of a checkpoint, see :mod:`dlrm_mtl.serve.bundle`; it is loaded before it is renamed to ``output``.

    One process exports, and the tables must fit into its memory. The same checkpoint gives the same bytes, for any plan and
    number of processes that wrote it.

    Args:
        run: folder of the run, path or URI.
        output: local folder to write; it appears when it is complete.
        checkpoint: ``best``, ``latest`` or ``step_N``; default: the best one, or the latest if no best one is known.
        overrides: ``key=value`` of the run's configuration, such as ``data.path=...``.
        golden: Parquet file, or folder of them, whose first rows become golden rows; default: a split of the run's data set.
        calibrate: ``METHOD`` or ``TASK=METHOD``, see :func:`~dlrm_mtl.serve.fit_calibration.choices_of`.
        tables: format of the tables, and limits of its quality.

    Returns:
        The version of the bundle.

    Raises:
        UserError: there is no such run, checkpoint or data set, a calibration cannot be fitted, the format of the tables
            changes a metric by more than its limit, the output cannot be written, or the golden rows do not get the scores that
            the trained model gives them.
    """
    tables.check()
    with process_group() as process, trained_run(run, list(overrides)) as (checkpoints, config):
        if process.world_size > 1:
            raise UserError("export: one process writes a bundle; start it without a launcher.")
        name = checkpoints.path(checkpoint)
        state = checkpoints.state(name)
        contract = saved_contract(state, str(run))
        config = _without_plan(in_full(config_in_use(config, state, str(run)), contract))
        dataset = dataset_in_use(config, contract, golden)

        def check(folder: Path) -> None:
            versions.append(Scorer(folder, plugins=config.plugins).version)

        versions: list[str] = []
        with new_bundle(output, check) as folder:
            model = build_model(config, dataset.spec, process)
            step = checkpoints.load(name, RunTensors(model)).step
            if tables.format == "fp32":
                stored = whole_tables(model)
            else:
                stored, report = tables_in_format(tables, model, config, contract, process)
                for line in report.lines():
                    logger.info("%s", line)
                report.check()
                write_whole(folder / QUALITY_FILE, report.model_dump_json(indent=1) + "\n")
            whole = dataset if golden is None or not calibrate else dataset_in_use(config, contract)
            calibration = calibrated(calibrate, config, whole, model, process) if calibrate else None
            raw = raw_export(config.data, contract, dataset.spec)
            rows = GoldenRows(config, dataset)
            scored = rows.scored_by(model)
            scores = {task.name: scored.scores[:, number] for number, task in enumerate(config.tasks)}
            write_golden(folder / GOLDEN_FILE, rows.rows, scores, raw.golden(rows.rows) if raw is not None else [])
            described = raw.raw if raw is not None else None
            served = describe_model(config, dataset.spec, step, scored.sums, described, tables.format)
            write_whole(folder / MODEL_FILE, served.model_dump_json(indent=1) + "\n")
            dense = _dense(model)
            write_file(folder / TABLES_FILE, lambda file: write_tensors(file, stored, config.name, step))
            write_file(folder / DENSE_FILE, lambda file: write_tensors(file, dense, config.name, step))
            if calibration is not None:
                write_whole(folder / CALIBRATION_FILE, calibration.model_dump_json(indent=1) + "\n")
            if raw is not None:
                write_file(
                    folder / VALUES_FILE, partial(write_tensors, tensors=raw.tensors, run=config.name, step=step)
                )
    if calibration is not None:
        report_calibration(calibration)
    tasks = ", ".join(task.name for task in config.tasks)
    logger.info("%s: %s of step %d, version %s, tasks %s", output, config.name, step, versions[0], tasks)
    return versions[0]


def _without_plan(config: RunConfig) -> RunConfig:
    """The configuration without keys that are not part of the model: sharding, the precision of products, compilation."""
    training = config.training.model_copy(update={"matmul_precision": "highest", "compile": False})
    return config.model_copy(update={"sharding": ShardingConfig(default="table_wise"), "training": training})


def _dense(model: ShardedModel) -> dict[str, Tensor]:
    """Weights and buffers of the ranker outside the tables, without those that only training needs."""
    dense = {name: value for name, value in model.dense_weights().items() if not name.startswith(ONLY_TRAINING)}
    return dict(sorted(dense.items()))
