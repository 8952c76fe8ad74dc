"""Description of raw rows in a bundle: how the raw value of every feature becomes its id or number."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dlrm_mtl.core.schema import Strict


class RawFeature(Strict):
    """A feature that the model reads, and its raw column."""

    name: str
    column: str
    """Name of the raw column."""
    kind: Literal["sparse", "sequence", "dense"]
    values: Literal["stored", "vocabulary", "hash", "number"]
    """`stored`: ids or numbers of the data set; `vocabulary`: texts that a vocabulary numbers; `hash`: texts that a hash
    numbers; `number`: numbers before the transform."""
    owner: str | None = None
    """Feature that owns the vocabulary, or whose name is part of the hash."""
    size: int | None = None
    """Number of ids of a hash."""
    seed: int = 0
    """Seed of a hash."""
    whole: bool = False
    """True if values are numbers, so that the text 17.0 has the id of 17."""
    listed: bool = False
    """True if the data set has lists: null is a list without ids."""
    null: Literal["zero", "null"] = "zero"
    """Id of null in a column of single values: 0, or none."""
    separator: str | None = None
    """Separator of the entries of a list in a text."""
    brackets: bool = False
    """True for lists in brackets."""
    max_length: int | None = None
    """Length to which lists are cut: sequences keep their last entries, others their first."""
    fill: float | None = None
    clip: tuple[float, float] | None = None
    transform: Literal["log1p", "signed_log"] | None = None


class RawRows(Strict):
    """Description of raw rows."""

    nulls: list[str] = Field(default_factory=list)
    """Texts that mean a missing value."""
    decimal: str = "."
    """Decimal point of numbers in texts."""
    thousands: str | None = None
    """Separator of thousands of numbers in texts."""
    features: list[RawFeature]
    seeds: dict[str, int] = Field(default_factory=dict)
    """Seed of the lookup of every vocabulary, by its owner; see :mod:`dlrm_mtl.serve.raw.lookup`."""
