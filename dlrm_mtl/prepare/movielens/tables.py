"""MovieLens' files of every layout, loaded as DuckDB tables of one form. Texts are UTF-8 or latin-1, whichever fits."""

from __future__ import annotations

from pathlib import Path

import duckdb

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.prepare.movielens.layouts import FLAGS, RATING, FileLayout
from dlrm_mtl.prepare.table.description import SourceConfig
from dlrm_mtl.prepare.table.files import Table, open_raw
from dlrm_mtl.prepare.table.files import load as load_table
from dlrm_mtl.prepare.table.values import Check, number, verify

GENRES = ["Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"]
GENRES += ["Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"]
"""Genres of MovieLens 100K, in the order of its columns after `unknown`."""

NO_GENRES = "(no genres listed)"


def load(connection: duckdb.DuckDBPyConnection, work: Path, layout: FileLayout, paths: dict[str, Path]) -> list[str]:
    """Create the tables ratings, movies and users; returns the available attributes of users.

    - ratings: row (from 0, in the order of the file), user, item, rating, time (seconds since 1970)
    - movies: item, genres (list of texts, null without one), year (null where unknown)
    - users: user, and the attributes

    Raises :class:`UserError` for a file that cannot be read, or a malformed number.
    """
    table = _load(connection, work, paths[layout.ratings], layout.ratings_source, RATING)
    for name in RATING:
        _expect_number(table, name, above=0 if name in ("userId", "movieId") else None, whole=name != "rating")
    values = {name: number(table, name) for name in RATING}
    connection.execute(
        f"""CREATE TABLE ratings AS SELECT rowid AS row, CAST({values["userId"]} AS INTEGER) AS user,
        CAST({values["movieId"]} AS INTEGER) AS item, {values["rating"]} AS rating,
        CAST({values["timestamp"]} AS BIGINT) AS time FROM rows; DROP TABLE rows"""
    )
    _load_movies(connection, work, layout, paths[layout.movies])
    if layout.users is None or layout.users not in paths:
        return []
    source = layout.other_source.model_copy(update={"columns": list(layout.user_columns)})
    table = _load(connection, work, paths[layout.users], source, layout.user_columns)
    _expect_number(table, "userId", above=0, whole=True)
    _expect_number(table, "age", above=None, whole=True)
    attributes = {
        "gender": table.column("gender"),
        "age": f"CAST({number(table, 'age')} AS INTEGER)",
        "occupation": table.column("occupation"),
        "zip_area": f"left({table.column('zip')}, 1)",
    }
    selected = ", ".join(f"{sql} AS {name}" for name, sql in attributes.items())
    user = f"CAST({number(table, 'userId')} AS INTEGER) AS user"
    connection.execute(f"CREATE TABLE users AS SELECT {user}, {selected} FROM rows; DROP TABLE rows")
    _refuse_repeats(connection, "users", "user", paths[layout.users])
    return list(attributes)


def _load_movies(connection: duckdb.DuckDBPyConnection, work: Path, layout: FileLayout, path: Path) -> None:
    source = layout.other_source
    if not source.header:
        source = source.model_copy(update={"columns": list(layout.movie_columns)})
    table = _load(connection, work, path, source, layout.movie_columns)
    _expect_number(table, "movieId", above=0, whole=True)
    title = table.column("title")
    year = f"TRY_CAST(nullif(regexp_extract({title}, '\\((\\d{{4}})\\)\\s*$', 1), '') AS INTEGER)"
    if layout.name == "100K":
        flags = ", ".join(
            f"CASE WHEN {table.column(flag)} = '1' THEN '{genre.replace(chr(39), chr(39) * 2)}' END"
            for flag, genre in zip(FLAGS[1:], GENRES, strict=True)
        )
        genres = f"list_filter([{flags}], lambda g: g IS NOT NULL)"
        year = f"coalesce({year}, TRY_CAST(right({table.column('released')}, 4) AS INTEGER))"
    else:
        genres = f"list_filter(string_split({table.column('genres')}, '|'), lambda g: g NOT IN ('', '{NO_GENRES}'))"
    connection.execute(
        f"""CREATE TABLE movies AS SELECT CAST({number(table, "movieId")} AS INTEGER) AS item,
        CASE WHEN len({genres}) > 0 THEN {genres} END AS genres, {year} AS year FROM rows; DROP TABLE rows"""
    )
    _refuse_repeats(connection, "movies", "item", path)


def _load(
    connection: duckdb.DuckDBPyConnection, work: Path, path: Path, source: SourceConfig, columns: tuple[str, ...]
) -> Table:
    fitting = source.model_copy(update={"encoding": _encoding(path)})
    return load_table(connection, work, [path], fitting, parquet=False, wanted=columns)


def _encoding(path: Path) -> str:
    try:
        with open_raw(path) as stream:
            while piece := stream.readlines(1 << 24):
                b"".join(piece).decode()
    except UnicodeDecodeError:
        return "latin-1"
    except (OSError, EOFError):
        return "utf-8"  # the mistake is reported when the file is read
    return "utf-8"


def _expect_number(table: Table, name: str, *, above: int | None, whole: bool) -> None:
    value = number(table, name)
    good = [f"isfinite({value})", f"abs({value}) < 2147483647" if name != "timestamp" else f"abs({value}) < 1e12"]
    if above is not None:
        good.append(f"{value} > {above}")
    if whole:
        good.append(f"{value} = floor({value})")
    kind = "whole number above 0" if above is not None else "whole number" if whole else "number"
    bad = f"{value} IS NULL OR NOT ({' AND '.join(good)})"
    verify(table, [Check(bad, name, f"where a {kind} is expected; download the file again")])


def _refuse_repeats(connection: duckdb.DuckDBPyConnection, table: str, key: str, path: Path) -> None:
    query = f"SELECT {key} FROM {table} GROUP BY {key} HAVING count(*) > 1 ORDER BY {key} LIMIT 1"
    for (value,) in connection.execute(query).fetchall():
        raise UserError(f"{path}: {key} {value} comes more than once; download the file again.")
