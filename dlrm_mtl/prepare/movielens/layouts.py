"""The file layouts of MovieLens.

- 100K: u.data (tab), u.item and u.user (|), no headers; genres are 19 columns of 0 and 1.
- 1M and 10M: ratings.dat, movies.dat and (1M) users.dat, separated by ``::``, no headers.
- 20M, 25M, 32M and the small ones: ratings.csv and movies.csv with headers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.prepare.table.description import SourceConfig


@dataclass(frozen=True)
class FileLayout:
    """The files of one generation of MovieLens."""

    name: str
    ratings: str
    movies: str
    users: str | None
    ratings_source: SourceConfig
    other_source: SourceConfig
    """Format of movies and users, except the names of their columns."""
    movie_columns: tuple[str, ...]
    user_columns: tuple[str, ...] = ()


RATING = ("userId", "movieId", "rating", "timestamp")
_MOVIE = ("movieId", "title", "genres")
FLAGS = tuple(f"genre_{position}" for position in range(19))


def _source(separator: str, columns: tuple[str, ...] | None, quote: str | None = None) -> SourceConfig:
    names = None if columns is None else list(columns)
    return SourceConfig(separator=separator, header=columns is None, columns=names, quote=quote)


LAYOUTS = [
    FileLayout(
        "100K",
        "u.data",
        "u.item",
        "u.user",
        _source("\t", RATING),
        _source("|", ("x",)),
        ("movieId", "title", "released", "video", "url", *FLAGS),
        ("userId", "age", "gender", "occupation", "zip"),
    ),
    FileLayout(
        "1M",
        "ratings.dat",
        "movies.dat",
        "users.dat",
        _source("::", RATING),
        _source("::", ("x",)),
        _MOVIE,
        ("userId", "gender", "age", "occupation", "zip"),
    ),
    FileLayout("csv", "ratings.csv", "movies.csv", None, _source(",", None, '"'), _source(",", None, '"'), _MOVIE),
]


def find_layout(folder: Path) -> tuple[FileLayout, dict[str, Path]]:
    """Layout of the files in ``folder``, and their paths by name; raises :class:`UserError`."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; name the one that holds MovieLens, such as ml-100k.")
    for layout in LAYOUTS:
        paths = {name: path for name in (layout.ratings, layout.movies, layout.users) if (path := _find(folder, name))}
        if layout.ratings in paths:
            if layout.movies not in paths:
                raise UserError(
                    f"{folder}: lacks {layout.movies}, which goes with {layout.ratings}; download MovieLens again."
                )
            return layout, {str(name): path for name, path in paths.items()}
    wanted = ", ".join(layout.ratings for layout in LAYOUTS)
    raise UserError(f"{folder}: holds none of {wanted} (plain or with .gz appended); name the folder of one MovieLens.")


def _find(folder: Path, name: str | None) -> Path | None:
    paths = [folder / f"{name}{ending}" for ending in ("", ".gz")] if name else []
    return next((path for path in paths if path.is_file()), None)
