"""Describing data sets: numbers against plain Python's, over real Parquet files."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.reports.dataset_profile import DatasetProfile, IdsProfile, profile_dataset
from dlrm_mtl.reports.dataset_report import dataset_page, describe_dataset, number, share
from tests import synthetic
from tests.reports.pages import Page as ParsedPage


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_dataset(tmp_path_factory.mktemp("described") / "data", rows=800)


@pytest.fixture(scope="module")
def profile(dataset: Path) -> DatasetProfile:
    return profile_dataset(dataset)


def ids_by_row(dataset: Path, split: str, column: str) -> list[list[int] | None]:
    values = pq.read_table(dataset / split)[column].to_pylist()
    return [value if value is None or isinstance(value, list) else [value] for value in values]


def entry(profile: DatasetProfile, name: str) -> IdsProfile:
    return next(found for found in profile.ids if found.feature.name == name)


@pytest.mark.parametrize("name", ["user", "item", "tags", "history"])
def test_ids(dataset: Path, profile: DatasetProfile, name: str) -> None:
    rows = ids_by_row(dataset, "train", name)
    counts = Counter(id_ for row in rows for id_ in row or [])
    found, total = entry(profile, name), sum(counts.values())
    assert found.distinct == len(counts.keys() - {0})
    assert found.coverage == pytest.approx(sum(any(row or []) for row in rows) / len(rows))
    assert found.nulls == pytest.approx(sum(row is None for row in rows) / len(rows))
    assert found.mean_length == pytest.approx(total / len(rows))
    assert found.longest == max(len(row or []) for row in rows)
    assert found.unknown == pytest.approx(counts[0] / total)
    assert found.outside == 0
    expected = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:3]
    assert [id_ for id_, _ in found.top] == [id_ for id_, _ in expected]
    assert [part for _, part in found.top] == pytest.approx([count / total for _, count in expected])
    others = [id_ for row in ids_by_row(dataset, "test", name) for id_ in row or []]
    assert found.unseen["test"] == pytest.approx(sum(not id_ or id_ not in counts for id_ in others) / len(others))
    falling = np.cumsum(sorted((count for id_, count in counts.items() if id_), reverse=True))
    assert found.curve[1] == pytest.approx([falling[int(k) - 1] / falling[-1] for k in found.curve[0]])
    assert found.curve[0][-1] == found.distinct


def test_numbers(dataset: Path, profile: DatasetProfile) -> None:
    for found in profile.numbers:
        column = pq.read_table(dataset / "train")[found.feature.source]
        values = np.array([value for value in column.to_pylist() if value is not None], dtype=np.float64)
        assert found.nulls == pytest.approx(column.null_count / len(column))
        moments = [values.mean(), values.std(), values.min(), values.max(), (values == 0).mean()]
        assert [found.mean, found.std, found.low, found.high, found.zeros] == pytest.approx(moments)
        exact = np.quantile(values, [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99])
        np.testing.assert_allclose(found.quantiles, exact, atol=0.1 * values.std())
        inside = values[(values >= found.edges[0]) & (values <= found.edges[-1])]
        # A value at an edge may fall on either side of it; the histogram counts each once.
        assert found.counts.sum() == len(inside)
        np.testing.assert_allclose(found.counts, np.histogram(inside, found.edges)[0], atol=1)


def test_labels_and_splits(dataset: Path, profile: DatasetProfile) -> None:
    assert [(split.name, split.rows, split.files) for split in profile.splits] == [
        ("train", 800, 2),  # the split that is described, then the others in dataset.yaml's order
        ("test", 200, 2),
        ("validation", 200, 2),
    ]
    assert profile.splits[0].bytes == sum(path.stat().st_size for path in (dataset / "train").iterdir())
    assert profile.splits[0].row_groups == 4 + 4
    for label in profile.labels:
        for split in ("train", "validation", "test"):
            values = pq.read_table(dataset / split)[label.label.source].to_pylist()
            there = [value for value in values if value is not None]
            assert label.means[split] == pytest.approx(sum(there) / len(there))
            assert label.nulls[split] == pytest.approx(1 - len(there) / len(values))


def write(folder: Path, columns: dict[str, Any], features: list[dict[str, Any]], **more: Any) -> Path:
    (folder / "train").mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "train" / "part.parquet")
    spec = {"name": "small", "splits": {"train": {"folder": "train"}}, "features": features, "labels": [{"name": "y"}]}
    (folder / "dataset.yaml").write_text(yaml.safe_dump({**spec, **more}))
    return folder


def test_odd_columns(tmp_path: Path) -> None:
    """Nothing but nulls, null elements, constants, ids out of range, odd names, files that the reader passes over."""
    columns = {
        "empty": pa.array([None, None, None], pa.list_(pa.int64())),
        "void": pa.array([None, None, None], pa.float64()),
        'with "quotes"': pa.array([[7, None], [], [0, 7, 9]], pa.list_(pa.int64())),
        "same": pa.array([2.0, 2.0, 2.0]),
        "broken": pa.array([float("nan"), float("inf"), 4.0], pa.float32()),
        "y": pa.array([True, False, None]),
    }
    features = [
        {"name": "empty", "kind": "sparse", "vocabulary_size": 5},
        {"name": 'with "quotes"', "kind": "sequence", "vocabulary_size": 9},
        {"name": "void", "kind": "dense"},
        {"name": "same", "kind": "dense"},
        {"name": "broken", "kind": "dense"},
    ]
    folder = write(tmp_path / "odd 'folder'", columns, features)
    (folder / "train" / "_ignored.parquet").write_bytes(b"no Parquet")
    profile = profile_dataset(folder)
    empty, quoted = profile.ids
    assert (empty.distinct, empty.coverage, empty.nulls, empty.mean_length, empty.longest) == (0, 0.0, 1.0, 0.0, 0)
    assert (quoted.distinct, quoted.outside, quoted.longest) == (2, 1, 3)
    assert quoted.coverage == pytest.approx(2 / 3)
    assert quoted.mean_length == pytest.approx(4 / 3)
    void, same, broken = profile.numbers
    assert (broken.not_finite, broken.nulls, broken.mean, broken.high) == (2, 0.0, 4.0, 4.0)
    assert void.nulls == 1.0
    assert same.quantiles == [2.0] * 7
    assert profile.labels[0].means["train"] == pytest.approx(0.5)
    page = ParsedPage(dataset_page(profile).render())
    assert 'with "quotes"' in page.texts
    describe_dataset(folder)


def test_times(tmp_path: Path) -> None:
    columns = {
        "time_ms": [1_700_000_000_000, 1_700_000_060_000],
        "event_time": [1_700_000_000, 1_700_000_001],
        "date": pa.array([20240229, 20240301], pa.int32()),
        "at": pa.array([0, 1], pa.timestamp("s")),
        "day": [3, 4],
        "ts": [1_700_000_000, 1_700_000_001],
        "x": [1, 2],
        "y": [0, 1],
    }
    features = [{"name": "x", "kind": "sparse", "vocabulary_size": 5}, {"name": "ts", "kind": "dense"}]
    (split,) = profile_dataset(write(tmp_path / "data", columns, features)).splits
    assert split.times == {
        "time_ms": ("2023-11-14 22:13:20 UTC", "2023-11-14 22:14:20 UTC"),
        "event_time": ("2023-11-14 22:13:20 UTC", "2023-11-14 22:13:21 UTC"),
        "date": ("2024-02-29", "2024-03-01"),
        "at": ("1970-01-01 00:00:00", "1970-01-01 00:00:01"),
    }


def test_page(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    describe_dataset(dataset, tmp_path / "page.html", split="test")
    out = capsys.readouterr().out
    assert "Sparse and sequence features, split test" in out
    assert re.search(r"unseen\s+│?", out)
    page = ParsedPage((tmp_path / "page.html").read_text())
    assert page.headings == ["Data set synthetic", "Splits", "Labels", "Sparse and sequence features", "Dense features"]
    assert set(page.plots) == {
        "Share of positives by label and split",
        *(f"Concentration of the ids of {name}" for name in ("user", "item", "tags", "history")),
        *(f"Histogram of {name}" for name in ("age", "price")),
    }


def test_kuairand(repository: Path) -> None:
    """The statistics that `describe` wrote into dataset.yaml are found again."""
    profile = profile_dataset(repository / "datasets" / "kuairand_pure")
    for found in profile.ids:
        assert found.feature.statistics is not None
        statistics = found.feature.statistics.model_dump()
        assert found.distinct == statistics["distinct"]
        assert found.coverage == pytest.approx(statistics["coverage"], rel=1e-5)
        assert found.mean_length == pytest.approx(statistics["mean_length"], rel=1e-5)
        assert found.outside == 0
    for dense in profile.numbers:
        assert dense.feature.statistics is not None
        statistics = dense.feature.statistics.model_dump()
        assert [dense.mean, dense.std] == pytest.approx([statistics["mean"], statistics["std"]], rel=1e-4)
    assert profile.splits[0].times["date"] == ("2022-04-25", "2022-05-05")


def test_texts_of_numbers() -> None:
    assert [share(value) for value in (0, 1, 0.9999, 0.4424, 0.00078, float("nan"))] == [
        "0%", "100%", "99.9%", "44.2%", "0.078%", "-",
    ]  # fmt: skip
    assert [number(value) for value in (0, 21474.5, -0.00123456, 2.5e14)] == ["0", "21,474", "-0.001235", "2.5e+14"]


def test_mistakes(dataset: Path, tmp_path: Path) -> None:
    for arguments, sentence in (
        ((tmp_path / "nowhere",), "there is no such folder"),
        ((dataset, "tset"), "there is no split 'tset'; did you mean 'test'"),
        ((dataset, "train", "much"), "--memory much: this is no amount"),
    ):
        with pytest.raises(UserError, match=re.escape(sentence)):
            profile_dataset(*arguments)  # type: ignore[arg-type]
    missing = write(tmp_path / "missing", {"y": [0, 1]}, [{"name": "x", "kind": "dense"}])
    with pytest.raises(UserError, match=r"split 'train' has no column 'x'; there are: y"):
        profile_dataset(missing)
    texts = write(tmp_path / "texts", {"y": [0, 1], "x": ["a", "b"]}, [{"name": "x", "kind": "dense"}])
    with pytest.raises(UserError, match=r"cannot be read \(.*Could not convert"):
        profile_dataset(texts)


def test_features_that_know_the_answer(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A prepared id that is 0 where nothing was clicked, a number that is null there, a list that is empty there."""
    folder = synthetic.write_dataset(tmp_path / "data", rows=400)
    assert profile_dataset(folder).leaks == []
    for path in folder.glob("*/*.parquet"):
        table = pq.read_table(path)
        clicks = table["click"].to_pylist()
        columns = {
            "user": [1 + i % 9 if click else 0 for i, click in enumerate(clicks)],
            "tags": [[1] if click else [] for click in clicks],
            "price": [i / 10 if click else None for i, click in enumerate(clicks)],
            "age": [float(click) for click in clicks],
        }
        for name, values in columns.items():
            table = table.set_column(table.column_names.index(name), name, pa.array(values))
        pq.write_table(table, path)
    described = profile_dataset(folder)
    assert {leak.column for leak in described.leaks if leak.label == "click" and leak.exact} == set(columns)
    describe_dataset(folder, tmp_path / "page.html")
    assert "user    null exactly where click is 0" in re.sub(" *│ *", "    ", capfd.readouterr().out)
    assert "Features that may know the answer" in (tmp_path / "page.html").read_text()
