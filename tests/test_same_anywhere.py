"""The same input gives the same result on any host: time zone, language, home, umask, current folder, threads."""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests import commands, synthetic

HOSTS = {
    "usual": {},
    "far": {"TZ": "Asia/Tokyo", "LC_ALL": "C", "HOME": "/nowhere", "OMP_NUM_THREADS": "2"},
    "bare": {"TZ": "America/New_York", "LANG": "tr_TR.UTF-8", "PYTHONUTF8": "0", "HOME": ""},
}


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The files of a data set by the host that it was prepared on."""
    raw = tmp_path_factory.mktemp("raw")
    start = datetime.datetime(2024, 3, 1, 20, tzinfo=datetime.timezone.utc)
    moments = [start + datetime.timedelta(minutes=30 * i) for i in range(60)]
    table = pa.table(
        {
            "user": [f"ü{i % 7}İ" for i in range(60)],
            "when": pa.array(moments, pa.timestamp("ms", "Europe/Berlin")),
            "seen": [moment.isoformat() for moment in moments],
            "click": [i % 2 for i in range(60)],
        }
    )
    pq.write_table(table, raw / "log.parquet")
    hashed = {"name": "hash", "size": 100_000}
    description = {
        "name": "log",
        "features": [{"name": name, "kind": "sparse", "vocabulary": hashed} for name in ("user", "when", "seen")],
        "labels": [{"name": "click"}],
        "split": {"name": "time", "column": "seen", "cuts": {"test": "2024-03-02 12:00:00"}},
    }
    (raw / "description.yaml").write_text(yaml.safe_dump(description))
    results = {}
    for name, changes in HOSTS.items():
        folder = tmp_path_factory.mktemp(name)
        line = [sys.executable, "-m", "dlrm_mtl", "prepare", "table", "--input", str(raw / "log.parquet")]
        done = subprocess.run(
            [*line, "--description", str(raw / "description.yaml"), "--output", str(folder / "data")],
            env={**commands.ENVIRONMENT, "PYTHONPATH": str(Path(__file__).parents[1]), **changes},
            cwd=folder if name == "far" else None,
            umask=0o077 if name == "far" else -1,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        results[name] = content(folder / "data")
    return results


@pytest.mark.parametrize("host", [name for name in HOSTS if name != "usual"])
def test_a_data_set_is_the_same(prepared: dict[str, dict[str, bytes]], host: str) -> None:
    assert prepared[host] == prepared["usual"]


def test_a_run_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = synthetic.write_dataset(tmp_path / "data", rows=300)
    training = {"epochs": 1, "log_every": 1}
    config = commands.write_config(tmp_path / "run.yaml", synthetic.config(data, training=training))
    losses = {}
    for name, changes in HOSTS.items():
        with monkeypatch.context() as patch:
            for key, value in changes.items():
                patch.setitem(commands.ENVIRONMENT, key, value)
            here = tmp_path / name
            here.mkdir()
            done = commands.run("train", config, "--output", here / "run", cwd=here)
        assert done.returncode == 0, done.stderr
        losses[name] = commands.losses(here / "run" / "metrics.jsonl"), (here / "run" / "results.json").read_text()
    assert losses["far"] == losses["bare"] == losses["usual"]
