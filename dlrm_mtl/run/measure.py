"""Measurement of a configuration's training steps, with the loop and the data of a run, which leaves no run behind."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from dlrm_mtl.checkpoint.checkpoints import Checkpoints
from dlrm_mtl.checkpoint.state import RunState
from dlrm_mtl.config.check import check_tasks
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.phases import PhaseClock
from dlrm_mtl.core.processes import gather_objects, process_group
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.storage.run_store import LocalStore
from dlrm_mtl.training.build import build_model, build_optimizers
from dlrm_mtl.training.events import Listeners
from dlrm_mtl.training.loaders import training_loader
from dlrm_mtl.training.loop import RunParts, Trainer
from dlrm_mtl.training.step_times import TRACED, WARM_UP, EnoughMeasured, StepMeasurement, StepTimes

NEVER = 10**9
"""Steps between evaluations and checkpoints, so that there are none."""


@dataclass(frozen=True)
class JobTimes:
    """Measurement of all processes of a job."""

    config: RunConfig
    device: str
    """Kind and name of the first process's device."""
    threads: int
    """Threads of the first process."""
    times: list[StepTimes]
    """Times of each process, by rank."""
    is_main: bool
    """True on the process that prints for all."""


def measure_steps(config: RunConfig, steps: int, folder: Path | None = None) -> JobTimes:
    """Train a few steps of ``config`` from fresh weights; every process must call this.

    Args:
        config: configuration of the run; it is not evaluated, saved or published.
        steps: number of steps to measure.
        folder: folder for the trace of each process, ``rank_R.json.gz``; None for no trace.

    Raises:
        UserError: a mistake in the configuration or the data.
        Interrupted: a signal arrived.
    """
    dataset = open_dataset(config.data.path)
    check_tasks(config, dataset.spec)
    with process_group(config.training.stall_timeout) as process, tempfile.TemporaryDirectory() as nowhere:
        loader = training_loader(config, dataset.split("train"), process)
        epoch = config.training.steps_per_epoch(loader.steps_per_epoch)
        if not epoch:
            raise UserError(f"{dataset.folder('train')}: holds no rows to train on; name another data set.")
        never = {"evaluate_every": NEVER, "checkpoint_every": NEVER, "publish": None, "max_steps": None}
        epochs = -(-(WARM_UP + steps + TRACED + 1) // epoch)
        training = config.training.model_copy(update={**never, "epochs": epochs, "phase_times": False})
        long = config.model_copy(update={"training": training})
        model = build_model(config, dataset.spec, process, planned=True)
        optimizers = build_optimizers(config, model, config.training.total_steps(loader.steps_per_epoch))
        with PhaseClock(process.device) as clock:
            trace = folder / f"rank_{process.rank}.json.gz" if folder is not None else None
            measurement = StepMeasurement(steps, clock, trace)
            checkpoints = Checkpoints(LocalStore(Path(nowhere)))
            parts = RunParts(long, process, model, optimizers, loader, checkpoints, RunState())
            parts.listeners = Listeners([measurement], process.is_main)
            trainer = Trainer(parts)
            with contextlib.suppress(EnoughMeasured):
                trainer.train()
            trainer.step.settle()
        name = torch.cuda.get_device_name() if process.device.type == "cuda" else "no GPU"
        device = f"{process.device.type}, {name}"
        return JobTimes(config, device, torch.get_num_threads(), gather_objects(measurement.times), process.is_main)
