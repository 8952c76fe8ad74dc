"""The torchx component that trains a model: ``torchx run -s SCHEDULER launchers/train.py:ddp``.

torchx executes this file inside its own module ``torchx.specs.finder``: ``__file__`` is not this file, the folder is not on
``sys.path``, and the names defined here replace names of that module. Its checker knows ``typing.Dict``, ``List`` and
``Optional`` only, and no ``from __future__ import annotations``.
"""

import logging
import os
import re
import shlex
import shutil
import signal
import sys
from types import FrameType
from typing import Dict, List, NoReturn, Optional

import torchx.specs as specs
from torchx.components import dist
from torchx.schedulers import local_scheduler


def ddp(
    *script_args: str,
    config: str = "configs/kuairand_mmoe.yaml",
    j: str = "1x2",
    set: str = "",
    output: Optional[str] = None,
    resume: bool = False,
    name: str = "train",
    image: str = "dlrm_mtl",
    h: Optional[str] = None,
    cpu: int = -1,
    gpu: int = 0,
    memMB: int = -1,
    env: Optional[Dict[str, str]] = None,
    max_restarts: int = 0,
    max_retries: int = 0,
    mounts: Optional[List[str]] = None,
    rdzv_port: int = 29500,
) -> specs.AppDef:
    """Trains a model on one or more hosts: N hosts with M processes each run ``dlrm-mtl train CONFIG``.

    Examples: ``-j 1x2`` (two processes on this machine), ``-j 4x8`` (four hosts), ``-j 2:4x8`` (two to four hosts, elastic).

    Args:
        script_args: further arguments of ``dlrm-mtl train``, after ``--``; write repeated ones as ``--set=a=1 --set=b=2``
        config: the run's YAML file, relative to this folder
        j: [[MIN:]N x]M, the number of hosts and the number of processes on each
        set: overrides of the configuration, as in ``training.epochs=1,model.tower.layers=[64,32]``
        output: the run's folder, on storage that all hosts see, or a URI as in ``s3://bucket/runs/a``
        resume: True to go on from the latest checkpoint in the output folder
        name: the job's name
        image: the container image, for schedulers that use containers; it needs dlrm_mtl and its pinned set installed
        h: a named resource (takes precedence over cpu, gpu and memMB)
        cpu: CPU cores per host; -1 leaves it to the scheduler
        gpu: GPUs per host
        memMB: memory in MB per host; -1 leaves it to the scheduler
        env: environment variables of the job, as in ``A=1,B=2``
        max_restarts: how often the processes are restarted after one has failed; they resume from the latest checkpoint
        max_retries: how often the scheduler may start the whole job anew
        mounts: volumes for containers, as in ``type=bind,src=/data,dst=/data,readonly``
        rdzv_port: port on the first host at which the hosts find one another
    """
    if "://" not in config and not os.path.isabs(config) and not os.path.isfile(config):
        _refuse(
            f"--config: there is no file '{config}' in {os.getcwd()}; name an existing one, such as those in configs/."
        )
    try:
        min_nodes, max_nodes, processes, nodes = dist.parse_nnodes(j)
    except ValueError:
        _refuse(
            f"-j: '{j}' is not a number of hosts and processes; write 2 (processes), 4x8 (hosts x processes), 2:4x8."
        )
    if min(min_nodes, processes) < 1 or max_nodes < min_nodes:
        _refuse(f"-j: '{j}' asks for no process; hosts and processes must be at least 1, and MIN:N must rise.")
    try:
        resource = specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h)
    except KeyError:
        _refuse(f"-h: there is no named resource '{h}'; name a registered one, or use --cpu, --gpu and --memMB.")

    train = ["train", config]
    # A comma separates overrides only where a key follows, so that values may be lists.
    for override in re.split(r",(?=\s*[A-Za-z_][\w.]*=)", set) if set else []:
        train += ["--set", override.strip()]
    train += ["--output", output] if output else []
    train += ["--resume"] if resume else []
    train += script_args

    # Evaluated by bash on the host: the first host's name is known only there. One host picks a free port by itself.
    endpoint = "localhost:0" if max_nodes == 1 else f'"$${{{specs.macros.rank0_env}:=localhost}}:{rdzv_port}"'
    command = (
        # exec, so that the scheduler's signals reach Python.
        'exec "$${DLRM_MTL_PYTHON:-python}" -m dlrm_mtl.launcher'
        f" --nnodes {nodes} --nproc_per_node {processes} --rdzv_backend c10d --rdzv_endpoint {endpoint}"
        f" --rdzv_id {specs.macros.app_id}" + (f" --max_restarts {max_restarts}" if max_restarts else "")
    )
    quoted = shlex.join(["-m", "dlrm_mtl", *train]).replace("$", "$$")

    # Local jobs inherit this process's environment, as Slurm's do; in a container the variable is unset and python is meant.
    os.environ.setdefault("DLRM_MTL_PYTHON", sys.executable)
    _quiet_client()
    return specs.AppDef(
        name=name,
        roles=[
            specs.Role(
                name=name,
                image=image,
                entrypoint="bash",
                args=["-c", f"{command} {quoted}"],
                env={**_terminal(name), "PYTHONUNBUFFERED": "1", **(env or {})},
                num_replicas=max_nodes,
                min_replicas=min_nodes,
                max_retries=max_retries,
                resource=resource,
                port_map={"c10d": rdzv_port},
                mounts=specs.parse_mounts(mounts) if mounts else [],
            )
        ],
    )


def _refuse(sentence: str) -> NoReturn:
    print(sentence, file=sys.stderr)
    raise SystemExit(2)


def _terminal(role: str) -> Dict[str, str]:
    """What the job must know of the user's terminal: its output reaches it through a file, line by line, with a prefix."""
    if not sys.stderr.isatty():
        return {"COLUMNS": "120"}
    return {"COLUMNS": str(max(40, shutil.get_terminal_size().columns - len(f"{role}/0 "))), "DLRM_MTL_LIVE": "1"}


def _quiet_client() -> None:
    """Keeps torchx's own reports from covering the job's: a table of empty fields after a failure, a traceback on Ctrl-C."""
    client = logging.getLogger("torchx.cli.cmd_run")
    client.addFilter(lambda record: not isinstance(record.msg, specs.AppStatus))
    # Set only while jobs run on this machine. It ends them at once and shows nothing of what they still have to say.
    if signal.getsignal(signal.SIGINT) is local_scheduler._terminate_process_handler:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _stop_jobs)


def _stop_jobs(number: int, frame: Optional[FrameType]) -> None:
    """Passes the first signal on to the jobs, which save, say so and leave; a second one ends them at once."""
    for again in (signal.SIGINT, signal.SIGTERM):
        signal.signal(again, local_scheduler._terminate_process_handler)
    sys.excepthook = lambda kind, error, trace: (
        None if kind is local_scheduler.SignalException else sys.__excepthook__(kind, error, trace)
    )
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        for pid in children.read().split():
            os.kill(int(pid), number)
