"""The ``balancing`` part of a run's configuration, and the stages built from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from dlrm_mtl.balancing.base import AnyBalancingConfig, BalancerConfig, Level
from dlrm_mtl.balancing.sequence import Balancing, TensorInfo, membership
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.parts import Misfit, Part
from dlrm_mtl.core.registry import registry


class NoBalancingConfig(AnyBalancingConfig):
    """The plain sum of the tasks' gradients, from one backward pass."""

    name: Literal["none"] = "none"

    def methods(self) -> list[tuple[str, BalancerConfig]]:
        """No method."""
        return []


class SequenceConfig(AnyBalancingConfig):
    """Several methods in the given order, each applied to the gradients adjusted by the one before."""

    name: Literal["sequence"] = "sequence"
    stages: list[Annotated[BalancerConfig, Part("balancer")]] = Field(min_length=1)
    """Methods, each by name or with options."""
    level: Level = "parameters"
    """Level at which the tables' gradients are compared, for all stages; see the `level` of a method."""
    every: int = Field(default=1, ge=1)
    """Number of steps after which the gradients are balanced again, by all stages; see the `every` of a method."""

    @model_validator(mode="after")
    def _one_for_all(self) -> Self:
        for position, stage in enumerate(self.stages):
            if "level" in stage.model_fields_set and stage.level != self.level:
                raise ValueError(
                    f"stage {position} has level {stage.level!r} and the sequence {self.level!r}; "
                    "set level beside stages, which holds for all of them."
                )
            if "every" in stage.model_fields_set and stage.every != self.every:
                raise ValueError(
                    f"stage {position} has every {stage.every} and the sequence {self.every}; "
                    "set every beside stages, which holds for all of them."
                )
        return self

    def methods(self) -> list[tuple[str, BalancerConfig]]:
        """The stages, all with the level and the interval of the sequence."""
        return [
            (f".stages.{position}", stage.model_copy(update={"level": self.level, "every": self.every}))
            for position, stage in enumerate(self.stages)
        ]


BalancingConfig = Annotated[AnyBalancingConfig, Part("balancer", also=(NoBalancingConfig, SequenceConfig))]
"""`none`, the name of a method, or a mapping with its options."""


def build_balancing(
    config: AnyBalancingConfig, tasks: Sequence[str], tensors: Sequence[TensorInfo], place: str = "balancing"
) -> Balancing:
    """Build the stages of ``config`` for these tasks and these shared tensors; no stages for `none`.

    Raises:
        UserError: a target is not one of the tasks; ``place`` is the configuration's key path.
    """
    names = list(tasks)
    stages = []
    for where, method in config.methods():
        try:
            method.check_tasks(names)
        except Misfit as error:
            raise UserError(f"{place}{where}.{error.key}: {error}") from None
        groups = membership(tensors, method.granularity)[1]
        part = registry("balancer").of_config(method).part
        stages.append((part(method, names, groups), method.granularity))
    return Balancing(stages, names, tensors)
