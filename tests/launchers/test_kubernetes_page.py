"""The commands of docs/kubernetes.md: rendered for Kubernetes, and run on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests import s3
from tests.docs.pages import ROOT
from tests.docs.test_commands import given
from tests.launchers.schemas import check_job
from tests.launchers.test_schemas import render

PAGE = "docs/kubernetes.md"
COMMANDS = [words for _, words in given(PAGE) if words[:2] == ["torchx", "run"] and len(words) > 2]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The bucket of the page, with its data set; yields the environment that leads there."""
    with s3.object_store() as variables, pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        folder = tmp_path_factory.mktemp("data") / "kuairand"
        for path in (ROOT / "datasets/kuairand_pure").rglob("*"):
            copy = folder / path.relative_to(ROOT / "datasets/kuairand_pure")
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".parquet":  # the first rows, so that the run is short
                pq.write_table(pq.read_table(path).slice(0, 3000), copy)
            elif path.is_file():
                copy.write_bytes(path.read_bytes())
        s3.upload(folder, s3.client(), "bucket/kuairand")
        yield variables


def taken_apart(words: list[str]) -> tuple[str, str, list[str], dict[str, str]]:
    """Scheduler, component, arguments and options of a command ``torchx run``."""
    at = next(number for number, word in enumerate(words) if word.startswith("launchers/"))
    before = words[2:at]
    assert before[:2] == ["--workspace", ""]
    options = dict(pair.split("=") for pair in before[before.index("-cfg") + 1].split(","))
    return before[before.index("-s") + 1], f"{ROOT}/{words[at]}", words[at + 1 :], options


@pytest.mark.usefixtures("store")
def test_the_commands_are_jobs_of_volcano() -> None:
    pytest.importorskip("kubernetes")
    jobs = render([taken_apart(words) for words in COMMANDS])
    assert [job["metadata"]["name"].partition("-")[0] for job in jobs] == ["doctor", "train", "watch", "predict"]
    for job in jobs:
        check_job(job)
        for task in job["spec"]["tasks"]:
            (container,) = task["template"]["spec"]["containers"]
            assert container["envFrom"] == [{"secretRef": {"name": "storage"}}]


@pytest.mark.slow
def test_the_same_commands_run_on_this_machine(store: dict[str, str], tmp_path: Path) -> None:
    """With a smaller job: one process on each of two hosts, a few steps, no image."""
    pytest.importorskip("kubernetes")
    port = str(30500 + os.getpid() % 1000)
    for words in COMMANDS:
        _, component, arguments, _ = taken_apart(words)
        for option in ("--image", "--secrets", "-h", "--mounts"):
            if option in arguments:
                del arguments[(at := arguments.index(option)) : at + 2]
        hosts = arguments[arguments.index("-j") + 1].partition("x")[0]
        arguments[arguments.index("-j") + 1] = f"{hosts}x1"
        if component.endswith("ddp"):
            arguments[arguments.index("--set") + 1] += ",training.max_steps=4,data.batch_size=512"
        arguments = [word.replace("/metrics/", f"{tmp_path}/") for word in arguments]
        if hosts != "1":
            arguments[0:0] = ["--rdzv_port", port]
        job = ["torchx.cli.main", "--log_level", "WARNING", "run", "-s", "local_cwd", component, *arguments]
        done = subprocess.run(
            [sys.executable, "-m", *job],
            cwd=ROOT,
            env={**os.environ, **store, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    evaluated = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["step"] for line in evaluated] == [4]
    assert s3.files(s3.client(), "bucket/predictions") == ["today.parquet"]
