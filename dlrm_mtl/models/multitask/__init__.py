"""Multitask architectures: features [B, D] in, one representation per task [B, T, d] out.

A new architecture is one new file with a ``...Config`` and a module, and one line in each of the two tables below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from dlrm_mtl.models.blocks import Block
from dlrm_mtl.models.multitask.mmoe import MMoE, MMoEConfig
from dlrm_mtl.models.multitask.shared_bottom import SharedBottom, SharedBottomConfig

MultitaskConfig = Annotated[MMoEConfig | SharedBottomConfig, Field(discriminator="name")]

_MODULES: dict[type, Callable[..., Block]] = {
    MMoEConfig: MMoE,
    SharedBottomConfig: SharedBottom,
}


def build_multitask(config: MultitaskConfig, in_features: int, tasks: int) -> Block:
    """The architecture that ``config`` names, for input of width ``in_features`` and ``tasks`` tasks.

    Its ``out_features`` is the width d of its output [B, T, d].
    """
    return _MODULES[type(config)](config, in_features, tasks)
