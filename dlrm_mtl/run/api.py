"""Runs from Python: train, evaluate, predict, as on the command line but without its output.

Every process must call each function: the only one of a script or notebook, or all that torchrun has started.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch.distributed as dist

from dlrm_mtl.config.check import check_run
from dlrm_mtl.config.load import load_config, with_overrides
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.processes import join, leave, process_group
from dlrm_mtl.run.folder import NO_RUN
from dlrm_mtl.run.predict import Predictor, evaluate_run, predict_run, trained_run
from dlrm_mtl.run.show import ShowProgress
from dlrm_mtl.run.train import run_training
from dlrm_mtl.storage.filesystems import is_local, locate
from dlrm_mtl.training.events import Listener, Listeners


class Run:
    """A run in its folder: trained, or still training elsewhere.

    Args:
        folder: folder of the run, path or URI.

    Raises:
        UserError: there is no run in it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = str(folder)
        if self._read("config.yaml") is None:
            raise UserError(f"{folder}: {NO_RUN}.")

    @cached_property
    def config(self) -> RunConfig:
        """Configuration of the run, with every default written out."""
        filesystem, root = locate(self.folder)
        if is_local(filesystem):
            return load_config(Path(root) / "config.yaml")
        with _processes(), process_group(), trained_run(self.folder) as (_, config):
            return config

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics on the test split by ``TASK/METRIC``; empty without such a split, or before the run has ended."""
        content = self._read("results.json")
        found: dict[str, float] = json.loads(content)["test"] if content else {}
        return found

    @property
    def history(self) -> list[dict[str, Any]]:
        """Entries of metrics.jsonl: ``kind`` is "train" or "validation"; null for nan."""
        lines = (self._read("metrics.jsonl") or b"").decode().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def evaluate(
        self,
        split: str = "test",
        *,
        input: str | Path | None = None,
        checkpoint: str | None = None,
        overrides: Sequence[str] = (),
        progress: bool = False,
    ) -> dict[str, float]:
        """Metrics of a checkpoint on a split of the run's data set, or on other files.

        Args:
            split: name of the split, such as ``validation``.
            input: Parquet file, or a folder of them, with features and labels, instead of a split; path or URI.
            checkpoint: ``best``, ``latest`` or ``step_N``; default: the best one, or the latest if no best one is known.
            overrides: ``key=value`` of the configuration, such as ``data.path=...``.
            progress: True to show progress and metrics on the console.

        Raises:
            UserError: there is no such checkpoint or split.
        """
        with _processes():
            return evaluate_run(self.folder, split, checkpoint, list(overrides), progress, input)

    def predict(
        self,
        input: str | Path,
        output: str | Path | None = None,
        *,
        carry: Sequence[str] = (),
        checkpoint: str | None = None,
        batch_size: int = 8192,
        overrides: Sequence[str] = (),
        progress: bool = False,
    ) -> pa.Table | None:
        """Predictions of all tasks for every row of Parquet files, in their order.

        Args:
            input: a file, or a folder of them; path or URI.
            output: a file to write, in constant memory, by its ending .parquet, .csv or .jsonl, the latter two also with
                .gz; without it the predictions are returned.
            carry: columns of the input to copy, before the predictions.
            checkpoint: ``best``, ``latest`` or ``step_N``; default: the best one, or the latest if no best one is known.
            batch_size: rows that a process has in memory at a time.
            overrides: ``key=value`` of the configuration, such as ``data.out_of_range=unknown``.
            progress: True to show progress on the console.

        Returns:
            A table, on the first process; None on others, or if it was written to ``output``.

        Raises:
            UserError: the checkpoint, the input or the output cannot be used.
        """
        heard: list[Listener] = [ShowProgress()] if progress else []
        with _processes():
            if output is not None:
                predict_run(self.folder, input, output, carry, checkpoint, batch_size, list(overrides), heard)
                return None
            with process_group() as process, trained_run(self.folder, list(overrides)) as (checkpoints, config):
                rows = Predictor(process, checkpoints, config, input, carry, checkpoint, batch_size)
                tables = [table for table in rows.tables(Listeners(heard, process.is_main)) if process.is_main]
            return pa.concat_tables(tables) if tables else None

    def _read(self, name: str) -> bytes | None:
        filesystem, root = locate(self.folder)
        try:
            with filesystem.open_input_stream(f"{root}/{name}") as file:
                content: bytes = file.read()
                return content
        except FileNotFoundError:
            return None

    def __fspath__(self) -> str:
        """Path of the folder, for functions that take paths, such as :func:`dlrm_mtl.compare`.

        Raises:
            UserError: the folder is on an object store.
        """
        filesystem, root = locate(self.folder)
        if not is_local(filesystem):
            raise UserError(
                f"{self.folder}: this is no local folder; copy the run's folder here, without its checkpoints."
            )
        return root

    def __repr__(self) -> str:
        """Show the folder."""
        return f"Run({self.folder!r})"


def train(
    config: RunConfig,
    output: str | Path | None = None,
    *,
    resume: bool = False,
    set_on_resume: Sequence[str] = (),
    listeners: Sequence[Listener] = (),
    progress: bool = True,
) -> Run:
    """Train a model, and evaluate its best checkpoint on the test split.

    Args:
        config: configuration, from :func:`dlrm_mtl.load_config`.
        output: the run's folder, path or URI; default: runs/NAME, from the configuration.
        resume: True to continue from the latest checkpoint in it, if there is one.
        set_on_resume: ``key=value`` to change on purpose, although it changes the result from there on.
        listeners: listeners to the run's events, see :class:`dlrm_mtl.Listener`.
        progress: True to show a progress bar and the metrics on the console.

    Raises:
        UserError: a user's mistake, found before training starts if possible.
        Interrupted: a signal came; the latest checkpoint holds the state.
    """
    config = with_overrides(config, set_on_resume)
    check_run(config, config.name)
    folder = output or f"runs/{config.name}"
    with _processes():
        shown = [ShowProgress()] if progress else []
        run_training(config, folder, resume, [*shown, *listeners], changed=set_on_resume)
        return Run(folder)


def open_run(folder: str | Path) -> Run:
    """Return the run in ``folder``, path or URI.

    Raises:
        UserError: there is no run in it.
    """
    return Run(folder)


def evaluate(run: str | Path, split: str = "test", **options: Any) -> dict[str, float]:
    """Metrics of the run in folder ``run``; options as in :meth:`Run.evaluate`."""
    return Run(run).evaluate(split, **options)


def predict(run: str | Path, input: str | Path, output: str | Path | None = None, **options: Any) -> pa.Table | None:
    """Predictions of the run in folder ``run``; options as in :meth:`Run.predict`."""
    return Run(run).predict(input, output, **options)


@contextmanager
def _processes() -> Iterator[None]:
    """Context for the use of process groups.

    Processes of a launcher make their group once and keep it: a second one would find the addresses of the first in the
    store.
    """
    if "RANK" in os.environ and not dist.is_initialized():
        join()
        atexit.register(_leave)
    try:
        yield
    finally:
        # A model keeps its process group, and both are in reference cycles: gloo's threads would still run while the
        # interpreter ends.
        gc.collect()


def _leave() -> None:
    if dist.is_initialized():
        gc.collect()
        leave()
