"""Places of bundles: which version is served, and when it counts as another one."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.serve.http.source import LocalBundles, ScorerFactory


def write(folder: Path, text: str = "{}") -> Path:
    folder.mkdir(parents=True)
    (folder / "bundle.json").write_text(text)
    return folder


def names(path: Path) -> list[str]:
    return [version.name for version in LocalBundles(path, ScorerFactory()).versions()]


def key(path: Path) -> str:
    return LocalBundles(path, ScorerFactory()).versions()[0].key


def test_a_bundle_is_the_only_version(tmp_path: Path) -> None:
    assert names(write(tmp_path / "one")) == ["one"]


def test_the_last_name_of_a_folder_comes_first(tmp_path: Path) -> None:
    for name in ("step_900", "step_1000", "step_10", "step_1001.tmp", ".hidden"):
        write(tmp_path / name)
    (tmp_path / "step_2000").mkdir()  # being copied: its bundle.json comes last
    assert names(tmp_path) == ["step_1000", "step_900", "step_10"]


def test_names_of_any_form_have_an_order(tmp_path: Path) -> None:
    for name in ("7", "a7", "a", "7a", "2026-11-27", "x.1.2"):
        write(tmp_path / name)
    assert names(tmp_path) == ["x.1.2", "a7", "a", "2026-11-27", "7a", "7"]


def test_a_link_is_followed_whenever_versions_are_asked_for(tmp_path: Path) -> None:
    first, second = write(tmp_path / "first"), write(tmp_path / "second")
    link = tmp_path / "current"
    link.symlink_to(first)
    source = LocalBundles(link, ScorerFactory())
    (before,) = source.versions()
    link.unlink()
    link.symlink_to(second)
    (after,) = source.versions()
    assert (before.folder, after.folder) == (first, second)
    assert before.key != after.key


def test_any_change_of_the_files_is_another_version(tmp_path: Path) -> None:
    folder = write(tmp_path / "bundle")
    keys = [key(folder), key(folder)]
    assert keys[0] == keys[1]
    (folder / "tables").write_bytes(b"12")
    keys.append(key(folder))
    os.utime(folder / "tables", ns=(1, 1))
    keys.append(key(folder))
    assert len(set(keys)) == 3


def test_a_version_can_be_sent_to_another_process(tmp_path: Path) -> None:
    (version,) = LocalBundles(write(tmp_path / "one"), ScorerFactory(missing="default")).versions()
    assert pickle.loads(pickle.dumps(version)) == version


def test_nothing_yet_and_nothing_at_all(tmp_path: Path) -> None:
    assert names(tmp_path) == []
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(UserError, match="there is no bundle here; name the folder that `dlrm-mtl export` wrote"):
        names(tmp_path)
    shutil.rmtree(tmp_path)
    with pytest.raises(UserError, match="there is no bundle here"):
        names(tmp_path)
