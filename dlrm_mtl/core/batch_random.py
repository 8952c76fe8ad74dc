"""Random numbers of a training step that do not depend on the number of processes."""

from __future__ import annotations

import torch
from torch import Tensor

_MIX = 0x9E3779B97F4A7C15
_MASK = (1 << 63) - 1


class BatchRandom:
    """Uniform draws for the rows of a batch (dropout masks, negatives, sampled tasks).

    The caller sets ``step`` before each step.

    A global batch is the concatenation of equal slices of all lanes, and a process holds the slices of its own lanes. Masks
    are drawn per (seed, layer, step, lane). So a row gets the same mask on any number of processes, and a resumed run needs
    no generator state.
    """

    def __init__(self, seed: int, lanes: range) -> None:
        self.seed = seed
        self.lanes = lanes
        self.step = 0

    def uniform(self, layer: int, rows: int, width: int, device: torch.device) -> Tensor:
        """Random numbers in [0, 1) of shape [rows, width] for one layer at the current step."""
        per_lane = rows // len(self.lanes)
        draws = []
        for lane in self.lanes:
            key = 0
            for part in (self.seed, layer, self.step, lane):
                key = ((key ^ part) * _MIX + 0x632BE59BD9B4E019) & _MASK
                key ^= key >> 29
            generator = torch.Generator(device).manual_seed(key)
            draws.append(torch.rand(per_lane, width, device=device, generator=generator))
        return torch.cat(draws)
