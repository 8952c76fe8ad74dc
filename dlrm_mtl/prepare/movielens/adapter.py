"""MovieLens: film ratings to a data set with the tasks liked (binary) and rating (a number)."""

from __future__ import annotations

import tempfile
from enum import Enum
from pathlib import Path
from typing import Annotated

import duckdb
import numpy as np
import pyarrow as pa
import typer

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.registry import register
from dlrm_mtl.core.sql import quote
from dlrm_mtl.data.spec import DatasetSpec, FeatureSpec, LabelSpec, SplitSpec
from dlrm_mtl.data.statistics import describe
from dlrm_mtl.prepare.common.ids import frequency_vocabulary, hash_text_sql, one_row
from dlrm_mtl.prepare.common.io import Progress, connect_on_disk, output_folder
from dlrm_mtl.prepare.common.splits import random_split, time_cuts, time_split
from dlrm_mtl.prepare.movielens.files import Layout, find_layout, load

ROW_GROUP_ROWS = 32768
CS330_ROWS, CS330_TRAINING_ROWS, CS330_SEED = 100_000, 95_000, 123

LICENCE = "GroupLens licence in the data set's README: research use, no redistribution without permission"
CITATION = """\
F. Maxwell Harper and Joseph A. Konstan. The MovieLens Datasets: History and Context. ACM Transactions on Interactive \
Intelligent Systems 5, 4, Article 19, 2015. https://doi.org/10.1145/2827872"""


class Split(str, Enum):
    """How ratings are divided."""

    random = "random"
    time = "time"
    user = "user"
    cs330 = "cs330"


@register("adapter", "movielens")
def prepare(
    input: Annotated[
        Path,
        typer.Option(help="Folder with u.data (100K), ratings.dat (1M, 10M) or ratings.csv (20M to 32M), and movies."),
    ],
    output: Path,
    *,
    split: Annotated[
        Split,
        typer.Option(
            help="`random` rows; `time`, the latest last; `user`, whole users; `cs330`, the split of Stanford's CS330 "
            "homework on MovieLens 100K: 95,000 and 5,000 random rows, no validation."
        ),
    ] = Split.random,
    training_share: Annotated[float, typer.Option(min=0.01, max=0.98, help="Share of training rows, or users.")] = 0.8,
    validation_share: Annotated[
        float, typer.Option(min=0.01, max=0.98, help="Share of validation; the rest is test.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Another seed draws other rows, or users.")] = 0,
    like_from: Annotated[float, typer.Option(help="`liked` is 1 from this rating on.")] = 4.0,
    progress: Progress = lambda what, done: None,
) -> None:
    """MovieLens 100K to 32M: film ratings, with the tasks liked and rating.

    Ids of users and items are those of the files; other categories go by frequency. Rows stand in a fixed random order. Raises
    :class:`UserError` for missing or malformed files, or if ``output`` cannot be written.
    """
    if training_share + validation_share >= 1:
        raise UserError(
            f"--training-share {training_share:g} and --validation-share {validation_share:g} leave no test rows; lower one."
        )
    layout, paths = find_layout(input)
    with (
        output_folder(output) as folder,
        tempfile.TemporaryDirectory(prefix=f".{output.name}.work-", dir=output.parent) as work,
        connect_on_disk(Path(work)) as connection,
    ):
        progress("reading the files", 0.0)
        attributes = load(connection, Path(work), layout, paths)
        progress("dividing the ratings", 0.3)
        shares = {
            "train": training_share,
            "validation": validation_share,
            "test": 1 - training_share - validation_share,
        }
        counts = _divide(connection, split, shares, seed, paths[layout.ratings])
        progress("numbering categories", 0.4)
        categories = {
            name: f"SELECT {name} FROM users" for name in attributes if name != "age" or layout.name != "100K"
        }
        categories["genres"] = "SELECT unnest(genres) FROM movies"
        sizes = {
            name: frequency_vocabulary(connection, f"vocabulary_{name}", query) for name, query in categories.items()
        }
        for name, table in (("user", "users"), ("item", "movies")):
            known = f" UNION ALL SELECT {name} FROM {table}" if table == "movies" or attributes else ""
            row = one_row(connection, f"SELECT max({name}) + 1 FROM (SELECT {name} FROM ratings{known})")
            sizes[name] = int(row[0])
        for position, name in enumerate(counts):
            progress(f"writing {name}", 0.5 + 0.4 * position / len(counts))
            path = folder / name / "part-00000.parquet"
            path.parent.mkdir()
            connection.execute(
                f"COPY ({_rows(attributes, categories, like_from)} WHERE r.split = {quote(name)} "
                f"ORDER BY {hash_text_sql('r.row')}, r.row) TO {quote(str(path))} "
                f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP_ROWS})"
            )
        vocabularies = " UNION ALL ".join(
            f"SELECT {quote(name)} AS feature, id, value, count FROM vocabulary_{name}" for name in categories
        )
        connection.execute(
            f"COPY ({vocabularies}) TO {quote(str(folder / 'vocabularies.parquet'))} (FORMAT parquet, COMPRESSION zstd)"
        )
        progress("describing", 0.9)
        describe(folder, _specification(layout, split, counts, sizes, attributes, like_from))
    progress("done", 1.0)


