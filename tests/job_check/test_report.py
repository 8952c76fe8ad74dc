"""The report on a job: problems in sentences, with exit code 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dlrm_mtl.job_check import report
from tests import commands
from tests.processes import run_processes


def _reported(rank: int) -> Any:
    own = report.versions()
    report.versions = lambda: own | ({"torch": "1.0"} if rank == 1 else {})  # type: ignore[attr-defined]
    try:
        report.check_job()
    except (report.UserError, SystemExit) as error:
        return type(error).__name__, str(error)
    return None


def test_versions_that_differ() -> None:
    main, other = run_processes(2, _reported)
    assert main[0] == "UserError"
    assert main[1].startswith("torch differs between processes: 2.")
    assert "1.0 on process 1 (" in main[1]
    assert main[1].endswith("install the same set on all hosts.")
    assert other == ("SystemExit", "2")


def test_one_process_alone(call: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, out = call("doctor", "--distributed", "--path", tmp_path)
    assert code == 0
    assert "there is one process only" in out
    assert f"{tmp_path}: 0 files" in out
    assert "All is well." in out


def test_processes_of_one_host(tmp_path: Path) -> None:
    done = commands.run("doctor", "--distributed", "--path", tmp_path / "none", processes=2)
    assert done.returncode == 2
    assert "pairs: 1 of 1 measured" in done.stdout
    assert done.stderr.count("error: ") == 1
    assert f"{tmp_path}/none: cannot be read (" in done.stderr


def test_paths_go_with_distributed(call: Callable[..., tuple[int, str]]) -> None:
    assert call("doctor", "--path", "data") == (2, "error: --path: goes with --distributed; add it.\n")
