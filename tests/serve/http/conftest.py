"""Bundles and servers that the tests of the server share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dlrm_mtl
from dlrm_mtl.serve.export import export_run
from tests import commands, synthetic
from tests.serve.http.servers import RunningServer, running


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set ``data``, and bundles of two runs, ``step_2`` and ``step_10``."""
    folder = tmp_path_factory.mktemp("http")
    data = synthetic.write_dataset(folder / "data", rows=300)
    for steps in (2, 10):
        content = synthetic.config(data, training={"epochs": 5, "max_steps": steps, "log_every": 2})
        config = dlrm_mtl.load_config(commands.write_config(folder / "run.yaml", content))
        dlrm_mtl.train(config, folder / f"run_{steps}", progress=False)
        export_run(folder / f"run_{steps}", folder / f"step_{steps}", checkpoint="latest")
    return folder


@pytest.fixture(scope="session")
def table(shop: Path) -> pa.Table:
    """Rows to score."""
    return pq.read_table(shop / "data" / "test")


@pytest.fixture(scope="session")
def scorer(shop: Path) -> dlrm_mtl.Scorer:
    """A scorer of ``step_2``."""
    return dlrm_mtl.Scorer(shop / "step_2")


@pytest.fixture(scope="session")
def server(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of ``step_2`` with two workers, for tests that leave it as it is."""
    with running(
        tmp_path_factory.mktemp("server") / "log",
        shop / "step_2",
        "--workers",
        2,
        "--max-rows",
        1000,
        "--max-body",
        "1MB",
    ) as server:
        yield server
