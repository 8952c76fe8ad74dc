"""The AliExpress adapter: on generated files beside plain Python, and on real rows where they are at hand."""

from __future__ import annotations

import csv
import gzip
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.prepare import ADAPTERS
from dlrm_mtl.prepare.aliexpress.files import CATEGORIES, LABELS, NUMBERS
from tests.prepare.published import SPLITS, differences, read_through, real_rows, split, values

HEADER = ["search_id", *CATEGORIES, *NUMBERS, *LABELS]
Row = dict[str, str]


def rows(count: int, seed: int) -> list[Row]:
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        click = int(rng.random() < 0.4)
        made.append(
            {"search_id": str(number // 4)}
            | {name: str(rng.integers(0, 9)) for name in CATEGORIES}
            | {name: "" if rng.random() < 0.05 else f"{rng.random():.6f}" for name in NUMBERS}
            | {"click": str(click), "conversion": str(click * int(rng.random() < 0.3))}
        )
    return made


def write(path: Path, content: list[Row], end: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join(HEADER), *(",".join(row[name] for name in HEADER) for row in content)]
    text = "".join(line + end + "\n" for line in lines)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


def check(out: Path, parts: dict[str, list[Row]], min_count: int) -> None:
    names = values(out)
    counts = {name: Counter(row[name] for row in parts["train"]) for name in CATEGORIES}
    for part in SPLITS:
        for row, raw in zip(split(out, part), parts[part], strict=True):
            assert [row[name] for name in ("search_id", *LABELS)] == [int(raw[name]) for name in ("search_id", *LABELS)]
            for name in NUMBERS:
                wanted = None if raw[name] == "" else pytest.approx(float(raw[name]), rel=1e-6, abs=1e-12)
                assert row[name] == wanted
            for name in CATEGORIES:
                kept = raw[name] if counts[name][raw[name]] >= min_count else None
                assert names.get((name, row[name])) == kept


def test_one_country_in_the_order_of_its_files(tmp_path: Path) -> None:
    train, test = rows(100, 0), rows(30, 1)
    write(tmp_path / "raw" / "train.csv.gz", train)
    write(tmp_path / "raw" / "test.csv", test)
    ADAPTERS["aliexpress"].part(tmp_path / "raw", tmp_path / "out", validation_share=0.2, min_count=5)
    check(tmp_path / "out", {"train": train[:80], "validation": train[80:], "test": test}, 5)
    assert "country" not in open_dataset(tmp_path / "out").spec.names("sparse")
    read_through(tmp_path / "out", LABELS)


def test_countries_and_random_searches(tmp_path: Path) -> None:
    content = {
        (country, part): rows(60, seed)
        for seed, (country, part) in enumerate(
            (country, part) for country in ("NL", "ES") for part in ("train", "test")
        )
    }
    for (country, part), made in content.items():
        write(tmp_path / "raw" / f"AliExpress_{country}" / f"{part}.csv", made)
    ADAPTERS["aliexpress"].part(
        tmp_path / "raw", tmp_path / "out", countries="NL,ES", validation="random", validation_share=0.3, seed=5
    )

    def held(country: int, row: Row) -> bool:
        text = f"5:split:{country}:{row['search_id']}"
        return int(hashlib.md5(text.encode()).hexdigest()[:15], 16) < round(0.3 * 2**60)

    numbered = [(number, row) for number, name in enumerate(("NL", "ES"), 1) for row in content[name, "train"]]
    parts = {
        "train": [row for country, row in numbered if not held(country, row)],
        "validation": [row for country, row in numbered if held(country, row)],
        "test": [*content["NL", "test"], *content["ES", "test"]],
    }
    assert parts["validation"]
    check(tmp_path / "out", parts, 2)
    assert [row["country"] for row in split(tmp_path / "out", "test")] == [1] * 60 + [2] * 60
    ADAPTERS["aliexpress"].part(tmp_path / "raw", tmp_path / "last", countries="NL,ES", validation_share=0.5)
    assert [row["country"] for row in split(tmp_path / "last", "validation")] == [1] * 30 + [2] * 30


def test_the_same_bytes_also_with_a_comma_at_the_end_of_lines(tmp_path: Path) -> None:
    for folder, end in (("raw", ""), ("commas", ",")):
        for part, seed in (("train", 0), ("test", 1)):
            write(tmp_path / folder / f"{part}.csv", rows(400, seed), end)
    ADAPTERS["aliexpress"].part(tmp_path / "raw", tmp_path / "one", threads=1)
    ADAPTERS["aliexpress"].part(tmp_path / "commas", tmp_path / "other", threads=4, memory="300MB")
    assert differences(tmp_path / "one", tmp_path / "other") == []


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        ({"click": "2"}, {}, "1 rows have a click other than 0 and 1"),
        ({"conversion": ""}, {}, "1 rows have a conversion other than 0 and 1"),
        ({"categorical_3": "a"}, {}, "train.csv: cannot be read as expected"),
        ({"numerical_3": "0.1,0.2"}, {}, "train.csv: cannot be read as expected"),
        ({}, {"validation_share": 1.0}, "leaves nothing to train on"),
        ({}, {"validation_share": 0.0}, "the split 'validation' would hold no rows"),
        ({}, {"countries": "NL"}, "AliExpress_NL: there is no such folder"),
    ],
)
def test_mistakes(change: Row, options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    content = rows(30, 0)
    content[7] |= change
    write(tmp_path / "raw" / "train.csv", content)
    write(tmp_path / "raw" / "test.csv", rows(10, 1))
    with pytest.raises(UserError) as error:
        ADAPTERS["aliexpress"].part(tmp_path / "raw", tmp_path / "out", **options)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_header_without_a_column(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", rows(5, 0))
    write(tmp_path / "test.csv", rows(5, 0))
    text = (tmp_path / "test.csv").read_text()
    (tmp_path / "test.csv").write_text(text.replace("numerical_63", "numerical_64", 1))
    with pytest.raises(UserError, match="its header lacks numerical_63 \\(1 columns in all\\)"):
        ADAPTERS["aliexpress"].part(tmp_path, tmp_path / "out")
    write(tmp_path / "more_test.csv", rows(5, 0))
    with pytest.raises(UserError, match="leave one testing file"):
        ADAPTERS["aliexpress"].part(tmp_path, tmp_path / "out")


def test_real_rows(repository: Path, tmp_path: Path) -> None:
    raw = real_rows(repository, "aliexpress")
    content = {}
    for part in ("train", "test"):
        with open(raw / f"aliexpress_{part}_sample.csv", newline="") as file:
            content[part] = list(csv.DictReader(file))
    assert sum(int(row["click"]) for row in content["train"]) == 60
    ADAPTERS["aliexpress"].part(raw, tmp_path / "out")
    parts = {"train": content["train"][:90], "validation": content["train"][90:], "test": content["test"]}
    check(tmp_path / "out", parts, 2)
    read_through(tmp_path / "out", LABELS)
