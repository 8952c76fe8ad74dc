"""A server follows published versions: every version scores as its export does, and what is damaged is refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import dlrm_mtl
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.serve.export import export_run
from dlrm_mtl.serve.follow.source import FollowedVersions
from dlrm_mtl.storage.run_store import LocalStore
from dlrm_mtl.versions.chain import Chain
from tests import hashed
from tests.versions.test_publishing import configuration, publishing


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, ``versions`` 1 to 3, ``rows`` and the exports of their steps."""
    folder = tmp_path_factory.mktemp("followed")
    data = hashed.write_dataset(folder / "data", rows=400)
    config = configuration(folder, data, "table_wise", "clippy_rowwise_adagrad", publishing(folder))
    dlrm_mtl.train(config, folder / "run", progress=False)
    return folder


@pytest.fixture
def versions(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "versions", tmp_path / "versions"))


def follow(versions: Path | str, cache: Path) -> FollowedVersions:
    return FollowedVersions(str(versions), dlrm_mtl.Scorer, cache)


def first(source: FollowedVersions) -> tuple[dlrm_mtl.Scorer, list[str]]:
    """Scorer of the first version that can be used, and why those before it are refused."""
    refused = []
    for version in source.versions():
        try:
            return version.load(None), refused
        except UserError as error:
            refused.append(str(error))
    raise AssertionError(refused)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / "data" / "test" / "part-0.parquet").to_pylist()


def test_every_version_scores_as_its_export(trained: Path, versions: Path, tmp_path: Path) -> None:
    rows = rows_of(trained)
    held = tmp_path / "held"
    held.mkdir()
    for number in (2, 3):
        (versions / f"version_{number:08d}").rename(held / str(number))
    source = follow(versions, tmp_path / "cache")
    for number, step in ((1, 2), (2, 4), (3, 5)):
        if number > 1:
            (held / str(number)).rename(versions / f"version_{number:08d}")
        scorer, refused = first(source)
        assert refused == []
        stored = Chain(LocalStore(versions)).newest().versions[-1]
        assert (scorer.step, scorer.version) == (step, stored.id)
        assert scorer.version.startswith(f"{number}-")
        export_run(trained / "run", tmp_path / f"export_{step}", f"step_{step}")
        exported = dlrm_mtl.Scorer(tmp_path / f"export_{step}")
        wanted, found = exported.score(rows), scorer.score(rows)
        assert all(np.array_equal(found[task], wanted[task]) for task in wanted)
        again, _ = first(follow(versions, tmp_path / "other"))  # at once, without the versions before
        assert all(np.array_equal(again.score(rows)[task], wanted[task]) for task in wanted)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def gap(versions: Path) -> None:
    shutil.rmtree(versions / "version_00000002")


def duplicate(versions: Path) -> None:
    shutil.rmtree(versions / "version_00000003")
    shutil.copytree(versions / "version_00000002", versions / "version_00000003")


def swap(versions: Path) -> None:
    (versions / "version_00000002").rename(versions / "other")
    (versions / "version_00000003").rename(versions / "version_00000002")
    (versions / "other").rename(versions / "version_00000003")


def foreign(versions: Path) -> None:
    text = (versions / "version_00000001" / "version.json").read_text()
    from dlrm_mtl.versions.format import parse_version, version_text

    version = parse_version(text.encode(), "").version.model_copy(update={"chain": "f" * 32, "number": 3})
    (versions / "version_00000003" / "version.json").write_text(version_text(version))


def other_tensors(versions: Path) -> None:
    name = "rank_00000_0.safetensors"
    shutil.copy(versions / "version_00000002" / name, versions / "version_00000003" / name)


LEFT = "servers go on with the one before until the training publishes a whole model."


