"""The two parts of a request's input: fields of the context, encoded and looked up once, and those of the candidates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from dlrm_mtl.data.join_rows import Joined
from dlrm_mtl.data.keyed_ids import PlainKeyedIds
from dlrm_mtl.embeddings.local_tables import local_tables
from dlrm_mtl.embeddings.tables import TableSet
from dlrm_mtl.models.feature_lookup import FeatureLookup
from dlrm_mtl.serve.encode import RowEncoder
from dlrm_mtl.serve.joint_lookup import JointLookup
from dlrm_mtl.serve.rows import Rows, Where, check_mappings, table_of
from dlrm_mtl.serve.tables import ServedTable

Piece = tuple[int, slice]
"""Columns that lie together: the part that holds them (0 context, 1 candidates), and their places in it."""


class RequestParts:
    """Model input of requests whose candidates hold certain features: the columns of [N, W] and [N, D], from two parts.

    Every value is computed as for a whole row, and the context's are repeated: so the input is the same, bit for bit.

    Args:
        lookup: the model's lookup.
        tables: rows by name of the table.
        encoder: encoder of whole rows.
        candidates: features that are read from the candidates; all others are read from the context, or constant.
    """

    def __init__(
        self, lookup: FeatureLookup, tables: Mapping[str, ServedTable], encoder: RowEncoder, candidates: frozenset[str]
    ) -> None:
        shared = frozenset({*encoder.keys, *encoder.dense} - candidates)
        self._encoders = encoder.part(shared), encoder.part(candidates)
        self._lookups = [_Columns(lookup.table_set, each.keys, tables) for each in self._encoders]
        self._vectors = _pieces(
            list(zip(lookup.names, lookup.widths, strict=True)), [each.columns for each in self._lookups]
        )
        dense = [[(name, 1) for name in each.dense] for each in self._encoders]
        self._numbers = _pieces([(name, 1) for name in encoder.dense], dense)

    def encode(
        self, context: Mapping[str, Any], candidates: Rows, where: Where, rows: int
    ) -> tuple[int, Iterator[tuple[Tensor, Tensor]]]:
        """Number N of candidates, and their vectors [n, W] and numbers [n, D], ``rows`` at a time.

        Raises:
            UserError: a field is missing, or a value is not allowed.
        """
        encoded = self._encoders[1].encode(candidates, where)
        once = self._encoders[0].encode([context], Where(context_of(where)), times=encoded.rows)
        return encoded.rows, self._inputs(next(once.parts(1)), encoded.parts(rows))

    @torch.inference_mode()
    def _inputs(self, once: Joined, parts: Iterator[Joined]) -> Iterator[tuple[Tensor, Tensor]]:
        shared = self._lookups[0](once)
        for part in parts:
            vectors = self._lookups[1](part)
            yield (
                _together(self._vectors, shared, vectors, part.rows),
                _together(self._numbers, once.dense, part.dense, part.rows),
            )


CANDIDATES = Where("candidates")
"""Origin of candidates, if nothing else is known."""


def context_of(where: Where) -> str:
    """Place of the context, given that of the candidates."""
    return "context" if where == CANDIDATES else f"{where.name}, context"


def split_fields(context: Mapping[str, Any], candidates: Rows, where: Where) -> tuple[set[str], Rows]:
    """Fields of the candidates; and the candidates, which take those fields that only some of them have from ``context``.

    Raises:
        UserError: the candidates are no rows.
    """
    table = table_of(candidates)
    if table is not None:
        return set(table.column_names), table
    check_mappings(candidates, where)
    fields: set[str] = set().union(*candidates)
    both = {name: value for name, value in context.items() if name in fields}
    return fields, [{**both, **candidate} for candidate in candidates] if both else candidates


class _Columns:
    """Lookup of some of the model's features.

    Args:
        tables: the model's tables.
        keys: names of the features.
        rows: rows by name of the table.
    """

    def __init__(self, tables: TableSet, keys: Sequence[str], rows: Mapping[str, ServedTable]) -> None:
        self._keys = list(keys)
        self._joint = JointLookup(tables, keys, rows)
        rest = set(keys) - set(self._joint.names)
        own = [(table, [name for name in table.feature_names if name in rest]) for table in tables.configs]
        part = replace(tables, configs=[replace(table, feature_names=names) for table, names in own if names])
        self._lookup = FeatureLookup(part)
        self._lookup.use(*local_tables(part, rows))
        self.columns = [(name, self._joint.width) for name in self._joint.names]
        """Name and width of each feature's vectors, in order."""
        self.columns += zip(self._lookup.names, self._lookup.widths, strict=True)

    def __call__(self, joined: Joined) -> Tensor:
        """Vectors [B, w] of the features."""
        found = [torch.empty(joined.rows, 0)]
        if self._joint.names:
            found.append(self._joint(joined, len(self._keys)))
        if self._lookup.names:
            found.append(self._lookup(PlainKeyedIds(self._keys, joined.values, joined.lengths, joined.rows)))
        return torch.cat(found, dim=1) if len(found) > 2 else found[-1]


def _pieces(whole: Sequence[tuple[str, int]], parts: Sequence[Sequence[tuple[str, int]]]) -> list[Piece]:
    """Places in the two parts of the columns of the whole, given the names and widths of each; neighbours are joined."""
    places: dict[str, tuple[int, int]] = {}
    for part, columns in enumerate(parts):
        ends = accumulate(width for _, width in columns)
        places |= {name: (part, end - width) for (name, width), end in zip(columns, ends, strict=True)}
    pieces: list[Piece] = []
    for name, width in whole:
        part, start = places[name]
        if pieces and pieces[-1][0] == part and pieces[-1][1].stop == start:
            pieces[-1] = (part, slice(pieces[-1][1].start, start + width))
        else:
            pieces.append((part, slice(start, start + width)))
    return pieces


def _together(pieces: Sequence[Piece], once: Tensor, many: Tensor, rows: int) -> Tensor:
    """[rows, columns]: the pieces of ``once`` [1, m], repeated, and of ``many`` [rows, n]."""
    if not pieces:
        return many
    return torch.cat([many[:, at] if part else once[:, at].expand(rows, -1) for part, at in pieces], dim=1)
