"""A run from its configuration to its results: set-up, training, evaluation of the best checkpoint."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dlrm_mtl.checkpoint.checkpoints import Checkpoints, step_name
from dlrm_mtl.checkpoint.state import RunState
from dlrm_mtl.config.check import check_tasks
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.config.training import listener_part
from dlrm_mtl.console import clock
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.job_watch import enter_phase
from dlrm_mtl.core.machine import processor
from dlrm_mtl.core.processes import Process, first_process_only, gather_objects, process_group
from dlrm_mtl.data.contract import Contract
from dlrm_mtl.data.dataset import Dataset, open_dataset
from dlrm_mtl.data.reader import BatchLoader
from dlrm_mtl.embeddings.torchrec.plan import describe_plan
from dlrm_mtl.evaluation.results import SplitEvaluation
from dlrm_mtl.run.claim import Claim
from dlrm_mtl.run.contract import enter, write_contract
from dlrm_mtl.run.folder import RunFolder
from dlrm_mtl.run.growing import Round, rounds
from dlrm_mtl.run.history import record
from dlrm_mtl.run.initial import begin_weights, write_initial
from dlrm_mtl.run.publication import publication
from dlrm_mtl.run.resume import (
    Resumption,
    apply_changes,
    data_order,
    finished,
    results_at,
    resumption,
    say_changes,
)
from dlrm_mtl.run.scalars import MetricsFile
from dlrm_mtl.run.score_files import ScoreFiles
from dlrm_mtl.run.settings import Difference
from dlrm_mtl.run.staging import run_folder
from dlrm_mtl.run.tensorboard import TensorBoard
from dlrm_mtl.run.training_data import TrainingData, open_training_data
from dlrm_mtl.training import events
from dlrm_mtl.training.build import build_model, build_optimizers
from dlrm_mtl.training.evaluation import Evaluator
from dlrm_mtl.training.events import End, Evaluation, Listener, Listeners, Start
from dlrm_mtl.training.loaders import training_loader
from dlrm_mtl.training.loop import RunParts, Trainer
from dlrm_mtl.training.profiling import Profiler
from dlrm_mtl.training.sharded_model import ShardedModel
from dlrm_mtl.training.tensors import RunTensors

logger = logging.getLogger(__name__)


def run_training(
    config: RunConfig,
    output: str | Path,
    resume: bool,
    listeners: Sequence[Listener] = (),
    fallback: bool = False,
    changed: Sequence[str] = (),
) -> dict[str, float] | None:
    """Train ``config`` and evaluate its best checkpoint on the test split. Every process must call this.

    Args:
        config: configuration of the run.
        output: the run's folder, path or URI.
        resume: True to continue from the latest checkpoint in it, if there is one.
        fallback: True to continue from the newest good checkpoint if the latest one is damaged.
        changed: ``key=value`` in ``config`` that a resumed run changes on purpose.
        listeners: listeners in addition to those that write metrics.jsonl, TensorBoard's files and a trace.

    Returns:
        The metrics on the test split, if there is one.

    Raises:
        UserError: a user's mistake, found before training starts if possible.
        Interrupted: a signal arrived.
    """
    if changed and not resume:
        raise UserError("--set-on-resume: goes with --resume; set keys of a new run with --set.")
    dataset = open_dataset(config.data.path)
    check_tasks(config, dataset.spec)
    patience = config.training.stall_timeout
    with (
        process_group(patience) as process,
        run_folder(output) as folder,
        Claim(folder, resume) as claim,
        publication(config.training.publish, folder) as versions,
    ):
        checkpoints = Checkpoints(folder.store, config.training.keep_checkpoints, claim.lock.check)
        found = resumption(checkpoints, config, folder, fallback, changed) if claim.goes_on else None
        data = open_training_data(config, dataset, found.contract if found else None, folder, process)
        if found is not None:
            results = first_process_only(partial(finished, config, found.state, data.steps, folder))
            if results is not None:
                at = found.state.step
                say(process, f"{folder.place}: this run was finished after step {at}; nothing is left to do")
                return results
        if claim.goes_on:
            folder.store.restore(folder.metrics.name, folder.history.name, folder.contract.name)
        model = build_model(config, data.dataset.spec, process, planned=True)
        optimizers = build_optimizers(config, model, data.steps or 1)
        tensors = RunTensors(model, optimizers)
        progress = go_on(found, checkpoints, tensors, fallback) if found else RunState(data=data_order(config))
        initial = None if found else begin_weights(config.init_from, data, model, optimizers, progress, folder)
        enter(data.contract, config, progress)
        changes = found.changes if found else []

        def prepare() -> None:
            claim.take()
            prepare_folder(folder, config, data.contract, model, progress, changes, claim, initial)

        first_process_only(prepare)
        publisher = None
        if versions is not None:
            publisher = versions.publisher(config, data.dataset, model, optimizers, progress, claim)

        def save_round() -> None:
            checkpoints.save(tensors, progress)

        before = progress.step
        rows = data.train.rows if data.train else None
        start = Start(config, process, model, before, folder.place, dataset.spec.name, rows, data.steps)
        told = Listeners([*own_listeners(config, folder, process), *listeners], process.is_main)
        with start_and_end(told, start, progress) as outcome:
            for loader, round in passes(config, data, process, progress, save_round):
                parts = RunParts(
                    config, process, model, optimizers, loader, checkpoints, progress, data.validation, told
                )
                parts.publisher = publisher
                if round is not None:
                    parts.first_step, parts.first_epoch, parts.growing = round.first_step, round.number, True
                Trainer(parts).train()
                report_unknown_ids(process, loader.unknown_ids)
            if config.data.growing and progress.step == before:
                say(process, f"{dataset.folder('train')}: every file was used already; nothing to do")
                # A run that was stopped between its last step and its results still owes them.
                may_owe = before > 0 and "test" in data.dataset.spec.splits
                if not may_owe or first_process_only(partial(results_at, before, folder)) is not None:
                    return None
            metrics = conclude(config, data.dataset, model, checkpoints, process, folder, told)
            outcome.update(metrics or {})
        return metrics


def go_on(found: Resumption, checkpoints: Checkpoints, tensors: RunTensors, fallback: bool) -> RunState:
    """Load the checkpoint that a run continues from; returns its state, updated for changed settings."""
    progress = checkpoints.load(step_name(found.state.step), tensors, fallback)
    apply_changes(found.changes, progress)
    if not fallback:  # fallback keeps the damaged one
        checkpoints.settle(progress)
    return progress


def own_listeners(config: RunConfig, folder: RunFolder, process: Process) -> list[Listener]:
    """Listeners that write files into the run's folder, and those named in the configuration."""
    result: list[Listener] = [MetricsFile(folder.metrics), ScoreFiles(folder.scores), TensorBoard(folder.tensorboard)]
    if config.training.profile is not None:
        result.append(Profiler(config.training.profile, folder.profile, process.rank))
    for entry, options in map(listener_part, config.training.listeners):
        result.append(entry.part() if options is None else entry.part(options))
    return result


