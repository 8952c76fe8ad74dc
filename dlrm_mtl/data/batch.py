"""A batch of the reader, as models take it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclass
class Batch(Pipelineable):
    """One process's part of a global batch.

    B is the local batch size. It is the same on every process and at every step: a short last batch is padded with rows of
    weight zero and empty features.
    """

    sparse: KeyedJaggedTensor
    """Sparse and sequence features by name; values int64, lengths int32, stride B."""
    dense: Tensor
    """[B, D] float32, columns in the order of the configuration; D may be 0."""
    labels: Tensor
    """[B, T] float32, one column per task; 0 where the label is null."""
    weights: Tensor
    """[B, T] float32: the row's weight in each task's loss and metrics; 0 for padding and where the label is null."""
    carried: Tensor | None = None
    """[C, B] int64 in the host's memory: columns read beside the inputs, see :mod:`dlrm_mtl.data.carried_columns`."""

    @property
    def size(self) -> int:
        """Number of rows B, including padding."""
        return int(self.labels.shape[0])

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """Return the batch on ``device``."""
        return Batch(
            sparse=self.sparse.to(device, non_blocking=non_blocking),
            dense=self.dense.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
            weights=self.weights.to(device, non_blocking=non_blocking),
            carried=self.carried,
        )

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the CUDA allocator that ``stream`` uses these tensors."""
        self.sparse.record_stream(stream)
        for tensor in (self.dense, self.labels, self.weights):
            tensor.record_stream(stream)

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked host memory."""
        return Batch(
            self.sparse.pin_memory(),
            self.dense.pin_memory(),
            self.labels.pin_memory(),
            self.weights.pin_memory(),
            self.carried,
        )
