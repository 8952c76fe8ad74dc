"""The UserBehavior adapter: on a generated log beside plain Python, and on real rows where they are at hand."""

from __future__ import annotations

import gzip
import hashlib
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.prepare import ADAPTERS
from tests.prepare.published import SPLITS, differences, read_through, real_rows, split, values

NAMES = ("pv", "cart", "fav", "buy")
START, DAY = 1511539200, 86400
Event = tuple[int, int, int, str, int]


@pytest.fixture(scope="module")
def log() -> list[Event]:
    """Events with duplicates, and some outside the nine days."""
    rng = np.random.default_rng(0)
    events: list[Event] = []
    for _ in range(1500):
        item = int(rng.integers(1, 40))
        name = str(rng.choice(NAMES, p=[0.5, 0.2, 0.1, 0.2]))
        events.append((int(rng.integers(1, 30)), item, 100 + item % 5, name, START + int(rng.integers(0, 9 * DAY))))
    events += events[:20]
    events += [(1, 2, 102, "buy", START - 1), (1, 3, 103, "pv", START + 9 * DAY), (2, 3, 103, "pv", -12)]
    return events


def within(log: list[Event]) -> list[Event]:
    return [event for event in log if START <= event[4] < START + 9 * DAY]


def write(folder: Path, log: list[Event], compress: bool = False, extra: str = "") -> Path:
    folder.mkdir(parents=True)
    text = "".join(",".join(map(str, event)) + "\n" for event in log) + extra
    if compress:
        (folder / "UserBehavior.csv.gz").write_bytes(gzip.compress(text.encode()))
    else:
        (folder / "UserBehavior.csv").write_text(text)
    return folder


def prepared(folder: Path, log: list[Event], **options: Any) -> Path:
    ADAPTERS["userbehavior"].part(write(folder / "raw", log), folder / "out", **options)
    return folder / "out"


def held_out(log: list[Event], seed: int = 0) -> dict[tuple[int, int], str]:
    """The held-out pairs by the documented hash: 15 % validation, then 15 % test."""
    held = {}
    for user, item, _, name, _ in within(log):
        if name == "buy":
            text = f"{seed}:split:{user}:{item}"
            share = int(hashlib.md5(text.encode()).hexdigest()[:15], 16) / 2**60
            if share < 0.3:
                held[user, item] = "validation" if share < 0.15 else "test"
    return held


def positives(folder: Path, name: str) -> list[dict[str, Any]]:
    return [row for row in split(folder, name) if row["sampled"] == 0]


def test_pairs_have_the_labels_of_their_events_and_none_is_in_two_splits(log: list[Event], tmp_path: Path) -> None:
    out = prepared(tmp_path, log)
    held = held_out(log)
    wanted: dict[str, dict[tuple[int, int], tuple[int, ...]]] = {name: {} for name in SPLITS}
    times: dict[tuple[int, int], int] = {}
    for user, item, _, name, time in within(log):
        pair = (user, item)
        labels = wanted[held.get(pair, "train")].setdefault(pair, (0, 0, 0, 0))
        wanted[held.get(pair, "train")][pair] = tuple(
            max(label, int(other == name)) for label, other in zip(labels, NAMES, strict=True)
        )
        times[pair] = min(time, times.get(pair, time))
    for name in SPLITS:
        rows = positives(out, name)
        found = {(row["user_id"], row["item_id"]): tuple(row[label] for label in NAMES) for row in rows}
        assert found == wanted[name]
        assert len(rows) == len(found)
        assert all(row["time"] == times[row["user_id"], row["item_id"]] for row in rows)
    others = sum(event[3] != "buy" and (event[0], event[1]) in held for event in within(log))
    description = open_dataset(out).spec.description
    assert f"leakage filter: {others} other events of held-out pairs taken out of training" in description
    assert "1,523 events read, of them 3 outside" in description


