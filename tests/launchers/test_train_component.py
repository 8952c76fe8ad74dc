"""The torchx component, through torchx's own client."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest
from torchx.components.component_test_base import ComponentTestCase

ROOT = Path(__file__).resolve().parents[2]
COMPONENT = f"{ROOT / 'launchers' / 'train.py'}:ddp"

# Takes the place of the command line in jobs: says what it was given, and saves when it is told to leave.
STAND_IN = """
import os, signal, sys, time
def save(number, frame):
    time.sleep(1)
    if os.environ["RANK"] == "0":
        print("checkpoint saved", flush=True)
    sys.exit(128 + number)
signal.signal(signal.SIGINT, save)
signal.signal(signal.SIGTERM, save)
if os.environ["RANK"] == "0":
    print(f"{sys.argv[1:]} world {os.environ['WORLD_SIZE']} python {sys.executable}", flush=True)
    if "--mistake" in sys.argv:
        print("config.yaml: a mistake", file=sys.stderr, flush=True)
if "--mistake" in sys.argv:
    sys.exit(2)
if "--wait" in sys.argv:
    time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder, with a space in its name, in which ``dlrm_mtl`` is a stand-in."""
    folder = tmp_path / "with space"
    package = folder / "dlrm_mtl"
    package.mkdir(parents=True)
    (package / "core").mkdir()
    for name in ("__init__.py", "launcher.py", "core/__init__.py", "core/errors.py", "core/extras.py"):
        shutil.copy(ROOT / "dlrm_mtl" / name, package / name)
    (package / "__main__.py").write_text(STAND_IN)
    (folder / "config.yaml").write_text("name: test\n")
    return folder


def client(folder: Path, *arguments: str, path: str = "/usr/bin:/bin") -> subprocess.Popen[str]:
    """``torchx run``, called as from a virtual environment that is not active."""
    env = {**os.environ, "PATH": path}
    for name in ("OMP_NUM_THREADS", "LOGLEVEL", "PYTHONPATH", "DLRM_MTL_PYTHON"):
        env.pop(name, None)
    return subprocess.Popen(
        [sys.executable, "-m", "torchx.cli.main", "--log_level", "WARNING", "run", *arguments],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, *arguments: str, path: str = "/usr/bin:/bin") -> tuple[int, str, list[str]]:
    """Exit code, stdout and the lines of stderr of ``torchx run``, without colours."""
    job = client(folder, *arguments, path=path)
    out, err = job.communicate(timeout=120)
    return job.returncode, out, err.splitlines()


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_component", COMPONENT.partition(":")[0])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestComponent(ComponentTestCase):
    def test_torchx_accepts_it(self) -> None:
        self.validate(load(), "ddp")


def test_a_job_on_this_machine_shows_clean_output_once(folder: Path) -> None:
    overrides = "training.epochs=1,model.tower.layers=[64,32]"
    arguments = ("--config", "config.yaml", "--set", overrides, "--output", "my $HOME", "--", "--flag", "it's")
    code, out, err = run(folder, "-s", "local_cwd", COMPONENT, *arguments)
    given = ["train", "config.yaml", "--set", "training.epochs=1", "--set", "model.tower.layers=[64,32]"]
    given += ["--output", "my $HOME", "--flag", "it's"]
    assert err == [f"train/0 {given} world 2 python {sys.executable}"]
    assert out.startswith("local_cwd://")
    assert code == 0


def test_two_hosts_on_this_machine(folder: Path) -> None:
    port = str(29500 + os.getpid() % 1000)
    arguments = ("--config", "config.yaml", "-j", "2x1", "--resume", "True", "--rdzv_port", port)
    code, _, err = run(folder, "-s", "local_cwd", COMPONENT, *arguments)
    assert code == 0
    assert len(err) == 1
    assert err[0].partition(" ")[2] == f"['train', 'config.yaml', '--resume'] world 2 python {sys.executable}"


def test_a_users_mistake_in_the_job_is_one_line(folder: Path) -> None:
    code, _, err = run(folder, "-s", "local_cwd", COMPONENT, "--config", "config.yaml", "--", "--mistake")
    assert code == 1
    assert err[1:] == ["train/0 config.yaml: a mistake"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--config", "none.yaml"), "--config: there is no file 'none.yaml' in "),
        (("--config", "config.yaml", "-j", "4by2"), "-j: '4by2' is not a number of hosts and processes"),
        (("--config", "config.yaml", "-j", "0x2"), "-j: '0x2' asks for no process"),
        (("--config", "config.yaml", "-j", "3:2x1"), "-j: '3:2x1' asks for no process"),
        (("--config", "config.yaml", "-h", "nothing"), "-h: there is no named resource 'nothing'"),
    ],
)
def test_a_mistaken_launch_is_refused_in_one_sentence(folder: Path, arguments: tuple[str, ...], sentence: str) -> None:
    code, out, err = run(folder, "-s", "local_cwd", COMPONENT, *arguments)
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0].startswith(sentence)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_job_saves_and_says_so(folder: Path, number: signal.Signals) -> None:
    job = client(folder, "-s", "local_cwd", COMPONENT, "--config", "config.yaml", "--", "--wait")
    assert job.stderr is not None
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(job.stderr or []))
    reader.start()
    deadline = time.monotonic() + 60
    while not lines:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)  # until the other process has set its handler, too
    job.send_signal(number)
    assert job.wait(timeout=30) == 1
    reader.join()
    assert lines[1:] == ["train/0 checkpoint saved\n"]


def test_dry_run_for_slurm(folder: Path) -> None:
    scheduler = ("--dryrun", "-s", "slurm", "-cfg", "partition=gpu")
    arguments = ("--config", "config.yaml", "-j", "2x8", "--gpu", "8", "--max_restarts", "2")
    # torchx asks a Slurm that it finds, and says so where that does not run.
    code, out, err = run(folder, *scheduler, COMPONENT, *arguments, "--output", "/shared/my runs", path="/nowhere")
    assert (code, err) == (0, [])
    script = out.partition("SCHEDULER REQUEST")[2]
    assert script.count("--gpus-per-task=8") == 2
    assert "--partition=gpu" in script
    assert "--mem" not in script
    assert "--cpus-per-task" not in script
    command = (
        """bash -c 'exec "${DLRM_MTL_PYTHON:-python}" -m dlrm_mtl.launcher --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d """
        """--rdzv_endpoint "${SLURM_JOB_NODELIST_HET_GROUP_0:=localhost}:29500" --rdzv_id '"$SLURM_JOB_ID"' --max_restarts 2 """
        """-m dlrm_mtl train config.yaml --output '"'"'/shared/my runs'"'"''"""
    )
    assert script.count(command) == 2


def test_dry_run_for_kubernetes(folder: Path) -> None:
    pytest.importorskip("kubernetes")
    mount = "type=bind,src=/mnt/data,dst=/data"
    arguments = ("--config", "/app/mine.yaml", "-j", "2:4x8", "--gpu", "8", "--image", "an/image:1", "--mounts", mount)
    scheduler = ("--workspace", "", "--dryrun", "-s", "kubernetes", "-cfg", "queue=default")
    code, out, err = run(folder, *scheduler, COMPONENT, *arguments, "--env", "A=1,B=2")
    assert (code, err) == (0, [])
    request = " ".join(out.partition("SCHEDULER REQUEST")[2].split())
    assert request.count("image: an/image:1") == 4
    assert (request.count("minAvailable: 1"), request.count("minAvailable: 0")) == (2, 2)
    assert "nvidia.com/gpu: '8'" in request
    assert "--nnodes 2:4 --nproc_per_node 8" in request
    assert "path: /mnt/data" in request
    assert sys.executable not in request
