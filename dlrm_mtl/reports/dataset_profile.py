"""Profile of a data set: counts, fractions and distributions, computed out of core with DuckDB over its Parquet files."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.sql import file_literal, identifier, in_utc, quote
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.data.dataset import Split, open_dataset
from dlrm_mtl.data.leaks import Candidate, Leak, find_leaks
from dlrm_mtl.data.spec import DatasetSpec, FeatureSpec, LabelSpec
from dlrm_mtl.storage.filesystems import is_local

Floats = NDArray[np.float64]
Progress = Callable[[str, float], None]
"""Called with the name of the current work and the fraction of the whole that is done, 0 to 1."""

TOP_IDS = 3
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
BINS = 40
CURVE_POINTS = 200
TIME_NAME = re.compile(r"(^|_)(time|timestamp|date|datetime|day|ts)(_(s|ms|us|ns))?$", re.IGNORECASE)


@dataclass(frozen=True)
class SplitProfile:
    """Profile of one split."""

    name: str
    rows: int
    files: int
    row_groups: int
    bytes: int
    times: dict[str, tuple[str, str]]
    """First and last value of columns that look like times, as text."""


@dataclass(frozen=True)
class IdsProfile:
    """Profile of a sparse or sequence feature over one split."""

    feature: FeatureSpec
    vocabulary_size: int | None
    """Size of the vocabulary; None for unbounded ids."""
    distinct: int
    """Number of distinct ids other than 0."""
    coverage: float
    """Fraction of the rows with at least one id other than 0."""
    nulls: float
    """Fraction of the rows with null in the column."""
    mean_length: float
    """Mean number of ids per row."""
    longest: int
    """Largest number of ids in a row."""
    unknown: float
    """Fraction of id 0 among the ids."""
    outside: int
    """Number of ids that are not in the vocabulary."""
    top: list[tuple[int, float]]
    """Most frequent ids, and their fractions of all ids."""
    curve: tuple[Floats, Floats]
    """Numbers k of ids, and the fraction of all ids other than 0 that belongs to the k most frequent ones."""
    unseen: dict[str, float]
    """Fraction of ids that are 0 (unknown), or do not occur in this split, for every other split."""


@dataclass(frozen=True)
class NumbersProfile:
    """Profile of a dense feature over one split; null and not finite values are counted and otherwise ignored."""

    feature: FeatureSpec
    nulls: float
    """Fraction of the rows with null in the column."""
    not_finite: int
    """Number of rows with nan or an infinity, which training refuses."""
    zeros: float
    mean: float
    std: float
    low: float
    high: float
    quantiles: list[float]
    """Values at :data:`QUANTILES`, approximate (t-digest)."""
    edges: Floats  # [bins + 1], from the first to the last quantile
    counts: Floats  # [bins]


@dataclass(frozen=True)
class LabelProfile:
    """Profile of a label in every split."""

    label: LabelSpec
    means: dict[str, float]
    """Mean without nulls; for a binary label, the fraction of positives."""
    nulls: dict[str, float]
    """Fraction of the rows with null in the column."""


@dataclass(frozen=True)
class DatasetProfile:
    """Profile of a data set: all splits, and the features over the one named ``split``."""

    spec: DatasetSpec
    split: str
    splits: list[SplitProfile]
    ids: list[IdsProfile]
    numbers: list[NumbersProfile]
    labels: list[LabelProfile]
    leaks: list[Leak]
    """Suspicious information of a single feature about a binary label."""


def profile_dataset(
    path: str | Path, split: str | None = None, memory: str = "2GB", progress: Progress = lambda what, done: None
) -> DatasetProfile:
    """Profile the data set in the folder ``path``.

    Args:
        path: a folder with dataset.yaml, path or URI.
        split: split over which features are described; default: train, or the first one.
        memory: memory limit of DuckDB, such as 2GB; the rest goes to temporary files.
        progress: see :data:`Progress`.

    Raises:
        UserError: the data set or a column of it is missing or damaged, or an argument does not fit.
    """
    dataset = open_dataset(path)
    spec = dataset.spec
    split = split or ("train" if "train" in spec.splits else next(iter(spec.splits), "train"))
    opened = {name: dataset.split(name) for name in {split: None, **spec.splits}}
    features = sorted(spec.features, key=lambda feature: feature.kind == "dense")
    total = len(opened) * (1 + len(spec.labels)) + len(features) + 1
    done = 0

    def step(what: str) -> None:
        nonlocal done
        progress(what, done / total)
        done += 1

    with _database(memory) as connection:
        sources = {name: _source(connection, found) for name, found in opened.items()}
        types = {name: _types(connection, source) for name, source in sources.items()}
        _refuse_missing(path, spec, types)
        splits = []
        for name, found in opened.items():
            step(f"split {name}")
            splits.append(
                SplitProfile(
                    name=name,
                    rows=found.rows,
                    files=len(found.files),
                    row_groups=sum(file.metadata.num_row_groups for file in found.files),
                    bytes=sum(file.filesystem.get_file_info(file.path).size for file in found.files),
                    times=_times(connection, sources[name], types[name], spec),
                )
            )
        labels = []
        for label in spec.labels:
            means, nulls = {}, {}
            for name, source in sources.items():
                step(f"label {label.name}")
                means[name], nulls[name] = _label(connection, source, label.source)
            labels.append(LabelProfile(label, means, nulls))
        ids, numbers = [], []
        others = {name: source for name, source in sources.items() if name != split}
        for feature in features:
            step(feature.name)
            if feature.kind == "dense":
                numbers.append(_numbers(connection, sources[split], feature))
            else:
                owner = spec.feature(spec.vocabulary_owner(feature.name))
                size = None if owner.unbounded else spec.vocabulary_size(feature.name)
                listed = {name: types[name][feature.source].endswith("]") for name in sources}
                ids.append(_ids(connection, sources[split], others, listed, split, feature, size))
        step("what features say of labels")
        leaks = _leaks(connection, sources[split], types[split], spec)
        progress("", 1.0)
    return DatasetProfile(spec, split, splits, ids, numbers, labels, leaks)


def _leaks(connection: duckdb.DuckDBPyConnection, source: str, types: dict[str, str], spec: DatasetSpec) -> list[Leak]:
    candidates = {}
    for feature in spec.features:
        column = identifier(feature.source)
        if feature.kind == "dense":
            candidates[feature.name] = Candidate(f"CAST({column} AS DOUBLE)", number=True)
        elif types[feature.source].endswith("]"):
            candidates[feature.name] = Candidate(f"nullif(len({column}), 0)", number=True, listed=True)
        else:  # id 0 means unknown, and also missing in prepared data
            candidates[feature.name] = Candidate(f"nullif({column}, 0)", number=False)
    labels = {label.name: identifier(label.source) for label in spec.labels if label.kind == "binary"}
    return find_leaks(connection, source, candidates, labels)


@contextmanager
def _database(memory: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty database with the limit ``memory`` that spills into a temporary folder; its errors become UserErrors."""
    with tempfile.TemporaryDirectory(prefix="dlrm_mtl-describe-") as spill, duckdb.connect() as connection:
        try:
            connection.execute(f"SET memory_limit = {quote(memory)}")
        except duckdb.Error:
            raise UserError(f"data describe: --memory {memory}: this is no amount; write it as 2GB or 500MB.") from None
        connection.execute(f"SET temp_directory = {quote(spill)}")
        connection.execute("SET preserve_insertion_order = false")
        try:
            yield connection
        except duckdb.OutOfMemoryException:
            raise UserError(
                f"data describe: --memory {memory}: this is too little for these files; raise it."
            ) from None
        except duckdb.Error as error:
            problem = str(error).splitlines()[0].rstrip(".")
            raise UserError(f"data describe: a file cannot be read ({problem}); write it again.") from None