def test_ids_and_categories_are_those_of_training(log: list[Event], tmp_path: Path) -> None:
    out = prepared(tmp_path, log)
    names = values(out)
    seen = Counter(row["item_id"] for row in positives(out, "train"))
    ranked = sorted(seen, key=lambda item: (-seen[item], item))
    assert [names["item", place] for place in range(1, len(ranked) + 1)] == [str(item) for item in ranked]
    for name in SPLITS:
        for row in split(out, name):
            assert names.get(("user", row["user"])) in (None, str(row["user_id"]))
            assert names.get(("item", row["item"])) == (str(row["item_id"]) if row["item_id"] in seen else None)
            assert names["category", row["category"]] == str(100 + row["item_id"] % 5)


def test_negatives(log: list[Event], tmp_path: Path) -> None:
    out = prepared(tmp_path, log, negatives=2, evaluation_negatives=3)
    known = {(user, item) for user, item, *_ in within(log)}
    full = {user for user in range(1, 30) if len({item for owner, item in known if owner == user}) >= 39}
    for name, each in (("train", 2), ("validation", 3), ("test", 3)):
        drawn = [row for row in split(out, name) if row["sampled"] == 1]
        assert Counter(row["user_id"] for row in drawn) == Counter(
            {
                user: each * count
                for user, count in Counter(row["user_id"] for row in positives(out, name)).items()
                if user not in full
            }
        )
        for row in drawn:
            assert (row["user_id"], row["item_id"]) not in known
            assert [row[label] for label in NAMES] == [0, 0, 0, 0]
            assert row["time"] is None
    unlimited = prepared(tmp_path / "known", log, negatives=2, known_negatives=True)
    drawn = [row for row in split(unlimited, "train") if row["sampled"] == 1]
    assert any((row["user_id"], row["item_id"]) in known for row in drawn)


def test_without_the_leakage_filter_no_label_counts_twice(log: list[Event], tmp_path: Path) -> None:
    out = prepared(tmp_path, log, leakage_filter=False)
    held = held_out(log)
    training = {(row["user_id"], row["item_id"]): row for row in positives(out, "train")}
    others = {event[:2] for event in within(log) if event[3] != "buy" and event[:2] in held}
    assert others
    assert others == set(training) & set(held)
    for pair, row in training.items():
        assert (row["buy"] is None) == (pair in held)
        assert all(row[label] is not None for label in NAMES[:3])
    for name in ("validation", "test"):
        rows = positives(out, name)
        assert {(row["user_id"], row["item_id"]) for row in rows} == {pair for pair in held if held[pair] == name}
        assert all([row[label] for label in NAMES] == [None, None, None, 1] for row in rows)


@pytest.mark.parametrize("rows", ["pairs", "events"])
def test_split_by_time(log: list[Event], tmp_path: Path, rows: str) -> None:
    out = prepared(tmp_path, log, split="time", rows=rows, negatives=0, evaluation_negatives=0)
    for name, first, last in (("train", 0, 7), ("validation", 7, 8), ("test", 8, 9)):
        events = {event for event in log if START + first * DAY <= event[4] < START + last * DAY}
        wanted: Counter[tuple[Any, ...]] = Counter()
        if rows == "events":
            for user, item, _, kind, time in events:
                wanted[(user, item, time, *(int(kind == other) for other in NAMES))] += 1
        else:
            for pair in {event[:2] for event in events}:
                mine = [event for event in events if event[:2] == pair]
                kinds = {event[3] for event in mine}
                wanted[(*pair, min(event[4] for event in mine), *(int(other in kinds) for other in NAMES))] += 1
        found = Counter(
            tuple(row[key] for key in ("user_id", "item_id", "time", *NAMES)) for row in positives(out, name)
        )
        assert found == wanted


