"""Using a trained run: evaluate it on a split, predict for new rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dlrm_mtl.checkpoint.checkpoints import POINTERS, Checkpoints
from dlrm_mtl.config.load import load_config
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.console import Bar
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.processes import process_group
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.row_reader import iterate_rows
from dlrm_mtl.run.show import ShowProgress
from dlrm_mtl.run.staging import run_folder
from dlrm_mtl.run.train import check_tasks, evaluate_split, report_unknown_ids
from dlrm_mtl.storage.output import output_file
from dlrm_mtl.tasks.targets import predictions
from dlrm_mtl.training.build import build_model
from dlrm_mtl.training.events import Listeners


@contextmanager
def open_run(place: str | Path, overrides: list[str] | None = None) -> Iterator[tuple[Checkpoints, RunConfig]]:
    """The checkpoints and the configuration of a run that was trained before; to be entered on every process.

    Raises:
        UserError: there is no run in the folder ``place`` (path or URI).
    """
    with run_folder(place) as folder:
        if folder.mirror is not None:
            folder.mirror.restore(folder.config.name, *POINTERS)
        if not folder.config.is_file():
            raise UserError(
                f"{place}: there is no run here; name the folder that `dlrm-mtl train` wrote, which holds config.yaml."
            )
        yield Checkpoints(folder.checkpoints, mirror=folder.mirror), load_config(folder.config, overrides)


def evaluate_run(
    run: str | Path, split: str, checkpoint: str, overrides: list[str] | None, show: bool = True
) -> dict[str, float]:
    """Evaluate a checkpoint of the run in folder ``run``, path or URI, on one split of its data set.

    With ``show`` the first process shows the metrics.

    Raises:
        UserError: there is no such run, checkpoint or split.
    """
    with process_group() as process, open_run(run, overrides) as (checkpoints, config):
        checkpoints.path(checkpoint)
        dataset = open_dataset(config.data.path)
        check_tasks(config, dataset.spec)
        model = build_model(config, dataset.spec, process)
        step = checkpoints.load(checkpoint, model).step
        listeners = Listeners([ShowProgress(config)] if show else [], process.is_main)
        return evaluate_split(config, dataset, model, process, split, listeners, step)


def predict_run(
    run: str | Path, source: str | Path, target: str | Path, carry: list[str], checkpoint: str, batch_size: int
) -> int:
    """Write each task's prediction for every row of ``source``; one process, constant memory, row order kept.

    Args:
        run: folder of the run, path or URI.
        source: Parquet file, or folder of them; path or URI.
        target: Parquet file to write, path or URI; it appears when it is complete.
        carry: columns of ``source`` to carry over, before the predictions.
        checkpoint: ``best``, ``latest`` or ``step_N``.
        batch_size: rows in memory at a time.

    Returns:
        The number of rows.

    Raises:
        UserError: the run, the checkpoint, the input or the output cannot be used.
    """
    with process_group() as process, open_run(run) as (checkpoints, config):
        checkpoints.path(checkpoint)
        dataset = open_dataset(config.data.path)
        names = [task.name for task in config.tasks]
        twice = sorted(set(names) & set(carry))
        if twice:
            raise UserError(f"--carry {twice[0]}: the predictions have a column of this name; leave it out.")
        rows = iterate_rows(source, dataset.spec, config.data, batch_size, carry)
        with output_file(target) as sink:
            model = build_model(config, dataset.spec, process)
            checkpoints.load(checkpoint, model)
            model.module.eval()
            writer: pq.ParquetWriter | None = None
            done = 0
            with torch.no_grad(), Bar("predict", rows.rows, process.is_main) as bar:
                for batch, carried in rows:
                    values = predictions(model.module(batch.to(process.device)), config.tasks).cpu().numpy()
                    columns = [pa.array(values[:, column]) for column in range(len(names))]
                    table = pa.table([*carried.columns, *columns], names=[*carry, *names])
                    writer = writer or pq.ParquetWriter(sink, table.schema, compression="zstd")
                    writer.write_table(table)
                    done += table.num_rows
                    bar.update(done)
            if writer is None:
                raise UserError(f"{source}: there are no rows to predict for; name a Parquet file that has some.")
            writer.close()
            report_unknown_ids(process, rows.unknown_ids)
    print(f"{target}: {done:,} rows, columns {', '.join([*carry, *names])}")
    return done
