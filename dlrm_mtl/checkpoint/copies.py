"""Copies of tensors in the memory of the host, from which a checkpoint is written while training changes the tensors."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from dlrm_mtl.checkpoint.writer import TensorPart
from dlrm_mtl.core.memory import available_bytes
from dlrm_mtl.core.processes import gather_objects

THREADS = 4
PIECE = 16 << 20
"""Bytes that a thread copies at a time."""
SHARE = 0.5
"""Share of the memory available that new copies may take."""


class HostCopies:
    """Copies of the parts that this process writes. Their memory is kept from one checkpoint to the next."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def fit(self, parts: list[TensorPart], host: str) -> bool:
        """True if the copies fit into the memory of all hosts. Every process must call this.

        Args:
            parts: parts of this process.
            host: name of its machine.
        """
        new = sum(_size(part.tensor) for part in parts if not _matches(self._buffers.get(part.key), part.tensor))
        found = gather_objects((host, new, available_bytes()))
        return all(
            sum(needed for name, needed, _ in found if name == host) <= available * SHARE
            for host, _, available in found
        )

    def take(self, parts: list[TensorPart]) -> list[TensorPart]:
        """The parts with copies in the place of their tensors."""
        kept, self._buffers = self._buffers, {}
        copied = []
        pieces: list[tuple[Tensor, Tensor]] = []
        for part in parts:
            source = part.tensor.detach()
            buffer = kept.get(part.key)
            if buffer is None or not _matches(buffer, source):
                buffer = torch.empty(source.shape, dtype=source.dtype, pin_memory=source.is_cuda)
            self._buffers[part.key] = buffer
            copied.append(replace(part, tensor=buffer))
            pieces += _pieces(source, buffer)
        devices = {source.device for source, _ in pieces if source.is_cuda}
        if devices:
            _synchronize(devices)  # another stream may still be writing
            for source, target in pieces:
                target.copy_(source, non_blocking=True)
            _synchronize(devices)
        else:
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(lambda pair: pair[1].copy_(pair[0]), pieces))
        return copied


def _size(tensor: Tensor) -> int:
    """Bytes that a copy takes: PyTorch rounds pinned memory up to a power of two."""
    return 1 << max(tensor.nbytes - 1, 0).bit_length() if tensor.is_cuda else tensor.nbytes


def _synchronize(devices: set[torch.device]) -> None:
    for device in devices:
        torch.cuda.synchronize(device)


def _matches(buffer: Tensor | None, tensor: Tensor) -> bool:
    return buffer is not None and buffer.shape == tensor.shape and buffer.dtype == tensor.dtype


def _pieces(source: Tensor, target: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Pairs of rows to copy at a time."""
    if source.dim() == 0 or source.nbytes <= PIECE:
        return [(source, target)]
    rows = max(1, source.shape[0] * PIECE // source.nbytes)
    return list(zip(source.split(rows), target.split(rows), strict=True))
