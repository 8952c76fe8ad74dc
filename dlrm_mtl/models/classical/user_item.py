"""Tables for models that look users and items up more than once."""

from __future__ import annotations

import dataclasses

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.embeddings.tables import EmbeddingTable, TableSet


def two_halves(single: TableSet) -> TableSet:
    """Every table twice: ``product_NAME`` first, then ``deep_NAME``, with the same features."""
    halves = [(f"{half}_{table.name}", table) for half in ("product", "deep") for table in single.configs]
    return TableSet(
        configs=[dataclasses.replace(table, name=name) for name, table in halves],
        stds={name: single.stds[table.name] for name, table in halves},
        means=single.means,
        pretrained={name: single.pretrained[table.name] for name, table in halves if table.name in single.pretrained},
    )


def vectors(name: str, spec: DatasetSpec, features: list[str], dim: int) -> EmbeddingTable:
    """A table called ``name`` for ``features``, which share the vocabulary of the first one."""
    return EmbeddingTable(name, spec.vocabulary_size(features[0]), dim, features)


def check_pair(user: str, item: str, features: list[str]) -> None:
    """Check that ``model.user`` and ``model.item`` name two features of the run; raises :class:`UserError`."""
    for key, name in (("user", user), ("item", item)):
        if name not in features:
            raise UserError(f"model.{key}: the run reads no feature {name!r}; {suggest(name, features)}.")
    if user == item:
        raise UserError(f"model.item: {item!r} is model.user as well; name the feature that holds the item.")
