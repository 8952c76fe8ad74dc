"""Synthetic data: independent computations confirm the values in truth.json."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import OneHotEncoder
from typer.testing import CliRunner

from dlrm_mtl.cli import app
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.prepare.synthetic.adapter import prepare
from dlrm_mtl.prepare.synthetic.truth import expected_auc
from dlrm_mtl.prepare.synthetic.world import Bag, World
from dlrm_mtl.prepare.synthetic.zipf import Zipf

BAGS: dict[str, Any] = {
    "tables": 3,
    "vocab": "40,3000,7",
    "ids_per_bag": "1,0..3,poisson:2",
    "dense": 2,
    "tasks": 5,
    "correlation": -0.2,
}


@pytest.fixture(scope="module")
def additive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small vocabularies and no interactions: what a logistic regression can learn."""
    folder = tmp_path_factory.mktemp("synthetic") / "additive"
    options: dict[str, Any] = {"vocab": "10..40", "tables": 4, "dense": 2, "tasks": 2, "interactions": 0.0}
    prepare(
        folder, rows=100_000, **options, splits="train=0.6,test=0.4", auc="0.8,0.7", positive_rate="0.3", processes=1
    )
    return folder


@pytest.fixture(scope="module")
def bagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "bagged"
    prepare(folder, rows=140_000, **BAGS, rows_per_file=65536, processes=1)
    return folder


def read(folder: Path, split: str) -> pa.Table:
    return pq.read_table(folder / split)


def truth_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "truth.json").read_text())
    return content


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("size", "exponent"), [(1, 1.0), (2, 0.0), (50, 0.0), (50, 0.7), (50, 1.0), (300, 1.3), (20, 3.0)]
)
def test_zipf_has_its_probabilities(size: int, exponent: float) -> None:
    drawn = Zipf(size, exponent).sample(np.random.default_rng(1), 200_000)
    chances = np.arange(1, size + 1) ** -exponent
    counts = np.bincount(drawn, minlength=size + 1)
    assert counts[0] == 0
    assert len(counts) == size + 1
    assert size == 1 or chisquare(counts[1:], 200_000 * chances / chances.sum()).pvalue > 1e-4


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 1 << 40), exponent=st.floats(0.0, 6.0), seed=st.integers(0, 99))
def test_zipf_stays_within_its_size(size: int, exponent: float, seed: int) -> None:
    drawn = Zipf(size, exponent).sample(np.random.default_rng(seed), 500)
    assert drawn.min() >= 1
    assert drawn.max() <= size


