"""Multitask architectures: features [B, D] in, one representation per task [B, T, d] out.

A new architecture is one new file with a ``...Config`` and a module, and one line in each of the two tables below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from dlrm_mtl.models.blocks import Block
from dlrm_mtl.models.multitask.adatt import AdaTT, AdaTTConfig, AdaTTSpConfig
from dlrm_mtl.models.multitask.aitm import AITM, AITMConfig
from dlrm_mtl.models.multitask.cross_stitch import CrossStitch, CrossStitchConfig
from dlrm_mtl.models.multitask.mmoe import MMoE, MMoEConfig
from dlrm_mtl.models.multitask.multi_level_mmoe import MultiLevelMMoE, MultiLevelMMoEConfig
from dlrm_mtl.models.multitask.omoe import OMoE, OMoEConfig
from dlrm_mtl.models.multitask.ple import PLE, PLEConfig
from dlrm_mtl.models.multitask.shared_bottom import SharedBottom, SharedBottomConfig
from dlrm_mtl.models.multitask.single_task import SingleTask, SingleTaskConfig

MultitaskConfig = Annotated[
    AdaTTConfig
    | AdaTTSpConfig
    | AITMConfig
    | CrossStitchConfig
    | MMoEConfig
    | MultiLevelMMoEConfig
    | OMoEConfig
    | PLEConfig
    | SharedBottomConfig
    | SingleTaskConfig,
    Field(discriminator="name"),
]

ARCHITECTURES: dict[type, Callable[..., Block]] = {
    # from what needs the fewest parameters to what shares in the finest way
    SharedBottomConfig: SharedBottom,
    SingleTaskConfig: SingleTask,
    OMoEConfig: OMoE,
    MMoEConfig: MMoE,
    MultiLevelMMoEConfig: MultiLevelMMoE,
    PLEConfig: PLE,
    CrossStitchConfig: CrossStitch,
    AdaTTSpConfig: AdaTT,
    AdaTTConfig: AdaTT,
    AITMConfig: AITM,
}


def build_multitask(config: MultitaskConfig, in_features: int, tasks: int) -> Block:
    """The architecture that ``config`` names, for input of width ``in_features`` and ``tasks`` tasks.

    Its ``out_features`` is the width d of its output [B, T, d].

    Raises:
        ValueError: the configuration does not fit the number of tasks.
    """
    return ARCHITECTURES[type(config)](config, in_features, tasks)


def describe_architectures() -> dict[str, str]:
    """Every architecture by name, with one line on what it is."""
    return {config.model_fields["name"].default: (config.__doc__ or "").splitlines()[0] for config in ARCHITECTURES}  # type: ignore[attr-defined]
