"""Published versions are calibrated with the maps of a bundle of the same run, and with no others."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import dlrm_mtl
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.serve.export import export_run
from dlrm_mtl.serve.follow.calibration import calibration_of
from dlrm_mtl.serve.follow.source import FollowedVersions
from tests import hashed
from tests.versions.test_publishing import configuration, publishing


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, its ``versions``, ``data``, and bundles ``calibrated`` and ``plain``."""
    folder = tmp_path_factory.mktemp("calibrated")
    data = hashed.write_dataset(folder / "data", rows=400)
    config = configuration(folder, data, "table_wise", "clippy_rowwise_adagrad", publishing(folder))
    dlrm_mtl.train(config, folder / "run", progress=False)
    export_run(folder / "run", folder / "calibrated", "step_5", calibrate=["negatives:0.5"])
    export_run(folder / "run", folder / "plain", "step_5")
    return folder


def test_scores_are_those_of_the_calibrated_export(trained: Path, tmp_path: Path) -> None:
    rows = pq.read_table(trained / "data" / "test")
    calibration = calibration_of(trained / "calibrated")
    source = FollowedVersions(str(trained / "versions"), dlrm_mtl.Scorer, tmp_path, calibration=calibration)
    (version,) = source.versions()
    scorer = pickle.loads(pickle.dumps(version)).load(None)
    assert scorer.version == version.key
    assert scorer.version.endswith(f"-{calibration.digest}")
    found = scorer.score(rows)
    wanted, raw = (dlrm_mtl.Scorer(trained / name).score(rows) for name in ("calibrated", "plain"))
    assert all(np.array_equal(found[task], wanted[task]) for task in wanted)
    assert not all(np.array_equal(found[task], raw[task]) for task in raw)
    (plain,) = FollowedVersions(str(trained / "versions"), dlrm_mtl.Scorer, tmp_path).versions()
    assert all(np.array_equal(values, raw[task]) for task, values in plain.load(None).score(rows).items())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"run": "other"}, "the names of the runs of this bundle and of the published versions differ; "),
        ({"tasks": (("click", "binary"),)}, "the tasks of this bundle and of the published versions differ; "),
    ],
    ids=["run", "tasks"],
)
def test_another_model_is_not_calibrated(
    trained: Path, tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    other = replace(calibration_of(trained / "calibrated"), **change)  # type: ignore[arg-type]
    (version,) = FollowedVersions(str(trained / "versions"), dlrm_mtl.Scorer, tmp_path, calibration=other).versions()
    with pytest.raises(UserError) as error:
        version.load(None)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_the_option(trained: Path, tmp_path: Path, call: Callable[..., tuple[int, str]]) -> None:
    follow = ["serve", "--follow", trained / "versions", "--port", 0, "--calibration"]
    code, printed = call(*follow, trained / "plain")
    assert (code, printed) == (
        2,
        f"error: --calibration {trained / 'plain'}: this bundle has no calibration; export one with --calibrate.\n",
    )
    assert "there is no bundle here" in call(*follow, tmp_path)[1]
    code, printed = call("serve", trained / "plain", "--port", 0, "--calibration", trained / "calibrated")
    assert (code, "goes with --follow; " in printed) == (2, True)
