"""The KuaiRand adapter: on a small imitation of the raw files, and on the raw files themselves where they are at hand."""

from __future__ import annotations

import csv
import filecmp
import gzip
import io
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.config import DataConfig
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.reader import BatchLoader
from dlrm_mtl.prepare import ADAPTERS
from dlrm_mtl.prepare.kuairand import columns, rates, tables
from dlrm_mtl.prepare.kuairand.adapter import SPLITS

DAYS = [*range(20220425, 20220431), *range(20220501, 20220509)]
Raw = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def raw() -> Raw:
    """Rows of all four raw files."""
    rng = np.random.default_rng(0)
    users, videos = 12, 15
    log = []
    for _ in range(600):
        day = int(rng.integers(0, len(DAYS)))
        row = {"user_id": rng.integers(0, users), "video_id": rng.integers(0, videos), "date": DAYS[day]}
        row |= {
            "hourmin": rng.integers(0, 24) * 100,
            "time_ms": 1650812400000 + day * 86400000 + rng.integers(0, 86400000),
        }
        row |= {signal: int(rng.random() < 0.3) for signal in columns.SIGNALS}
        row |= {"play_time_ms": rng.integers(0, 9999), "profile_stay_time": 0, "comment_stay_time": 5}
        log.append({**row, "duration_ms": rng.integers(0, 2) * 30000, "is_rand": 0, "tab": rng.integers(0, 3)})
    categories = dict.fromkeys(columns.USER_CATEGORIES, 1) | {"user_active_degree": "full_active"}
    user_rows = [
        {
            "user_id": user,
            **categories,
            **dict.fromkeys(columns.RANGES, "[1,5)"),
            **dict.fromkeys(columns.COUNTS, user),
        }
        for user in range(users)
    ]
    user_rows[3]["onehot_feat4"] = None
    video_rows = [
        {
            "video_id": video,
            "author_id": 100 + video // 2,
            "video_type": "NORMAL",
            "upload_dt": "2022-04-10",
            "upload_type": "Web",
            "visible_status": 0.0,
            "video_duration": None if video == 4 else 5000.0 * (video + 1),
            "server_width": 720.0,
            "server_height": 1280.0,
            "music_id": 9000000000 + video,
            "music_type": None if video == 5 else 9.0,
            "tag": None if video == 6 else f"{video % 3},{40 + video % 2}",
        }
        for video in range(videos)
    ]
    history_rows = []
    for user in range(users - 1):
        watched = rng.integers(0, videos, rng.integers(1, 30)).tolist()
        liked, long = watched[: len(watched) // 4], watched[: len(watched) // 2]
        sequences = {"watch_seq": watched, "like_seq": liked, "long_watch_seq": long}
        texts = {name: " ".join(map(str, ids)) or None for name, ids in sequences.items()}
        history_rows.append({"user_id": user, "history_len": len(watched), "last_time_ms": 1650612400000, **texts})
    return {tables.LOG: log, tables.USERS: user_rows, tables.VIDEOS: video_rows, tables.HISTORY: history_rows}


def write(folder: Path, raw: Raw, compress: bool = True) -> Path:
    folder.mkdir(parents=True)
    for name, rows in raw.items():
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
        content = text.getvalue().encode()
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return folder


def prepared(folder: Path, raw: Raw, change: Callable[[dict[str, Any]], dict[str, Any]] = lambda row: row) -> Path:
    """Prepare ``raw`` with ``change`` made to every row of the log."""
    changed = {**raw, tables.LOG: [change(row) for row in raw[tables.LOG]]}
    ADAPTERS["kuairand"].part(write(folder / "raw", changed), folder / "out")
    return folder / "out"


def everything(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(folder / split) for split in SPLITS])


def features(folder: Path) -> pa.Table:
    names = dict.fromkeys(feature.source for feature in open_dataset(folder).spec.features)
    return everything(folder).select(["date", *names])


@pytest.fixture(scope="module")
def out(raw: Raw, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("kuairand"), raw)


def test_splits_by_day_and_order_of_rows(out: Path, raw: Raw) -> None:
    assert everything(out).num_rows == len(raw[tables.LOG])
    for split, (first, last) in SPLITS.items():
        rows = pq.read_table(out / split).select(["date", "user_id", "time_ms"]).to_pylist()
        assert all(first <= row["date"] <= last for row in rows)
        assert rows == sorted(rows, key=lambda row: (row["user_id"], row["time_ms"]))
        assert open_dataset(out).spec.splits[split].rows == len(rows)


def test_ids_can_be_mapped_back(out: Path, raw: Raw) -> None:
    names = {
        (row["feature"], row["id"]): row["value"] for row in pq.read_table(out / "vocabularies.parquet").to_pylist()
    }
    videos = {row["video_id"]: row for row in raw[tables.VIDEOS]}
    users = {row["user_id"]: row for row in raw[tables.USERS]}
    history = {row["user_id"]: row for row in raw[tables.HISTORY]}
    for row in everything(out).to_pylist():
        user, video = users[row["user_id"] - 1], videos[row["video_id"] - 1]
        assert names["author", row["author"]] == str(video["author_id"])
        assert names["music", row["music"]] == str(video["music_id"])
        assert names.get(("music_type", row["music_type"])) == (None if video["music_type"] is None else "9")
        assert names.get(("onehot_feat4", row["onehot_feat4"])) == (None if user["onehot_feat4"] is None else "1")
        tags = None if row["tag"] is None else ",".join(names["tag", tag] for tag in row["tag"])
        assert tags == video["tag"]
        for name in columns.HISTORIES:
            text = history.get(user["user_id"], {}).get(name)
            wanted = None if text is None else [int(video) + 1 for video in text.split()][-columns.HISTORY_LENGTH :]
            assert row[name] == wanted


