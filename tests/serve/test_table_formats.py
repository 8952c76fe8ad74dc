"""Export of tables in other formats: what is served is what was compared, and what changes too much is not exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

import dlrm_mtl
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.embeddings.row_formats import FormatName
from dlrm_mtl.serve.export import export_run
from dlrm_mtl.serve.quality import QualityReport, SplitScores, compare_quality
from dlrm_mtl.serve.table_export import TableOptions
from dlrm_mtl.tasks.config import TaskConfig
from tests import commands, synthetic

ANY = {"auc": 1.0, "loss": 1.0}
"""Limits that nothing exceeds."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("formats")
    data = synthetic.write_dataset(folder / "data", rows=400)
    content = synthetic.config(data, training={"epochs": 2, "log_every": 2})
    content["data"] |= {"unbounded": {"user": 20}}  # type: ignore[operator]
    config = dlrm_mtl.load_config(commands.write_config(folder / "run.yaml", content))
    dlrm_mtl.train(config, folder / "run", progress=False)
    export_run(folder / "run", folder / "fp32")
    return folder / "run"


@pytest.mark.parametrize(("name", "bound"), [("fp16", 1e-3), ("int8", 1e-2), ("int4", 0.1)])
def test_what_is_served_is_what_was_compared(run: Path, tmp_path: Path, name: FormatName, bound: float) -> None:
    export_run(run, tmp_path / "bundle", tables=TableOptions(name, **ANY))
    scorer, original = dlrm_mtl.Scorer(tmp_path / "bundle", check_all=True), dlrm_mtl.Scorer(run.parent / "fp32")
    assert scorer.golden_difference <= 1e-6
    table = pq.read_table(run.parent / "data/test")
    scores, wanted = scorer.score(table), original.score(table)
    report = QualityReport.model_validate_json((tmp_path / "bundle/quality.json").read_text())
    assert (report.tables, report.split) == (name, "test")
    assert report.bytes_fp32 == sum(each.rows * each.dim * 4 for each in original.tables.values())
    assert report.bytes_stored == sum(each.rows * each.format.row_bytes(each.dim) for each in scorer.tables.values())
    for task in report.tasks:
        difference = np.abs(scores[task.name] - wanted[task.name])
        assert 0 < difference.max() < bound
        labels = table[task.name].to_numpy(zero_copy_only=False)
        known = ~np.isnan(labels.astype(float))
        assert task.rows == known.sum()
        assert task.largest_difference == pytest.approx(difference[known].max(), abs=1e-6)
        for side, found in (("fp32", wanted), ("stored", scores)):
            values = found[task.name][known].astype(np.float64)
            assert getattr(task.metrics["auc"], side) == pytest.approx(roc_auc_score(labels[known], values), abs=1e-3)
            assert getattr(task.metrics["log_loss"], side) == pytest.approx(log_loss(labels[known], values), abs=1e-5)
    first = scorer.tables["item"]
    rows = first.vectors(torch.arange(first.rows))
    exact = original.tables["item"].vectors(torch.arange(first.rows))
    steps = {"fp16": 2**-10, "int8": 1.1 / 255, "int4": 1.1 / 15}[name] * (exact.abs().amax(1) * 2)
    assert bool(((rows - exact).abs().amax(1) <= steps).all())


def test_the_same_bytes_twice(run: Path, tmp_path: Path) -> None:
    for name in "ab":
        export_run(run, tmp_path / name, tables=TableOptions("int8", **ANY))
    contents = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ab"]
    assert contents[0] == contents[1]


