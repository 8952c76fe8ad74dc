"""The state of a run that is not a tensor, and its text form, which is validated strictly when it is read."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from dlrm_mtl.core.errors import UserError

CHECKPOINTS = "checkpoints"
"""The folder of checkpoints in a run's folder."""
STATE_FILE = "progress.json"
"""Of a checkpoint; without it, the checkpoint is not complete."""
REMEDY = "the file was changed or is damaged: use another checkpoint"
"""The end of sentences about a file of a checkpoint that is not as it was written."""
NEW_FIELDS = ("contract", "config")
"""Fields of a run's state that checkpoints of earlier versions lack."""


@dataclass(config=ConfigDict(extra="forbid", strict=True))
class RunState:
    """State of a run that is not a tensor: counters, the best evaluation, the order of the data.

    Mutable: the training loop counts in it. Types are checked when it is made, and when it is read.
    """

    step: int = 0
    """Steps taken; the next step has this number."""
    steps_applied: int = 0
    """Steps that changed the model; the others met a gradient that was not finite."""
    skipped_steps: int = 0
    """Steps that changed nothing because a gradient was not finite."""
    skipped_in_a_row: int = 0
    """The last ones of them."""
    clipped_steps: int = 0
    """Steps in which an update was made smaller."""
    best_step: int | None = None
    """Step of the best checkpoint."""
    best_value: float | None = None
    """Its value of the watched metric."""
    evaluations_without_improvement: int = 0
    """For early stopping."""
    seconds: float = 0.0
    """Time spent training, over all attempts."""
    data: dict[str, Any] = Field(default_factory=dict)
    """Keys on which the order of rows depends, with their values; a resumed run must have the same."""
    consumed: dict[str, Any] = Field(default_factory=dict)
    """Growing data: the files that were used, and those of the round that has begun."""
    round_start: int = 0
    """Growing data: the step at which that round began."""
    contract: dict[str, Any] = Field(default_factory=dict)
    """The description of the data that the run is trained on; empty in checkpoints of earlier versions."""
    config: dict[str, Any] = Field(default_factory=dict)
    """The configuration that the run is trained by; empty in checkpoints of earlier versions."""

    def as_dict(self) -> dict[str, Any]:
        """All fields by name, of types that JSON knows."""
        return asdict(self)


def parse_state(content: Any, place: str) -> RunState:
    """The run state with the fields ``content``, as :meth:`RunState.as_dict` gave them; ``place`` is named in errors.

    Raises:
        UserError: a field is missing, unknown or of another type.
    """
    fields = asdict(RunState())
    if not isinstance(content, dict):
        raise UserError(f"{place}: holds no fields of a run's state; {REMEDY}.")
    for name in fields:
        if name not in content and name not in NEW_FIELDS:
            raise UserError(f"{place}: the field {name!r} of the run's state is missing; {REMEDY}.")
    for name in content:
        if name not in fields:
            raise UserError(f"{place}: a run's state has no field {name!r}; {REMEDY}.")
    try:
        state = RunState(**content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where, value = first["loc"][0], repr(first["input"])[:80]
        raise UserError(f"{place}: {where}: {value} does not fit ({first['msg']}); {REMEDY}.") from None
    for name in ("step", "steps_applied", "skipped_steps", "skipped_in_a_row", "clipped_steps"):
        if getattr(state, name) < 0:
            raise UserError(f"{place}: {name}: {getattr(state, name)} is negative; {REMEDY}.")
    return state
