"""The tensors of a model in training and of its optimizers, for checkpoints."""

from __future__ import annotations

from typing import Any

from dlrm_mtl.checkpoint.state import RunState
from dlrm_mtl.optim.build import Optimizers
from dlrm_mtl.training.sharded_model import ShardedModel


class RunTensors:
    """All tensors of a run; see :class:`~dlrm_mtl.checkpoint.tensors.Checkpointed`.

    Args:
        model: model with the weights, buffers and ids.
        optimizers: optimizers with state; None to omit it, as for predictions.
    """

    def __init__(self, model: ShardedModel, optimizers: Optimizers | None = None) -> None:
        self.model = model
        self.optimizers = optimizers

    def prepare_load(self) -> None:
        """Create the optimizers' state."""
        if self.optimizers is not None:
            self.optimizers.allocate()

    def tensors(self) -> dict[str, Any]:
        """Live tensors: ``tables``, ``dense``, ``ids`` if there are unbounded ones, ``table_state``, ``dense_state``."""
        tree: dict[str, Any] = {"tables": self.model.table_weights(), "dense": self.model.dense_weights()}
        if self.model.ids.vocabularies:
            tree["ids"] = self.model.ids.state()
        if self.optimizers is not None:
            tree["table_state"] = self.optimizers.table_state()
            tree["dense_state"] = self.optimizers.dense_state()
        return tree

    def loaded(self, state: RunState) -> None:
        """Set the optimizers' step count from ``state``."""
        if self.optimizers is not None:
            self.optimizers.sparse.loaded(state.steps_applied)