def _types(connection: duckdb.DuckDBPyConnection, source: str) -> dict[str, str]:
    return {str(row[0]): str(row[1]) for row in connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()}


def _refuse_missing(path: str | Path, spec: DatasetSpec, types: dict[str, dict[str, str]]) -> None:
    for column in [*(feature.source for feature in spec.features), *(label.source for label in spec.labels)]:
        for split, columns in types.items():
            if column not in columns:
                raise UserError(f"{path}: split {split!r} has no column {column!r}; {suggest(column, columns)}.")


def _times(
    connection: duckdb.DuckDBPyConnection, source: str, types: dict[str, str], spec: DatasetSpec
) -> dict[str, tuple[str, str]]:
    """Ranges of the columns that are neither features nor labels and whose type or name indicates a time."""
    used = {feature.source for feature in spec.features} | {label.source for label in spec.labels}
    found = {}
    for column, type_ in types.items():
        typed = type_.startswith(("TIMESTAMP", "DATE"))
        if column in used or not (typed or (TIME_NAME.search(column) and type_ in ("INTEGER", "BIGINT", "UBIGINT"))):
            continue
        zoned = type_.startswith("TIMESTAMP") and ("ZONE" in type_ or "TZ" in type_)
        value = in_utc(identifier(column)) if zoned else identifier(column)
        text = f"CAST({value} AS VARCHAR)" if typed else value
        first, last = _row(connection, f"SELECT min({text}), max({text}) FROM {source}")
        shown = (first, last) if typed or first is None else (_as_time(first), _as_time(last))
        if shown[0] is not None and shown[1] is not None:
            found[column] = (str(shown[0]), str(shown[1]))
    return found


