"""State of a run that is not a tensor, and its text form, which is validated strictly when read."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from dlrm_mtl.core.errors import UserError

CHECKPOINTS = "checkpoints"
"""Folder of checkpoints in a run's folder."""
STATE_FILE = "progress.json"
"""State file of a checkpoint; without it, the checkpoint is not complete."""
REMEDY = "the file was changed or is damaged: use another checkpoint"
"""End of error sentences about a damaged file of a checkpoint."""
NEW_FIELDS = ("contract", "config")
"""Fields of a run's state that checkpoints of earlier versions lack."""


@dataclass(config=ConfigDict(extra="forbid", strict=True))
class RunState:
    """State of a run that is not a tensor: counters, the best evaluation, the order of the data.

    Mutable: the training loop updates it. Types are checked on construction and on reading.
    """

    step: int = 0
    """Number of steps taken; the next step has this number."""
    steps_applied: int = 0
    """Number of steps that changed the model; the others had a gradient that was not finite. A run that begins with
    the optimizer state of another run counts on from there."""
    skipped_steps: int = 0
    """Number of steps that changed nothing because a gradient was not finite."""
    skipped_in_a_row: int = 0
    """Number of consecutive skipped steps up to now."""
    clipped_steps: int = 0
    """Number of steps in which an update was clipped."""
    best_step: int | None = None
    """Step of the best checkpoint."""
    best_value: float | None = None
    """Value of the watched metric at the best checkpoint."""
    evaluations_without_improvement: int = 0
    """Number of evaluations since the best one, for early stopping."""
    seconds: float = 0.0
    """Training time in seconds, over all attempts."""
    data: dict[str, Any] = Field(default_factory=dict)
    """Configuration keys that determine the order of rows, with their values; a resumed run must have the same."""
    consumed: dict[str, Any] = Field(default_factory=dict)
    """Growing data: the used files, and the files of the current round."""
    round_start: int = 0
    """Growing data: the step at which the current round began."""
    contract: dict[str, Any] = Field(default_factory=dict)
    """Data contract of the run; empty in checkpoints of earlier versions."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Configuration of the run; empty in checkpoints of earlier versions."""

    def as_dict(self) -> dict[str, Any]:
        """All fields by name, in JSON types."""
        return asdict(self)


def parse_state(content: Any, place: str) -> RunState:
    """Run state from the fields ``content`` of :meth:`RunState.as_dict`; ``place`` is named in errors.

    Raises:
        UserError: a field is missing, unknown or of a wrong type.
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
