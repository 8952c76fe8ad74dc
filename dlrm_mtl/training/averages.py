"""Losses and speed between two entries in the log."""

from __future__ import annotations

import math
import time

import torch
import torch.distributed as dist
from torch import Tensor

from dlrm_mtl.core.phases import PhaseClock


class Window:
    """Averages over the steps since the last log entry.

    Args:
        names: names of the tasks.
        device: device of the losses.
        clock: clock of the phases of steps; None to leave them out.
    """

    def __init__(self, names: list[str], device: torch.device, clock: PhaseClock | None = None) -> None:
        self.names = names
        self.device = device
        self.clock = clock
        self.restart(0.0)

    def restart(self, wait_seconds: float) -> None:
        """Start a new window now, excluding time that was not spent on training."""
        self.parts: list[Tensor] = []
        self.figures: list[dict[str, float]] = []
        self.rows = 0
        self.steps = 0
        if self.clock is not None:
            self.clock.take()
        self.waited = wait_seconds
        self.start = time.monotonic()

    def add(self, parts: Tensor | None, rows: int, figures: dict[str, float]) -> None:
        """Add one step: this process's parts of the tasks' losses [T], or None if it was skipped; and scalars to average."""
        if parts is not None:
            self.parts.append(parts)
            self.figures.append(figures)
        self.rows += rows
        self.steps += 1

    def close(self, wait_seconds: float) -> dict[str, float]:
        """Average over the window and start the next one. Every process must call this.

        Args:
            wait_seconds: total seconds that this process has waited for data.

        Returns:
            Scalars to log; losses are nan if all steps were skipped.
        """
        nothing = torch.full((len(self.names),), float("nan"), device=self.device)
        mean = torch.stack(self.parts).mean(dim=0) if self.parts else nothing
        dist.all_reduce(mean)
        seconds = time.monotonic() - self.start
        values = {f"loss/{name}": loss for name, loss in zip(self.names, mean.tolist(), strict=True)}
        for name in dict.fromkeys(name for figures in self.figures for name in figures):  # some steps lack some of them
            found = [figures[name] for figures in self.figures if name in figures]
            defined = [figure for figure in found if not math.isnan(figure)]
            values[name] = sum(defined) / len(defined) if defined else math.nan
        if self.clock is not None:
            seconds_of = self.clock.take()
            values.update({f"phase/{name.replace(' ', '_')}": s / self.steps for name, s in seconds_of.items()})
        values["seconds"] = seconds
        values["rows_per_second"] = self.rows / seconds
        values["data_wait_share"] = min((wait_seconds - self.waited) / seconds, 1.0)
        self.restart(wait_seconds)
        return values
