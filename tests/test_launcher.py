"""The launcher of processes, with workers that do one thing each."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

WORKER = """
import os, pathlib, signal, sys, time
rank, action = int(os.environ["RANK"]), sys.argv[1]
folder = pathlib.Path(sys.argv[2])
(folder / f"start-{rank}-{os.environ['TORCHELASTIC_RESTART_COUNT']}").touch()
if action == "mistake":
    if rank == 0:
        print("config.yaml: a mistake", file=sys.stderr)
        sys.exit(2)
    time.sleep(60)
elif action == "defect":
    sys.exit(3)
elif action == "threads":
    os.write(1, f"threads {os.environ['OMP_NUM_THREADS']}\\n".encode())
elif action == "save":
    def save(number, frame):
        (folder / f"signal-{rank}-{number}").touch()
        time.sleep(float(sys.argv[3]))
        (folder / f"saved-{rank}").touch()
        sys.exit(0)
    signal.signal(signal.SIGINT, save)
    signal.signal(signal.SIGTERM, save)
    (folder / f"ready-{rank}").touch()
    time.sleep(60)
"""


def start(folder: Path, action: str, *arguments: str, restarts: int = 0, **env: str) -> subprocess.Popen[str]:
    script = folder / "worker.py"
    script.write_text(WORKER)
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "LOGLEVEL")}
    launch = [sys.executable, "-m", "dlrm_mtl.launcher", "--nproc_per_node", "2", "--max_restarts", str(restarts)]
    return subprocess.Popen(
        [*launch, str(script), action, str(folder), *arguments],
        env={**environment, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(*files: Path) -> None:
    deadline = time.monotonic() + 60
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline, f"{files} did not appear"
        time.sleep(0.05)


def test_a_users_mistake_ends_with_code_2_and_nothing_but_its_sentence(tmp_path: Path) -> None:
    job = start(tmp_path, "mistake", restarts=3)
    out, err = job.communicate(timeout=120)
    assert (job.returncode, out, err) == (2, "", "config.yaml: a mistake\n")
    assert not (tmp_path / "start-0-1").exists(), "restarted although the mistake would be made again"


def test_a_defect_is_restarted_and_then_reported(tmp_path: Path) -> None:
    job = start(tmp_path, "defect", restarts=1)
    out, err = job.communicate(timeout=120)
    assert job.returncode == 1
    assert out == ""
    assert (tmp_path / "start-0-1").exists()
    assert "Restarting the workers (0 restarts left)." in err
    assert "exitcode  : 3" in err
    assert "Traceback (most recent call last)" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_workers_once_and_leaves_them_time_to_save(tmp_path: Path, number: signal.Signals) -> None:
    job = start(tmp_path, "save", "1")
    wait_for(tmp_path / "ready-0", tmp_path / "ready-1")
    job.send_signal(number)
    out, err = job.communicate(timeout=60)
    assert (job.returncode, out, err) == (128 + number, "", "")
    for rank in range(2):
        assert (tmp_path / f"signal-{rank}-{number.value}").exists()
        assert (tmp_path / f"saved-{rank}").exists()


def test_a_second_signal_kills_the_workers(tmp_path: Path) -> None:
    job = start(tmp_path, "save", "50")
    wait_for(tmp_path / "ready-0", tmp_path / "ready-1")
    job.send_signal(signal.SIGINT)
    wait_for(tmp_path / "signal-0-2", tmp_path / "signal-1-2")
    begun = time.monotonic()
    job.send_signal(signal.SIGINT)
    out, err = job.communicate(timeout=30)  # returns when the workers' ends of the pipes are closed, too
    assert (job.returncode, out, err) == (130, "", "")
    assert time.monotonic() - begun < 20
    assert not (tmp_path / "saved-0").exists()


@pytest.mark.parametrize(
    ("env", "expected"), [({}, str(max(1, len(os.sched_getaffinity(0)) // 2))), ({"OMP_NUM_THREADS": "7"}, "7")]
)
def test_threads_are_shared_out_unless_the_user_set_them(tmp_path: Path, env: dict[str, str], expected: str) -> None:
    job = start(tmp_path, "threads", **env)
    out, err = job.communicate(timeout=120)
    assert (job.returncode, out, err) == (0, f"threads {expected}\n" * 2, "")


def test_node_rank_decides_which_host_has_the_first_ranks(tmp_path: Path) -> None:
    """Without it, hosts are sorted by their names and the numbers of their processes, here in the order of their starts."""
    script = tmp_path / "worker.py"
    script.write_text("import os, sys\nos.write(1, os.environ['RANK'].encode())\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = [
        "--nnodes",
        "2",
        "--nproc_per_node",
        "1",
        "--rdzv_backend",
        "c10d",
        "--rdzv_endpoint",
        f"localhost:{port}",
    ]
    hosts = {
        place: subprocess.Popen(
            [sys.executable, "-m", "dlrm_mtl.launcher", *meeting, "--node_rank", str(place), str(script)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for place in (1, 0)
    }
    said = {place: host.communicate(timeout=120) for place, host in hosts.items()}
    assert said == {0: ("0", ""), 1: ("1", "")}


ORPHAN = """
import os, pathlib, sys, time
from dlrm_mtl.core import orphans
orphans.PATIENCE_SECONDS = 1.0
if sys.argv[2] == "deaf":
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
orphans.end_with_agent()
(pathlib.Path(sys.argv[1]) / f"pid-{os.getpid()}").touch()
time.sleep(100)
"""


@pytest.mark.parametrize("manner", ["polite", "deaf"])
def test_workers_end_when_their_agent_is_killed(tmp_path: Path, manner: str) -> None:
    script = tmp_path / "worker.py"
    script.write_text(ORPHAN)
    agent = subprocess.Popen(
        [sys.executable, "-m", "dlrm_mtl.launcher", "--nproc_per_node", "2", str(script), str(tmp_path), manner],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    deadline = time.monotonic() + 60
    while len(pids := [int(path.name[4:]) for path in tmp_path.glob("pid-*")]) < 2:
        assert time.monotonic() < deadline, "the workers did not start"
        time.sleep(0.05)
    agent.kill()
    agent.wait()
    while any(running(pid) for pid in pids):
        assert time.monotonic() < deadline, f"{pids} run on without their agent"
        time.sleep(0.05)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


RESTARTED = """
import os, sys
import torch, torch.distributed as dist
from dlrm_mtl.core.processes import process_group
with process_group() as process:
    total = torch.ones(1)
    dist.all_reduce(total)
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if attempt < 3:
        os._exit(7) if process.rank == attempt % 2 else dist.barrier()
    os.write(1, f"attempt {attempt}: {total.item():.0f}\\n".encode())
"""


@pytest.mark.parametrize("launcher", ["dlrm_mtl.launcher", "torch.distributed.run"])
def test_restarted_workers_find_each_other(tmp_path: Path, launcher: str) -> None:
    script = tmp_path / "worker.py"
    script.write_text(RESTARTED)
    options = ["--nproc_per_node", "2", "--max_restarts", "3"] + (["--standalone"] if "torch" in launcher else [])
    done = subprocess.run(
        [sys.executable, "-m", launcher, *options, str(script)],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "attempt 3: 2\n" * 2
