"""The torchx component, through torchx's own client."""

import ast
import importlib.util
import os
import shlex
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

USE = str(ROOT / "launchers" / "use.py")

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
    of_core = ("__init__", "cores", "errors", "extras", "suggest")
    names = ("__init__.py", "launcher.py", *(f"core/{name}.py" for name in of_core))
    for name in names:
        shutil.copy(ROOT / "dlrm_mtl" / name, package / name)
    shutil.copytree(ROOT / "dlrm_mtl" / "launching", package / "launching")
    (package / "__main__.py").write_text(STAND_IN)
    (folder / "config.yaml").write_text("name: test\n")
    return folder


def client(folder: Path, *arguments: str, path: str = "/usr/bin:/bin", **variables: str) -> subprocess.Popen[str]:
    """``torchx run``, called as from a virtual environment that is not active."""
    env = {**os.environ, "PATH": path}
    for name in ("OMP_NUM_THREADS", "LOGLEVEL", "PYTHONPATH", "DLRM_MTL_PYTHON"):
        env.pop(name, None)
    env.update(variables)
    return subprocess.Popen(
        [sys.executable, "-m", "torchx.cli.main", "--log_level", "WARNING", "run", *arguments],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, *arguments: str, path: str = "/usr/bin:/bin", **variables: str) -> tuple[int, str, list[str]]:
    """Exit code, stdout and the lines of stderr of ``torchx run``, without colours."""
    job = client(folder, *arguments, path=path, **variables)
    out, err = job.communicate(timeout=120)
    return job.returncode, out, err.splitlines()


def load(component: str = COMPONENT) -> ModuleType:
    spec = importlib.util.spec_from_file_location("component", component.partition(":")[0])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestComponent(ComponentTestCase):
    def test_torchx_accepts_it(self) -> None:
        self.validate(load(), "ddp")
        for name in ("evaluate", "predict", "prepare"):
            self.validate(load(USE), name)


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
    assert code == 2
    assert err[1:] == ["train/0 config.yaml: a mistake"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--config", "none.yaml"), "--config: there is no file 'none.yaml' in "),
        (("--config", "config.yaml", "-j", "4by2"), "-j: '4by2' is not a number of hosts and processes"),
        (("--config", "config.yaml", "-j", "0x2"), "-j: '0x2' asks for no process"),
        (("--config", "config.yaml", "-j", "3:2x1"), "-j: '3:2x1' asks for no process"),
        (
            ("--config", "config.yaml", "-h", "h100_8"),
            "-h: there is no named resource 'h100_8'; did you mean 'h100x8'? ",
        ),
        (("--config", "config.yaml", "--name", "a/b"), "--name: 'a/b' cannot be the name of a job"),
        (("--config", "config.yaml", "--secrets", "s"), "--secrets: only Kubernetes has secrets, and the scheduler is"),
    ],
)
def test_a_mistaken_launch_is_refused_in_one_sentence(folder: Path, arguments: tuple[str, ...], sentence: str) -> None:
    code, out, err = run(folder, "-s", "local_cwd", COMPONENT, *arguments)
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0].startswith(sentence)