def effect(seed: int, table: int, task: int, id_: int) -> float:
    """The effect of an id in plain Python's integers."""
    mask = (1 << 64) - 1
    salts = np.random.SeedSequence(seed, spawn_key=(1 << 20, table)).generate_state(task // 4 + 1, np.uint64)
    mixed = (id_ + int(salts[task // 4])) * 0x9E3779B97F4A7C15 & mask
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & mask
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & mask
    level = (mixed ^ mixed >> 31) >> 16 * (task % 4) & 0xFFFF
    return (2 * (level + 0.5) / 65536 - 1) * math.sqrt(3)


def test_effects_are_standard_and_uncorrelated() -> None:
    effects = World(7, (10,), (Bag(),), 1.0, 0, 6).effects(0, np.arange(1, 100_001))
    np.testing.assert_allclose(effects.mean(axis=0), 0, atol=0.02)
    np.testing.assert_allclose(np.cov(effects, rowvar=False), np.eye(6), atol=0.02)


def test_logits_follow_from_the_columns(bagged: Path) -> None:
    """The formula of truth.json, row by row, in plain Python, from what a reader sees."""
    content, rows = truth_of(bagged), read(bagged, "train").slice(70_000, 40).to_pylist()
    world, truth = content["world"], content["truth"]
    tasks, seed = world["tasks"], world["seed"]
    sequence = np.random.SeedSequence(seed, spawn_key=((1 << 20) + 1,))
    weights = np.random.Generator(np.random.Philox(sequence)).standard_normal((world["dense"], tasks))
    for row in rows:
        raw = []
        for task in range(tasks):
            means = []
            for table in range(len(world["vocabularies"])):
                ids = row[f"sparse_{table}"]
                ids = ids if isinstance(ids, list) else [ids]
                means.append(sum(effect(seed, table, task, id_) for id_ in ids) / max(len(ids), 1))
            dense = sum(weights[number, task] * row[f"dense_{number}"] for number in range(world["dense"]))
            parts = (sum(means), means[0] * means[1], dense)
            raw.append(sum(truth["weight"][j][task] * (part - truth["mean"][j][task]) for j, part in enumerate(parts)))
        for task in range(tasks):
            score = sum(a * b for a, b in zip(truth["mixing"][task], raw, strict=True))
            logit = truth["intercept"][task] + truth["slope"][task] * score
            assert row[f"logit_task_{task}"] == pytest.approx(logit, rel=1e-5, abs=1e-5)


def test_expected_auc_is_the_mean_over_labels() -> None:
    generator = np.random.default_rng(0)
    logits = np.round(generator.normal(-1, 1.5, 300), 1)  # with ties
    chances = 1 / (1 + np.exp(-logits))
    wins = np.sign(logits[:, None] - logits) / 2 + 0.5
    pairs = chances[:, None] * (1 - chances)
    assert expected_auc(logits) == pytest.approx((wins * pairs).sum() / pairs.sum(), abs=1e-12)
    drawn = [roc_auc_score(generator.random(300) < chances, logits) for _ in range(400)]
    assert expected_auc(logits) == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / 400**0.5 + 1e-3)


def test_the_true_logits_reach_the_stated_values(additive: Path, bagged: Path) -> None:
    for folder in (additive, bagged):
        rows = read(folder, "train")
        for name, stated in truth_of(folder)["bayes"]["tasks"].items():
            labels, logits = np.asarray(rows[name]), np.asarray(rows[f"logit_{name}"], dtype=np.float64)
            positives = int(labels.sum())
            error = math.hypot(stated["auc_standard_error"], 0.5 / math.sqrt(min(positives, len(labels) - positives)))
            assert roc_auc_score(labels, logits) == pytest.approx(stated["auc"], abs=3 * error)
            assert stated["auc"] == pytest.approx(stated["wanted"]["auc"], abs=0.006)
            assert stated["rate"] == pytest.approx(stated["wanted"]["rate"], abs=0.006)
            assert log_loss(labels, 1 / (1 + np.exp(-logits))) == pytest.approx(stated["log_loss"], abs=0.006)
            assert labels.mean() == pytest.approx(stated["rate"], abs=4 * math.sqrt(0.25 / len(labels)))


def test_a_fitted_model_reaches_the_bayes_auc_and_not_more(additive: Path) -> None:
    train, test = read(additive, "train"), read(additive, "test")
    sparse, dense = [f"sparse_{table}" for table in range(4)], ["dense_0", "dense_1"]

    def columns(rows: pa.Table, names: list[str]) -> np.ndarray[Any, Any]:
        return np.stack([np.asarray(rows[name]) for name in names], axis=1)

    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(columns(train, sparse))
    inputs = [np.hstack([encoder.transform(columns(rows, sparse)), columns(rows, dense)]) for rows in (train, test)]
    for name in ("task_0", "task_1"):
        model = LogisticRegression(max_iter=300).fit(inputs[0], np.asarray(train[name]))
        labels = np.asarray(test[name])
        oracle = roc_auc_score(labels, np.asarray(test[f"logit_{name}"]))
        reached = roc_auc_score(labels, model.decision_function(inputs[1]))
        assert oracle - 0.004 < reached < oracle + 0.001


def test_scores_are_correlated_as_wanted(bagged: Path) -> None:
    stated = np.array(truth_of(bagged)["bayes"]["correlation"])
    rows = read(bagged, "train")
    found = np.corrcoef([np.asarray(rows[f"logit_task_{task}"]) for task in range(5)])
    np.testing.assert_allclose(stated[~np.eye(5, dtype=bool)], -0.2, atol=0.02)
    np.testing.assert_allclose(found, stated, atol=0.02)


def test_processes_change_no_byte(bagged: Path, tmp_path: Path) -> None:
    prepare(tmp_path / "two", rows=140_000, **BAGS, rows_per_file=65536, processes=2)
    assert digests(tmp_path / "two") == digests(bagged)


def test_file_sizes_change_no_row(bagged: Path, tmp_path: Path) -> None:
    assert len(list((bagged / "train").iterdir())) == 2
    prepare(tmp_path / "one", rows=140_000, **BAGS, processes=1)
    assert len(list((tmp_path / "one" / "train").iterdir())) == 1
    assert read(tmp_path / "one", "train").equals(read(bagged, "train"))


def test_seed_split_and_group_give_other_rows() -> None:
    world = World(1, (100,), (Bag(),), 1.0, 1, 2)
    others = [World(2, (100,), (Bag(),), 1.0, 1, 2).draw(0, 0, 50), world.draw(1, 0, 50), world.draw(0, 1, 50)]
    for other in others:
        assert not np.array_equal(other.ids[0], world.draw(0, 0, 50).ids[0])
        assert not np.array_equal(other.dense, world.draw(0, 0, 50).dense)
    np.testing.assert_array_equal(world.draw(0, 3, 50).parts, world.draw(0, 3, 50).parts)


def test_the_reader_knows_it(bagged: Path) -> None:
    dataset = open_dataset(bagged)
    assert {name: dataset.split(name).rows for name in dataset.spec.splits} == {
        "train": 112_000,
        "validation": 14_000,
        "test": 14_000,
    }
    rows = read(bagged, "train")
    assert [dataset.spec.vocabulary_size(f"sparse_{table}") for table in range(3)] == [40, 3000, 7]
    for feature in dataset.spec.features:
        values = rows[feature.source].combine_chunks()
        if feature.kind == "dense":
            numbers = np.asarray(values, dtype=np.float64)
            assert feature.statistics is not None
            found = [numbers.mean(), numbers.std(), numbers.min(), numbers.max(), 0]
            assert list(feature.statistics.model_dump().values()) == pytest.approx(found, rel=1e-4, abs=1e-5)
        else:
            ids = np.asarray(values.flatten() if pa.types.is_list(values.type) else values)
            assert ids.min() >= 1
            assert ids.max() < dataset.spec.vocabulary_size(feature.name)
    for label in dataset.spec.labels:
        assert label.mean == pytest.approx(np.asarray(rows[label.source]).mean(), rel=1e-5)
        assert f"Bayes AUC {truth_of(bagged)['bayes']['tasks'][label.name]['auc']:.4f}" in str(label.description)
    lengths = np.asarray(pa.compute.list_value_length(rows["sparse_1"]))
    np.testing.assert_allclose(np.bincount(lengths) / len(lengths), [0.25] * 4, atol=0.01)


def test_command(tmp_path: Path) -> None:
    options = ["--output", str(tmp_path / "data"), "--rows", "500", "--tables", "2", "--dense", "1", "--processes", "1"]
    result = CliRunner().invoke(app, ["prepare", "synthetic", *options])
    assert result.exit_code == 0, result.output
    assert "task_0: Bayes AUC 0." in result.output
    assert open_dataset(tmp_path / "data").split("train").rows == 400


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"vocab": "abc"}, "--vocab abc: 'abc' is no whole number"),
        ({"vocab": "1"}, "1 is not between 2"),
        ({"vocab": "50..5"}, "swap them"),
        ({"vocab": "5..50,7"}, "this is no range"),
        ({"ids_per_bag": "3..1"}, "is no number of ids"),
        ({"ids_per_bag": "poisson:nan"}, "is not finite"),
        ({"auc": "0.5"}, "--auc 0.5: 0.5 is not between 0.5 and 0.999"),
        ({"positive_rate": "0.1,1"}, "--positive-rate 0.1,1: 1 is not between 0 and 1"),
        ({"correlation": -0.9}, "from -0.5 to 1"),
        ({"interactions": 0.9, "dense_share": 0.2}, "more than 1 together"),
        ({"splits": "train=0.5,test=0.4"}, "add up to 1"),
        ({"splits": "train=1,../x=0"}, "'../x=0' does not fit"),
        ({"splits": "train=0.9999,test=0.0001"}, "test gets none"),
        ({"vocab": "2", "dense": 0}, "are the same in every row"),
        ({"vocab": "3", "tables": 1, "dense": 0}, "too few for so many different scores"),
    ],
)
def test_mistakes(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        prepare(tmp_path / "data", rows=100, **options)
    assert sentence in str(raised.value)
    assert list(tmp_path.iterdir()) == []
