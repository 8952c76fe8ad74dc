"""MovieLens: the columns of the data set, as SQL over the tables."""

from __future__ import annotations


def rows(attributes: list[str], categories: dict[str, str], like_from: float) -> str:
    """Query of the final columns of the table divided, with the vocabularies of ``categories``."""
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
