"""Comparing runs: numbers against SciPy's, pages that stand alone, runs that are still training."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.metrics.score_bins import score_bins
from dlrm_mtl.reports.compare import compare_runs, report_runs
from dlrm_mtl.reports.compare_page import comparison_page
from dlrm_mtl.reports.comparison_tables import metric_tables, paired_tables
from dlrm_mtl.reports.groups import differences, group_runs, mean_and_interval, mean_curve, paired_difference, student_t
from dlrm_mtl.reports.page import Cell, Page, PageTable, Section
from dlrm_mtl.reports.plots import thin
from dlrm_mtl.reports.row_intervals import row_intervals
from dlrm_mtl.reports.run_sections import phase_means, phase_sections, plan_sections
from dlrm_mtl.reports.runs import Curve, flatten, read_runs
from dlrm_mtl.reports.slice_section import slice_sections
from dlrm_mtl.run.saved_scores import SavedScores, write_scores
from tests import commands, synthetic
from tests.reports.folders import write_run
from tests.reports.pages import Page as ParsedPage


@given(freedom=st.integers(1, 400), probability=st.floats(0.6, 0.9999))
def test_student_t(freedom: int, probability: float) -> None:
    assert student_t(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-9)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12))
def test_mean_and_interval(values: list[float]) -> None:
    mean, half = mean_and_interval(values)
    assert mean == pytest.approx(np.mean(values), abs=1e-6)
    assert half == pytest.approx(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values), rel=1e-6, abs=1e-6)


def test_interval_of_one_value_is_unknown() -> None:
    assert mean_and_interval([0.5])[0] == 0.5
    assert math.isnan(mean_and_interval([0.5])[1])
    assert math.isnan(mean_and_interval([])[0])


def test_mean_curve_takes_common_steps() -> None:
    first = Curve(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 4.0]))
    second = Curve(np.array([2.0, 3.0, 4.0]), np.array([4.0, 9.0, 4.0]))
    steps, mean, half = mean_curve([first, second])
    assert steps.tolist() == [2, 4]
    assert mean.tolist() == [3, 4]
    assert half == pytest.approx([stats.t.ppf(0.975, 1) * 1.0, 0.0])


@given(st.integers(1, 2000), st.integers(1, 300))
def test_thinning_keeps_means(count: int, points: int) -> None:
    x = np.arange(count, dtype=np.float64)
    few_x, few_y = thin(x, 2 * x, points)
    assert len(few_x) == min(count, points)
    np.testing.assert_allclose(few_y, 2 * few_x)
    assert (np.diff(few_x) > 0).all()


def test_runs_are_read(tmp_path: Path) -> None:
    (run,) = read_runs([write_run(tmp_path / "run", auc=0.7)])
    assert run.step == 6
    assert run.total("seconds") == pytest.approx(0.5 * 21)
    assert run.mean_over_time("data_wait_share") == pytest.approx(0.25)
    assert run.last("clipped_steps") == 6
    assert run.validation == {"click/auc": 0.7, "dwell/rmse": 4.0, "mean/auc": 0.7}
    assert run.test is not None
    assert run.test["click/auc"] == pytest.approx(0.68)
    assert run.config["tasks.click.weight"] == 1.0
    assert run.curves["train", "loss/click"].steps.tolist() == [1, 2, 3, 4, 5, 6]


def test_flatten_addresses_lists_by_name() -> None:
    nested = {
        "a": {"b": [1, 2]},
        "tasks": [{"name": "x", "w": 1}, {"name": "y", "w": 2}],
        "levels": [{"n": 1}, {"n": 2}],
    }
    expected = {"a.b": [1, 2], "tasks.x.name": "x", "tasks.x.w": 1, "tasks.y.name": "y", "tasks.y.w": 2}
    assert flatten(nested) == {**expected, "levels.0.n": 1, "levels.1.n": 2}


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_run_that_is_writing_its_last_line(tmp_path: Path, cut: int) -> None:
    folder = write_run(tmp_path / "run", finished=False)
    text = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(text[:-cut])
    (folder / "results.json").write_text('{"step": 4, "test": {"click')
    (run,) = read_runs([folder])
    assert run.test is None
    assert run.step == 6
    assert len(run.entries) == (8 if cut > 1 else 9)


def test_a_run_that_has_written_nothing_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run", finished=False)
    (folder / "metrics.jsonl").unlink()
    compare_runs([folder], tmp_path / "page.html")
    assert "not finished" in capsys.readouterr().out
    ParsedPage((tmp_path / "page.html").read_text())


def test_groups_are_runs_that_differ_in_the_seed(tmp_path: Path) -> None:
    runs = read_runs(
        [
            write_run(tmp_path / "a1", seed=1),
            write_run(tmp_path / "b1", seed=1, architecture="ple"),
            write_run(tmp_path / "a2", seed=2),
            write_run(tmp_path / "again", seed=2),
        ]
    )
    first, second = group_runs(runs)
    assert [run.label for run in first.runs] == ["a1", "a2"]
    assert [run.label for run in first.repeated] == ["again"]
    assert [run.label for run in second.runs] == ["b1"]
    assert differences(runs)["model.multitask.name"] == ["mmoe", "ple", "mmoe", "mmoe"]


def test_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    aucs = [0.71, 0.74, 0.72]
    paths = [write_run(tmp_path / f"a{seed}", seed=seed, auc=auc) for seed, auc in enumerate(aucs)]
    paths.append(write_run(tmp_path / "other", architecture="ple", finished=False))
    compare_runs(paths)
    out = capsys.readouterr().out
    half = stats.t.ppf(0.975, 2) * stats.sem(aucs)
    assert f"{np.mean(aucs) - 0.02:.4f} ± {half:.4f}" in out
    assert "a0 and 2 more seeds" in out
    assert "model.multitask.name" in out
    assert "data.batch_size" not in out
    compare_runs(paths[:1], metrics=["positives"])
    assert "positives" in capsys.readouterr().out


def test_page(tmp_path: Path) -> None:
    balancing = {
        "balancing/cosine/click~dwell": -0.3,
        "balancing/norm/click": 2.0,
        "balancing/norm/dwell": 0.1,
        "balancing/coefficient/click": 1.0,
        "balancing/conflict_share": 0.5,
        "novelty/x": 1.0,
    }
    paths = [write_run(tmp_path / f"a{seed}", seed=seed, more=balancing) for seed in (1, 2)]
    paths.append(write_run(tmp_path / "<b>$x$", architecture="ple"))
    compare_runs(paths, tmp_path / "page.html")
    page = ParsedPage((tmp_path / "page.html").read_text())
    assert "<b>$x$" in page.texts
    for heading in (
        "Training losses",
        "Clipping factors",
        "Cosines between the tasks' gradients",
        "novelty",
        "Validation curves",
    ):
        assert heading in page.headings
    for image in [
        *(f"train {key} by step" for key in balancing),
        "validation click/auc by step",
        "train clipped_steps by step",
    ]:
        assert image in page.plots
    assert "train seconds by step" not in page.plots
    assert "train skipped_steps by step" not in page.plots
    assert any("The same in every entry of all runs: " in text and "skipped steps 1" in text for text in page.texts)
    assert page.headings.index("Where the configurations differ") < page.headings.index("Validation curves")


def test_page_is_the_same_every_time(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / "a", more={"x/nan": math.nan})])
    (tmp_path / "a" / "metrics.jsonl").unlink()
    groups = group_runs(runs)
    assert comparison_page(runs, groups).render() == comparison_page(runs, groups).render()


def test_tables_escape_and_mark() -> None:
    table = PageTable(("<i>", "n"), [["&", Cell("1", strong=True, bar=0.5, colour="#123456")]])
    page = ParsedPage(Page("t", sections=[Section("s", "<p>", [table], folded=True)]).render())
    assert {"<i>", "&", "1", "<p>", "s"} <= set(page.texts)


def test_many_tables_show_those_that_move(tmp_path: Path) -> None:
    factors = {f"factor/table_{number:02d}": 1.0 for number in range(20)}
    run = write_run(tmp_path / "a", more={**factors, "factor/still": 1.0})
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "train":
            line |= dict.fromkeys(factors, 1.0 - line["step"] / 1000.0)
            line["factor/table_13"] = 1 / line["step"]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    runs = read_runs([run])
    section = next(
        part for part in comparison_page(runs, group_runs(runs)).sections if part.title == "Clipping factors"
    )
    assert len(section.figures) == 12
    assert {"train factor/table_13 by step", "train factor/user by step"} <= {
        figure.description for figure in section.figures
    }
    assert "The 12 of 21 that move most; not shown: table_" in section.text
    assert "The same in every entry of all runs: still 1." in section.text


def test_a_run_that_cannot_be_read_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"
    write_run(runs / "good")
    (write_run(runs / "broken") / "config.yaml").write_text("a: [")
    (write_run(runs / "without") / "config.yaml").unlink()
    foreign = write_run(runs / "foreign")
    (foreign / "config.yaml").write_text("optimizer: adam\n")
    compare_runs([runs], tmp_path / "page.html")
    page = ParsedPage((tmp_path / "page.html").read_text())
    out = capsys.readouterr().out
    for told in (out, " ".join(page.texts)):
        assert f"left out: {runs / 'broken' / 'config.yaml'}: line" in told
        assert f"left out: {runs / 'without'}: there is no run here" in told
        assert f"{foreign / 'config.yaml'}: is not the configuration of a run of dlrm-mtl" in told
    assert "good" in page.headings
    # What was named is shown as far as it can be, and ends with an error.
    with pytest.raises(UserError, match=r"foreign/config.yaml: is not .*\n.*nothing: there is no run"):
        compare_runs([runs / "good", foreign, tmp_path / "nothing"])
    assert "0.6800" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"^.*broken/config.yaml: line [^\n]*$"):
        compare_runs([runs / "broken"])


DAMAGE: dict[str, tuple[str, str]] = {
    "metrics.jsonl": ('{"kind": "train"}\n[]\n[[[\n' + "[" * 100_000 + "\n", "4 of its 4 lines cannot be read"),
    "results.json": ('{"test": ', "is damaged or not yet complete"),
    "plan.json": ('{"a": 1}', "is damaged or not yet complete"),
    "contract.json": ("\0", "is damaged or not yet complete"),
    "scores/test.json": (
        '{"step": 4, "tasks": {"click": {"kind": "binary"}}}',
        "cannot be read, so its curves are missing",
    ),
}


def test_damaged_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    (run / "scores").mkdir()
    for file, (text, _) in DAMAGE.items():
        (run / file).write_text(text)
    compare_runs([run, write_run(tmp_path / "other", seed=2)], tmp_path / "page.html")
    out, page = capsys.readouterr().out, ParsedPage((tmp_path / "page.html").read_text())
    for file, (_, sentence) in DAMAGE.items():
        assert f"note: {run / file}: {sentence}" in out
        assert any(f"{run / file}: {sentence}" in text for text in page.texts)
    assert "0.6800" in page.texts  # the other's AUC


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with open(run / "metrics.jsonl", "a") as file:
        for value in (10**400, "text", True, [1], None, {}):
            file.write(json.dumps({"kind": "train", "step": 7, "odd/x": value}) + "\n")
        file.write('{"kind": "train", "step": 8, "odd/x": NaN, "loss/click": Infinity}\n{"kind": 3, "step": true}\n')
    (run / "plan.json").write_text('[{"table": "a"}, 3]')
    compare_runs([run], tmp_path / "page.html")
    assert "plan.json has another form, and is left out" in ParsedPage((tmp_path / "page.html").read_text()).texts


def test_runs_of_different_data_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, rows, auc in (("a", 100, 0.7), ("b", 100, 0.8), ("c", 200, 0.9)):
        for seed in (1, 2):
            run = write_run(tmp_path / "runs" / f"{name}{seed}", seed=seed, auc=auc + seed / 100, architecture=name)
            splits = {"train": {"rows": 7}, "validation": {"rows": rows}, "test": {"rows": rows}}
            (run / "contract.json").write_text(json.dumps({"dataset": {"name": "shop", "splits": splits}}))
    compare_runs([tmp_path / "runs"], tmp_path / "page.html")
    out = capsys.readouterr().out
    sentence = (
        "the runs were evaluated on different data, so their metrics do not compare, and none is marked as best: "
        "shop (100 validation and 100 test rows): a1, a2, b1, b2; shop (200 validation and 200 test rows): c1, c2"
    )
    assert f"note: {sentence}" in out
    assert sentence in ParsedPage((tmp_path / "page.html").read_text()).texts
    groups = group_runs(read_runs([tmp_path / "runs"]))
    (table,) = paired_tables(groups, "test", ["auc"])
    assert [row[0].text for row in table.cells()] == ["b1 and b2"]
    (table, _) = metric_tables(read_runs([tmp_path / "runs"]), groups, "test", ["auc"])
    assert not any(cell.strong for row in table.cells() for cell in row)
    # The same configuration on other data is another group.
    (tmp_path / "runs" / "a2" / "contract.json").write_text("{}")
    assert len(group_runs(read_runs([tmp_path / "runs" / "a1", tmp_path / "runs" / "a2"]))) == 2


def test_scores_of_the_evaluated_model(tmp_path: Path) -> None:
    """Curves and intervals appear if, and only if, the scores are of the same step as the metrics."""
    run = write_run(tmp_path / "run")
    rng = np.random.default_rng(0)
    labels = (rng.random(500) < 0.4).astype(np.float64)
    scores = np.stack([rng.normal(size=500) + labels, rng.normal(size=500)], axis=1).astype(np.float32)
    columns = np.stack([labels, rng.normal(size=500)], axis=1)
    click, dwell = score_bins(scores, columns, np.ones_like(columns), ["binary", "real"])
    for step in (4, 3):
        write_scores(run / "scores" / "test.json", SavedScores(step, {"click": click, "dwell": dwell}))
        report_runs([run], tmp_path / "page.html")
        page = ParsedPage((tmp_path / "page.html").read_text())
        curves = {
            "ROC curve of click",
            "precision-recall curve of click",
            "calibration of click",
            "calibration of dwell",
        }
        drawn = {name for name in page.plots if "of click" in name or "of dwell" in name}
        assert drawn == (curves if step == 4 else set())
        low, high = row_intervals(click, {"auc": 0.68})["auc"]
        assert (f"{low:.4f} to {high:.4f}" in page.texts) == (step == 4)
    assert "None of these runs has kept its scores" in " ".join(page.texts)


def test_slices_with_their_support(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, architecture=name) for name in ("a", "b")]
    for run, auc in zip(runs, (0.71, None), strict=True):
        tasks = {"click": {"rows": 1200, "positives": 30, "metrics": {"auc": auc, "log_loss": 0.25, "unknown": 1}}}
        parts = [{"label": "1", "kind": "value", "values": 1, "rows": 1300, "tasks": tasks}, {"label": "x"}, 3]
        slices = {"test": [{"column": "tab", "by": "values", "slices": parts}, None], "validation": 5}
        results = json.loads((run / "results.json").read_text())
        (run / "results.json").write_text(json.dumps({**results, "slices": slices}))
    (section,) = slice_sections(read_runs(runs))
    (table,) = section.tables
    assert table.columns == ("tab", "rows", "positives", "a", "b")
    assert [[cell.text for cell in row] for row in table.cells()] == [["1", "1,200", "30", "0.7100", "-"]]
    (section,) = slice_sections(read_runs(runs[:1]))
    assert section.tables[0].columns == ("tab", "rows", "positives", "AUC", "log loss")
    report_runs(runs, tmp_path / "page.html")
    assert "click by tab: AUC" in ParsedPage((tmp_path / "page.html").read_text()).texts


def test_time_of_phases(tmp_path: Path) -> None:
    phases = {"phase/lookup": 0.01, "phase/tables:_inner_products": 0.02, "phase/own_part": 0.03}
    timed, plain = write_run(tmp_path / "timed", more=phases), write_run(tmp_path / "plain", seed=2)
    runs = read_runs([timed, plain])
    means = phase_means(runs[0])
    assert means["lookup"] == pytest.approx(0.01)
    assert means["tables: inner products"] == pytest.approx(0.02)
    assert sum(means.values()) == pytest.approx(0.5 * 21 / 6)  # all seconds, by step
    (section,) = phase_sections(runs)
    names = [row[0].text for row in section.tables[0].cells()]
    assert names == ["lookup", "tables: inner products", "own part", "the rest", "whole step"]
    assert "without training.phase_times: plain" in section.text
    assert "training.phase_times: true" in phase_sections(runs[1:])[0].text


def test_the_plan_is_shown_once(tmp_path: Path) -> None:
    entry = {"table": "user", "rows": 1000, "dim": 8, "type": "row_wise", "ranks": [0, 1], "mib": 3.0, "shards": [1, 2]}
    plan = [{**entry, "weights_mib": [1.0, 2.0], "state_mib": [0.5, 0.25]}]
    paths = [write_run(tmp_path / name, seed=seed) for seed, name in enumerate("abc")]
    for path in paths[:2]:
        (path / "plan.json").write_text(json.dumps(plan))
    (section,) = plan_sections(read_runs(paths))
    tables = {table.caption: [[cell.text for cell in row] for row in table.cells()] for table in section.tables}
    assert tables["a, b: 1 tables"] == [["user", "row_wise", "0-1", "1,000", "8", "2", "2.00", "0.50"]]
    assert tables["a, b: memory of tables by process"] == [["0", "1.50", "1.00", "0.50"], ["1", "2.25", "2.00", "0.25"]]


def test_mistakes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"nothing: there is no run here; name the folder that"):
        compare_runs([run, tmp_path / "nothing"])
    with pytest.raises(UserError, match=r"named twice"):
        compare_runs([run, tmp_path / "." / "run"])
    with pytest.raises(UserError, match=r"no metric 'ausc'; did you mean 'auc'"):
        compare_runs([run], metrics=["ausc"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"page.html: cannot be written"):
        compare_runs([run], tmp_path / "file" / "page.html")
    (run / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config.yaml: line"):
        compare_runs([run])


@pytest.mark.slow
def test_a_real_run(tmp_path: Path) -> None:
    data = synthetic.write_dataset(tmp_path / "data", rows=300)
    training = {"epochs": 1, "max_steps": 4, "log_every": 1, "evaluate_every": 2}
    config = commands.write_config(tmp_path / "run.yaml", synthetic.config(data, training=training))
    trained = commands.run("train", config, "--output", tmp_path / "run")
    assert trained.returncode == 0, trained.stderr
    page = tmp_path / "pages" / "page.html"
    done = commands.run("compare", tmp_path / "run", write_run(tmp_path / "other"), "--html", page)
    assert done.returncode == 0, done.stderr
    assert "Where the configurations differ" in done.stdout
    parsed = ParsedPage(page.read_text())
    assert {"train loss/click by step", "validation buy/auc by step", "train data_wait_share by step"} <= set(
        parsed.plots
    )
    results = json.loads((tmp_path / "run" / "results.json").read_text())["test"]
    assert f"{results['buy/auc']:.4f}" in parsed.texts


def test_groups_are_compared_seed_by_seed(tmp_path: Path) -> None:
    aucs = {"a": [0.70, 0.74, 0.66], "b": [0.72, 0.77, 0.67]}
    paths = [
        write_run(tmp_path / f"{name}{seed}", auc=auc, seed=seed, architecture="mmoe" if name == "a" else "ple")
        for name, found in aucs.items()
        for seed, auc in enumerate(found)
    ]
    groups = group_runs(read_runs(paths))
    pair = paired_difference(groups[1], groups[0], lambda run: (run.validation or {})["click/auc"])
    assert pair is not None
    differences = np.subtract(aucs["b"], aucs["a"])
    low, high = stats.ttest_rel(aucs["b"], aucs["a"]).confidence_interval(0.95)
    assert pair.mean == pytest.approx(differences.mean())
    assert (pair.mean - pair.half, pair.mean + pair.half) == pytest.approx((low, high))
    assert pair.seeds == 3
    (table,) = paired_tables(groups, "validation", ["auc"])
    assert table.cells()[0][2].text.startswith("+0.0200 ± ")


def test_a_folder_of_runs_stands_for_them(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", auc=0.7)
    write_run(tmp_path / "runs" / "b", auc=0.8)
    (tmp_path / "runs" / "notes").mkdir()
    assert [run.label for run in read_runs([tmp_path / "runs"])] == ["a", "b"]
    with pytest.raises(UserError, match="there is no run here"):
        read_runs([tmp_path / "runs" / "notes"])
