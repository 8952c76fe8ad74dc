"""The component of the scaling benchmark: what it runs, and the benchmark itself in a job of two processes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torchx.components.component_test_base import ComponentTestCase

from benchmarks.scaling_measured import cases_of

ROOT = Path(__file__).resolve().parents[2]
COMPONENT = f"{ROOT / 'launchers' / 'bench.py'}:scaling"


class TestComponent(ComponentTestCase):
    def test_torchx_accepts_it(self) -> None:
        spec = importlib.util.spec_from_file_location("component", COMPONENT.partition(":")[0])
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.validate(module, "scaling")
        [role] = module.scaling(j="2x8", quick=True).roles
        assert "-m benchmarks scaling --json scaling.json --html scaling.html --quick" in role.args[1]


@pytest.mark.slow
@pytest.mark.parametrize("hosts", ["1x2", "2x1"])
def test_a_job_measures_its_processes(tmp_path: Path, hosts: str) -> None:
    figures, page = tmp_path / "scaling.json", tmp_path / "scaling.html"
    port = str(29500 + os.getpid() % 1000)
    options = ["-j", hosts, "--quick", "True", "--json", str(figures), "--html", str(page), "--rdzv_port", port]
    client = [sys.executable, "-m", "torchx.cli.main", "--log_level", "WARNING", "run", "-s", "local_cwd", COMPONENT]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*client, *options], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    [job] = json.loads(figures.read_text())["measured"]
    assert (job["processes"], job["hosts"]) == (2, int(hosts[0]))
    assert {case["sharding"] for case in cases_of(job)} >= {"data_parallel", "table_wise", "row_wise", "column_wise"}
    assert "table_wise" in page.read_text()