def test_rates_are_those_of_earlier_days(out: Path, raw: Raw) -> None:
    """Every rate of a user, computed row by row."""
    target = "is_click"
    log = raw[tables.LOG]
    training = [row for row in log if row["date"] <= rates.LAST_TRAINING_DAY]

    def tab_rate(row: dict[str, Any]) -> float:
        known = [other for other in training if other["date"] <= row["date"]]
        same = [other[target] for other in known if other["tab"] == row["tab"]]
        overall = sum(other[target] for other in known) / len(known)
        return float((sum(same) + 20 * overall) / (len(same) + 20))

    excess = [(row["user_id"], row["date"], row[target] - tab_rate(row)) for row in training]
    for row in everything(out).to_pylist():
        past = [value for user, date, value in excess if user == row["user_id"] - 1 and date < row["date"]]
        wanted = sum(past) / (len(past) + 5) if past else 0.0
        assert row["user_is_click_rate"] == pytest.approx(wanted, abs=rates.STEPS[target] / 2 + 1e-6)
        assert row["user_exposures_log"] == pytest.approx(math.log1p(len(past)), abs=0.125001)


@pytest.mark.parametrize("day", [20220425, 20220430, 20220505, 20220506])
def test_no_feature_knows_the_feedback_of_its_day_or_later(out: Path, raw: Raw, tmp_path: Path, day: int) -> None:
    feedback = [*columns.SIGNALS, "play_time_ms", "profile_stay_time", "comment_stay_time"]

    def change(row: dict[str, Any]) -> dict[str, Any]:
        return row if row["date"] < day else {**row, **{name: 1 - min(row[name], 1) for name in feedback}}

    changed = prepared(tmp_path, raw, change)
    until = day if day <= rates.LAST_TRAINING_DAY else DAYS[-1]  # later rows never know validation and test days
    # Rows whose feedback alone differs keep their place only if no tie is broken by it: times are distinct here.
    before, after = (
        table.filter(pa.compute.less_equal(table.column("date"), until)) for table in map(features, (out, changed))
    )
    assert before.num_rows > 0
    assert before.equals(after)
    if day < rates.LAST_TRAINING_DAY:
        assert not features(out).equals(features(changed))


def test_prepared_data_can_be_read(out: Path) -> None:
    dataset = open_dataset(out)
    config = DataConfig(path=str(out), batch_size=64, evaluation_batch_size=64, lanes=4)
    for split in SPLITS:
        loader = BatchLoader(dataset.split(split), config, ["is_click", "long_view", "play_time_ms"])
        batches = list(loader.epoch(0))
        assert sum(batch.weights[:, 0].sum().item() for batch in batches) == loader.rows
        assert loader.selection.vocabulary_sizes["watch_seq"] == dataset.spec.vocabulary_size("video_id")


def test_the_same_bytes_every_time_also_from_plain_files(out: Path, raw: Raw, tmp_path: Path) -> None:
    ADAPTERS["kuairand"].part(write(tmp_path / "raw", raw, compress=False), tmp_path / "out")
    assert differences(out, tmp_path / "out") == []


def test_mistakes(raw: Raw, tmp_path: Path) -> None:
    def sentence(input: Path, output: Path) -> str:
        with pytest.raises(UserError) as error:
            ADAPTERS["kuairand"].part(input, output)
        return str(error.value)

    assert "there is no such folder" in sentence(tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert f"lacks {tables.LOG} and {tables.USERS}" in sentence(tmp_path / "empty", tmp_path / "out")
    folder = write(tmp_path / "raw", raw)
    assert "already exists" in sentence(folder, tmp_path / "raw")
    (tmp_path / "file").touch()
    assert "cannot be written" in sentence(folder, tmp_path / "file" / "out")
    broken = write(tmp_path / "number", {**raw, tables.LOG: [{**raw[tables.LOG][0], "tab": "x"}]})
    assert tables.LOG in sentence(broken, tmp_path / "out")
    users = [{key: value for key, value in row.items() if key != "onehot_feat3"} for row in raw[tables.USERS]]
    lacking = write(tmp_path / "column", {**raw, tables.USERS: users})
    assert "onehot_feat3" in sentence(lacking, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "raw", "file", "number", "column"}


def test_the_shipped_data_set_is_what_prepare_makes(repository: Path, tmp_path: Path) -> None:
    source = Path(os.environ.get("DLRM_MTL_RAW_DATA", repository.parent / "shared" / "data")) / "kuairand-pure"
    if not source.is_dir():
        pytest.skip(f"{source}: the raw data are not there (set DLRM_MTL_RAW_DATA)")
    ADAPTERS["kuairand"].part(source, tmp_path / "out")
    assert differences(repository / "datasets" / "kuairand_pure", tmp_path / "out") == []


def test_the_shipped_data_set_is_small_and_complete(repository: Path) -> None:
    folder = repository / "datasets" / "kuairand_pure"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 10_000_000
    dataset = open_dataset(folder)
    assert {name: dataset.split(name).rows for name in dataset.spec.splits} == {
        "train": 185_061,
        "validation": 13_834,
        "test": 29_434,
    }


def differences(one: Path, other: Path) -> list[str]:
    """Names of the files below two folders that are not equal byte for byte."""
    names = {str(path.relative_to(top)) for top in (one, other) for path in top.rglob("*") if path.is_file()}
    _, different, missing = filecmp.cmpfiles(one, other, sorted(names), shallow=False)
    return different + missing
