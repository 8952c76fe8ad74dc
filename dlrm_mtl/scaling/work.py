"""The work of one process in one training step: rows, bytes, operations, and the collectives that it takes part in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["all_to_all", "reduce_scatter", "all_reduce", "all_gather"]

Phase = Literal["ids", "pooled", "gradients", "dense", "step"]
"""Reason of a collective. ``ids``: lengths and ids to the tables, with the exchange of split sizes. ``pooled``: looked-up
vectors back to the rows of the batch. ``gradients``: their gradients to the tables. ``dense``: gradients of replicated
parameters, data-parallel tables included. ``step``: all else, such as statistics of rows of column shards, factors of tables,
and sums of weights."""

PHASES: tuple[Phase, ...] = ("ids", "pooled", "dense", "gradients", "step")
"""All reasons, in the order of a step."""

Span = Literal["world", "host", "across_hosts"]
"""Processes of a collective: all; those of one host; or those of the same number on every host."""


@dataclass(frozen=True)
class Collective:
    """A collective of one process in one step.

    Both numbers count whole tensors, the part included that a process sends to itself: an all-to-all sends the sum of its
    input splits, and an all-reduce of ``n`` bytes sends ``n`` and receives ``n``.
    """

    kind: Kind
    phase: Phase
    span: Span
    sent: int
    """Bytes of the tensor that the process gives."""
    received: int
    """Bytes of the tensor that it gets."""


@dataclass(frozen=True)
class RankWork:
    """Work of one process in one step; integers, in bytes where nothing else is said."""

    rows_read: int
    """Rows that lookups read, an id of several rows of the batch each time."""
    row_bytes_read: int
    """Bytes of these rows, as wide as this process's shards."""
    rows_updated: int
    """Distinct rows that the update touches."""
    row_bytes_updated: int
    """Bytes of weights and state of these rows, once; the update reads and writes them."""
    dense_flops: int
    """Floating-point operations of the dense part, forward and backward."""
    dense_bytes: int
    """Three times the weights, gradients and optimizer state of the dense part, which the step reads and writes as a whole."""
    table_bytes: int
    """Weights of the local shards, held in memory."""
    state_bytes: int
    """Optimizer state of the local shards, held in memory."""
    collectives: tuple[Collective, ...]
    kernels: int = 1
    """Groups of tables that are looked up and updated together."""
    tables: int = 0
    """Tables of the model, wherever they are: the host's work for their ids and vectors is the same on every process."""
    feature_bytes: int = 0
    """Bytes of the looked-up vectors of this process's rows, which are the input of the dense part."""
    gradient_bytes_made: int = 0
    """Bytes of gradients of whole data-parallel tables that backward writes to new memory and copies to DDP's buckets."""
    gradient_bytes_searched: int = 0
    """Bytes of these gradients, once: the update searches them for touched rows."""

    def bytes_of(self, phase: Phase) -> tuple[int, int]:
        """Bytes sent and received by all collectives of ``phase``."""
        own = [collective for collective in self.collectives if collective.phase == phase]
        return sum(each.sent for each in own), sum(each.received for each in own)
