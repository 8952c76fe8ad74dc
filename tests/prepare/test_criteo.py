"""The Criteo adapter: on generated files beside plain Python, and on real rows where they are at hand."""

from __future__ import annotations

import csv
import gzip
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.prepare import ADAPTERS
from dlrm_mtl.prepare.common.ids import hash_ids
from dlrm_mtl.prepare.criteo.files import CATEGORIES, COUNTS
from tests.prepare.published import SPLITS, differences, read_through, real_rows, split, values

Row = list[str]


def rows(count: int, seed: int) -> list[Row]:
    """Rows of the published layout: a tenth of the fields are empty, counts may be negative."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        fields = [str(rng.integers(-2, 50)) for _ in COUNTS]
        fields += [f"{rng.integers(0, 12) * 0x1234567 % 2**32:08x}" for _ in CATEGORIES]
        made.append([str(rng.integers(0, 2)), *("" if rng.random() < 0.1 else field for field in fields)])
    made[1][-3:] = ["", "", ""]
    return made


def write(path: Path, content: list[Row], trimmed: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(row) for row in content]
    text = "\n".join(line.rstrip("\t") if trimmed else line for line in lines) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


def check(out: Path, parts: dict[str, list[Row]], min_count: int) -> None:
    """Every row of every split, in order, by plain Python."""
    names = values(out)
    counts = [Counter(row[14 + place] for row in parts["train"]) for place in range(26)]
    for name in SPLITS:
        found = split(out, name)
        assert len(found) == len(parts[name])
        for row, raw in zip(found, parts[name], strict=True):
            assert row["click"] == int(raw[0])
            for place, column in enumerate(COUNTS):
                text, number = raw[1 + place], row[f"{column}_log"]
                wanted = None if text == "" else math.copysign(math.log1p(abs(int(text))), int(text))
                assert number == (None if wanted is None else pytest.approx(wanted, rel=1e-6))
            for place, column in enumerate(CATEGORIES):
                text, number = raw[14 + place], row[column]
                if text == "":
                    assert number is None
                else:
                    assert names.get((column, number)) == (text if counts[place][text] >= min_count else None)


def test_shares_in_the_order_of_the_file(tmp_path: Path) -> None:
    content = rows(200, 0)
    write(tmp_path / "raw" / "train.txt", content)
    ADAPTERS["criteo"].part(tmp_path / "raw", tmp_path / "out", validation_share=0.1, test_share=0.2, min_count=3)
    check(tmp_path / "out", {"train": content[:140], "validation": content[140:160], "test": content[160:]}, 3)
    read_through(tmp_path / "out", ["click"])


def test_days(tmp_path: Path) -> None:
    days = {f"day_{day}": rows(40, day) for day in (0, 1, 2, 10)}
    for name, content in days.items():
        write(tmp_path / "raw" / (f"{name}.gz" if name == "day_1" else name), content)
    ADAPTERS["criteo"].part(tmp_path / "raw", tmp_path / "out", split="last-day", min_count=1)
    train = [*days["day_0"], *days["day_1"], *days["day_2"]]
    check(tmp_path / "out", {"train": train, "validation": days["day_10"][:20], "test": days["day_10"][20:]}, 1)


def test_the_same_bytes_also_where_empty_fields_at_the_end_are_missing(tmp_path: Path) -> None:
    content = rows(3000, 1)
    write(tmp_path / "raw" / "train.txt", content)
    write(tmp_path / "trimmed" / "train.txt.gz", content, trimmed=True)
    ADAPTERS["criteo"].part(tmp_path / "raw", tmp_path / "one", threads=1)
    ADAPTERS["criteo"].part(tmp_path / "trimmed", tmp_path / "other", threads=4, memory="300MB")
    assert differences(tmp_path / "one", tmp_path / "other") == []


def test_hashed_ids_are_the_documented_hash_of_the_published_value(tmp_path: Path) -> None:
    content = rows(60, 2)
    write(tmp_path / "raw" / "train.txt", content)
    ADAPTERS["criteo"].part(tmp_path / "raw", tmp_path / "out", hash_size=1000, validation_share=0.1, test_share=0.1)
    found = split(tmp_path / "out", "train")
    for place, column in ((0, "C1"), (25, "C26")):
        wanted = hash_ids([row[14 + place] or None for row in content[:48]], 1000, feature=column).tolist()
        assert [row[column] or 0 for row in found] == wanted
        assert [row[column] is None for row in found] == [row[14 + place] == "" for row in content[:48]]
    assert not (tmp_path / "out" / "vocabularies.parquet").exists()


def edited(row: int, place: int, value: str) -> list[Row]:
    content = rows(30, 3)
    content[row][place] = value
    return content


@pytest.mark.parametrize(
    ("content", "options", "sentence"),
    [
        (edited(3, 0, "2"), {}, "1 rows have a label other than 0 and 1"),
        (edited(3, 0, ""), {}, "1 rows have a label other than 0 and 1"),
        (edited(3, 4, "x"), {}, "train.txt: cannot be read as expected"),
        (edited(3, 20, "xyz"), {}, "train.txt: cannot be read as expected"),
        (edited(3, 39, "00000001\t00000002"), {}, "train.txt: cannot be read as expected"),
        (rows(30, 3), {"split": "last-day"}, "--split last-day needs several"),
        (rows(30, 3), {"validation_share": 0.5, "test_share": 0.5}, "leave nothing to train on"),
        (rows(3, 3), {}, "the split 'validation' would hold no rows"),
        (rows(30, 3), {"files": "nothing*"}, "lacks nothing*"),
        (rows(30, 3), {"layout": "indexed"}, "lacks DeepLight's training file"),
        (rows(30, 3), {"layout": "indexed", "files": "x"}, "are for --layout raw"),
    ],
)
def test_mistakes(content: list[Row], options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    write(tmp_path / "raw" / "train.txt", content)
    with pytest.raises(UserError) as error:
        ADAPTERS["criteo"].part(tmp_path / "raw", tmp_path / "out", **options)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_real_rows_of_kaggle(repository: Path, tmp_path: Path) -> None:
    raw = real_rows(repository, "criteo")
    with gzip.open(raw / "criteo_kaggle_head1000.txt.gz", "rt") as file:
        content = [line.rstrip("\n").split("\t") for line in file]
    assert sum(int(row[0]) for row in content) == 205
    ADAPTERS["criteo"].part(raw, tmp_path / "out", files="criteo_kaggle*.txt")
    check(tmp_path / "out", {"train": content[:857], "validation": content[857:929], "test": content[929:]}, 2)
    read_through(tmp_path / "out", ["click"])


def test_real_indexed_rows(repository: Path, tmp_path: Path) -> None:
    raw = real_rows(repository, "criteo")
    ADAPTERS["criteo"].part(raw, tmp_path / "out", layout="indexed", validation_share=0.1)
    dataset = open_dataset(tmp_path / "out")
    assert {name: dataset.spec.splits[name].rows for name in SPLITS} == {
        "train": 9000,
        "validation": 1000,
        "test": 10000,
    }
    assert dataset.spec.names("sparse") == [*COUNTS, *CATEGORIES]
    names = values(tmp_path / "out")
    with gzip.open(raw / "criteo_indexed_test_10k.csv.gz", "rt") as file:
        for row, content in zip(split(tmp_path / "out", "test"), csv.reader(file), strict=True):
            assert row["click"] == int(content[0])
            for place, column in enumerate([*COUNTS, *CATEGORIES]):
                assert names.get((column, row[column])) in (None, content[1 + place])
    read_through(tmp_path / "out", ["click"])