@pytest.mark.parametrize(
    ("harm", "step", "sentence"),
    [
        (gap, 2, "version_00000003: applies to version_00000002, which is missing; "),
        (duplicate, 4, "version_00000003/version.json: is that of version_00000002; "),
        (swap, 2, "version_00000002/version.json: is that of version_00000003; "),
        (foreign, 4, "version_00000003: was published by another run than the other versions here; remove it."),
        (other_tensors, 4, "version_00000003/rank_00000_0.safetensors: has "),
        (lambda folder: damage(folder / "version_00000003/version.json"), 4, "version_00000003/version.json: "),
        (
            lambda folder: damage(folder / "version_00000003/index.json"),
            4,
            "version_00000003/index.json: is not that of",
        ),
        (
            lambda folder: damage(folder / "version_00000003/rank_00000_0.safetensors"),
            4,
            "does not have its checksum; ",
        ),
        (
            lambda folder: cut(folder / "version_00000003/rank_00000_0.safetensors"),
            4,
            "version_00000003/rank_00000_0.safe",
        ),
        (lambda folder: (folder / "version_00000003/rank_00000_0.safetensors").unlink(), 4, "is missing; "),
    ],
    ids=["gap", "duplicate", "swap", "foreign", "exchanged", "manifest", "index", "flip", "cut", "file"],
)
def test_what_does_not_follow_is_refused(
    versions: Path, tmp_path: Path, harm: Callable[[Path], None], step: int, sentence: str
) -> None:
    harm(versions)
    scorer, refused = first(follow(versions, tmp_path / "cache"))
    assert scorer.step == step
    assert sentence in refused[0]
    assert refused[0].endswith(LEFT) or "another run" in refused[0]
    assert "\n" not in refused[0]


def test_a_damaged_base(versions: Path, tmp_path: Path) -> None:
    damage(versions / "version_00000001/rank_00000_0.safetensors")
    source = follow(versions, tmp_path / "cache")
    reasons = []
    for version in source.versions():
        with pytest.raises(UserError) as error:
            version.load(None)
        reasons.append(str(error.value))
    assert len(reasons) == 3
    assert len(set(reasons)) == 1
    assert "version_00000001/rank_00000_0.safetensors: " in reasons[0]


def test_a_cache_that_cannot_be_written_is_tried_again(versions: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    source = follow(versions, cache)
    cache.write_text("")
    with pytest.raises(UserError, match="name another folder with --cache"):
        source.versions()
    cache.unlink()
    scorer, refused = first(source)
    assert (scorer.step, refused) == (5, [])


def test_a_folder_of_another_run(versions: Path, tmp_path: Path) -> None:
    source = follow(versions, tmp_path / "cache")
    first(source)
    Chain(LocalStore(versions)).begin("a" * 32)
    with pytest.raises(UserError, match="holds the versions of another run than those served so far"):
        source.versions()


def test_nothing_is_published_yet(tmp_path: Path) -> None:
    assert follow(tmp_path, tmp_path / "cache").versions() == []


def test_versions_on_an_object_store(trained: Path, tmp_path: Path, bucket: Any) -> None:
    for path in sorted((trained / "versions").rglob("*")):
        if path.is_file():
            with bucket.open_output_stream(f"bucket/shop/{path.relative_to(trained / 'versions')}") as stream:
                stream.write(path.read_bytes())
    scorer, refused = first(follow("s3://bucket/shop", tmp_path / "cache"))
    local, _ = first(follow(trained / "versions", tmp_path / "local"))
    assert refused == []
    assert scorer.version == local.version
    rows = rows_of(trained)
    assert all(np.array_equal(scores, local.score(rows)[task]) for task, scores in scorer.score(rows).items())


def test_the_command(trained: Path, tmp_path: Path, call: Callable[..., tuple[int, str]]) -> None:
    code, printed = call("apply", trained / "versions", "--output", tmp_path / "newest")
    assert (code, "version_00000003 of step 5" in printed) == (0, True), printed
    assert call("apply", trained / "versions", "--number", 2, "--output", tmp_path / "second")[0] == 0
    assert dlrm_mtl.Scorer(tmp_path / "second").step == 4
    code, printed = call("apply", trained / "versions", "--number", 7, "--output", tmp_path / "seventh")
    assert (code, printed.strip()) == (
        2,
        f"error: {trained}/versions: there is no version_00000007 here; there are 1, 2, 3.",
    )
    code, printed = call("apply", tmp_path, "--output", tmp_path / "none")
    assert code == 2
    assert "there are no published versions here; name the folder of training.publish.to." in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--follow", "versions", "bundle"],
            "--follow versions: takes the place of a bundle and of --watch; leave them out.",
        ),
        ([], "serve: name a bundle, or the folder of published versions with --follow; --cache goes with it."),
        (["--follow", "no://place"], "no://place: is no place that can be read"),
    ],
    ids=["both", "neither", "no place"],
)
def test_a_server_needs_one_place(call: Callable[..., tuple[int, str]], arguments: list[str], sentence: str) -> None:
    code, printed = call("serve", *arguments, "--port", 0)
    assert code == 2
    assert printed.startswith(f"error: {sentence}"), printed
