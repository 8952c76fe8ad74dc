"""Sparse and sequence features of a user's table: vocabularies of the training rows, and every row's ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dlrm_mtl.core.sql import quote
from dlrm_mtl.prepare.common.ids import frequency_vocabulary, hash_sql, one_row, vocabulary_fingerprint
from dlrm_mtl.prepare.table.description import FeatureConfig, FrequencyConfig, HashConfig
from dlrm_mtl.prepare.table.files import Table
from dlrm_mtl.prepare.table.values import elements, has_lists, id_text

CHUNK_ROWS = 250_000
"""Number of rows whose lists are unnested and rebuilt at a time."""


@dataclass
class Ids:
    """Sources of the ids of each feature."""

    columns: dict[str, str] = field(default_factory=dict)
    """SQL of the ids of each feature, over ``rows`` and ``tables``."""
    tables: list[str] = field(default_factory=list)
    """Tables with one row for each row of ``rows``, in the same order."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Vocabulary size of each feature that owns a vocabulary."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Fingerprint of the vocabulary of each such feature."""
    vocabularies: dict[str, str] = field(default_factory=dict)
    """Table (id, value, count) of each feature with a vocabulary by frequency."""


def number_values(
    table: Table,
    features: Sequence[FeatureConfig],
    nulls: Sequence[str],
    progress: Callable[[str, float], None],
    known: Mapping[str, str] | None = None,
) -> Ids:
    """Build vocabularies from the rows whose split is ``train`` and number the values of all rows.

    One feature at a time: never more than one vocabulary is in memory as a hash table. Needs the table ``splits`` (split).

    Args:
        table: the rows.
        features: sparse and sequence features.
        nulls: texts that stand for null.
        progress: called with the feature and the fraction of the features that is done.
        known: tables (id, value, count) of features with existing vocabularies.
    """
    ids = Ids(vocabularies=dict(known or {}))
    for position, feature in enumerate(features):
        progress(feature.name, position / max(len(features), 1))
        listed = has_lists(table, feature)
        values = elements(table, feature, nulls) if listed else id_text(table, feature.source)
        owner = _owner(feature, features)
        vocabulary = owner.vocabulary or FrequencyConfig()
        if isinstance(vocabulary, HashConfig):
            ids.sizes[owner.name] = vocabulary.size
            ids.fingerprints[owner.name] = f"hash, seed {vocabulary.seed}"
            hashed = hash_sql("x" if listed else values, vocabulary.size, feature=owner.name, seed=vocabulary.seed)
            ids.columns[feature.name] = f"list_transform({values}, lambda x: {hashed})" if listed else hashed
        else:
            if owner.name not in ids.vocabularies:
                sharers = [f for f in features if owner.name in (f.name, f.vocabulary_of)]
                name = f"vocabulary_{len(ids.vocabularies)}"
                query = " UNION ALL ".join(_training_values(table, sharer, nulls) for sharer in sharers)
                ids.sizes[owner.name] = frequency_vocabulary(
                    table.connection, name, query, min_count=vocabulary.min_count, max_size=vocabulary.max_size
                )
                ids.fingerprints[owner.name] = vocabulary_fingerprint(table.connection, name)
                ids.vocabularies[owner.name] = name
            target = f"ids_{position}"
            (_look_up_lists if listed else _look_up)(table, values, ids.vocabularies[owner.name], target)
            ids.tables.append(target)
            ids.columns[feature.name] = f"{target}.ids"
    return ids


def count_unknown(table: Table, features: Sequence[FeatureConfig], ids: Ids) -> dict[str, tuple[int, int]]:
    """Numbers of unknown and of all values, for each feature with a vocabulary by frequency."""
    counts = {}
    for feature in features:
        if _owner(feature, features).name not in ids.vocabularies:
            continue
        column = ids.columns[feature.name]
        if has_lists(table, feature):
            counted = f"sum(len(list_filter({column}, lambda x: x = 0))), sum(len({column}))"
        else:
            value = id_text(table, feature.source)
            counted = f"count({value}) FILTER ({column} = 0), count({value})"
        found = one_row(table.connection, f"SELECT {counted} FROM rows POSITIONAL JOIN {column.removesuffix('.ids')}")
        counts[feature.name] = (int(found[0] or 0), int(found[1] or 0))
    return counts


def _owner(feature: FeatureConfig, features: Sequence[FeatureConfig]) -> FeatureConfig:
    """Feature whose vocabulary ``feature`` uses."""
    return next(f for f in features if f.name == (feature.vocabulary_of or feature.name))


def write_vocabularies(table: Table, ids: Ids, path: Path) -> None:
    """Write all vocabularies by frequency to one Parquet file: feature, id, value, count."""
    if ids.vocabularies:
        query = " UNION ALL ".join(
            f"SELECT {quote(feature)} AS feature, id, value, count FROM {vocabulary}"
            for feature, vocabulary in ids.vocabularies.items()
        )
        table.connection.execute(f"COPY ({query}) TO {quote(str(path))} (FORMAT parquet, COMPRESSION zstd)")


def _training_values(table: Table, feature: FeatureConfig, nulls: Sequence[str]) -> str:
    listed = has_lists(table, feature)
    value = f"unnest({elements(table, feature, nulls)})" if listed else id_text(table, feature.source)
    return f"SELECT {value} AS value FROM rows POSITIONAL JOIN splits WHERE split = 'train'"


def _look_up(table: Table, value: str, vocabulary: str, target: str) -> None:
    table.connection.execute(
        f"""CREATE TABLE {target} AS SELECT coalesce(v.id, 0) AS ids
        FROM (SELECT rowid AS row, {value} AS value FROM rows) r LEFT JOIN {vocabulary} v USING (value) ORDER BY row"""
    )


def _look_up_lists(table: Table, values: str, vocabulary: str, target: str) -> None:
    """Look up the ids of lists; lists without an entry become null."""
    table.connection.execute(f"CREATE TABLE {target} (ids INTEGER[])")
    for start in range(0, table.rows, CHUNK_ROWS):
        chunk = f"FROM rows WHERE rowid >= {start} AND rowid < {start + CHUNK_ROWS}"
        table.connection.execute(
            f"""INSERT INTO {target}
            WITH entries AS (SELECT row, unnest(listed) AS value, generate_subscripts(listed, 1) AS position
                             FROM (SELECT rowid AS row, {values} AS listed {chunk})),
            numbered AS (SELECT row, list(coalesce(v.id, 0) ORDER BY position) AS ids
                         FROM entries LEFT JOIN {vocabulary} v USING (value) GROUP BY row)
            SELECT n.ids FROM (SELECT rowid AS row {chunk}) r LEFT JOIN numbered n USING (row) ORDER BY row"""
        )