def test_k_core_and_behaviours(log: list[Event], tmp_path: Path) -> None:
    out = prepared(tmp_path, log, user_items=6, item_users=5, behaviours="cart,buy", negatives=0)
    pairs = {event[:2] for event in within(log) if event[3] == "buy"}
    core = set(pairs)
    while True:
        users, items = Counter(user for user, _ in core), Counter(item for _, item in core)
        left = {(user, item) for user, item in core if users[user] >= 6 and items[item] >= 5}
        if left == core:
            break
        core = left
    assert 0 < len(core) < len(pairs)
    users, items = ({pair[place] for pair in core} for place in (0, 1))
    wanted = {e[:2] for e in within(log) if e[3] in ("cart", "buy") and e[0] in users and e[1] in items}
    assert {(row["user_id"], row["item_id"]) for name in SPLITS for row in positives(out, name)} == wanted
    spec = open_dataset(out).spec
    assert [label.name for label in spec.labels] == ["cart", "buy"]
    assert f"{len(users)} users, {len(items)} items, {len(core)} pairs" in spec.description


def test_the_same_bytes_whatever_the_threads_memory_and_compression(log: list[Event], tmp_path: Path) -> None:
    raw, packed = write(tmp_path / "raw", log), write(tmp_path / "gz", log, compress=True)
    ADAPTERS["userbehavior"].part(raw, tmp_path / "one", threads=1)
    ADAPTERS["userbehavior"].part(packed, tmp_path / "many", threads=4, memory="200MB")
    assert differences(tmp_path / "one", tmp_path / "many") == []
    ADAPTERS["userbehavior"].part(raw, tmp_path / "seed", seed=1)
    assert differences(tmp_path / "one", tmp_path / "seed") != []


def test_a_comma_at_the_end_of_lines_is_no_field(log: list[Event], tmp_path: Path) -> None:
    raw, commas = write(tmp_path / "raw", log), tmp_path / "commas"
    commas.mkdir()
    (commas / "UserBehavior.csv").write_text((raw / "UserBehavior.csv").read_text().replace("\n", ",\n"))
    for folder in (raw, commas):
        ADAPTERS["userbehavior"].part(folder, folder / "out", negatives=0)
    assert differences(raw / "out", commas / "out") == []


def test_training_rows_are_shuffled_and_can_be_read(log: list[Event], tmp_path: Path) -> None:
    out = prepared(tmp_path, log)
    users = [row["user_id"] for row in split(out, "train")]
    assert sum(one == other for one, other in itertools.pairwise(users)) < len(users) / 10
    users = [row["user_id"] for row in split(out, "test")]
    assert users == sorted(users)
    read_through(out, ["pv", "buy"])


