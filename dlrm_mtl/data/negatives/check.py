"""Checks that the negatives of a run can be drawn from its data set."""

from __future__ import annotations

from collections.abc import Sequence

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.data.chosen_columns import ANY_ID, Selection, select
from dlrm_mtl.data.config import DataConfig
from dlrm_mtl.data.file_checks import Layout
from dlrm_mtl.data.negatives.config import NegativesConfig
from dlrm_mtl.data.spec import DatasetSpec


def check_negatives(spec: DatasetSpec, config: DataConfig, labels: Sequence[str]) -> None:
    """Check the names in `data.negatives` against the data set's description; does nothing without negatives.

    Raises:
        UserError: a name that the run does not read, a feature of another kind, unbounded items, no binary label.
    """
    negatives = config.negatives
    if negatives is None:
        return
    selection = select(spec, config, labels)
    singles = {feature.name for feature in selection.sparse if feature.kind == "sparse"}
    roles = {"item": negatives.item, **({"user": negatives.user} if negatives.user is not None else {})}
    for role, name in roles.items():
        if name not in singles:
            raise UserError(_not_read(f"data.negatives.{role}", name, "sparse feature", singles))
    features = {feature.name for feature in (*selection.sparse, *selection.dense)}
    for position, name in enumerate(negatives.along):
        if name not in features:
            raise UserError(
                _not_read(f"data.negatives.along.{position}", name, "feature", features - set(roles.values()))
            )
    if negatives.counts_items and selection.vocabulary_sizes[negatives.item] == ANY_ID:
        raise UserError(
            f"data.negatives.by: {negatives.by} draws from a list of all items, and ids of {negatives.item!r} are unbounded; "
            "draw in_batch, or give the feature a vocabulary."
        )
    if not any(label.kind == "binary" for label in selection.labels):
        raise UserError(
            "data.negatives: negatives are drawn for rows with a positive binary label, and no task reads a binary label; "
            "remove the key, or add such a task."
        )


def check_columns(layout: Layout, negatives: NegativesConfig) -> None:
    """Check that item and user are columns of single ids in the files; raises :class:`UserError`."""
    for role in ("item", "user"):
        name = getattr(negatives, role)
        if name in layout.lists:
            raise UserError(
                f"data.negatives.{role}: feature {name!r} has lists of ids, where one id is needed; name another feature."
            )


def binary_labels(selection: Selection) -> list[str]:
    """Binary labels that a run reads, each once."""
    return list(dict.fromkeys(label.name for label in selection.labels if label.kind == "binary"))


def _not_read(place: str, name: str, what: str, known: set[str]) -> str:
    return f"{place}: the run reads no {what} {name!r}; {suggest(name, known)}."