@contextmanager
def start_and_end(listeners: Listeners, start: Start, progress: RunState) -> Iterator[dict[str, float]]:
    """Send the start event of a run and, in any case, its end event, with the metrics put into the yielded mapping."""
    metrics: dict[str, float] = {}
    error: BaseException | None = None
    try:
        listeners.tell(start)
        yield metrics
    except BaseException as raised:
        error = raised
        raise
    finally:
        listeners.tell(End(progress.step, metrics or None, error))


def passes(
    config: RunConfig, data: TrainingData, process: Process, progress: RunState, save: Callable[[], None]
) -> Iterator[tuple[BatchLoader, Round | None]]:
    """Loaders to train on: the only one, or one per round of growing data until there is no new file."""
    if data.train is not None:
        yield data.train, None
        return
    for round in rounds(data.dataset, progress, save):
        yield training_loader(config, round.split, process), round


def machine_facts() -> dict[str, str]:
    """What this process computes on, and with which version of PyTorch."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {"processor": processor(), "device": device, "torch": str(torch.__version__)}


def say(process: Process, text: str) -> None:
    """Log ``text`` once for all processes."""
    if process.is_main:
        logger.info("%s", text)


def prepare_folder(
    folder: RunFolder,
    config: RunConfig,
    contract: Contract,
    model: ShardedModel,
    progress: RunState,
    changes: Sequence[Difference],
    claim: Claim,
    initial: dict[str, Any] | None,
) -> None:
    """Write configuration, contract, plan, history, and what the weights of a new run began with (``initial``).

    A run that starts at step 0 removes an earlier attempt's files.
    """
    if progress.step == 0:
        folder.clear()
    changed = {"changes": [{"key": key, "was": was, "is": now} for key, was, now in changes]} if changes else {}
    world_size, event = dist.get_world_size(), "resume" if claim.goes_on else "start"
    # First: it tells that the run is this job's own.
    record(
        folder, event, progress.step, processes=world_size, agents=claim.starter.agents, **machine_facts(), **changed
    )
    folder.create(config)
    if initial is not None:
        write_initial(folder, initial)
    if contract.training_files is not None or not folder.contract.is_file():
        write_contract(folder, contract)
    say_changes(changes)
    folder.write_plan(describe_plan(model.plan, model.tables, config.optimizer.sparse.states, world_size))
    folder.publish()


def conclude(
    config: RunConfig,
    dataset: Dataset,
    model: ShardedModel,
    checkpoints: Checkpoints,
    process: Process,
    folder: RunFolder,
    listeners: Listeners,
) -> dict[str, float] | None:
    """Evaluate a checkpoint on the test split: the best one; the latest without a validation split, or for growing data."""
    name = "best" if checkpoints.has_best() and not config.data.growing else "latest"
    progress = checkpoints.load(name, RunTensors(model))
    last = checkpoints.state("latest").step
    spent = clock(progress.seconds)
    say(process, f"trained for {spent}; evaluating the checkpoint after step {progress.step} ({name})")
    found = None
    if "test" in dataset.spec.splits:
        found = evaluate_split(config, dataset, model, process, "test", listeners, progress.step)

    def write() -> None:
        if found is not None:
            content: dict[str, Any] = {"step": progress.step, "last_step": last, "test": found.metrics}
            if found.slicings:
                content["slices"] = {"test": [slicing.as_json() for slicing in found.slicings]}
            folder.write(folder.results, json.dumps(content, indent=1))
        record(folder, "end", last)
        folder.publish()

    first_process_only(write)
    return found.metrics if found is not None else None


def evaluate_split(
    config: RunConfig,
    dataset: Dataset,
    model: ShardedModel,
    process: Process,
    split: str,
    listeners: Listeners,
    step: int,
    *,
    sliced: bool = True,
) -> SplitEvaluation:
    """Evaluate the model after ``step`` steps on one split, with events for ``listeners``; without slices if not ``sliced``."""
    evaluator = Evaluator(config, dataset, split, process, sliced=sliced)
    total = evaluator.loader.steps_per_epoch

    def on_progress(done: int) -> None:
        enter_phase(f"evaluation on {split}", lasting=True)
        listeners.tell(events.Progress(f"evaluate {split}", done, total))

    on_progress(0)
    found = evaluator(model, on_progress)
    report_unknown_ids(process, evaluator.loader.unknown_ids)
    rows = evaluator.loader.rows
    listeners.tell(Evaluation(step, split, rows, found.metrics, scores=found.scores, slicings=found.slicings))
    return found


def report_unknown_ids(process: Process, counts: dict[str, int]) -> None:
    """Log the number of ids outside their vocabularies that were read as unknown. Every process must call this."""
    total = Counter[str]()
    for part in gather_objects(counts):
        total.update(part)
    if total:
        features = ", ".join(f"{feature} {count:,}" for feature, count in sorted(total.items()))
        say(process, f"ids outside their vocabulary, read as unknown: {features}")
