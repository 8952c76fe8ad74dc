"""Published versions with rounded tables: the bytes of an export, and the same scores whether followed or applied."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import dlrm_mtl
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.embeddings.row_formats import FormatName
from dlrm_mtl.serve.export import export_run
from dlrm_mtl.serve.follow.assemble import write_version
from dlrm_mtl.serve.follow.source import FollowedVersion, FollowedVersions
from dlrm_mtl.serve.follow.table_files import encode_tables
from dlrm_mtl.serve.table_export import TableOptions
from dlrm_mtl.serve.tensor_files import write_tensors
from dlrm_mtl.storage.run_store import LocalStore
from dlrm_mtl.versions.chain import Chain
from tests import hashed
from tests.versions.test_assembling import content
from tests.versions.test_publishing import configuration, publishing

UNLIMITED = {"auc": 1.0, "loss": 1.0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, ``versions`` 1 to 3 and ``data``."""
    folder = tmp_path_factory.mktemp("rounded")
    data = hashed.write_dataset(folder / "data", rows=400)
    config = configuration(folder, data, "table_wise", "clippy_rowwise_adagrad", publishing(folder))
    dlrm_mtl.train(config, folder / "run", progress=False)
    return folder


@pytest.mark.parametrize("format", ["int8", "fp16", "int4"])
def test_applied_versions_have_the_bytes_of_an_export(trained: Path, tmp_path: Path, format: FormatName) -> None:
    store = LocalStore(trained / "versions")
    versions = Chain(store).newest().versions
    for count, step in ((1, 2), (3, 5)):
        export_run(
            trained / "run", tmp_path / f"export_{step}", f"step_{step}", tables=TableOptions(format, **UNLIMITED)
        )
        write_version(store, versions[:count], tmp_path / f"applied_{step}", format=format)
        wanted, found = content(tmp_path / f"export_{step}"), content(tmp_path / f"applied_{step}")
        assert wanted.keys() - found.keys() == {"quality.json"}  # it compares labels, which versions lack
        different = [name for name in found if wanted[name] != found[name]]
        assert different == ["bundle.json"]  # it lists the files


@pytest.mark.parametrize("format", ["int8", "fp16", "int4"])
def test_followed_versions_score_as_applied_ones(trained: Path, tmp_path: Path, format: FormatName) -> None:
    versions = Path(shutil.copytree(trained / "versions", tmp_path / "versions"))
    rows = pq.read_table(trained / "data" / "test")
    store = LocalStore(trained / "versions")
    stored = Chain(store).newest().versions
    for name in ("version_00000002", "version_00000003"):
        shutil.rmtree(versions / name)
    source = FollowedVersions(str(versions), dlrm_mtl.Scorer, tmp_path / "cache", format=format)
    for count in (1, 2, 3):
        if count > 1:
            name = stored[count - 1].name
            shutil.copytree(trained / "versions" / name, versions / name)
        write_version(store, stored[:count], tmp_path / f"applied_{count}", format=format)
        (version,) = source.versions()
        followed, applied = version.load(None), dlrm_mtl.Scorer(tmp_path / f"applied_{count}")
        assert followed.version == f"{stored[count - 1].id}-{format}"
        assert followed.golden_difference <= 1e-6
        found, wanted = followed.score(rows), applied.score(rows)
        assert all(np.array_equal(found[task], wanted[task]) for task in wanted)
        for table, own in applied.tables.items():
            assert own.format.name == format
            assert torch.equal(followed.tables[table].stored(0, own.rows), own.stored(0, own.rows)), table


def test_formats_have_folders_of_their_own(trained: Path, tmp_path: Path) -> None:
    folders: list[Path] = []
    for format in ("fp32", "int8", "fp32"):
        source = FollowedVersions(str(trained / "versions"), dlrm_mtl.Scorer, tmp_path, format=format)  # type: ignore[arg-type]
        (version,) = source.versions()
        assert isinstance(version, FollowedVersion)
        assert {table.format.name for table in version.load(None).tables.values()} == {format}
        folders.append(version.folder)
    assert folders[0] == folders[2] != folders[1]


def test_a_value_that_a_format_cannot_hold(tmp_path: Path) -> None:
    table = torch.zeros(70_000, 2)
    table[66_000, 1] = torch.inf
    with open(tmp_path / "tables", "wb") as file:
        write_tensors(file, {"tables.user": table}, "run", 1)
    with pytest.raises(UserError) as error:
        encode_tables(tmp_path / "tables", "int8", "run", 1)
    assert str(error.value) == "--tables int8: table user: row 66000 holds inf, which int8 cannot hold; choose fp32."


def test_the_options(trained: Path, tmp_path: Path, call: Callable[..., tuple[int, str]]) -> None:
    code, printed = call("apply", trained / "versions", "--tables", "int4", "--output", tmp_path / "bundle")
    assert code == 0, printed
    assert "version_00000003: int4 tables change scores of the golden rows by up to 0." in printed
    assert {each.format.name for each in dlrm_mtl.Scorer(tmp_path / "bundle").tables.values()} == {"int4"}
    choose = "there is no such format; choose fp32, fp16, int8, int4."
    for command in (
        ["apply", trained / "versions", "--output", tmp_path / "other", "--tables", "int3"],
        ["serve", "--follow", trained / "versions", "--port", 0, "--tables", "int3"],
    ):
        assert call(*command) == (2, f"error: --tables int3: {choose}\n")
    code, printed = call("serve", tmp_path / "bundle", "--port", 0, "--tables", "int8")
    assert code == 2
    assert printed.startswith("error: --tables int8: goes with --follow; ")
