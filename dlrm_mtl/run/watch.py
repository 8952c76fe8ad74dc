"""Evaluation of a run's checkpoints as they appear, beside the job that trains it; nothing is written to the run's folder."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

from dlrm_mtl.checkpoint.checkpoints import Checkpoints, step_name
from dlrm_mtl.config.check import check_tasks
from dlrm_mtl.config.load import load_config
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.console import console, headlines
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.json_text import parse_lines
from dlrm_mtl.core.processes import Process, first_process_only, gather_objects, process_group
from dlrm_mtl.data.contract import Contract
from dlrm_mtl.data.dataset import Dataset
from dlrm_mtl.run.contract import config_in_use, dataset_in_use, saved_contract
from dlrm_mtl.run.evaluations import EvaluationFile
from dlrm_mtl.run.folder import RunFolder
from dlrm_mtl.run.history import has_ended
from dlrm_mtl.run.show import ShowProgress
from dlrm_mtl.run.staging import run_folder
from dlrm_mtl.run.train import evaluate_split
from dlrm_mtl.training.build import build_model
from dlrm_mtl.training.events import End, Evaluation, Listener, Listeners, Progress
from dlrm_mtl.training.interruption import Interrupted, Interruption
from dlrm_mtl.training.sharded_model import ShardedModel
from dlrm_mtl.training.tensors import RunTensors

logger = logging.getLogger(__name__)

TICK = 0.1
"""Seconds between looks at whether a signal came."""
NAMED = 3
"""Number of missed checkpoints that are named."""


def watch_run(
    run: str | Path,
    split: str = "validation",
    every: float = 30.0,
    output: str | Path | None = None,
    overrides: list[str] | None = None,
    source: str | Path | None = None,
) -> int:
    """Evaluate each complete checkpoint of a run, oldest first, until the run has ended and all are evaluated.

    Every process must call this. Checkpoints that ``output`` has already are skipped.

    Args:
        run: folder of the run, path or URI; the run may not have begun yet.
        split: split of the data set, which is read through the run's contract.
        every: seconds between looks at the folder.
        output: file to which a line of JSON is appended for each checkpoint. Default: the lines are printed.
        overrides: ``key=value`` of the run's configuration, such as ``data.path=...``.
        source: Parquet file or folder, with features and labels, instead of a split; path or URI.

    Returns:
        Number of checkpoints that were evaluated now.

    Raises:
        UserError: the output cannot be used, there is no such split, or the data differ from those of the run.
        Interrupted: a signal came.
    """
    with process_group() as process, run_folder(run) as folder, Interruption() as interruption:
        file = EvaluationFile(output, folder, "input" if source else split)
        first_process_only(file.open)
        watch = Watch(process, folder, file, interruption, overrides or [], source)
        return watch.until_end(every)


@dataclass(frozen=True)
class WatchPlan:
    """What to do next."""

    name: str | None
    """Checkpoint to evaluate; None if there is none at the moment."""
    ended: bool
    """True if the run has ended and no checkpoint is left."""
    signal: int


@dataclass
class EvaluatedModel:
    """Model built for checkpoints of one configuration and contract."""

    config: RunConfig
    contract: Contract | None
    dataset: Dataset
    model: ShardedModel


class ShowHeadlines(ShowProgress):
    """Listener that shows a bar, and one line for each evaluation.

    Args:
        config: configuration of the run.
        place: folder of the run, as the user named it.
    """

    def __init__(self, config: RunConfig, place: str) -> None:
        super().__init__(config)
        self._place = place

    def on_evaluation(self, event: Evaluation) -> None:
        """Show the first metric of every task."""
        headline = headlines(self.config.tasks, event.metrics)
        console().print(f"{self._place}: step {event.step}: {event.split}: {headline}", soft_wrap=True)


class StopBetweenBatches(Listener):
    """Listener that ends an evaluation after a signal."""

    def __init__(self, interruption: Interruption) -> None:
        self._interruption = interruption

    def on_progress(self, event: Progress) -> None:
        """Raise :class:`Interrupted` if a signal came."""
        if self._interruption.signal:
            raise Interrupted(self._interruption.signal, f"stopped in mid-evaluation ({event.work})")


@dataclass
class Watch:
    """Evaluation of checkpoints as they appear; every process has one."""

    process: Process
    folder: RunFolder
    file: EvaluationFile
    interruption: Interruption
    overrides: list[str]
    source: str | Path | None
    checkpoints: Checkpoints = field(init=False)
    failed: set[str] = field(default_factory=set)
    """Checkpoints that could not be read, or were removed before they were evaluated."""
    seen: set[str] = field(default_factory=set)
    built: EvaluatedModel | None = None
    waiting: bool = False

    def __post_init__(self) -> None:
        self.checkpoints = Checkpoints(self.folder.store)

    def until_end(self, every: float) -> int:
        """Evaluate until the run has ended; returns the number of evaluated checkpoints."""
        count = 0
        while True:
            plan = self._next()
            if plan.signal:
                raise Interrupted(plan.signal, f"stopped watching {self.folder.place} after {count} checkpoint(s)")
            if plan.name is not None:
                count += self._evaluate(plan.name)
            elif plan.ended:
                break
            else:
                self._wait(every)
        if self.process.is_main:
            missed = f", {len(self.failed)} missed" if self.failed else ""
            logger.info("%s: the run has ended; %d checkpoint(s) evaluated%s", self.folder.place, count, missed)
        return count

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.interruption.signal:
            time.sleep(TICK)

    def _next(self) -> WatchPlan:
        """The next thing to do, the same on every process."""
        signal = max(gather_objects(self.interruption.signal))
        return first_process_only(lambda: self._look(signal))

    def _look(self, signal: int) -> WatchPlan:
        if not self.folder.holds_run():
            if not self.waiting:
                logger.info("%s: there is no run here yet; waiting for it", self.folder.place)
            self.waiting = True
            return WatchPlan(None, False, signal)
        ended = has_ended(self.folder)  # before the list, so that no later checkpoint is left out
        there = self.checkpoints.names()
        done = self.file.done(self.checkpoints.identity())
        self._say_missed(there, done)
        self.seen.update(there)
        left = [name for name in there if name not in done and name not in self.failed]
        return WatchPlan(left[0] if left else None, ended and not left, signal)

    def _say_missed(self, there: list[str], done: set[str]) -> None:
        """Remark on checkpoints that were removed before they were evaluated; every validation had one."""
        text = (self.folder.store.read(self.folder.metrics.name) or b"").decode(errors="replace")
        validated = {
            step_name(entry["step"])
            for entry in parse_lines(text)
            if entry.get("kind") == "validation" and isinstance(entry.get("step"), int)
        }
        older = {name for name in validated if there and name < there[-1]}
        missed = sorted((self.seen | older) - set(there) - done - self.failed)
        if missed:
            names = ", ".join(missed[:NAMED]) + (f" and {len(missed) - NAMED} more" if len(missed) > NAMED else "")
            logger.warning(
                "%s: removed before evaluation: %s; keep more checkpoints with training.keep_checkpoints",
                self.checkpoints.place,
                names,
            )
        self.failed.update(missed)

    def _evaluate(self, name: str) -> int:
        """Evaluate one checkpoint; returns 0 if it cannot be read."""
        try:
            state = self.checkpoints.state(name)
            self.folder.store.restore(self.folder.config.name)
            config = config_in_use(load_config(self.folder.config, self.overrides), state, self.folder.place)
            contract = saved_contract(state, self.folder.place)
        except UserError as error:
            return self._give_up(name, error)
        ready = self._model(config, contract)
        try:
            self.checkpoints.load(name, RunTensors(ready.model))
        except UserError as error:
            return self._give_up(name, error)
        console_lines = ShowHeadlines(config, self.folder.place)
        shown: list[Listener] = [console_lines]
        if self.process.world_size == 1:  # of several processes, all must stop at the same place
            shown.append(StopBetweenBatches(self.interruption))
        listeners = Listeners(shown, self.process.is_main)
        split = self.file.split
        try:
            found = evaluate_split(
                config, ready.dataset, ready.model, self.process, split, listeners, state.step, sliced=False
            )
        finally:
            console_lines.on_end(End(state.step))
        first_process_only(lambda: self.file.write(self.checkpoints.identity(), state.step, found.metrics))
        return 1

    def _give_up(self, name: str, error: UserError) -> int:
        """Leave a checkpoint out that cannot be read, often because it is being removed."""

        def look() -> bool:
            time.sleep(1.0)  # a removal takes a while
            return name in self.checkpoints.names()

        if first_process_only(look):
            self.failed.add(name)
            if self.process.is_main:
                logger.warning("%s: left out: %s", name, error)
        return 0

    def _model(self, config: RunConfig, contract: Contract | None) -> EvaluatedModel:
        """The model for a checkpoint; the last one, if it was of the same configuration and contract."""
        built = self.built
        if built is None or (built.config, built.contract) != (config, contract):
            dataset = dataset_in_use(config, contract, self.source)
            check_tasks(config, dataset.spec)
            self.built = None  # its memory is needed
            built = EvaluatedModel(config, contract, dataset, build_model(config, dataset.spec, self.process))
            self.built = built
        return built
