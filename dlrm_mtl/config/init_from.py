"""The ``init_from`` part of a run's configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from dlrm_mtl.core.schema import Strict

TRAINING_STATE = ("balancing", "task_weighting")
"""First parts of names of tensors that belong to the training, as the optimizer's state does, and not to the model."""


class InitFromConfig(Strict):
    """Weights to begin with, from a checkpoint of another run; without effect once the run has a checkpoint of its own.

    Names are those that `dlrm-mtl checkpoint show` prints, without their first part, such as `item` and
    `multitask.gates.weight`. A name also stands for all that it is the beginning of: `multitask` for `multitask.gates.weight`.
    """

    run: str
    """Folder of the other run, path or URI."""
    checkpoint: str | None = None
    """`best`, `latest` or `step_N`. Default: the best one; the latest if none is known."""
    map: dict[str, str] = Field(default_factory=dict)
    """New names of renamed tables, parameters and features, by their old names: `{video: item, towers: heads}`."""
    tables: bool | list[str] = True
    """Tables to take, by their names in this run; `true`: all that the checkpoint has, `false`: none."""
    dense: bool | list[str] = True
    """Other parameters to take, by their names in this run; `true`: all that the checkpoint has, `false`: none."""
    skip: list[str] = Field(default_factory=list)
    """Names in this run that are not taken, although the checkpoint has them."""
    grow: Literal["values", "append"] = "values"
    """Rows of a table whose vocabulary has changed. The row of every value is found by vocabularies.parquet of both data
    sets; where these are not known, `append` takes the first rows as they are, for ids that have only been added to."""
    vocabularies: str | None = None
    """The other run's vocabularies.parquet, if it no longer lies in the folder of the data set; path or URI."""
    optimizer_state: bool = False
    """Take the optimizer's state of what is taken, too, and the state of task weighting and balancing."""

    @model_validator(mode="before")
    @classmethod
    def _run_alone(cls, value: Any) -> Any:
        return {"run": value} if isinstance(value, str) else value

    @field_validator("map")
    @classmethod
    def _different_names(cls, names: dict[str, str]) -> dict[str, str]:
        twice = sorted(new for new in names.values() if list(names.values()).count(new) > 1)
        if twice:
            raise ValueError(f"two old names become {twice[0]!r}; keep one of them.")
        return names


def below(name: str, prefix: str) -> bool:
    """Whether ``name`` is ``prefix``, or begins with it and a dot."""
    return name == prefix or name.startswith(f"{prefix}.")


def renamed(name: str, names: dict[str, str]) -> str:
    """New name of what was called ``name``, by the longest of the old names in ``names`` that it is, or begins with."""
    fitting = [old for old in names if below(name, old)]
    if not fitting:
        return name
    old = max(fitting, key=len)
    return names[old] + name[len(old) :]
