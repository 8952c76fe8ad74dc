"""Gradient balancing: the tasks' gradients of shared parameters are combined by what their inner products say.

A new method is one new file with a ``...Config`` and a :class:`Balancer`, and one line in each of the two tables below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from dlrm_mtl.balancing.aligned_mtl import AlignedMTL, AlignedMTLConfig
from dlrm_mtl.balancing.base import Balancer, BalancerConfig, Level, TargetConfig
from dlrm_mtl.balancing.cagrad import CAGrad, CAGradConfig
from dlrm_mtl.balancing.famo import FAMO, FAMOConfig
from dlrm_mtl.balancing.gradnorm import GradNorm, GradNormConfig
from dlrm_mtl.balancing.gradvac import GradVac, GradVacConfig
from dlrm_mtl.balancing.imtl import IMTLG, IMTLGConfig
from dlrm_mtl.balancing.metabalance import MetaBalance, MetaBalanceConfig
from dlrm_mtl.balancing.mgda import MGDA, MGDAConfig
from dlrm_mtl.balancing.nash_mtl import NashMTL, NashMTLConfig
from dlrm_mtl.balancing.pcgrad import PCGrad, PCGradConfig
from dlrm_mtl.balancing.sequence import BalanceReport, Balancing, TensorInfo, membership
from dlrm_mtl.balancing.surgery import Similarity, SimilarityConfig, Surgery, SurgeryConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.gram import gram_of, not_finite_tasks
from dlrm_mtl.core.schema import Strict
from dlrm_mtl.core.suggest import suggest

__all__ = [
    "BALANCERS",
    "BalanceReport",
    "Balancer",
    "Balancing",
    "BalancingConfig",
    "NoBalancingConfig",
    "SequenceConfig",
    "TensorInfo",
    "build_balancing",
    "describe_balancers",
    "gram_of",
    "not_finite_tasks",
]

BALANCERS: dict[type[BalancerConfig], Callable[[Any, list[str], int], Balancer]] = {
    # for one target task
    MetaBalanceConfig: MetaBalance,
    SurgeryConfig: Surgery,
    SimilarityConfig: Similarity,
    # for all tasks alike: pair by pair, one direction for all, learned weights
    PCGradConfig: PCGrad,
    GradVacConfig: GradVac,
    CAGradConfig: CAGrad,
    MGDAConfig: MGDA,
    IMTLGConfig: IMTLG,
    AlignedMTLConfig: AlignedMTL,
    NashMTLConfig: NashMTL,
    GradNormConfig: GradNorm,
    FAMOConfig: FAMO,
}


def _from_name(value: Any) -> Any:
    """`balancing: pcgrad` is short for `balancing: {name: pcgrad}`; the same in a list of stages."""
    return {"name": value} if isinstance(value, str) else value


_Methods = (
    MetaBalanceConfig
    | SurgeryConfig
    | SimilarityConfig
    | PCGradConfig
    | GradVacConfig
    | CAGradConfig
    | MGDAConfig
    | IMTLGConfig
    | AlignedMTLConfig
    | NashMTLConfig
    | GradNormConfig
    | FAMOConfig
)
_Method = Annotated[_Methods, Field(discriminator="name")]
_ShortStage = Literal["pcgrad", "gradvac", "cagrad", "mgda", "imtl_g", "aligned_mtl", "nash_mtl", "gradnorm", "famo"]
_Stage = Annotated[_Method, BeforeValidator(_from_name, json_schema_input_type=_ShortStage | _Method)]


class NoBalancingConfig(Strict):
    """The plain sum of the tasks' gradients, from one backward pass."""

    name: Literal["none"] = "none"


class SequenceConfig(Strict):
    """Several methods in the stated order, each working on what the one before makes of the gradients."""

    name: Literal["sequence"] = "sequence"
    stages: list[_Stage] = Field(min_length=1)
    """The methods, each by name or with options."""
    level: Level = "parameters"
    """Where the tables' gradients are compared, for all stages; see there."""

    @model_validator(mode="after")
    def _one_level(self) -> Self:
        for position, stage in enumerate(self.stages):
            if "level" in stage.model_fields_set and stage.level != self.level:
                raise ValueError(
                    f"stage {position} has level {stage.level!r} and the sequence {self.level!r}; "
                    "set level beside stages, which holds for all of them."
                )
        return self


_Any = Annotated[NoBalancingConfig | SequenceConfig | _Methods, Field(discriminator="name")]

BalancingConfig = Annotated[
    _Any, BeforeValidator(_from_name, json_schema_input_type=Literal["none"] | _ShortStage | _Any)
]


def build_balancing(
    config: BalancingConfig, tasks: Sequence[str], tensors: Sequence[TensorInfo], place: str = "balancing"
) -> Balancing:
    """The stages that ``config`` names, for these tasks and these shared tensors; none for `none`.

    Raises:
        UserError: a target is not one of the tasks; ``place`` is the configuration's key path.
    """
    names = list(tasks)
    if isinstance(config, NoBalancingConfig):
        methods: list[tuple[str, BalancerConfig]] = []
    elif isinstance(config, SequenceConfig):
        methods = [(f"{place}.stages.{position}", stage) for position, stage in enumerate(config.stages)]
    else:
        methods = [(place, config)]
    stages = []
    for where, method in methods:
        if isinstance(method, TargetConfig) and method.target not in names:
            raise UserError(f"{where}.target: there is no task {method.target!r}; {suggest(method.target, names)}.")
        groups = membership(tensors, method.granularity)[1]
        stages.append((BALANCERS[type(method)](method, names, groups), method.granularity))
    return Balancing(stages, names, tensors)


def describe_balancers() -> dict[str, str]:
    """Every method by name, with one line on what it is."""
    return {config.model_fields["name"].default: (config.__doc__ or "").splitlines()[0] for config in BALANCERS}
