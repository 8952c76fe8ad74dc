"""``prepare ... --output s3://...``, on a real server that speaks S3: everything or nothing, in plain words."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from pyarrow import fs
from typer.testing import CliRunner

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.prepare.commands import as_command
from dlrm_mtl.prepare.common.io import Progress
from dlrm_mtl.storage import staged_output
from tests import s3, synthetic
from tests.prepare import test_criteo
from tests.prepare.published import differences

Call = Callable[..., tuple[int, str]]


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with Criteo's train.txt, which is also the current one; temporary files are in temporary/."""
    folder = tmp_path / "raw"
    folder.mkdir()
    test_criteo.write(folder / "train.txt", test_criteo.rows(60, seed=0))
    monkeypatch.chdir(folder)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return folder


def left_here(raw: Path) -> list[str]:
    return [path.name for path in (*raw.iterdir(), *(raw.parent / "temporary").iterdir()) if path.name != "train.txt"]


def test_a_data_set_on_a_store_is_the_local_one(bucket: fs.S3FileSystem, call: Call, raw: Path, tmp_path: Path) -> None:
    code, said = call("prepare", "criteo", "--input", raw, "--output", "s3://bucket/sets/ads")
    assert code == 0, said
    assert (
        "s3://bucket/sets/ads: ready; draft a configuration with: dlrm-mtl init s3://bucket/sets/ads --output run.yaml"
        in said
    )
    assert left_here(raw) == []
    assert call("prepare", "criteo", "--input", raw, "--output", tmp_path / "ads")[0] == 0
    fs.copy_files("bucket/sets/ads", str(tmp_path / "copy"), source_filesystem=bucket)
    assert differences(tmp_path / "ads", tmp_path / "copy") == []
    assert open_dataset("s3://bucket/sets/ads").split("train").rows > 0

    code, said = call("prepare", "criteo", "--input", raw, "--output", "s3://bucket/sets/ads")
    assert (code, said.count("\n")) == (2, 1)
    assert "s3://bucket/sets/ads: already exists and is not an empty folder" in said


def test_an_adapter_of_somebody_else_and_places_on_this_machine(
    bucket: fs.S3FileSystem, call: Call, raw: Path, tmp_path: Path
) -> None:
    def prepare(output: Path, *, progress: Progress = lambda what, done: None) -> str:
        """Anything."""
        output.mkdir()
        (output / "rows.parquet").touch()
        return f"{output}: 3 rows"

    single = typer.Typer()
    single.command()(as_command(prepare))
    assert "s3://bucket/made: 3 rows\n" in CliRunner().invoke(single, ["--output", "s3://bucket/made"]).output
    assert s3.files(bucket, "bucket/made") == ["rows.parquet"]
    with staged_output.staged_output(f"file://{tmp_path}/here", "dataset.yaml") as local:
        assert local == tmp_path / "here"
    code, said = call("prepare", "criteo", "--input", "s3://bucket/raw", "--output", tmp_path / "other")
    assert code == 2
    assert "prepare: --input s3://bucket/raw: only local files are read; copy them to this machine." in said


def test_a_mistake_leaves_nothing_here_or_there(
    bucket: fs.S3FileSystem, call: Call, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = call("prepare", "criteo", "--input", raw, "--output", "s3://nobucket/ads")
    assert (code, said.count("\n")) == (2, 1)
    assert "s3://nobucket/ads: cannot be written to" in said
    code, said = call("prepare", "criteo", "--input", tmp_path / "none", "--output", "s3://bucket/ads")
    assert code == 2
    assert "none: there is no such folder" in said
    monkeypatch.setattr(staged_output, "PAUSES", ())
    copy = staged_output._copy

    def fails_at_the_last(source: Path, filesystem: fs.FileSystem, target: str) -> None:
        assert not target.endswith("dataset.yaml") or s3.files(bucket, "bucket/ads") == ["train/a", "train/b"]
        if target.endswith("dataset.yaml"):
            raise OSError("the store is gone")
        copy(source, filesystem, target)

    monkeypatch.setattr(staged_output, "_copy", fails_at_the_last)

    def write() -> None:
        with staged_output.staged_output("s3://bucket/ads", "dataset.yaml") as local:
            (local / "train").mkdir(parents=True)
            for name in ("train/a", "train/b", "dataset.yaml"):
                (local / name).write_text(name)

    with pytest.raises(
        UserError, match=r"^s3://bucket/ads: cannot be written \(the store is gone\); check the storage"
    ):
        write()
    assert s3.files(bucket, "bucket") == []
    assert left_here(raw) == []


def test_an_error_explains_the_local_path(bucket: fs.S3FileSystem, call: Call, raw: Path) -> None:
    with (
        pytest.raises(UserError, match=r"output \(where s3://bucket/ads is made before its upload; TMPDIR"),
        staged_output.staged_output("s3://bucket/ads", "dataset.yaml") as local,
    ):
        raise UserError(f"{local}: cannot be written to the end (no space); free space.")


def test_a_data_set_on_a_store_is_described_as_the_local_one(
    bucket: fs.S3FileSystem, call: Call, tmp_path: Path
) -> None:
    synthetic.write_dataset(tmp_path / "shop", rows=400)
    s3.upload(tmp_path / "shop", bucket, "bucket/shop")
    code, here = call("data", "describe", tmp_path / "shop")
    assert (code, here.count("unseen test")) == (0, 1)
    assert call("data", "describe", "s3://bucket/shop") == (0, here)
    code, said = call("data", "describe", "s3://bucket/ads")
    assert (code, said.count("\n")) == (2, 1)
    assert "s3://bucket/ads: there is no such folder" in said