@pytest.mark.parametrize(
    ("extra", "options", "sentence"),
    [
        ("1,2,3,pv\n", {}, "UserBehavior.csv: cannot be read as expected"),
        ("1,2,3,pv,1511539200,4\n", {}, "UserBehavior.csv: cannot be read as expected"),
        ("1,2,x,pv,1511539200\n", {}, "UserBehavior.csv: cannot be read as expected"),
        ("1,2,3,view,1511539200\n", {}, "1 rows have a behaviour other than pv, cart, fav, buy"),
        (",2,3,pv,1511539200\n", {}, "1 rows have an empty field"),
        ("", {"behaviours": "pv,byu"}, "there is no behaviour 'byu'; did you mean 'buy'?"),
        ("", {"behaviours": "pv"}, "the target 'buy' is not among --behaviours pv; add it"),
        ("", {"validation_share": 0.6, "test_share": 0.4}, "leave nothing to train on"),
        ("", {"validation_share": 0.0}, "the split 'validation' would hold no rows"),
        ("", {"user_items": 1000}, "no pair is left with --user-items 1000"),
        ("", {"memory": "lots"}, "--memory lots: this is no size"),
        ("", {"layout": "ehcf"}, "lacks the EHCF file buy.train.txt"),
    ],
)
def test_mistakes(log: list[Event], tmp_path: Path, extra: str, options: dict[str, Any], sentence: str) -> None:
    raw = write(tmp_path / "raw", log, extra=extra)
    with pytest.raises(UserError) as error:
        ADAPTERS["userbehavior"].part(raw, tmp_path / "out", **options)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_ehcf_layout(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pairs = sorted({(int(u), int(i)) for u, i in zip(rng.integers(0, 20, 200), rng.integers(0, 30, 200), strict=True)})
    test = {user: next(item for owner, item in pairs if owner == user) for user, _ in pairs}
    train = [pair for pair in pairs if test[pair[0]] != pair[1]]
    cart = pairs[::3] + [(user, 31) for user in range(5)]
    raw = tmp_path / "raw"
    raw.mkdir()
    header = "uid\tsid\n"
    (raw / "buy.train.txt").write_text(header + "".join(f"{u}\t{i}\n" for u, i in train))
    (raw / "ehcf_buy.test.txt.gz").write_bytes(
        gzip.compress((header + "".join(f"{u}\t{i}\n" for u, i in test.items())).encode())
    )
    (raw / "cart.csv").write_text("uid\tsid\t3\n" + "".join(f"{u}\t{i}\tcart\n" for u, i in cart))
    out = tmp_path / "out"
    ADAPTERS["userbehavior"].part(raw, out, layout="ehcf")
    found = {
        name: {(r["user_id"], r["item_id"]): (r["cart"], r["buy"]) for r in positives(out, name)} for name in SPLITS
    }
    assert set(found["test"]) == set(test.items())
    assert set(found["validation"]) | {pair for pair, labels in found["train"].items() if labels[1]} == set(train)
    assert not set(found["validation"]) & set(found["train"])
    for name in SPLITS:
        assert all(labels[0] == int(pair in set(cart)) for pair, labels in found[name].items())
    assert open_dataset(out).spec.names("sparse") == ["user", "item"]
    with pytest.raises(UserError, match="have no times"):
        ADAPTERS["userbehavior"].part(raw, tmp_path / "other", layout="ehcf", split="time")


def test_real_slice(repository: Path, tmp_path: Path) -> None:
    raw = real_rows(repository, "taobao")
    ADAPTERS["userbehavior"].part(raw, tmp_path / "out")
    pairs = "SELECT count(DISTINCT (column0, column1)), count(DISTINCT (column0, column1)) FILTER (column3 = 'buy')"
    wanted = duckdb.execute(f"{pairs} FROM read_csv('{raw}/UserBehavior*.csv.gz', header = false)").fetchone()
    rows = f"read_parquet('{tmp_path}/out/*/part-*.parquet')"
    assert duckdb.execute(f"SELECT count(*), sum(buy) FROM {rows} WHERE sampled = 0").fetchone() == wanted
    assert "96,168 events read, of them 0 outside" in open_dataset(tmp_path / "out").spec.description
    read_through(tmp_path / "out", list(NAMES))


def test_real_ehcf_files(repository: Path, tmp_path: Path) -> None:
    raw = real_rows(repository, "taobao")
    ADAPTERS["userbehavior"].part(raw, tmp_path / "out", layout="ehcf", negatives=0, evaluation_negatives=1)
    rows = f"read_parquet('{tmp_path}/out/{{}}/*.parquet')"
    train, validation, test = (rows.format(name) for name in SPLITS)
    bought = "count(*) FILTER (buy = 1), sum(cart)"
    known = [
        duckdb.execute(f"SELECT {bought} FROM {source} WHERE sampled = 0").fetchone()
        for source in (train, validation, test)
    ]
    assert known[2] == (48_749, 8_326)
    assert known[0] is not None
    assert known[1] is not None
    assert known[0][0] + known[1][0] == 211_022
    assert known[0][1] + known[1][1] == 193_747 - 8_326
    assert abs(known[1][0] / 211_022 - 0.15) < 0.005
    both = f"SELECT count(*) FROM {train} t JOIN (FROM {validation} UNION ALL BY NAME FROM {test}) h USING (user_id, item_id)"
    assert duckdb.execute(f"{both} WHERE h.sampled = 0").fetchone() == (0,)
