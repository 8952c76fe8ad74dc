"""Random numbers of a training step that do not depend on the number of processes."""

from __future__ import annotations

from itertools import count
from weakref import WeakValueDictionary

import torch
from torch import Tensor

_MIX = 0x9E3779B97F4A7C15
_MASK = (1 << 63) - 1
_NUMBERS = count()


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
        self.number = next(_NUMBERS)
        _STREAMS[self.number] = self

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


_STREAMS: WeakValueDictionary[int, BatchRandom] = WeakValueDictionary()
"""Streams by number, for compiled code, which cannot hold the object: its ``step`` changes."""


@torch.library.custom_op("dlrm_mtl::uniform", mutates_args=())
def compiled_uniform(like: Tensor, stream: int, layer: int, width: int) -> Tensor:
    """:meth:`BatchRandom.uniform` for the rows of ``like`` [B, ...], as one operation in a compiled graph."""
    return _STREAMS[stream].uniform(layer, like.shape[0], width, like.device)


@compiled_uniform.register_fake
def _(like: Tensor, stream: int, layer: int, width: int) -> Tensor:
    return like.new_empty(like.shape[0], width, dtype=torch.float32)
