"""Tuning of the score: the best of what was tried, the same for the same seed, with the conditions kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from numpy.typing import NDArray

import dlrm_mtl
from dlrm_mtl.config.serving import ScoreFormula
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.serve.export import export_run
from dlrm_mtl.serve.score_objective import Goal, Judge, TaskLabels, goals_of
from dlrm_mtl.serve.tune_score import Form, TunedScore, tune
from tests import commands, synthetic

ROWS = 4000


def world(form: Form, seed: int = 0) -> tuple[dict[str, NDArray[np.float32]], Judge]:
    """Predictions, and a label whose best order is by a known score: a^1 b^0.5, or 1 a + 3 b."""
    rng = np.random.default_rng(seed)
    predictions = {name: rng.uniform(0.02, 1, ROWS).astype(np.float32) for name in "abc"}
    wide = {name: values.astype(np.float64) for name, values in predictions.items()}
    truth = wide["a"] * wide["b"] ** 0.5 if form == "product" else (wide["a"] + 3 * wide["b"]) / 4
    labels = TaskLabels(rng.random(ROWS) < truth, np.ones(ROWS, np.bool_))
    return predictions, Judge({"a": labels}, None, [Goal("a", "auc", 1.0)])


def tuned(form: Form, seed: int, conditions: list[Goal] | None = None) -> TunedScore:
    predictions, judge = world(form)
    start = ScoreFormula(sum={"a": 1.0})
    return tune(predictions, list("abc"), judge, [Goal("a", "auc", 1.0)], conditions or [], start, form, 150, seed)


@pytest.mark.parametrize(("form", "ratio"), [("product", 0.5), ("sum", 3.0)])
def test_the_best_score_is_found(form: Form, ratio: float) -> None:
    found = tuned(form, 1)
    numbers = found.best.formula.product if form == "product" else found.best.formula.sum
    assert isinstance(numbers, dict)
    assert numbers["b"] / numbers["a"] == pytest.approx(ratio, rel=0.4)
    assert numbers.get("c", 0.0) < 0.15 * max(numbers.values())
    assert found.best.objective == max(each.objective for each in found.tried) > found.start.objective
    assert max(numbers.values()) == 1.0
    assert tuned(form, 1) == found, "the same seed"
    assert tuned(form, 2) != found
    assert found.front == [each for each in found.tried if each.objective == found.best.objective]


def test_conditions() -> None:
    best = tuned("product", 1).best.objective
    assert tuned("product", 1, [Goal("a", "auc", best - 1e-9)]).best.objective == best
    with pytest.raises(
        UserError, match=r"no score of 151 fulfils the conditions; a/auc reached 0\.\d{4} where 0\.99 is asked"
    ):
        tuned("product", 1, [Goal("a", "auc", 0.99)])


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("b/auc", "--objective b/auc: there is no binary task 'b'"),
        ("auc", "there is no binary task ''"),
        ("a/ndcg", "'ndcg' is not a metric; choose auc, gauc, ndcg@K, mrr"),
        ("a/ndcg@0", "'ndcg@0' is not a metric"),
        ("a/auc=much", "'much' is not a number"),
    ],
)
def test_goals_that_are_refused(option: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        goals_of([option], "--objective", ["a"])


def test_a_metric_that_is_not_defined() -> None:
    labels = TaskLabels(np.ones(5, np.bool_), np.ones(5, np.bool_))
    with pytest.raises(UserError, match="a/auc is not defined in these rows"):
        Judge({"a": labels}, None, [Goal("a", "auc", 1.0)])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuning")
    data = synthetic.write_dataset(folder / "data", rows=1000)
    content = synthetic.config(data)
    content["tasks"] = [{"name": "click"}, {"name": "buy", "only_where": "click"}]
    dlrm_mtl.train(
        dlrm_mtl.load_config(commands.write_config(folder / "run.yaml", content)), folder / "run", progress=False
    )
    export_run(folder / "run", folder / "bundle")
    return folder / "bundle"


def test_the_command(bundle: Path, tmp_path: Path, call: Callable[..., tuple[int, str]]) -> None:
    rows = bundle.parent / "data" / "validation"
    options = ["--input", str(rows), "--by", "user", "--trials", "12", "--check", str(bundle.parent / "data" / "test")]
    code, printed = call(
        *("tune-score", str(bundle), *options, "--output", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.svg"))
    )
    assert code == 0, printed
    assert "click/gauc on the other rows: 0." in printed
    pasted = yaml.safe_load(printed[printed.index("serving:") :])
    content = json.loads((tmp_path / "a.json").read_text())
    assert pasted == {"serving": {"score": content["score"]}}
    assert len(content["tried"]) == 13
    assert "<svg" in (tmp_path / "a.svg").read_text()
    assert "click/gauc" in (tmp_path / "a.svg").read_text()
    # The command's metric of the bundle's own score, computed by hand over the rows after a click.
    scorer, table = dlrm_mtl.Scorer(bundle), pq.read_table(rows)
    label, click = (np.array(table[name].to_pylist(), dtype=np.float64) for name in ("buy", "click"))
    users = table["user"].to_pylist()
    scores, values, sizes = scorer.score(table)["click"], [], []
    for user in set(users):
        own = np.array([each == user for each in users]) & (click == 1) & np.isfinite(label)
        positives, negatives = scores[own & (label == 1)], scores[own & (label == 0)]
        if len(positives) and len(negatives):
            values.append(np.mean([(p > n) + 0.5 * (p == n) for p in positives for n in negatives]))
            sizes.append(own.sum())
    assert content["start"]["metrics"]["buy/gauc"] == pytest.approx(np.average(values, weights=sizes))
    again, said = call("tune-score", str(bundle.parent / "run"), *options, "--output", str(tmp_path / "b.json"))
    assert again == 0, said
    assert json.loads((tmp_path / "b.json").read_text())["tried"] == content["tried"], "a run is its bundle"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--objective", "click/gauc"], "click/gauc: is a mean over groups of rows; name their column"),
        (["--by", "userr"], "column 'userr', to be carried over, is missing; did you mean 'user'"),
        (["--by", "tags"], "column 'tags' holds lists, which make no groups"),
        (["--task", "bay"], "--task bay: there is no such binary task; did you mean 'buy'"),
        (["--form", "power"], "--form power: choose product or sum"),
        (["--plot", "x.pdf"], "--plot x.pdf: plots are .svg or .png"),
    ],
)
def test_what_is_refused(
    bundle: Path, tmp_path: Path, call: Callable[..., tuple[int, str]], options: list[str], sentence: str
) -> None:
    rows = str(bundle.parent / "data" / "validation")
    code, printed = call("tune-score", str(bundle), "--input", rows, "--output", str(tmp_path / "a.json"), *options)
    assert code == 2
    assert sentence in printed
    assert not (tmp_path / "a.json").exists()
