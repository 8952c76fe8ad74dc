"""Files and folders that all hosts of a job must see; here every process takes a folder of its own for that of its host."""

from __future__ import annotations

from pathlib import Path

from dlrm_mtl.job_check import paths
from tests.processes import run_processes


def _checked(rank: int, check: str, places: list[str]) -> tuple[str, str]:
    found: tuple[str, str] = getattr(paths, check)(places[rank], f"host-{rank}", rank != 1)
    return found


def files(folder: Path, **contents: str) -> str:
    folder.mkdir()
    for name, text in contents.items():
        (folder / name).write_text(text)
    return str(folder)


def test_hosts_with_the_same_files(tmp_path: Path) -> None:
    """The second process is not asked: another one looks for its host."""
    places = [files(tmp_path / "0", a="12", b="3"), str(tmp_path / "none"), files(tmp_path / "2", a="45", b="6")]
    expected = [(f"{place}: 2 files, 0.0 MB, the same on every host", "") for place in places]
    found = run_processes(3, _checked, "check_input", places)
    assert [found[0], found[2]] == [expected[0], expected[2]]
    assert found[1][1] == ""


def test_files_that_differ_are_named(tmp_path: Path) -> None:
    places = [files(tmp_path / "0", a="12", b="3"), "", files(tmp_path / "2", a="12", b="34")]
    sentence = f"{places[2]}/b: 2 bytes on host-2 and 1 bytes on host-0; give all hosts the same files."
    assert run_processes(3, _checked, "check_input", places) == [("", sentence)] * 3
    places[2] = files(tmp_path / "3", a="12")
    ((_, said), *_) = run_processes(3, _checked, "check_input", places)
    assert said == f"{places[2]}/b: missing on host-2 and 1 bytes on host-0; give all hosts the same files."


def test_a_path_that_one_host_lacks(tmp_path: Path) -> None:
    ((_, said), *_) = run_processes(3, _checked, "check_input", [str(tmp_path), "", str(tmp_path / "none")])
    assert said.startswith(f"host-2: {tmp_path}/none: cannot be read (")


def test_an_output_folder_that_is_made_later(tmp_path: Path) -> None:
    places = [str(tmp_path / "runs" / "mine")] * 3
    sentence = f"{places[0]}: every host can write there, and sees what others write"
    assert run_processes(3, _checked, "check_output", places) == [(sentence, "")] * 3
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_is_not_shared(tmp_path: Path) -> None:
    places = [files(tmp_path / "0"), "", files(tmp_path / "2")]
    ((_, said), *_) = run_processes(3, _checked, "check_output", places)
    assert said == (
        f"{places[2]}: what host-0 writes there is not seen on host-2; name a folder on storage that all share."
    )
    assert [list(Path(place).iterdir()) for place in (places[0], places[2])] == [[], []]


def test_an_output_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    places = [str(tmp_path), "", "/proc"]
    ((_, said), *_) = run_processes(3, _checked, "check_output", places)
    assert said.startswith("/proc: host-2 cannot write there (")
    assert list(tmp_path.iterdir()) == []
