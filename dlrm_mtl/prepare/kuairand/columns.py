"""KuaiRand-Pure: the columns of the data set, as SQL over the tables."""

from __future__ import annotations

import pyarrow as pa

from dlrm_mtl.prepare.kuairand import rates
from dlrm_mtl.prepare.kuairand.rates import LAST_TRAINING_DAY

HISTORY_LENGTH = 15
"""Number of entries kept in a history, the most recent of up to 50; every exposure's row repeats them."""

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
    # feature: (value in the row, query of the vocabulary's values)
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
"""Categorical columns that become ids by frequency; vocabularies come from the feature tables, which are known in advance,
or from the training days."""

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


def join() -> str:
    """Query of the final columns of every row, in their final order."""
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


def schema() -> pa.Schema:
    """Types of the columns of :func:`join`."""
    fields = [("date", pa.int32()), ("time_ms", pa.int64())]
    fields += [(name, pa.int8()) for name in SIGNALS]
    fields += [(name, pa.int32()) for name in [*AMOUNTS, "user_id", "video_id", *CATEGORIES]]
    fields += [(name, pa.list_(pa.int32())) for name in ["tag", *HISTORIES]]
    fields += [(name, pa.float32()) for name in [*DENSE, *rates.names()]]
    return pa.schema(fields)
