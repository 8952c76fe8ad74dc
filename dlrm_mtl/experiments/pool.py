"""Trainings side by side: one process each, from a server that has imported everything already."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from dlrm_mtl.experiments.trials import Outcome, Status, Trial

PRELOADED = [
    "torch.utils.tensorboard",
    "torchrec.distributed.model_parallel",
    "dlrm_mtl.run.train",
    "dlrm_mtl.reports.runs",
    "dlrm_mtl.experiments.pool",
]


@dataclass(frozen=True)
class Evaluated:
    """A training was evaluated on the validation split, and waits for :meth:`Pool.answer`."""

    trial: Trial
    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Ended:
    """A training has ended, or its process was lost."""

    trial: Trial
    outcome: Outcome


@dataclass
class _Running:
    trial: Trial
    process: ForkServerProcess
    connection: Connection
    started: float


class Pool:
    """Up to ``parallel`` trainings at a time, each in ``folder/NAME`` with its output in ``folder/NAME.log``.

    A training that was interrupted continues from its latest checkpoint. Leaving the context asks the trainings to stop,
    which saves a checkpoint of each.

    Args:
        folder: folder of the runs.
        config: configuration file of all of them.
        parallel: most processes at a time.
        threads: threads of each.
        plugins: modules that register parts.
        keep_checkpoints: False to remove a training's checkpoints when it has ended.
    """

    def __init__(
        self,
        folder: Path,
        config: str,
        parallel: int,
        threads: int,
        plugins: Sequence[str] = (),
        keep_checkpoints: bool = True,
    ) -> None:
        self.folder, self.config, self.plugins = folder, config, list(plugins)
        self.parallel, self.threads, self.keep_checkpoints = parallel, threads, keep_checkpoints
        self._running: dict[Connection, _Running] = {}
        self._context = multiprocessing.get_context("forkserver")

    def __enter__(self) -> Pool:
        """Start the server of processes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # Read when the server imports torch; a process may lower it.
        os.environ["OMP_NUM_THREADS"] = str(self.threads)
        self._context.set_forkserver_preload(PRELOADED)
        return self

    def __exit__(self, *error: object) -> None:
        """Let the trainings save and end."""
        for running in self._running.values():
            running.process.terminate()
            running.connection.close()
        for running in self._running.values():
            running.process.join(timeout=60)
            if running.process.is_alive():
                running.process.kill()
                running.process.join()
        self._running.clear()

    @property
    def running(self) -> list[Trial]:
        """Trainings that have not ended."""
        return [running.trial for running in self._running.values()]

    @property
    def free(self) -> bool:
        """True if another training may start."""
        return len(self._running) < self.parallel

    def start(self, trial: Trial) -> None:
        """Start a training."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work,
            args=(trial, self.config, self.plugins, str(self.folder), self.threads, theirs),
            daemon=False,
        )
        process.start()
        theirs.close()
        self._running[ours] = _Running(trial, process, ours, time.monotonic())

    def answer(self, trial: Trial, stop: bool) -> None:
        """Let an evaluated training go on, or stop it."""
        for running in self._running.values():
            if running.trial is trial:
                running.connection.send(stop)

    def events(self) -> Iterator[Evaluated | Ended]:
        """Wait for something to happen, and say what."""
        for ready in wait(list(self._running)):
            assert isinstance(ready, Connection)
            running = self._running[ready]
            try:
                kind, *rest = ready.recv()
            except EOFError:
                kind, rest = "lost", []
            if kind == "evaluated":
                yield Evaluated(running.trial, *rest)
                continue
            del self._running[ready]
            ready.close()
            running.process.join()
            yield Ended(running.trial, self._outcome(running, kind, rest))

    def _outcome(self, running: _Running, kind: str, rest: list[Any]) -> Outcome:
        trial, seconds = running.trial, time.monotonic() - running.started
        log = self.folder / f"{trial.name}.log"
        if kind == "lost":
            code = running.process.exitcode
            return Outcome(trial.name, "failed", f"its process ended with code {code}; see {log}", seconds=seconds)
        status: Status = rest[0]
        reason: str = rest[1]
        outcome = read_outcome(trial.name, self.folder / trial.name, status, reason, seconds)
        if status == "failed":
            return outcome
        if not self.keep_checkpoints:
            shutil.rmtree(self.folder / trial.name / "checkpoints", ignore_errors=True)
        return outcome


def read_outcome(name: str, run: Path, status: Status, reason: str, seconds: float) -> Outcome:
    """The outcome of a training from the files of its run."""
    from dlrm_mtl.reports.runs import read_runs

    if not (run / "config.yaml").is_file():
        return Outcome(name, status, reason, seconds=seconds)
    [recorded] = read_runs([run])
    validation = dict(recorded.validation or {})
    best = next(
        (int(e["step"]) for e in recorded.entries if e["kind"] == "validation" and _same(e, validation)), recorded.step
    )
    return Outcome(name, status, reason, validation, recorded.test or {}, best, seconds)


def _same(entry: dict[str, Any], values: dict[str, float]) -> bool:
    return all(entry.get(key) == value for key, value in values.items() if value == value)


def _work(trial: Trial, config: str, plugins: list[str], folder: str, threads: int, connection: Connection) -> None:
    """A training, in its own process."""
    os.setsid()  # Ctrl-C reaches the experiment alone, which then stops its trainings once
    log = os.open(f"{folder}/{trial.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    import torch

    torch.set_num_threads(threads)
    status, reason = _train(trial, config, plugins, folder, connection)
    if status is not None:
        connection.send(("ended", status, reason))
    connection.close()


def _train(
    trial: Trial, config: str, plugins: list[str], folder: str, connection: Connection
) -> tuple[Status | None, str]:
    from dlrm_mtl.config.load import load_config
    from dlrm_mtl.core.errors import UserError
    from dlrm_mtl.experiments.reporter import Pruned, Reporter
    from dlrm_mtl.run.train import run_training
    from dlrm_mtl.training.divergence import DivergedError
    from dlrm_mtl.training.interruption import Interrupted

    try:
        loaded = load_config(config, trial.overrides(), plugins)
        run_training(loaded, f"{folder}/{trial.name}", resume=True, listeners=[Reporter(connection)])
        return "finished", ""
    except Pruned as pruned:
        return "pruned", str(pruned)
    except DivergedError as error:
        return "diverged", str(error)
    except Interrupted:
        return None, ""
    except UserError as error:
        return "failed", str(error)
    except Exception as error:
        traceback.print_exc()
        return "failed", f"{type(error).__name__}: {error}"