def cs330_training_rows() -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The 95,000 training rows of Stanford's CS330 homework on MovieLens 100K, in its order; the first row of u.data is 0."""
    return np.random.RandomState(CS330_SEED).permutation(CS330_ROWS)[:CS330_TRAINING_ROWS].astype(np.int64)


def _divide(
    connection: duckdb.DuckDBPyConnection, split: Split, shares: dict[str, float], seed: int, path: Path
) -> dict[str, int]:
    """Add the column split to ratings; returns the rows of each split."""
    row = one_row(connection, "SELECT count(*) FROM ratings")
    rows = int(row[0])
    if split is Split.cs330:
        if rows != CS330_ROWS:
            raise UserError(
                f"{path}: --split cs330 is for the {CS330_ROWS:,} ratings of MovieLens 100K, not {rows:,}; use another."
            )
        connection.register("chosen", pa.table({"row": cs330_training_rows()}))
        connection.execute("CREATE TABLE training AS FROM chosen")
        expression = "CASE WHEN row IN (SELECT row FROM training) THEN 'train' ELSE 'test' END"
    elif split is Split.time:
        expression = time_split("time", time_cuts(connection, "ratings", "time", shares))
    else:
        expression = random_split("row" if split is Split.random else "user", shares, seed=seed)
    connection.execute(f"CREATE TABLE divided AS SELECT *, {expression} AS split FROM ratings")
    counts = dict(connection.execute("SELECT split, count(*) FROM divided GROUP BY split").fetchall())
    names = ["train", "test"] if split is Split.cs330 else list(shares)
    empty = next((name for name in names if not counts.get(name)), None)
    if empty is not None:
        raise UserError(f"{path}: split {empty!r} gets none of the {rows} ratings; change the shares.")
    return {name: int(counts[name]) for name in names}


def _rows(attributes: list[str], categories: dict[str, str], like_from: float) -> str:
    """The query that gives the final columns."""
    selected = ["r.user", "r.item", "g.genres"]
    joins = [
        "LEFT JOIN movies m USING (item)",
        "LEFT JOIN (SELECT item, " + _GENRE_IDS + " GROUP BY item) g USING (item)",
    ]
    if attributes:
        joins.append("LEFT JOIN users u USING (user)")
    for name in attributes:
        if name in categories:
            joins.append(f"LEFT JOIN vocabulary_{name} v_{name} ON v_{name}.value = CAST(u.{name} AS VARCHAR)")
            selected.append(f"coalesce(v_{name}.id, 0) AS {name}")
        else:
            selected.append(f"u.{name}")
    selected += ["CAST(hour(make_timestamp(r.time * 1000000)) + 1 AS INTEGER) AS hour"]
    selected += ["CAST(isodow(make_timestamp(r.time * 1000000)) AS INTEGER) AS weekday"]
    selected += ["CAST(m.year AS INTEGER) AS year", "r.rating", f"CAST(r.rating >= {like_from!r} AS TINYINT) AS liked"]
    return f"SELECT {', '.join(selected)}, r.time AS timestamp FROM divided r {' '.join(joins)}"


_GENRE_IDS = """list(v.id ORDER BY v.id) AS genres
    FROM (SELECT item, unnest(genres) AS value FROM movies) JOIN vocabulary_genres v USING (value)"""


def _specification(
    layout: Layout, split: Split, counts: dict[str, int], sizes: dict[str, int], attributes: list[str], like_from: float
) -> DatasetSpec:
    sizes = {**sizes, "hour": 25, "weekday": 8}
    texts = {
        "hour": "hour of the rating, UTC, plus 1",
        "weekday": "day of the rating, UTC, 1 is Monday",
        "zip_area": "first character of the zip code",
    }
    sparse = ["user", "item", "genres", *(name for name in attributes if name in sizes), "hour", "weekday"]
    dense = [*(name for name in attributes if name not in sizes), "year"]
    features = [
        FeatureSpec(name=name, kind="sparse", vocabulary_size=sizes[name], description=texts.get(name))
        for name in sparse
    ]
    features += [FeatureSpec(name=name, kind="dense") for name in dense]
    name = {"100K": "100K", "1M": "1M or 10M", "csv": "20M or later"}[layout.name]
    return DatasetSpec(
        name="movielens",
        description=f"MovieLens {name}: ratings of films, split by {split.value}.",
        licence=LICENCE,
        citation=CITATION,
        splits={name: SplitSpec(folder=name, rows=count) for name, count in counts.items()},
        features=features,
        labels=[
            LabelSpec(name="liked", description=f"rating >= {like_from:g}"),
            LabelSpec(name="rating", kind="real"),
        ],
    )
