"""The ``data.negatives`` part of a run's configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dlrm_mtl.core.schema import Strict


class NegativesConfig(Strict):
    """Rows with items that a user did not interact with, drawn in every epoch, for data of observed rows only."""

    item: str
    """Name of the sparse feature whose ids are drawn; a column of single ids."""
    along: list[str] = Field(default_factory=list)
    """Names of other features that belong to the item, such as its category, and change with it."""
    each: int = Field(default=1, gt=0)
    """Number of rows drawn for every observed row, which is one with a positive label."""
    by: Literal["uniform", "popularity", "in_batch"] = "uniform"
    """Distribution of items: equal for all items of the training split (`uniform`), in proportion to their number of rows
    there to the power `exponent` (`popularity`), or the item of another row of the same batch and lane (`in_batch`)."""
    exponent: float = Field(default=0.75, ge=0)
    """Power of the number of rows, for `by: popularity`."""
    known: Literal["allow", "avoid"] = "allow"
    """`avoid` never draws an item of a row of the training split with the same `user` and a positive label."""
    user: str | None = None
    """Name of the sparse feature that holds the user, for `known: avoid`; a column of single ids."""

    @model_validator(mode="after")
    def _names_fit(self) -> NegativesConfig:
        if self.known == "avoid" and self.user is None:
            raise ValueError("known: avoid needs to know whose items to avoid; add user, the name of a sparse feature.")
        if self.user == self.item:
            raise ValueError(f"user and item both name the feature {self.item!r}; name two.")
        for name in self.along:
            if name in (self.item, self.user):
                role = "item" if name == self.item else "user"
                raise ValueError(f"along names {name!r}, which is the {role} itself; leave it out there.")
            if self.along.count(name) > 1:
                raise ValueError(f"along names {name!r} twice; remove one.")
        return self

    @property
    def counts_items(self) -> bool:
        """True if the items of the training split must be known."""
        return self.by != "in_batch"

    @property
    def reads_split(self) -> bool:
        """True if the training split must be read."""
        return self.counts_items or self.known == "avoid"
