"""Bundles of published versions: base and deltas make the bytes of an export; damage is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlrm_mtl.serve.export import export_run
from dlrm_mtl.serve.follow.assemble import write_version
from dlrm_mtl.storage.run_store import LocalStore
from dlrm_mtl.versions.chain import Chain
from tests import hashed
from tests.processes import run_processes
from tests.versions.test_publishing import ALL, train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hashed.write_dataset(tmp_path_factory.mktemp("hashed"), rows=400)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("processes", "pairs"),
    [
        pytest.param(1, ALL[3:4], id="1"),
        pytest.param(2, ALL[:2], id="2"),
        pytest.param(1, ALL, marks=pytest.mark.slow, id="1, all"),
        pytest.param(2, ALL, marks=pytest.mark.slow, id="2, all"),
        pytest.param(4, ALL, marks=pytest.mark.slow, id="4, all"),
    ],
)
def test_base_and_deltas_make_the_bytes_of_an_export(
    tmp_path: Path, data: Path, processes: int, pairs: list[tuple[str, str]]
) -> None:
    run_processes(processes, train, tmp_path, data, pairs)
    for sharding, sparse in pairs:
        own = tmp_path / f"{sharding}-{sparse}"
        store = LocalStore(own / "versions")
        versions = Chain(store).newest().versions
        for count in (1, 3):
            step = versions[count - 1].version.step
            export_run(own / "run", own / f"export_{step}", f"step_{step}")
            write_version(store, versions[:count], own / f"applied_{step}")
            wanted, found = content(own / f"export_{step}"), content(own / f"applied_{step}")
            assert [name for name in wanted if wanted[name] != found.get(name)] == [], (sharding, sparse, step)
            assert wanted.keys() == found.keys()
