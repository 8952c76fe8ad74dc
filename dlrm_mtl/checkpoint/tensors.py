"""Tensors of a run in a checkpoint: a tree of names that do not depend on the sharding plan."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from dlrm_mtl.checkpoint.state import RunState

TensorTree = dict[str, Any]
"""Tree of names to tensors, to ShardedTensors (with the parts on this process), or to further trees."""


class Checkpointed(Protocol):
    """A holder of tensors that checkpoints save, and load in place."""

    def prepare_load(self) -> None:
        """Create the tensors that do not exist before the first step; called on every process before loading."""

    def tensors(self) -> TensorTree:
        """Live tensors under names that do not depend on the plan."""

    def loaded(self, state: RunState) -> None:
        """Finish loading; called on every process when the tensors are filled from the checkpoint of ``state``."""


def flatten(tree: TensorTree, prefix: str = "") -> dict[str, Any]:
    """Tensors and ShardedTensors of ``tree`` by their dotted paths; other values are omitted."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat.update(flatten(value, f"{name}."))
        elif isinstance(value, torch.Tensor) or hasattr(value, "local_shards"):
            flat[name] = value
    return flat
