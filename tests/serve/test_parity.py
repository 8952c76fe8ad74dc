"""The served model is the evaluated one: every model of configs/ scores like `dlrm-mtl predict`, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from _pytest.mark import ParameterSet

import dlrm_mtl
from dlrm_mtl.serve.export import export_run
from dlrm_mtl.serve.scorer import BLOCK

ROOT = Path(__file__).parents[2]
QUICK = {"kuairand_flattened_debug", "kuairand_multitask_net_debug", "kuairand_unbounded_debug", "kuairand_esmm_debug"}
"""One of each way to the tables and to the scores; architectures differ in between only."""
ROWS = 16 * BLOCK + 13
ITEM_FIELDS = ["video_id", "author", "tag", "tab", "duration_log", "video_age_days", "video_is_like_rate"]


def configurations() -> list[ParameterSet]:
    paths = sorted((ROOT / "configs").glob("*_debug.yaml"))
    return [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem not in QUICK)) for path in paths]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(pq.read_table(ROOT / "datasets/kuairand_pure/test").slice(0, ROWS), path)
    return path


@pytest.mark.parametrize("config", configurations())
def test_scores_are_predictions(config: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    steps = ["training.max_steps=2", "training.evaluate_every=null", "seed=2"]
    loaded = dlrm_mtl.load_config(config, steps)
    wide = "model.embeddings.init_std=2" if hasattr(loaded.model, "embeddings") else "model.init_std=2"
    if "multitask_net" not in config.stem:  # whose `embeddings` is something else, and whose weights are wide
        loaded = dlrm_mtl.load_config(config, [*steps, wide])
    run = dlrm_mtl.train(loaded, tmp_path / "run", progress=False)
    export_run(tmp_path / "run", tmp_path / "bundle")
    scorer = dlrm_mtl.Scorer(tmp_path / "bundle")
    assert scorer.golden_difference <= 1e-6
    table = pq.read_table(rows)
    scores = scorer.score(table)
    # With batches of as many rows as the scorer's blocks the products are the same calls: the same bits, but for the last
    # block, which predict does not fill up.
    same = run.predict(rows, batch_size=BLOCK)
    whole = run.predict(rows)
    assert isinstance(same, pa.Table)
    assert isinstance(whole, pa.Table)
    for task in scorer.tasks:
        assert len(np.unique(scores[task])) > 100, "rows are told apart"
        assert np.array_equal(scores[task][: -(ROWS % BLOCK)], same[task].to_numpy()[: -(ROWS % BLOCK)])
        np.testing.assert_allclose(scores[task], same[task].to_numpy(), rtol=0, atol=1e-6)
        np.testing.assert_allclose(scores[task], whole[task].to_numpy(), rtol=0, atol=1e-6)
    as_dicts, as_frame = scorer.score(table.to_pylist()), scorer.score(table.to_pandas())
    alone = [scorer.score(table.slice(row, 1)) for row in range(0, ROWS, 97)]
    backwards = scorer.score(table.take(np.arange(ROWS)[::-1]))
    for task in scorer.tasks:
        assert np.array_equal(as_dicts[task], scores[task])
        assert np.array_equal(as_frame[task], scores[task])
        # A row at another place of its block: the same up to the order of a product's sums, see serve/scorer.py.
        np.testing.assert_allclose(np.concatenate([one[task] for one in alone]), scores[task][::97], rtol=0, atol=1e-6)
        np.testing.assert_allclose(backwards[task][::-1], scores[task], rtol=0, atol=1e-6)
        others = scorer.score(table.take([0, *range(500, 900)]))
        assert others[task][0] == scores[task][0], "the same place, among other rows"
    context, candidates = table.slice(0, 1).to_pylist()[0], table.slice(0, 200).select(ITEM_FIELDS)
    ranked = scorer.rank(context, candidates)
    whole_rows = scorer.score([{**context, **candidate} for candidate in candidates.to_pylist()])
    for task in scorer.tasks:
        assert np.array_equal(ranked.tasks[task], whole_rows[task][ranked.order]), "a request is its rows"