def test_on_the_command_line(run: Path, tmp_path: Path, call: Callable[..., tuple[int, str]]) -> None:
    options = ["--tables", "int4", "--max-auc-change", "1", "--max-loss-change", "1"]
    code, printed = call("export", run, "--output", tmp_path / "bundle", *options)
    assert code == 0, printed
    lines = printed.splitlines()
    assert lines[0].startswith("int4 tables: ")
    assert lines[0].endswith("; quality on the split test, fp32 -> int4:")
    assert lines[1].startswith("  click, 100 rows: auc 0.")
    assert lines[-1].startswith(f"{tmp_path}/bundle: synthetic of step ")
    code, printed = call("export", run, "--output", tmp_path / "another", *options[:4], "--max-loss-change", "0")
    assert code == 2
    sentence = printed.splitlines()[-1]
    assert sentence.startswith("error: --tables int4: on test the task '")
    assert "has normalized_entropy 0." in sentence or "has normalized_entropy 1." in sentence
    assert sentence.endswith("above the limit 0; choose another format, or allow more by --max-loss-change.")
    assert not (tmp_path / "another").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--tables", "int2"], "--tables int2: there is no such format; choose fp32, fp16, int8, int4"),
        (["--max-auc-change", "0.1"], "--tables fp32: nothing is rounded, so there is no quality report"),
        (["--tables", "int8", "--evaluate-on", "none.parquet"], "none.parquet"),
    ],
)
def test_mistakes(
    run: Path, tmp_path: Path, call: Callable[..., tuple[int, str]], options: list[str], sentence: str
) -> None:
    code, printed = call("export", run, "--output", tmp_path / "bundle", *options)
    assert (code, len(printed.splitlines())) == (2, 1), printed
    assert sentence in printed
    assert not list(tmp_path.iterdir())


def test_other_rows_to_evaluate_on(run: Path, tmp_path: Path) -> None:
    pq.write_table(pq.read_table(run.parent / "data/train").slice(0, 50), tmp_path / "rows.parquet")
    export_run(run, tmp_path / "bundle", tables=TableOptions("fp16", **ANY, evaluate_on=tmp_path / "rows.parquet"))
    report = json.loads((tmp_path / "bundle/quality.json").read_text())
    assert report["split"] == str(tmp_path / "rows.parquet")
    assert report["tasks"][0]["rows"] == 50


def scores(logits: np.ndarray, labels: np.ndarray, ids: np.ndarray) -> SplitScores:
    ones = np.ones_like(labels)
    return SplitScores(logits, 1 / (1 + np.exp(-logits)), labels, ones, {"place": ids})


def test_the_worst_slice() -> None:
    """The slice in which a change was made is first; sizes and metrics are those of its rows."""
    random = np.random.default_rng(1)
    logits = random.normal(size=(9000, 1)).astype(np.float32)
    labels = (random.random((9000, 1)) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    ids = random.integers(-1, 5, 9000)
    ids[:300] = 7  # too few to be compared
    changed = logits.copy()
    changed[ids == 3] += 0.2 * random.normal(size=((ids == 3).sum(), 1)).astype(np.float32)
    changed[ids == 7] = 0
    (quality,) = compare_quality(scores(logits, labels, ids), scores(changed, labels, ids), [TaskConfig(name="click")])
    worst = quality.worst_slices[0]
    inside = ids == 3
    assert (worst.feature, worst.id, worst.rows) == ("place", 3, inside.sum())
    assert worst.metrics["auc"].fp32 == pytest.approx(roc_auc_score(labels[inside, 0], logits[inside, 0]))
    assert worst.metrics["auc"].stored == pytest.approx(roc_auc_score(labels[inside, 0], changed[inside, 0]))
    assert worst.metrics["normalized_entropy"].relative > 0
    assert [each.id for each in quality.worst_slices[1:]] == [-1, 0, 1, 2], "unchanged ones, by their ids"


def test_limits() -> None:
    logits = np.linspace(-1, 1, 100, dtype=np.float32)[:, None]
    labels = (logits > 0.2).astype(np.float32)
    labels[::7] = 1
    changed = logits.copy()
    changed[60:70] = changed[50:60] - 0.01
    quality = compare_quality(
        scores(logits, labels, np.zeros(100, np.int64)),
        scores(changed, labels, np.zeros(100, np.int64)),
        [TaskConfig(name="click")],
    )
    for limits, problem in [
        ({"auc": 1e-4, "loss": 9}, "'click' has auc .* a change of .* above the limit 0.0001.*--max-auc-change"),
        ({"auc": 1, "loss": 1e-4}, "has normalized_entropy .* above the limit 0.0001.*--max-loss-change"),
    ]:
        report = QualityReport(tables="int8", split="test", bytes_fp32=4, bytes_stored=1, limits=limits, tasks=quality)
        with pytest.raises(UserError, match=problem):
            report.check()
    QualityReport(
        tables="int8", split="test", bytes_fp32=4, bytes_stored=1, limits={"auc": 1, "loss": 9}, tasks=quality
    ).check()
