"""Calibration: fitted like scikit-learn's, on validation rows only; part of the bundle, applied by the scorer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

import dlrm_mtl
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.serve.calibration import KeptNegativesMap, logit, sigmoid
from dlrm_mtl.serve.export import export_run
from dlrm_mtl.serve.fit_calibration import (
    CalibrationChoice,
    LabelledPredictions,
    choices_of,
    expected_calibration_error,
    fit,
    isotonic,
    measure_calibration,
    platt,
)
from dlrm_mtl.tasks.config import TaskConfig
from tests import commands, synthetic

EVERYWHERE = np.concatenate([[0.0, 1e-30], np.linspace(0, 1, 301), [1.0]])


def sample(rows: int, seed: int = 0) -> LabelledPredictions:
    """Rows whose predictions are too high by a factor, in float32 with ties."""
    rng = np.random.default_rng(seed)
    truth = rng.beta(1.5, 4, rows)
    predictions = np.round(np.sqrt(truth), 3).astype(np.float32).astype(np.float64)
    return LabelledPredictions(predictions, (rng.random(rows) < truth).astype(np.float64), rng.uniform(0.1, 3, rows))


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(2, 60), levels=st.integers(2, 12), seed=st.integers(0, 10_000))
def test_isotonic_is_that_of_scikit_learn(rows: int, levels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = LabelledPredictions(
        rng.integers(0, levels, rows) / levels, rng.integers(0, 2, rows).astype(float), rng.uniform(0.1, 2, rows)
    )
    reference = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
    reference.fit(data.predictions, data.labels, data.weights)
    found = isotonic(data)
    at_points, own = reference.predict(found.predictions), np.array(found.probabilities)
    inside = (at_points > 0) & (at_points < 1)
    np.testing.assert_allclose(own[inside], at_points[inside], atol=1e-12)
    if inside.all():
        np.testing.assert_allclose(found.apply(EVERYWHERE), reference.predict(EVERYWHERE), atol=1e-12)
    elif inside.any():
        assert 0 < own.min() <= own.max() < 1


def test_isotonic_is_never_certain() -> None:
    data = LabelledPredictions(np.arange(8) / 8, np.array([0.0, 0, 0, 1, 0, 1, 1, 1]), np.ones(8))
    assert isotonic(data).probabilities == pytest.approx([0.2, 0.2, 0.5, 0.5, 0.8, 0.8])
    reference = IsotonicRegression(out_of_bounds="clip").fit(data.predictions, data.labels)
    assert reference.predict([0.0, 1.0]).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("rows", [50, 3000])
def test_platt_is_the_logistic_regression_of_scikit_learn(rows: int) -> None:
    data = sample(rows)
    reference = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000)
    reference.fit(logit(data.predictions).reshape(-1, 1), data.labels, data.weights)
    found = platt(data, "x")
    assert found.slope == pytest.approx(reference.coef_.item(), rel=1e-5)
    assert found.intercept == pytest.approx(reference.intercept_.item(), rel=1e-5, abs=1e-6)


@given(truth=st.floats(1e-6, 1 - 1e-6), kept=st.floats(1e-3, 1))
def test_sampled_negatives_are_put_back(truth: float, kept: float) -> None:
    seen = truth / (truth + (1 - truth) * kept)  # the share of positives among the rows that were kept
    assert KeptNegativesMap(kept=kept).apply(np.array([seen])).item() == pytest.approx(truth, rel=1e-6)


def test_errors_fall_on_other_rows() -> None:
    fitted, others = sample(20_000, seed=1), sample(20_000, seed=2)
    for found in (isotonic(fitted), platt(fitted, "x")):
        errors = measure_calibration(found, others)
        for before, after in (errors.ece, errors.ne, errors.log_loss):
            assert before is not None
            assert after is not None
            assert after < before
        assert errors.ece[1] is not None
        assert errors.ece[1] < 0.03


def test_the_expected_calibration_error() -> None:
    predictions = np.array([0.1] * 30 + [0.6] * 30)
    labels = np.array([0.0] * 24 + [1.0] * 6 + [1.0] * 15 + [0.0] * 15)
    assert expected_calibration_error(predictions, labels, np.ones(60), bins=2) == pytest.approx(0.1)
    assert np.isnan(expected_calibration_error(np.empty(0), np.empty(0), np.empty(0)))


def of(predictions: list[float], labels: list[float]) -> LabelledPredictions:
    return LabelledPredictions(np.array(predictions), np.array(labels), np.ones(len(labels)))


@pytest.mark.parametrize(
    ("method", "data", "sentence"),
    [
        ("isotonic", of([], []), "calibration of 'click' on validation: no row has a label of this task"),
        ("platt", of([0.1, 0.2], [1, 1]), "all 2 labels are 1, so there is nothing to fit"),
        ("isotonic", of([0.5, 0.5], [0, 1]), "all predictions are 0.5, so there is nothing to fit"),
        ("platt", of([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]), "a threshold separates all positives from all negatives"),
        ("platt", of([0.1, 0.2, 0.3, 0.4], [1, 1, 0, 1]), "higher predictions have fewer positives"),
    ],
)
def test_what_cannot_be_fitted(method: str, data: LabelledPredictions, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        fit(CalibrationChoice(method), data, "click", "validation")  # type: ignore[arg-type]


def test_extreme_predictions() -> None:
    extremes = np.array([0.0, 2.0**-149, 1e-30, 1 - 2.0**-24, 1.0])
    assert np.isfinite(logit(extremes)).all()
    assert (np.diff(logit(extremes)) >= 0).all()
    assert sigmoid(np.array([-800.0, 0.0, 800.0])).tolist() == [0.0, 0.5, 1.0]
    assert KeptNegativesMap(kept=0.01).apply(extremes)[[0, -1]].tolist() == [0.0, 1.0]


TASKS = [
    TaskConfig(name="click"),
    TaskConfig(name="buy", positive_weight=4.0),
    TaskConfig.model_validate({"name": "time", "loss": "mean_squared_error"}),
]


def test_choices() -> None:
    assert choices_of(["buy=negatives", "platt"], TASKS) == {
        "click": CalibrationChoice("platt"),
        "buy": CalibrationChoice("negatives", 0.25),
    }
    assert choices_of(["click=negatives:0.1"], TASKS) == {"click": CalibrationChoice("negatives", 0.1)}


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("sigmoid", "--calibrate sigmoid: 'sigmoid' is not a method; choose isotonic, platt or negatives:SHARE"),
        ("clicks=platt", "there is no binary task 'clicks'; did you mean 'click'"),
        ("time=platt", "there is no binary task 'time'"),
        ("click=negatives", "the share of the negatives of 'click' that was kept is not known"),
        ("negatives:0", "'0' is not a share of the negatives"),
        ("negatives:nan", "'nan' is not a share"),
        ("negatives:many", "'many' is not a share"),
        ("platt:2", "platt takes no number; leave '2' out"),
    ],
)
def test_options_that_are_refused(option: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        choices_of([option], TASKS)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    data = synthetic.write_dataset(folder / "data", rows=1000)
    config = dlrm_mtl.load_config(commands.write_config(folder / "run.yaml", synthetic.config(data)))
    dlrm_mtl.train(config, folder / "run", progress=False)
    return folder / "run"


def test_a_calibrated_bundle(run: Path, tmp_path: Path, call: Callable[..., tuple[int, str]]) -> None:
    code, printed = call(
        "export", str(run), "--output", str(tmp_path / "bundle"), "--calibrate", "isotonic", "--calibrate", "buy=platt"
    )
    assert code == 0, printed
    assert "calibration of click: isotonic, fitted on validation; on 250 rows of test: ECE 0." in printed
    assert "calibration of buy: platt, fitted on validation" in printed
    scorer = dlrm_mtl.Scorer(tmp_path / "bundle")
    export_run(run, tmp_path / "plain")
    plain = dlrm_mtl.Scorer(tmp_path / "plain")
    assert scorer.golden_difference == plain.golden_difference, "golden scores are raw"
    table = pq.read_table(run.parent / "data" / "test")
    for task, raw in plain.score(table).items():
        assert np.array_equal(scorer.score(table, raw=True)[task], raw)
        stored = json.loads((tmp_path / "bundle" / "calibration.json").read_text())["tasks"][task]
        wide = raw.astype(np.float64)
        if task == "click":
            expected = np.interp(wide, stored["predictions"], stored["probabilities"])
        else:
            expected = 1 / (1 + np.exp(-(stored["slope"] * np.log(wide / (1 - wide)) + stored["intercept"])))
        np.testing.assert_allclose(scorer.score(table)[task], expected, rtol=1e-6)
    whole = scorer.rank({}, table)
    assert np.array_equal(whole.tasks["buy"], scorer.score(table)["buy"][whole.order])
    validation = run.parent / "data" / "validation"
    (validation / "part-0.parquet").rename(run.parent / "part-0.parquet")
    try:
        export_run(run, tmp_path / "half", calibrate=["isotonic"])
    finally:
        (run.parent / "part-0.parquet").rename(validation / "part-0.parquet")
    half = json.loads((tmp_path / "half" / "calibration.json").read_text())
    assert (
        half["tasks"]["click"] != json.loads((tmp_path / "bundle" / "calibration.json").read_text())["tasks"]["click"]
    )
    assert half["measured"]["click"]["log_loss"][0] == scorer.calibration.measured["click"].log_loss[0]  # type: ignore[union-attr]


def test_a_data_set_without_validation_rows(run: Path, tmp_path: Path) -> None:
    description = run.parent / "data" / "dataset.yaml"
    text = description.read_text()
    description.write_text(text.replace("  validation:\n    folder: validation\n", ""))
    try:
        with pytest.raises(UserError, match="has no split validation to fit a calibration on; choose negatives:SHARE"):
            export_run(run, tmp_path / "bundle", calibrate=["platt"])
        export_run(run, tmp_path / "bundle", calibrate=["negatives:0.5"])
    finally:
        description.write_text(text)
    assert not (tmp_path / "bundle.tmp").exists()
    raw, half = (
        dlrm_mtl.Scorer(tmp_path / "bundle").score([{**ROW}], raw=raw)["click"].item() for raw in (True, False)
    )
    assert half == pytest.approx(raw / (raw + (1 - raw) / 0.5))


ROW = {"user": 1, "item": 2, "tags": [3], "history": [4, 5], "age": 30.0, "price": 1.0}


@pytest.mark.parametrize(
    ("score", "sentence"),
    [
        ("{product", "--score {product: this is not YAML; write it like '{product: {is_click: 1, long_view: 0.5}}'."),
        ("{sum: {buys: 1}}", "serving.score.sum.buys: there is no task 'buys'; did you mean 'buy'"),
    ],
)
def test_a_score_that_is_refused(
    run: Path, tmp_path: Path, call: Callable[..., tuple[int, str]], score: str, sentence: str
) -> None:
    code, printed = call("export", str(run), "--output", str(tmp_path / "bundle"), "--score", score)
    assert code == 2
    assert sentence in printed


def test_the_score_of_the_export(run: Path, tmp_path: Path, call: Callable[..., tuple[int, str]]) -> None:
    code, printed = call("export", str(run), "--output", str(tmp_path / "bundle"), "--score", "{product: {buy: 2}}")
    assert code == 0, printed
    assert dlrm_mtl.Scorer(tmp_path / "bundle").formula.product == {"buy": 2.0}


def test_a_changed_calibration_is_refused(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "bundle", calibrate=["platt"])
    path = tmp_path / "bundle" / "calibration.json"
    path.write_text(path.read_text().replace("platt", "plott"))
    with pytest.raises(UserError, match=r"calibration\.json: does not have its checksum"):
        dlrm_mtl.Scorer(tmp_path / "bundle")
