"""Requests: one user and many candidates give the predictions of the merged rows, the best score first."""

from __future__ import annotations

import numpy as np
import pytest

import dlrm_mtl
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.serve.export import export_run
from tests import commands, synthetic

USER = {"user": 7, "history": [5, 6, 7], "age": 30.0}
ITEMS = [{"item": item, "tags": [item % 30, 3], "price": item / 100} for item in range(150)]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> dlrm_mtl.Scorer:
    folder = tmp_path_factory.mktemp("ranking")
    data = synthetic.write_dataset(folder / "data", rows=300)
    content = synthetic.config(data, training={"epochs": 1, "max_steps": 3, "log_every": 2})
    content["serving"] = {"score": {"product": {"click": 1, "buy": 0.5}}}
    config = dlrm_mtl.load_config(commands.write_config(folder / "run.yaml", content))
    dlrm_mtl.train(config, folder / "run", progress=False)
    export_run(folder / "run", folder / "bundle")
    return dlrm_mtl.Scorer(folder / "bundle")


def test_the_best_first(scorer: dlrm_mtl.Scorer) -> None:
    ranked = scorer.rank(USER, ITEMS, 10)
    scores = scorer.score([{**USER, **item} for item in ITEMS])
    expected = scores["click"].astype(np.float64) * np.sqrt(scores["buy"].astype(np.float64))
    assert ranked.order.tolist() == np.argsort(-expected.astype(np.float32), kind="stable")[:10].tolist()
    np.testing.assert_allclose(ranked.score, expected[ranked.order], rtol=1e-6)
    for task, values in scores.items():
        assert np.array_equal(ranked.tasks[task], values[ranked.order])


def test_what_is_refused(scorer: dlrm_mtl.Scorer) -> None:
    with pytest.raises(UserError, match="top: 0 is no number of candidates"):
        scorer.rank(USER, ITEMS, 0)
    with pytest.raises(UserError, match="context: is list where a mapping from fields to values is expected"):
        scorer.rank([], ITEMS)  # type: ignore[arg-type]
