"""Multitask architectures: features [B, D] in, one representation per task [B, T, d] out.

A new architecture is one new file here, or in a plugin: a configuration, and a module built from the configuration, D and
T, registered as ``architecture``.
"""

from __future__ import annotations

from typing import Annotated

from dlrm_mtl.core.parts import Named, Part
from dlrm_mtl.core.registry import registry
from dlrm_mtl.models.blocks import Block
from dlrm_mtl.models.multitask.mmoe import MMoEConfig

DEFAULT = MMoEConfig(layers=[128, 64])
"""Default architecture of a model."""

MultitaskConfig = Annotated[Named, Part("architecture", default=DEFAULT)]
"""Configuration of any architecture."""


def build_multitask(config: Named, in_features: int, tasks: int) -> Block:
    """Build the architecture of ``config`` for input of width ``in_features`` and ``tasks`` tasks.

    Its ``out_features`` is the width d of its output [B, T, d].

    Raises:
        ValueError: the configuration does not fit the number of tasks.
    """
    block: Block = registry("architecture").of_config(config).part(config, in_features, tasks)
    return block
