"""KuaiRand-Pure's CSV files, loaded as tables."""

from __future__ import annotations

from pathlib import Path

import duckdb

from dlrm_mtl.prepare.common.io import load_csv
from dlrm_mtl.prepare.kuairand import rates
from dlrm_mtl.prepare.kuairand.columns import AMOUNTS, COUNTS, HISTORIES, RANGES, SIGNALS, USER_CATEGORIES

LOG = "log_standard_4_25_to_5_08_pure.csv"
USERS = "user_features_pure.csv"
VIDEOS = "video_features_basic_pure.csv"
HISTORY = "user_history_to_4_24.csv"
FILES = [LOG, USERS, VIDEOS, HISTORY]

INTEGER = "CAST(CAST({0} AS DOUBLE) AS BIGINT)"
TAGS = "CAST(string_split(tag, ',') AS INTEGER[])"


def load(connection: duckdb.DuckDBPyConnection, inputs: dict[str, Path]) -> None:
    """Make the tables log, users, videos, history and exposures (the log with columns of its videos) from ``inputs``.

    Raises :class:`UserError` if a file is malformed.
    """
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