def test_components_around_training(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text("name: test\n")
    given = {
        "evaluate": ("--run", "run", "--set", "data.path=a b", "--", "--checkpoint", "latest"),
        "predict": ("--run", "run", "--input", "new", "--output", "p.csv", "-j", "1x1", "--", "--carry=a", "--carry=b"),
        "prepare": ("--adapter", "table", "--", "--input", "raw", "--output", "data"),
        "doctor": ("-j", "1x3", "--path", "a b", "--output", "out", "--", "--path=c"),
    }
    expected = {
        "evaluate": (2, ["evaluate", "run", "--split", "test", "--set", "data.path=a b", "--checkpoint", "latest"]),
        "predict": (1, ["predict", "run", "--input", "new", "--output", "p.csv", "--carry=a", "--carry=b"]),
        "prepare": (1, ["prepare", "table", "--input", "raw", "--output", "data"]),
        "doctor": (3, ["doctor", "--distributed", "--path", "a b", "--output", "out", "--path=c"]),
    }
    for name, arguments in given.items():
        code, out, err = run(folder, "--dryrun", "-s", "local_cwd", f"{USE}:{name}", *arguments)
        assert (code, err) == (0, [])
        request = ast.literal_eval(out.partition("SCHEDULER REQUEST ===")[2].strip())
        words = shlex.split(request["role_params"][name][0]["args"][2])
        processes, command = expected[name]
        assert words[:3] == ["exec", "${DLRM_MTL_PYTHON:-python}", "-m"]
        assert words[words.index("--nproc_per_node") + 1] == str(processes)
        assert words[words.index("dlrm_mtl") + 1 :] == command


DEBUG = ROOT / "configs" / "kuairand_mmoe_debug.yaml"


@pytest.mark.parametrize(
    ("component", "arguments", "sentence"),
    [
        (
            COMPONENT,
            ("--config", str(DEBUG), "--set", "training.epoch=1"),
            "there is no key 'epoch' here; did you mean",
        ),
        (COMPONENT, ("--config", str(DEBUG), "--", "--set=seed=x"), f"{DEBUG}: seed: "),
        (COMPONENT, ("--config", str(DEBUG), "--", "--plugin", "nowhere"), "or write --check False, if only the image"),
        (f"{USE}:evaluate", ("--run", "nowhere"), "--run: there is no folder 'nowhere' in "),
        (f"{USE}:predict", ("--run", ".", "--input", "a", "--output", "b"), "--run: there is no run in '.'; name the"),
        (f"{USE}:prepare", ("--adapter", "tabel"), "--adapter: there is no data set 'tabel'; did you mean 'table'?"),
    ],
)
def test_what_the_job_would_refuse_is_not_submitted(
    tmp_path: Path, component: str, arguments: tuple[str, ...], sentence: str
) -> None:
    """With the real package, whose configurations are checked."""
    code, out, err = run(tmp_path, "-s", "local_cwd", component, *arguments, PYTHONPATH=str(ROOT))
    assert (code, out, len(err)) == (2, "", 1), err
    assert sentence in err[0]


def test_dry_run_without_a_check(tmp_path: Path) -> None:
    arguments = ("--config", str(DEBUG), "--check", "False", "--set", "training.epoch=1")
    code, _, err = run(tmp_path, "--dryrun", "-s", "local_cwd", COMPONENT, *arguments, PYTHONPATH=str(ROOT))
    assert (code, err) == (0, [])


@pytest.mark.parametrize(
    ("scheduler", "arguments", "sentence"),
    [
        (("-s", "slurm"), (), "Slurm: there is no sbatch on this machine; call torchx on a login node"),
        (("-s", "lsf"), (), "LSF: there is no bhosts on this machine"),
        (("-s", "aws_batch"), (), "-cfg: the scheduler aws_batch needs the option queue"),
        (("-s", "aws_batch", "-cfg", "queue=q"), (), "AWS Batch: it needs the size of a host; write --cpu and --memMB"),
        (("-s", "aws_batch", "-cfg", "queue=q"), ("--cpu", "1", "--memMB", "9"), "AWS: You must specify a region; set"),
        (("-s", "kubernetes"), (), "-cfg: the scheduler kubernetes needs the option queue"),
        (("-s", "kubernetes", "-cfg", "queue=q"), (), "Kubernetes: No host specified; check that kubectl get queues"),
        (("-s", "local_docker"), (), "Docker: there is no engine to reach ("),
    ],
)
def test_a_scheduler_that_cannot_be_reached_is_one_sentence(
    folder: Path, scheduler: tuple[str, ...], arguments: tuple[str, ...], sentence: str
) -> None:
    needed = {"aws_batch": "boto3", "kubernetes": "kubernetes", "local_docker": "docker"}.get(scheduler[1])
    if needed:
        pytest.importorskip(needed)
    nothing = {"HOME": str(folder), "DOCKER_HOST": "unix:///nowhere", "AWS_EC2_METADATA_DISABLED": "true"}
    code, out, err = run(
        folder,
        "--workspace",
        "",
        *scheduler,
        COMPONENT,
        "--config",
        "config.yaml",
        *arguments,
        path="/nowhere",
        **nothing,
    )
    assert (code, out, len(err)) == (2, "", 1), err
    assert err[0].startswith(sentence)


@pytest.mark.parametrize(("options", "code"), [((), 0), (("--wait",), 2)])
def test_slurm_without_accounting_has_the_job_nevertheless(folder: Path, options: tuple[str, ...], code: int) -> None:
    for name, script in (("sinfo", "exit 1"), ("sbatch", "echo 17"), ("sacct", "exit 1")):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    arguments = (*options, "-s", "slurm", COMPONENT, "--config", "config.yaml")
    done, out, err = run(folder, *arguments, path=f"{folder}:/usr/bin:/bin")
    assert (done, out) == (code, "slurm://torchx/17\n")
    assert err == [
        "Slurm: job 17 is submitted. Without accounting torchx cannot tell its state: squeue -j 17 can, scancel 17 ends it, "
        f"and its output is in {folder}/slurm-17-train-0.out."
    ]


def test_a_defect_keeps_its_traceback(folder: Path) -> None:
    code, _, err = run(folder, "-s", "local_cwd", COMPONENT, "--config", "config.yaml", path="/nowhere")
    assert code == 1
    assert err[0] == "Traceback (most recent call last):"


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
    for host in range(2):
        command = (
            f"""bash -c 'exec "${{DLRM_MTL_PYTHON:-python}}" -m dlrm_mtl.launcher --nnodes 2 --nproc_per_node 8 """
            f"""--node_rank {host} --rdzv_backend c10d """
            """--rdzv_endpoint "${SLURM_JOB_NODELIST_HET_GROUP_0:=localhost}:29500" --rdzv_id '"$SLURM_JOB_ID"' """
            """--max_restarts 2 -m dlrm_mtl train config.yaml --output '"'"'/shared/my runs'"'"''"""
        )
        assert script.count(command) == 1


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
