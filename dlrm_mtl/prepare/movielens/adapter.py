"""MovieLens: film ratings as a data set with the tasks liked (binary) and rating (a number)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.registry import register
from dlrm_mtl.core.sql import quote
from dlrm_mtl.data.spec import DatasetSpec, FeatureSpec, LabelSpec, SplitSpec
from dlrm_mtl.data.statistics import describe
from dlrm_mtl.prepare.common.ids import frequency_vocabulary, hash_text_sql, one_row
from dlrm_mtl.prepare.common.io import Progress, output_folder, work_beside
from dlrm_mtl.prepare.movielens.columns import rows
from dlrm_mtl.prepare.movielens.divide import RatingSplit, divide
from dlrm_mtl.prepare.movielens.layouts import FileLayout, find_layout
from dlrm_mtl.prepare.movielens.tables import load

ROW_GROUP_ROWS = 32768

LICENCE = "GroupLens licence in the data set's README: research use, no redistribution without permission"
CITATION = """\
F. Maxwell Harper and Joseph A. Konstan. The MovieLens Datasets: History and Context. ACM Transactions on Interactive \
Intelligent Systems 5, 4, Article 19, 2015. https://doi.org/10.1145/2827872"""


@register("adapter", "movielens")
def prepare(
    input: Annotated[
        Path,
        typer.Option(help="Folder with u.data (100K), ratings.dat (1M, 10M) or ratings.csv (20M to 32M), and movies."),
    ],
    output: Path,
    *,
    split: Annotated[
        RatingSplit,
        typer.Option(
            help="`random` rows; `time`, the latest last; `user`, whole users; `cs330`, the split of Stanford's CS330 "
            "homework on MovieLens 100K: 95,000 and 5,000 random rows, no validation."
        ),
    ] = RatingSplit.random,
    training_share: Annotated[float, typer.Option(min=0.01, max=0.98, help="Share of training rows, or users.")] = 0.8,
    validation_share: Annotated[
        float, typer.Option(min=0.01, max=0.98, help="Share of validation; the rest is test.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Another seed draws other rows, or users.")] = 0,
    like_from: Annotated[float, typer.Option(help="`liked` is 1 from this rating on.")] = 4.0,
    progress: Progress = lambda what, done: None,
) -> None:
    """MovieLens 100K to 32M: film ratings, with the tasks liked and rating.

    Ids of users and items are those of the files; other ids are by frequency. Rows are in a fixed random order. Raises
    :class:`UserError` for missing or malformed files, or if ``output`` cannot be written.
    """
    if training_share + validation_share >= 1:
        raise UserError(
            f"--training-share {training_share:g} and --validation-share {validation_share:g} leave no test rows; lower one."
        )
    layout, paths = find_layout(input)
    with output_folder(output) as folder, work_beside(output) as (work, connection):
        progress("reading the files", 0.0)
        attributes = load(connection, work, layout, paths)
        progress("dividing the ratings", 0.3)
        shares = {
            "train": training_share,
            "validation": validation_share,
            "test": 1 - training_share - validation_share,
        }
        counts = divide(connection, split, shares, seed, paths[layout.ratings])
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
                f"COPY ({rows(attributes, categories, like_from)} WHERE r.split = {quote(name)} "
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
        describe(folder, _specification(layout, split, list(counts), sizes, attributes, like_from))
    progress("done", 1.0)


def _specification(
    layout: FileLayout,
    split: RatingSplit,
    splits: list[str],
    sizes: dict[str, int],
    attributes: list[str],
    like_from: float,
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
        splits={name: SplitSpec(folder=name) for name in splits},
        features=features,
        labels=[
            LabelSpec(name="liked", description=f"rating >= {like_from:g}"),
            LabelSpec(name="rating", kind="real"),
        ],
    )
