"""KuaiRand-Pure: raw CSV files to a data set split by day.

Nothing in a row's features comes from that row's day or later, except what is known when the video is shown (who, what, when,
where). :mod:`dlrm_mtl.prepare.kuairand.rates` says how label rates keep to this.
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from dlrm_mtl.core.registry import register
from dlrm_mtl.data.spec import DatasetSpec, FeatureSpec, LabelSpec, SplitSpec
from dlrm_mtl.data.statistics import describe
from dlrm_mtl.prepare.common.io import (
    Progress,
    connect,
    create_vocabulary,
    find_inputs,
    load_csv,
    output_folder,
    vocabularies_table,
    write_parquet,
)
from dlrm_mtl.prepare.kuairand import rates
from dlrm_mtl.prepare.kuairand.text import CITATION, DESCRIPTION, LICENCE, NOTICE, README

LOG = "log_standard_4_25_to_5_08_pure.csv"
USERS = "user_features_pure.csv"
VIDEOS = "video_features_basic_pure.csv"
HISTORY = "user_history_to_4_24.csv"

LAST_TRAINING_DAY = 20220505
SPLITS = {"train": (20220425, 20220505), "validation": (20220506, 20220506), "test": (20220507, 20220508)}
ROW_GROUP_ROWS = 32768
HISTORY_LENGTH = 15
"""The raw file has up to 50 entries; the most recent ones are kept in the rows, which repeat them for every exposure."""

SIGNALS = ["is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view", "is_profile_enter"]
AMOUNTS = ["play_time_ms", "profile_stay_time", "comment_stay_time"]
HISTORIES = {
    "watch_seq": "videos the user watched before 2022-04-25",
    "like_seq": "videos the user liked before 2022-04-25",
    "long_watch_seq": "videos the user watched long before 2022-04-25",
}
ONEHOT = [f"onehot_feat{i}" for i in range(18)]
RANGES = ["follow_user_num_range", "fans_user_num_range", "friend_user_num_range", "register_days_range"]
COUNTS = ["follow_user_num", "fans_user_num", "friend_user_num", "register_days"]
USER_CATEGORIES = ["user_active_degree", "is_lowactive_period", "is_live_streamer", "is_video_author", *RANGES, *ONEHOT]

CATEGORIES = {
    # feature: (the value in the row, the query whose values make the vocabulary)
    "author": ("v.author", "SELECT author FROM videos"),
    "music": ("v.music", "SELECT music FROM videos"),
    "tab": ("e.tab", f"SELECT tab FROM exposures WHERE date <= {LAST_TRAINING_DAY}"),
    "hour": ("e.hour", f"SELECT hour FROM exposures WHERE date <= {LAST_TRAINING_DAY}"),
    "duration_bucket": (
        "e.duration_bucket",
        f"SELECT duration_bucket FROM exposures WHERE date <= {LAST_TRAINING_DAY}",
    ),
    "video_type": ("v.video_type", "SELECT video_type FROM videos"),
    "upload_type": ("v.upload_type", "SELECT upload_type FROM videos"),
    "music_type": ("v.music_type", "SELECT music_type FROM videos"),
    **{name: (f"u.{name}", f"SELECT {name} FROM users") for name in USER_CATEGORIES},
}
"""Categorical columns that become ids by frequency; vocabularies come from the feature tables, which are known beforehand, or
from the training days."""

DENSE = {
    **{f"{name}_log": f"round(ln(1 + u.{name}), 2)" for name in COUNTS},
    "history_len_log": "round(ln(1 + coalesce(h.history_len, 0)), 2)",
    "history_likes_log": "round(ln(1 + coalesce(len(h.like_seq), 0)), 2)",
    "history_long_watches_log": "round(ln(1 + coalesce(len(h.long_watch_seq), 0)), 2)",
    "history_age_hours_log": "round(ln(1 + greatest(e.time_ms - h.last_time_ms, 0) / 3600000.0), 1)",
    "duration_log": "round(ln(1 + e.video_duration_ms / 1000.0), 1)",
    "video_age_days": "date_diff('day', v.upload_dt, e.day)",
}
"""Dense features: SQL over e (exposure), u (user), v (video) and h (history)."""

MANY_VALUED = ["time_ms", *AMOUNTS, "user_id", "onehot_feat3", "onehot_feat7", "onehot_feat8", "tag", *HISTORIES]
"""Columns that are smaller without a dictionary."""

INTEGER = "CAST(CAST({0} AS DOUBLE) AS BIGINT)"
TAGS = "CAST(string_split(tag, ',') AS INTEGER[])"


@register("adapter", "kuairand")
def prepare(input: Path, output: Path, progress: Progress = lambda what, done: None) -> None:
    """KuaiRand-Pure: short-video exposures with clicks, likes and long views, split by day.

    Writes the data set made from the CSV files in ``input`` to the folder ``output``, which must not exist or be empty.
    Raises :class:`UserError` if an input is missing or malformed, or if ``output`` cannot be written.
    """
    inputs = find_inputs(input, [LOG, USERS, VIDEOS, HISTORY])
    with output_folder(output) as folder, connect() as connection:
        progress("reading the CSV files", 0.0)
        _load(connection, inputs)
        progress("numbering categories", 0.2)
        sizes = {name: create_vocabulary(connection, name, query) for name, (_, query) in CATEGORIES.items()}
        sizes["tag"] = create_vocabulary(connection, "tag", "SELECT unnest(tags) FROM videos")
        sizes["user_id"] = _largest(connection, "users", "user_id") + 2
        sizes["video_id"] = _largest(connection, "videos", "video_id") + 2
        progress("collecting label rates of earlier days", 0.3)
        rates.create(connection)
        progress("joining", 0.5)
        rows = connection.sql(_join()).to_arrow_table().cast(_schema())
        days = rows.column("date")
        splits = {}
        for position, (split, (first, last)) in enumerate(SPLITS.items()):
            progress(f"writing {split}", 0.6 + 0.1 * position)
            within = pa.compute.and_(pa.compute.greater_equal(days, first), pa.compute.less_equal(days, last))
            part = rows.filter(within)
            path = folder / split / "part-00000.parquet"
            write_parquet(part, path, row_group_rows=ROW_GROUP_ROWS, many_valued=MANY_VALUED)
            splits[split] = SplitSpec(
                folder=split, rows=part.num_rows, description=f"exposures of {_days(first, last)}"
            )
        vocabularies = vocabularies_table(connection, [*CATEGORIES, "tag"])
        pq.write_table(vocabularies, folder / "vocabularies.parquet", compression="zstd", compression_level=19)
        progress("describing", 0.9)
        describe(folder, _specification(sizes, splits))
        counts = {name: split.rows for name, split in splits.items()}
        (folder / "README.md").write_text(README.format(**counts, history=HISTORY_LENGTH), encoding="utf-8")
        (folder / "LICENSE.md").write_text(NOTICE, encoding="utf-8")
    progress("done", 1.0)


def _load(connection: duckdb.DuckDBPyConnection, inputs: dict[str, Path]) -> None:
    integer = INTEGER.format
    log = ["user_id", "video_id", "date", "hourmin", "time_ms", *SIGNALS, *AMOUNTS, "duration_ms", "tab"]
    load_csv(connection, "log", inputs[LOG], {name: integer(name) for name in log})
    texts = {"user_active_degree", *RANGES}
    users = {name: name if name in texts else integer(name) for name in ["user_id", *USER_CATEGORIES, *COUNTS]}
    load_csv(connection, "users", inputs[USERS], users)
    videos = {
        "video_id": integer("video_id"),
        "author": integer("author_id"),
        "music": integer("music_id"),
        "video_type": "video_type",
        "upload_type": "upload_type",
        "music_type": integer("music_type"),
        "upload_dt": "CAST(upload_dt AS DATE)",
        "video_duration": "CAST(video_duration AS DOUBLE)",
        "server_width": "CAST(server_width AS DOUBLE)",
        "server_height": "CAST(server_height AS DOUBLE)",
        "tags": TAGS,
    }
    load_csv(connection, "videos", inputs[VIDEOS], videos)
    history = {name: f"CAST(string_split({name}, ' ') AS INTEGER[])" for name in HISTORIES}
    history |= {name: integer(name) for name in ("user_id", "history_len", "last_time_ms")}
    load_csv(connection, "history", inputs[HISTORY], history)
    everything = ", ".join(log)
    connection.execute(
        f"""CREATE TABLE exposures AS
        SELECT row_number() OVER (ORDER BY user_id, time_ms, video_id, {everything}) AS row,
               l.*, hourmin // 100 AS hour, strptime(CAST(date AS VARCHAR), '%Y%m%d')::DATE AS day,
               v.tags[1] AS first_tag, v.author,
               coalesce(v.video_duration, nullif(l.duration_ms, 0)) AS video_duration_ms,
               {rates.duration_bucket("video_duration_ms")} AS duration_bucket
        FROM log l LEFT JOIN videos v USING (video_id)"""
    )


def _join() -> str:
    """The query that gives the final columns of every row, in their final order."""
    selected = ["e.date", "e.time_ms", *(f"e.{name}" for name in [*SIGNALS, *AMOUNTS])]
    selected += ["e.user_id + 1 AS user_id", "e.video_id + 1 AS video_id"]
    joins = [
        "LEFT JOIN users u USING (user_id)",
        "LEFT JOIN videos v USING (video_id)",
        "LEFT JOIN history h USING (user_id)",
    ]
    for name, (value, _) in CATEGORIES.items():
        selected.append(f"coalesce(c_{name}.id, 0) AS {name}")
        joins.append(f"LEFT JOIN vocabulary_{name} c_{name} ON c_{name}.value = CAST({value} AS VARCHAR)")
    selected.append("t.ids AS tag")
    joins.append(
        """LEFT JOIN (SELECT video_id, list(t.id ORDER BY position) AS ids
        FROM (SELECT video_id, unnest(tags) AS tag, generate_subscripts(tags, 1) AS position FROM videos)
        JOIN vocabulary_tag t ON t.value = CAST(tag AS VARCHAR) GROUP BY video_id) t USING (video_id)"""
    )
    selected += [f"[x + 1 FOR x IN h.{name}[-{HISTORY_LENGTH}:]] AS {name}" for name in HISTORIES]
    selected += [f"{expression} AS {name}" for name, expression in DENSE.items()]
    for table, columns in rates.columns().items():
        selected += [f"{table}.{name}" for name in columns]
        joins.append(f"LEFT JOIN {table} ON {table}.row = e.row")
    return f"SELECT {', '.join(selected)} FROM exposures e {' '.join(joins)} ORDER BY e.row"


def _schema() -> pa.Schema:
    fields = [("date", pa.int32()), ("time_ms", pa.int64())]
    fields += [(name, pa.int8()) for name in SIGNALS]
    fields += [(name, pa.int32()) for name in [*AMOUNTS, "user_id", "video_id", *CATEGORIES]]
    fields += [(name, pa.list_(pa.int32())) for name in ["tag", *HISTORIES]]
    fields += [(name, pa.float32()) for name in [*DENSE, *rates.names()]]
    return pa.schema(fields)


def _specification(sizes: dict[str, int], splits: dict[str, SplitSpec]) -> DatasetSpec:
    sparse = [
        "user_id",
        "video_id",
        "author",
        "music",
        "tag",
        "tab",
        "hour",
        *(n for n in CATEGORIES if n not in _FIRST),
    ]
    features = [FeatureSpec(name=name, kind="sparse", vocabulary_size=sizes[name]) for name in sparse]
    features += [
        FeatureSpec(name=name, kind="sequence", vocabulary="video_id", description=description)
        for name, description in HISTORIES.items()
    ]
    features += [FeatureSpec(name=name, kind="dense") for name in DENSE]
    features += [FeatureSpec(name=name, kind="dense", description=text) for name, text in rates.descriptions().items()]
    labels = [LabelSpec(name=name) for name in SIGNALS]
    labels += [LabelSpec(name=name, kind="real") for name in AMOUNTS]
    return DatasetSpec(
        name="kuairand_pure",
        description=DESCRIPTION,
        licence=LICENCE,
        citation=CITATION,
        splits=splits,
        features=features,
        labels=labels,
    )


_FIRST = {"author", "music", "tab", "hour"}


def _largest(connection: duckdb.DuckDBPyConnection, table: str, column: str) -> int:
    row = connection.execute(f"SELECT max({column}) FROM {table}").fetchone()
    assert row is not None
    return int(row[0])


def _days(first: int, last: int) -> str:
    texts = [f"{day // 10000}-{day // 100 % 100:02d}-{day % 100:02d}" for day in (first, last)]
    return texts[0] if first == last else f"{texts[0]} to {texts[1]}"
