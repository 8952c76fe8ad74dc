"""The ``serving`` part of a run's configuration: the score that candidates are ordered by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from dlrm_mtl.core.parts import Misfit, RunConfigLike
from dlrm_mtl.core.schema import Strict
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.tasks.config import TaskConfig

Weight = Annotated[float, Field(ge=-1e6, le=1e6)]
"""Factor of a term of a sum."""
Share = Annotated[float, Field(ge=0, le=1e6)]
"""Factor of a term of a sum that must not become negative."""
Exponent = Annotated[float, Field(ge=-20, le=20)]
"""Exponent of a factor of a product."""


class ProductTerm(Strict):
    """A term of a sum: a weight times powers of probabilities."""

    weight: Weight = 1.0
    """Factor of the term."""
    product: dict[str, Exponent] = Field(min_length=1)
    """Exponents by binary task."""


class SumFactor(Strict):
    """A factor of a product: the power of a weighted sum of probabilities."""

    exponent: Exponent = 1.0
    """Exponent of the sum."""
    sum: dict[str, Share] = Field(min_length=1)
    """Weights by binary task, none below 0."""


def _form(value: Any) -> str:
    return "terms" if isinstance(value, list) else "by task"


class ScoreFormula(Strict):
    """One score from the predictions of several tasks: a sum or a product, one level deep.

    Written `is_click` (the task's prediction), `{product: {is_click: 1, long_view: 0.5}}`, `{sum: {is_click: 1, long_view:
    2}}`, or with a list of terms: `{sum: [{weight: 2, product: {is_click: 1, long_view: 1}}]}`, `{product: [{exponent: 0.5,
    sum: {is_click: 1, is_like: 9}}]}`. A product takes probabilities; a sum may take any prediction.
    """

    sum: (
        Annotated[
            Annotated[dict[str, Weight], Field(min_length=1), Tag("by task")]
            | Annotated[list[ProductTerm], Field(min_length=1), Tag("terms")],
            Discriminator(_form),
        ]
        | None
    ) = None
    """Weights by task; or a list of weighted products."""
    product: (
        Annotated[
            Annotated[dict[str, Exponent], Field(min_length=1), Tag("by task")]
            | Annotated[list[SumFactor], Field(min_length=1), Tag("terms")],
            Discriminator(_form),
        ]
        | None
    ) = None
    """Exponents by binary task; or a list of powers of sums."""

    @model_validator(mode="before")
    @classmethod
    def _name_of_a_task(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"sum": {value: 1.0}}
        if not isinstance(value, (dict, ScoreFormula)):
            raise ValueError(f"{value!r} does not fit: name a task, or give a sum or a product of tasks.")
        return value

    @field_validator("sum", "product", mode="before")
    @classmethod
    def _one_form(cls, value: Any) -> Any:
        if value is not None and not isinstance(value, (dict, list)):
            raise ValueError(
                f"{value!r} does not fit: give numbers by task, such as {{is_click: 1}}, or a list of terms."
            )
        return value

    @model_validator(mode="after")
    def _sum_or_product(self) -> ScoreFormula:
        if (self.sum is None) == (self.product is None):
            raise ValueError("give either sum or product: one of them, and not both.")
        return self

    def check(self, run: RunConfigLike) -> None:
        """Refuse tasks that do not exist, and products of numbers that are no probabilities; raises :class:`Misfit`."""
        self.check_tasks(run.tasks)

    def check_tasks(self, tasks: Sequence[TaskConfig]) -> None:
        """Refuse tasks that are not in ``tasks``, and products of numbers that are no probabilities.

        Raises:
            Misfit: there is such a task; its key is named.
        """
        kinds = {task.name: task.kind for task in tasks}
        for key, name, power in self._mentions():
            if name not in kinds:
                raise Misfit(f"there is no task {name!r}; {suggest(name, kinds)}.", key)
            if power and kinds[name] != "binary":
                raise Misfit(
                    f"{name!r} predicts a number, not a probability, and a product takes probabilities; put it into a sum.",
                    key,
                )

    def _mentions(self) -> list[tuple[str, str, bool]]:
        """Key, task, and True if the task must be binary, for every task that is named."""
        found: list[tuple[str, str, bool]] = []
        for key, part in (("sum", self.sum), ("product", self.product)):
            if isinstance(part, dict):
                found += [(f"{key}.{name}", name, key == "product") for name in part]
            terms: list[Any] = part if isinstance(part, list) else []
            for number, term in enumerate(terms):
                inner, names = ("product", term.product) if isinstance(term, ProductTerm) else ("sum", term.sum)
                found += [(f"{key}.{number}.{inner}.{name}", name, True) for name in names]
        return found


class ServingConfig(Strict):
    """What an exported bundle does with the predictions; it changes nothing in training."""

    score: ScoreFormula | None = None
    """Score that `rank` orders candidates by: a task's name, or a sum or product over tasks such as `{product: {is_click:
    1, long_view: 0.5}}`. Default: the prediction of the first task."""
