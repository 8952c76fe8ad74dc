"""Interactions: from pooled features and dense features to the input of the multitask architecture.

Features [B, D] hold the pooled features side by side, in widths that ``fields`` gives, and then the dense features, ``dense``
columns (after the layers they may have passed), or none.

A new interaction is one new file here, or in a plugin: a configuration, and a module that is made from the configuration,
``fields`` and ``dense``, registered as ``interaction``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from dlrm_mtl.core.parts import Named, Part
from dlrm_mtl.core.registry import registry
from dlrm_mtl.models.blocks import Block

InteractionConfig = Annotated[Named, Part("interaction", default="dcnv2")]
"""The configuration of any interaction."""


def build_interaction(config: Named, fields: Sequence[int], dense: int = 0) -> Block:
    """The interaction that ``config`` names, for pooled features of widths ``fields`` and ``dense`` columns after them.

    Raises:
        ValueError: the widths do not fit the interaction.
    """
    block: Block = registry("interaction").of_config(config).part(config, fields, dense)
    return block
