"""Interactions: from pooled features and dense features to the input of the multitask architecture.

Features [B, D] are the concatenated pooled features, of widths ``fields``, followed by ``dense`` columns of dense features
(the output of their layers, if any), or none.

A new interaction is one new file here, or in a plugin: a configuration, and a module built from the configuration,
``fields`` and ``dense``, registered as ``interaction``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from dlrm_mtl.core.parts import Named, Part
from dlrm_mtl.core.registry import registry
from dlrm_mtl.models.blocks import Block

InteractionConfig = Annotated[Named, Part("interaction", default="dcnv2")]
"""Configuration of any interaction."""


def build_interaction(config: Named, fields: Sequence[int], dense: int = 0) -> Block:
    """Build the interaction of ``config`` for pooled features of widths ``fields``, followed by ``dense`` columns.

    Raises:
        ValueError: the widths do not fit the interaction.
    """
    block: Block = registry("interaction").of_config(config).part(config, fields, dense)
    return block
