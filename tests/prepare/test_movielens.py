"""MovieLens in its three layouts: imitations of the files, and MovieLens 100K itself where it is at hand."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.prepare.movielens.adapter import prepare
from dlrm_mtl.prepare.movielens.divide import RatingSplit, cs330_training_rows
from dlrm_mtl.prepare.movielens.tables import GENRES
from tests.prepare.tables import read_all

USERS = {
    user: {
        "age": 7 + user,
        "gender": "MF"[user % 2],
        "occupation": ["other", "writer"][user % 2],
        "zip": f"{user % 10}55",
    }
    for user in range(1, 31)
}
MOVIES: dict[int, dict[str, Any]] = {
    1: {"title": "Toy Story (1995)", "genres": ["Animation", "Children's", "Comedy"], "year": 1995},
    2: {"title": "Misérables, Les (1995)", "genres": ["Drama"], "year": 1995},
    3: {"title": "No Year", "genres": [], "year": None},
    5: {"title": 'The "Quoted" One (2001) ', "genres": ["Film-Noir", "War"], "year": 2001},
}


def ratings(count: int = 400) -> list[tuple[int, int, float, int]]:
    rng = random.Random(0)
    return [
        (rng.randrange(1, 31), rng.choice(list(MOVIES)), float(rng.randrange(1, 6)), 874_724_710 + rng.randrange(10**7))
        for _ in range(count)
    ]


def write_100k(folder: Path, entries: list[tuple[int, int, float, int]], encoding: str = "latin-1") -> None:
    folder.mkdir(parents=True)
    (folder / "u.data").write_text("".join(f"{u}\t{i}\t{r:.0f}\t{t}\n" for u, i, r, t in entries))
    items = [
        "|".join([str(item), movie["title"], "01-Jan-1995" if movie["year"] == 1995 else "", "", "http://x"])
        + "|0|"
        + "|".join(str(int(genre in movie["genres"])) for genre in GENRES)
        for item, movie in MOVIES.items()
    ]
    (folder / "u.item").write_bytes(("\n".join(items) + "\n").encode(encoding))
    (folder / "u.user").write_text(
        "".join(f"{u}|{x['age']}|{x['gender']}|{x['occupation']}|{x['zip']}\n" for u, x in USERS.items())
    )


def write_1m(folder: Path, entries: list[tuple[int, int, float, int]]) -> None:
    folder.mkdir(parents=True)
    (folder / "ratings.dat").write_text("".join(f"{u}::{i}::{r:.0f}::{t}\n" for u, i, r, t in entries))
    movies = "".join(f"{i}::{m['title']}::{'|'.join(m['genres']) or 'Drama'}\n" for i, m in MOVIES.items())
    (folder / "movies.dat").write_bytes(movies.encode("latin-1"))
    (folder / "users.dat").write_text(
        "".join(f"{u}::{x['gender']}::{x['age']}::{x['occupation']}::{x['zip']}\n" for u, x in USERS.items())
    )


def write_25m(folder: Path, entries: list[tuple[int, int, float, int]]) -> None:
    folder.mkdir(parents=True)
    (folder / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n" + "".join(f"{u},{i},{r - 0.5},{t}\n" for u, i, r, t in entries)
    )
    movies = "".join(
        f'{i},"{m["title"].replace(chr(34), chr(34) * 2)}",{"|".join(m["genres"]) or "(no genres listed)"}\n'
        for i, m in MOVIES.items()
    )
    (folder / "movies.csv").write_text("movieId,title,genres\n" + movies)


def all_rows(folder: Path) -> list[dict[str, Any]]:
    return [row for split in open_dataset(folder).spec.splits for row in pq.read_table(folder / split).to_pylist()]


@pytest.mark.parametrize("write", [write_100k, write_1m, write_25m])
def test_layouts(tmp_path: Path, write: Any) -> None:
    entries = ratings()
    write(tmp_path / "raw", entries)
    prepare(tmp_path / "raw", tmp_path / "out")
    half = 0.5 if write is write_25m else 0.0
    got = all_rows(tmp_path / "out")
    keys = [(row["user"], row["item"], row["rating"] + half, row["timestamp"]) for row in got]
    assert Counter(keys) == Counter(entries)
    names = {
        (row["feature"], row["id"]): row["value"]
        for row in pq.read_table(tmp_path / "out/vocabularies.parquet").to_pylist()
    }
    for row in got:
        movie, user = MOVIES[row["item"]], USERS[row["user"]]
        genres = movie["genres"] or (["Drama"] if write is write_1m else [])
        assert {names["genres", genre] for genre in row["genres"] or []} == set(genres)
        # MovieLens 100K has the year of release beside the title; nothing else helps where the title has none
        assert row["year"] == movie["year"]
        assert row["liked"] == (row["rating"] >= 4)
        time = np.datetime64(row["timestamp"], "s")
        assert row["hour"] == int((time - time.astype("datetime64[D]")).astype(int)) // 3600 + 1
        assert row["weekday"] == time.astype("datetime64[D]").item().isoweekday()
        if write is not write_25m:
            assert names["gender", row["gender"]] == user["gender"]
            assert names["occupation", row["occupation"]] == user["occupation"]
            assert names["zip_area", row["zip_area"]] == user["zip"][0]
            assert (row["age"] if write is write_100k else int(names["age", row["age"]])) == user["age"]
    assert sum(read_all(tmp_path / "out").values()) == len(entries)


def test_utf8_and_latin1_texts_give_the_same(tmp_path: Path) -> None:
    for encoding in ("latin-1", "utf-8"):
        write_100k(tmp_path / encoding, ratings(), encoding)
        prepare(tmp_path / encoding, tmp_path / f"out-{encoding}")
    assert all_rows(tmp_path / "out-latin-1") == all_rows(tmp_path / "out-utf-8")


def test_splits_and_threshold(tmp_path: Path) -> None:
    write_100k(tmp_path / "raw", ratings())
    prepare(tmp_path / "raw", tmp_path / "time", split=RatingSplit.time, like_from=3)
    times = {
        split: [row["timestamp"] for row in pq.read_table(tmp_path / "time" / split).to_pylist()]
        for split in ("train", "validation", "test")
    }
    assert max(times["train"]) < min(times["validation"])
    assert max(times["validation"]) < min(times["test"])
    assert all(row["liked"] == (row["rating"] >= 3) for row in all_rows(tmp_path / "time"))
    prepare(tmp_path / "raw", tmp_path / "user", split=RatingSplit.user, training_share=0.6, validation_share=0.2)
    users = [
        set(pq.read_table(tmp_path / "user" / split)["user"].to_pylist()) for split in ("train", "validation", "test")
    ]
    assert sum(map(len, users)) == len(set.union(*users)) == 30


def test_the_cs330_split_is_numpys_permutation() -> None:
    state = np.random.RandomState(123)
    order = np.arange(100_000)
    state.shuffle(order)
    assert cs330_training_rows().tolist() == order[:95_000].tolist()


def test_mistakes(tmp_path: Path) -> None:
    def sentence(folder: str, **options: Any) -> str:
        with pytest.raises(UserError) as error:
            prepare(tmp_path / folder, tmp_path / "out", **options)
        assert str(error.value).endswith(".")
        assert not list(tmp_path.glob("*out*"))
        return str(error.value)

    assert "there is no such folder" in sentence("none")
    (tmp_path / "empty").mkdir()
    assert "holds none of u.data, ratings.dat, ratings.csv" in sentence("empty")
    write_100k(tmp_path / "raw", ratings())
    assert "not 400" in sentence("raw", split=RatingSplit.cs330)
    assert "leave no test rows" in sentence("raw", training_share=0.9, validation_share=0.1)
    (tmp_path / "raw" / "u.data").write_text("1\t1\t5\t881250949\n1\t2\tfive\t881250949\n")
    assert "u.data: row 2: column 'rating' holds 'five'" in sentence("raw")
    (tmp_path / "raw" / "u.data").write_text("1\t1\t5\t881250949\n1\t2\t881250949\n")
    assert "u.data: line 2 has 3 fields where 4 are expected" in sentence("raw")
    (tmp_path / "raw" / "u.item").unlink()
    assert "lacks u.item" in sentence("raw")


def test_movielens_100k_itself(repository: Path, tmp_path: Path) -> None:
    source = Path(os.environ.get("DLRM_MTL_RAW_DATA", repository.parent / "shared" / "data")) / "ml-100k"
    if not source.is_dir():
        pytest.skip(f"{source}: the raw data are not there (set DLRM_MTL_RAW_DATA)")
    prepare(source, tmp_path / "out", split=RatingSplit.cs330)
    spec = open_dataset(tmp_path / "out").spec
    assert {name: split.rows for name, split in spec.splits.items()} == {"train": 95_000, "test": 5_000}
    assert spec.vocabulary_size("user") == 944
    assert spec.vocabulary_size("item") == 1683
    lines = [tuple(map(int, line.split("\t"))) for line in (source / "u.data").read_text().splitlines()]
    chosen = np.random.RandomState(123).permutation(100_000)[95_000:]
    test = pq.read_table(tmp_path / "out" / "test")
    got = zip(*(test[name].to_pylist() for name in ("user", "item", "rating", "timestamp")), strict=True)
    assert sorted((u, i, int(r), t) for u, i, r, t in got) == sorted(lines[row] for row in chosen)
    rated = [row["rating"] for row in all_rows(tmp_path / "out")]
    assert Counter(rated) == {1: 6110, 2: 11370, 3: 27145, 4: 34174, 5: 21201}
