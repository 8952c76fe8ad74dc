"""Assembling batches from rows of blocks."""

from __future__ import annotations

from collections.abc import Sequence

from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_mtl.data.batch import Batch
from dlrm_mtl.data.file_checks import Layout
from dlrm_mtl.data.join_rows import BlockRows, join


def assemble(layout: Layout, parts: Sequence[BlockRows]) -> Batch:
    """Concatenate rows into a batch."""
    joined = join(layout, parts)
    return Batch(
        sparse=KeyedJaggedTensor(
            keys=layout.selection.keys, values=joined.values, lengths=joined.lengths, stride=joined.rows
        ),
        dense=joined.dense,
        labels=joined.labels,
        weights=joined.weights,
        carried=joined.carried,
    )
