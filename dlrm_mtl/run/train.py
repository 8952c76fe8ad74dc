"""A run from its configuration to its results: set up, train, evaluate the best checkpoint."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path

import torch

from dlrm_mtl.checkpoint.checkpoints import POINTERS, Checkpoints, Progress
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.console import Bar, clock, console, metrics_table, plan_table
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.processes import Process, first_process_only, gather_objects, process_group
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.data.dataset import Dataset, open_dataset
from dlrm_mtl.data.negatives.check import check_negatives
from dlrm_mtl.data.reader import BatchLoader
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.embeddings.torchrec.plan import describe_plan
from dlrm_mtl.metrics import METRICS
from dlrm_mtl.run.folder import RunFolder
from dlrm_mtl.run.growing import Round, rounds
from dlrm_mtl.run.scalars import Journal
from dlrm_mtl.run.staging import run_folder
from dlrm_mtl.tasks.check import check_labels, remarks
from dlrm_mtl.tasks.targets import label_columns
from dlrm_mtl.training.build import ShardedModel, build_model, build_optimizers
from dlrm_mtl.training.evaluation import evaluate
from dlrm_mtl.training.loaders import make_loader, training_loader
from dlrm_mtl.training.loop import Trainer


def run_training(config: RunConfig, output: str | Path, resume: bool) -> dict[str, float] | None:
    """Train ``config`` and evaluate its best checkpoint on the test split; to be called on every process.

    Args:
        config: what to do.
        output: the run's folder, path or URI.
        resume: go on from the latest checkpoint in it, if there is one.

    Returns:
        The metrics on the test split, if there is one.

    Raises:
        UserError: a user's mistake, before training starts where that is possible.
        Interrupted: a signal came.
    """
    dataset = open_dataset(config.data.path)
    check_tasks(config, dataset.spec)
    with process_group() as process, run_folder(output) as folder:
        # After a failure a launcher starts all processes again with the same command: then the run goes on.
        resume = resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
        checkpoints = Checkpoints(folder.checkpoints, config.training.keep_checkpoints, folder.mirror)
        train_data = None if config.data.growing else training_loader(config, dataset.split("train"), process)
        validation_data = (
            make_loader(config, dataset, "validation", process) if "validation" in dataset.spec.splits else None
        )
        first_process_only(lambda: folder.check(resume))
        if resume and folder.mirror is not None:
            folder.mirror.restore(folder.metrics.name, *POINTERS)
        model = build_model(config, dataset.spec, process)
        steps = config.training.total_steps(train_data.steps_per_epoch) if train_data else 1
        optimizers = build_optimizers(config, model, steps)
        progress = Progress(data=data_order(config))
        if resume and checkpoints.exists():
            progress = checkpoints.load("latest", model, optimizers)
            check_same_data(progress, config, folder)
            checkpoints.settle(progress)
        first_process_only(lambda: prepare_folder(folder, config, model, progress))
        if process.is_main:
            introduce(config, dataset, model, process, train_data, folder, progress)
        with ExitStack() as stack:
            journal = stack.enter_context(Journal(folder, progress.step) if process.is_main else nullcontext())
            before = progress.step

            def save() -> None:
                checkpoints.save(model, optimizers, progress)

            for data, round in passes(config, dataset, process, train_data, progress, save):
                parts = (model, optimizers, data, validation_data, checkpoints, journal, progress, round)
                Trainer(config, process, *parts).train()
                report_unknown_ids(process, data.unknown_ids)
        if config.data.growing and progress.step == before:
            say(process, f"{dataset.folder('train')}: every file was used already; nothing to do")
            return None
        return conclude(config, dataset, model, checkpoints, process, folder)


def passes(
    config: RunConfig,
    dataset: Dataset,
    process: Process,
    train_data: BatchLoader | None,
    progress: Progress,
    save: Callable[[], None],
) -> Iterator[tuple[BatchLoader, Round | None]]:
    """What to train on: ``train_data``; or, of growing data, round after round until there is no new file."""
    if train_data is not None:
        yield train_data, None
        return
    for round in rounds(dataset, progress, save, lambda text: say(process, text)):
        yield training_loader(config, round.split, process), round


def say(process: Process, text: str) -> None:
    """Print ``text`` once for all processes."""
    if process.is_main:
        print(text, flush=True)


def check_tasks(config: RunConfig, spec: DatasetSpec) -> None:
    """Check that the tasks have labels, that negatives can be drawn and that the watched metric exists."""
    check_labels(config.tasks, spec)
    check_negatives(spec, config.data, label_columns(config.tasks))
    watched = config.training.early_stopping.metric
    known = [
        f"{name}/{metric}" for task in config.tasks for name in ("mean", task.name) for metric in METRICS[task.kind]
    ]
    if watched not in known:
        raise UserError(
            f"training.early_stopping.metric: there is no metric {watched!r}; {suggest(watched, set(known))}."
        )


def data_order(config: RunConfig) -> dict[str, object]:
    """What the order of training rows depends on."""
    keys = ("batch_size", "lanes", "shuffle", "block_rows")
    negatives = config.data.negatives
    drawn = {"data.negatives": negatives.model_dump()} if negatives else {}
    return {"seed": config.seed, **{f"data.{key}": getattr(config.data, key) for key in keys}, **drawn}


def check_same_data(progress: Progress, config: RunConfig, folder: RunFolder) -> None:
    """Check that a resumed run goes on with the same rows in the same order."""
    now = data_order(config)
    for key in {**now, **progress.data}:
        if progress.data.get(key) != now.get(key):
            effect = "other rows would be drawn" if key == "data.negatives" else "rows would be skipped or read twice"
            raise UserError(
                f"{folder.path}: {key} was {progress.data.get(key)} and is now {now.get(key)}, so that {effect}; set it "
                "back to resume, or start anew with another --output."
            )


def prepare_folder(folder: RunFolder, config: RunConfig, model: ShardedModel, progress: Progress) -> None:
    """Write the configuration and the plan; a run that starts at step 0 drops what an earlier attempt left."""
    if progress.step == 0:
        folder.clear()
    folder.create(config)
    folder.write_plan(describe_plan(model.plan, model.tables))
    folder.publish()


def introduce(
    config: RunConfig,
    dataset: Dataset,
    model: ShardedModel,
    process: Process,
    train_data: BatchLoader | None,
    folder: RunFolder,
    progress: Progress,
) -> None:
    """Show what is going to happen; there is no ``train_data`` yet if data are growing."""
    sparse, dense = model.parameter_count()
    amount, steps = "growing data", "steps"
    if train_data is not None:
        amount = f"{train_data.rows:,} rows"
        total = config.training.total_steps(train_data.steps_per_epoch)
        steps = f"{config.training.epochs} epoch(s), {total:,} steps"
    negatives = config.data.negatives
    drawn = f" and up to {negatives.each} drawn for each," if negatives else ""
    out = console()
    out.print(plan_table(describe_plan(model.plan, model.tables)))
    out.print(
        f"{config.name}: {amount} of {dataset.spec.name}, {steps} of {config.data.batch_size:,} rows{drawn} on "
        f"{process.world_size} process(es), {process.device.type}, {torch.get_num_threads()} thread(s) each\n"
        f"{sparse:,} parameters in {len(model.tables)} tables, {dense:,} in the dense part; output in {folder.place}"
    )
    for remark in remarks(config.tasks):
        out.print(f"note: {remark}")
    if progress.step:
        out.print(f"resuming after step {progress.step}")


def conclude(
    config: RunConfig,
    dataset: Dataset,
    model: ShardedModel,
    checkpoints: Checkpoints,
    process: Process,
    folder: RunFolder,
) -> dict[str, float] | None:
    """Evaluate a checkpoint on the test split: the best one; the latest without a validation split, or if data are growing."""
    name = "best" if (folder.checkpoints / "best").is_file() and not config.data.growing else "latest"
    progress = checkpoints.load(name, model)
    if process.is_main:
        print(
            f"trained for {clock(progress.seconds)}; evaluating the checkpoint after step {progress.step} ({name})",
            flush=True,
        )
    metrics = evaluate_split(config, dataset, model, process, "test") if "test" in dataset.spec.splits else None
    if process.is_main and metrics is not None:
        folder.results.write_text(json.dumps({"step": progress.step, "test": metrics}, indent=1), encoding="utf-8")
    first_process_only(folder.publish)
    return metrics


def evaluate_split(
    config: RunConfig, dataset: Dataset, model: ShardedModel, process: Process, split: str
) -> dict[str, float]:
    """Evaluate on one split and show the metrics."""
    loader = make_loader(config, dataset, split, process)
    with Bar(f"evaluate {split}", loader.steps_per_epoch, process.is_main, brief=True) as bar:
        metrics = evaluate(model, loader, config.tasks, process.device, bar.update)
    report_unknown_ids(process, loader.unknown_ids)
    if process.is_main:
        title = f"{config.name}: {split} split, {loader.rows:,} rows"
        console().print(metrics_table(title, metrics, [*(task.name for task in config.tasks)]))
    return metrics


def report_unknown_ids(process: Process, counts: dict[str, int]) -> None:
    """Show how many ids outside their vocabularies all processes have read as unknown; to be called on every process."""
    total = Counter[str]()
    for part in gather_objects(counts):
        total.update(part)
    if process.is_main and total:
        features = ", ".join(f"{feature} {count:,}" for feature, count in sorted(total.items()))
        print(f"ids outside their vocabulary, read as unknown: {features}", flush=True)
