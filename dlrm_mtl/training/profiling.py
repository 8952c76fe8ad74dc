"""A trace of a few steps of every process, for https://ui.perfetto.dev or chrome://tracing."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from dlrm_mtl.config.training import ProfileConfig
from dlrm_mtl.training.events import Listener, RoundEnd, RoundStart, Start, Step

logger = logging.getLogger(__name__)


class Profiler(Listener):
    """Writer of ``rank_R.json.gz``, a trace of the phases, operators and kernels of the steps in ``config``.

    Args:
        config: steps to trace, counted from the first one of this start of the run.
        folder: output folder.
        rank: rank of this process.
    """

    every_process = True

    def __init__(self, config: ProfileConfig, folder: Path, rank: int) -> None:
        self.config = config
        self.file = folder / f"rank_{rank}.json.gz"
        self.rank = rank
        self._profile: profile | None = None

    def on_start(self, event: Start) -> None:
        """Make the folder."""
        self.file.parent.mkdir(parents=True, exist_ok=True)

    def on_round_start(self, event: RoundStart) -> None:
        """Start counting steps, only in the first round."""
        if self._profile is not None:
            return
        start, steps = self.config.start, self.config.steps
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(
            activities=activities,
            # One earlier step is traced and dropped: starting a trace slows it down.
            schedule=schedule(wait=max(start - 1, 0), warmup=min(start, 1), active=steps, repeat=1),
            on_trace_ready=self._write,
        )
        self._profile.start()

    def on_step(self, event: Step) -> None:
        """Count a step."""
        if self._profile is not None:
            self._profile.step()

    def on_round_end(self, event: RoundEnd) -> None:
        """Write the trace so far if training ends during the traced steps."""
        if self._profile is not None:
            self._profile.stop()

    def _write(self, traced: profile) -> None:
        traced.export_chrome_trace(str(self.file))
        if self.rank == 0:
            logger.info("%s: a trace of the steps to profile; open it in https://ui.perfetto.dev", self.file)
