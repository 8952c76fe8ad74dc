"""Using a trained run: evaluate it on a split, predict for new rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from dlrm_mtl.checkpoint.checkpoints import Checkpoints
from dlrm_mtl.config.check import check_tasks
from dlrm_mtl.config.load import load_config
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.processes import Process, first_process_only, on_every_process, process_group
from dlrm_mtl.data.batch import Batch
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.row_reader import iterate_rows
from dlrm_mtl.run.contract import config_in_use, dataset_in_use, saved_contract
from dlrm_mtl.run.folder import NO_RUN
from dlrm_mtl.run.show import ShowProgress
from dlrm_mtl.run.staging import run_folder
from dlrm_mtl.run.train import evaluate_split, report_unknown_ids
from dlrm_mtl.storage.table_output import refuse_columns, table_ending, table_output
from dlrm_mtl.tasks.targets import predictions
from dlrm_mtl.training.build import build_model
from dlrm_mtl.training.events import Listener, Listeners, Progress
from dlrm_mtl.training.tensors import RunTensors

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]
Entry = tuple[Batch | None, int, pa.Table]


@contextmanager
def trained_run(place: str | Path, overrides: list[str] | None = None) -> Iterator[tuple[Checkpoints, RunConfig]]:
    """Checkpoints and configuration of a trained run. Every process must enter this context.

    Raises:
        UserError: there is no run in the folder ``place`` (path or URI).
    """
    with run_folder(place) as folder:
        folder.store.restore(folder.config.name)
        if not folder.config.is_file():
            raise UserError(f"{place}: {NO_RUN}.")
        yield Checkpoints(folder.store), load_config(folder.config, overrides)


def evaluate_run(
    run: str | Path,
    split: str = "test",
    checkpoint: str | None = None,
    overrides: list[str] | None = None,
    show: bool = True,
    source: str | Path | None = None,
) -> dict[str, float]:
    """Evaluate a checkpoint of the run in folder ``run``, path or URI, on one split of its data set, or on other files.

    Args:
        run: folder of the run, path or URI.
        split: split of the data set, which is read through the run's contract.
        checkpoint: ``best``, ``latest`` or ``step_N``; default: the best one, or the latest if no best one is known.
        overrides: ``key=value`` of the run's configuration, such as ``data.path=...``.
        show: True if the first process shows the metrics.
        source: Parquet file or folder, with features and labels, instead of a split; path or URI.

    Raises:
        UserError: there is no such run, checkpoint or split, or the data differ from those that the run was trained on.
    """
    with process_group() as process, trained_run(run, overrides) as (checkpoints, config):
        name = checkpoints.path(checkpoint)
        state = checkpoints.state(name)
        contract = saved_contract(state, str(run))
        config = config_in_use(config, state, str(run))
        dataset = dataset_in_use(config, contract, source)
        check_tasks(config, dataset.spec)
        model = build_model(config, dataset.spec, process)
        step = checkpoints.load(name, RunTensors(model)).step
        listeners = Listeners([ShowProgress(config)] if show else [], process.is_main)
        name = split if source is None else "input"
        return evaluate_split(config, dataset, model, process, name, listeners, step).metrics


def predict_run(
    run: str | Path,
    source: str | Path,
    target: str | Path,
    carry: Sequence[str] = (),
    checkpoint: str | None = None,
    batch_size: int = 8192,
    overrides: list[str] | None = None,
    listeners: Sequence[Listener] = (),
) -> int:
    """Write the predictions of all tasks for every row of ``source``, in its order and in constant memory.

    Every process must call this: they share the work, and the first one writes.

    Args:
        run: folder of the run, path or URI.
        source: Parquet file or folder; path or URI.
        target: file to write, path or URI; it appears when it is complete. Its ending, such as ``.parquet`` or ``.csv``,
            gives the format.
        carry: columns of ``source`` to copy, before the predictions.
        checkpoint: ``best``, ``latest`` or ``step_N``; default: the best one, or the latest if no best one is known.
        batch_size: rows in memory at a time.
        overrides: ``key=value`` of the run's configuration, such as ``data.out_of_range=unknown``.
        listeners: listeners to the progress.

    Returns:
        The number of rows.

    Raises:
        UserError: the run, the checkpoint, the input or the output cannot be used.
    """
    table_ending(target)
    with process_group() as process, trained_run(run, overrides) as (checkpoints, config), ExitStack() as output:
        predictor = Predictor(process, checkpoints, config, source, carry, checkpoint, batch_size)
        refuse_columns(target, predictor.rows.carried_schema)
        write: list[Callable[[pa.Table], None]] = []  # on the first process
        first_process_only(lambda: write.append(output.enter_context(table_output(target))))
        done = 0
        for table in predictor.tables(Listeners(listeners, process.is_main)):
            first_process_only(partial(lambda rows: write[0](rows), table))
            done += table.num_rows
        report_unknown_ids(process, predictor.rows.unknown_ids)
    if process.is_main:
        logger.info("%s: %s rows, columns %s", target, f"{done:,}", ", ".join(predictor.columns))
    return done


class Predictor:
    """A trained model and rows to predict for. Every process must construct it.

    Args:
        process: this process.
        checkpoints: checkpoints of the run.
        config: configuration of the run.
        source: Parquet file or folder; path or URI.
        carry: columns of ``source`` to copy, before the predictions.
        checkpoint: ``best``, ``latest`` or ``step_N``; default: the best one, or the latest if no best one is known.
        batch_size: rows that a process has in memory at a time.

    Raises:
        UserError: the checkpoint or the input cannot be used.
    """

    def __init__(
        self,
        process: Process,
        checkpoints: Checkpoints,
        config: RunConfig,
        source: str | Path,
        carry: Sequence[str],
        checkpoint: str | None,
        batch_size: int,
    ) -> None:
        self.process, self.source, self.checkpoints = process, source, checkpoints
        self.checkpoint = checkpoints.path(checkpoint)
        state = checkpoints.state(self.checkpoint)
        self.config = config_in_use(config, state, checkpoints.store.place)
        contract = saved_contract(state, checkpoints.store.place)
        self.spec = open_dataset(config.data.path).spec if contract is None else contract.dataset
        names = [task.name for task in config.tasks]
        twice = sorted(set(names) & set(carry))
        if twice:
            raise UserError(f"--carry {twice[0]}: the predictions have a column of this name; leave it out.")
        self.rows = iterate_rows(source, self.spec, config.data, batch_size, carry)
        self.columns = [*carry, *names]
        """Names of the output columns."""

    @torch.no_grad()
    def tables(self, listeners: Listeners) -> Iterator[pa.Table]:
        """Carried columns and predictions (float32), in the order of the rows; complete only on the first process."""
        model = build_model(self.config, self.spec, self.process)
        self.checkpoints.load(self.checkpoint, RunTensors(model))
        model.module.eval()
        listeners.tell(Progress("predict", 0, self.rows.rows, brief=False))
        done = 0
        with self.rows.share(self.process.rank, self.process.world_size) as batches:
            while entries := self._next(batches):
                own = entries[self.process.rank][0] if self.process.rank < len(entries) else None
                batch = self.rows.empty_batch() if own is None else own
                values = predictions(model.module(batch.to(self.process.device)), self.config.tasks).cpu().numpy()
                for (_, rows, carried), part in zip(entries, self._gather(values), strict=False):
                    table = self._table(carried, part[:rows])
                    done += rows
                    listeners.tell(Progress("predict", done, self.rows.rows, brief=False))
                    yield table
        if not done:
            raise UserError(f"{self.source}: there are no rows to predict for; name a Parquet file that has some.")

    def _next(self, batches: Iterator[Entry]) -> list[Entry]:
        """A batch for each process, as far as there are any; an error on one process is raised on all."""
        found: list[Entry] = []
        on_every_process(lambda: found.extend(islice(batches, self.process.world_size)))
        return found

    def _gather(self, values: Floats) -> list[Floats]:
        """Predictions [B, T] of all processes, on the first one; elsewhere this process's, to count rows."""
        if self.process.world_size == 1:
            return [values]
        parts = [values] * self.process.world_size
        dist.gather_object(values, parts if self.process.is_main else None)
        return parts

    def _table(self, carried: pa.Table, values: Floats) -> pa.Table:
        columns = [pa.array(values[:, column]) for column in range(values.shape[1])]
        return pa.table([*carried.columns, *columns], names=self.columns)