def _as_time(value: int) -> str | None:
    """A whole number as a date (20240131) or as time since 1970 in s, ms, us or ns, whichever is plausible; else None."""
    digits = str(value)
    if len(digits) == 8 and 1900 <= value // 10000 <= 2100 and 1 <= value // 100 % 100 <= 12 and 1 <= value % 100 <= 31:
        return f"{digits[:4]}-{digits[4:6]}-{digits[6:]}"
    for unit in (1, 10**3, 10**6, 10**9):
        if 10**8 <= value / unit < 5 * 10**9:
            return datetime.fromtimestamp(value // unit, tz=timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    return None


def _label(connection: duckdb.DuckDBPyConnection, source: str, column: str) -> tuple[float, float]:
    name = identifier(column)
    mean, nulls = _row(connection, f"SELECT avg({_finite(name)}), avg(CAST({name} IS NULL AS INTEGER)) FROM {source}")
    return _float(mean), _float(nulls)


def _ids(
    connection: duckdb.DuckDBPyConnection,
    source: str,
    others: dict[str, str],
    listed: dict[str, bool],
    split: str,
    feature: FeatureSpec,
    size: int | None,
) -> IdsProfile:
    column = identifier(feature.source)
    present = f"len(list_filter({column}, lambda id: id <> 0)) > 0" if listed[split] else f"{column} <> 0"
    length = f"list_count({column})" if listed[split] else f"CAST({column} IS NOT NULL AS INTEGER)"
    coverage, nulls, mean_length, longest = _row(
        connection,
        f"""SELECT avg(CASE WHEN {present} THEN 1.0 ELSE 0.0 END), avg(CAST({column} IS NULL AS INTEGER)),
        avg(coalesce({length}, 0)), max({length}) FROM {source}""",
    )
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE frequencies AS SELECT id, count(*) AS n
        FROM ({_each(source, column, listed[split])}) WHERE id IS NOT NULL GROUP BY id"""
    )
    beyond = "false" if size is None else f"id < 0 OR id >= {size}"
    distinct, total, unknown, outside = _row(
        connection,
        f"""SELECT count(*) FILTER (id <> 0), coalesce(sum(n), 0), coalesce(sum(n) FILTER (id = 0), 0),
        coalesce(sum(n) FILTER ({beyond}), 0) FROM frequencies""",
    )
    top = connection.execute(f"SELECT id, n FROM frequencies ORDER BY n DESC, id LIMIT {TOP_IDS}").fetchall()
    levels = connection.execute(
        "SELECT n, count(*) AS ids FROM frequencies WHERE id <> 0 GROUP BY n ORDER BY n DESC"
    ).fetchnumpy()
    unseen = {}
    for name, other in others.items():
        new, all_ = _row(
            connection,
            f"""SELECT count(*) FILTER (f.id IS NULL OR o.id = 0), count(*)
            FROM (SELECT id FROM ({_each(other, column, listed[name])}) WHERE id IS NOT NULL) o
            LEFT JOIN frequencies f USING (id)""",
        )
        unseen[name] = new / all_ if all_ else 0.0
    return IdsProfile(
        feature=feature,
        vocabulary_size=size,
        distinct=int(distinct),
        coverage=_float(coverage),
        nulls=_float(nulls),
        mean_length=_float(mean_length),
        longest=int(longest or 0),
        unknown=unknown / total if total else 0.0,
        outside=int(outside),
        top=[(int(id_), n / total) for id_, n in top],
        curve=_curve(levels["n"].astype(np.float64), levels["ids"].astype(np.float64)),
        unseen=unseen,
    )


def _curve(frequencies: Floats, ids: Floats) -> tuple[Floats, Floats]:
    """Numbers k of ids, and the fraction of the k most frequent ones, from descending frequencies [m] and their counts."""
    if not len(ids):
        return np.empty(0), np.empty(0)
    known_ids, known = np.cumsum(ids), np.cumsum(frequencies * ids)
    count = int(known_ids[-1])
    k = np.unique(np.round(np.geomspace(1, count, min(CURVE_POINTS, count))))
    # Between two levels all ids are equally frequent, so the fraction is linear in k.
    return k, np.interp(k, np.concatenate([[0.0], known_ids]), np.concatenate([[0.0], known])) / known[-1]


def _numbers(connection: duckdb.DuckDBPyConnection, source: str, feature: FeatureSpec) -> NumbersProfile:
    column = identifier(feature.source)
    number = _finite(column)
    nulls, missing, zeros, mean, std, low, high, quantiles = _row(
        connection,
        f"""SELECT avg(CAST({column} IS NULL AS INTEGER)), count({column}) - count({number}),
        avg(CAST({number} = 0 AS INTEGER)), avg({number}), stddev_pop({number}), min({number}), max({number}),
        approx_quantile({number}, {list(QUANTILES)}) FROM {source}""",
    )
    found = [_float(value) for value in quantiles or [None] * len(QUANTILES)]
    edges, counts = np.linspace(found[0], found[-1], BINS + 1), np.zeros(BINS)
    if np.isfinite(found).all() and found[-1] > found[0]:
        width = (found[-1] - found[0]) / BINS
        rows = connection.execute(
            f"""SELECT least(CAST(floor(({number} - {found[0]!r}) / {width!r}) AS INTEGER), {BINS - 1}) AS bin, count(*)
            FROM {source} WHERE {number} BETWEEN {found[0]!r} AND {found[-1]!r} GROUP BY bin"""
        ).fetchall()
        for bin_, count in rows:
            counts[bin_] = count
    return NumbersProfile(
        feature=feature,
        nulls=_float(nulls),
        not_finite=int(missing),
        zeros=_float(zeros),
        mean=_float(mean),
        std=_float(std),
        low=_float(low),
        high=_float(high),
        quantiles=found,
        edges=edges,
        counts=counts,
    )


def _finite(column: str) -> str:
    """SQL of the column as numbers; values that are not finite become null."""
    return f"CASE WHEN isfinite(CAST({column} AS DOUBLE)) THEN CAST({column} AS DOUBLE) END"


def _each(source: str, column: str, listed: bool) -> str:
    """Query of all ids of a column, one per row."""
    return f"SELECT {f'unnest({column})' if listed else column} AS id FROM {source}"


def _source(connection: duckdb.DuckDBPyConnection, split: Split) -> str:
    """SQL of the rows of a split: read by DuckDB itself where they are local, through Arrow's file system where not."""
    paths = [file.path for file in split.files]
    if is_local(split.files[0].filesystem):
        return f"read_parquet([{', '.join(file_literal(path) for path in paths)}], hive_partitioning = false)"
    from pyarrow.dataset import dataset

    connection.register(split.name, dataset(paths, filesystem=split.files[0].filesystem, format="parquet"))
    return identifier(split.name)


def _row(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    row = connection.execute(query).fetchone()
    assert row is not None
    return tuple(row)


def _float(value: Any) -> float:
    return float("nan") if value is None else float(value)
