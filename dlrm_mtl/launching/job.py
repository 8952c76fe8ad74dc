"""A torchx job of N hosts with M processes each, all running one command of ``dlrm-mtl``."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence

import torchx.specs as specs
from torchx.components import dist

from dlrm_mtl.launching.client import explain_errors, refuse


def job(
    command: Sequence[str],
    *,
    name: str,
    image: str,
    j: str = "1x1",
    h: str | None = None,
    cpu: int = -1,
    gpu: int = 0,
    memMB: int = -1,
    env: Mapping[str, str] | None = None,
    max_restarts: int = 0,
    max_retries: int = 0,
    mounts: list[str] | None = None,
    rdzv_port: int = 29500,
) -> specs.AppDef:
    """Describe the job; a mistake ends the client in one sentence.

    Args:
        command: arguments of ``dlrm-mtl``.
        name: name of the job and its role.
        image: container image, for schedulers that use containers.
        j: ``[[MIN:]N x]M``, the number of hosts and the number of processes on each.
        h: named resource; takes precedence over ``cpu``, ``gpu`` and ``memMB``.
        cpu: CPU cores per host; -1 leaves it to the scheduler.
        gpu: GPUs per host.
        memMB: memory in MB per host; -1 leaves it to the scheduler.
        env: environment variables of the job.
        max_restarts: number of times that processes are restarted after one has failed.
        max_retries: number of times that the scheduler may start the whole job anew.
        mounts: volumes for containers.
        rdzv_port: port on the first host where hosts find one another.
    """
    explain_errors(name)
    try:
        min_nodes, max_nodes, processes, nodes = dist.parse_nnodes(j)
    except ValueError:
        refuse(
            f"-j: '{j}' is not a number of hosts and processes; write 2 (processes), 4x8 (hosts x processes), 2:4x8."
        )
    if min(min_nodes, processes) < 1 or max_nodes < min_nodes:
        refuse(f"-j: '{j}' asks for no process; hosts and processes must be at least 1, and MIN:N must rise.")
    try:
        resource = specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h)
    except KeyError:
        refuse(f"-h: there is no named resource '{h}'; name a registered one, or use --cpu, --gpu and --memMB.")

    # Evaluated by bash on the host: the first host's name is known only there. One host picks a free port by itself.
    endpoint = "localhost:0" if max_nodes == 1 else f'"$${{{specs.macros.rank0_env}:=localhost}}:{rdzv_port}"'
    place = "" if max_nodes == 1 else f" --node_rank {specs.macros.replica_id}"  # so that the first host has rank 0
    start = (
        # exec, so that the scheduler's signals reach Python.
        'exec "$${DLRM_MTL_PYTHON:-python}" -m dlrm_mtl.launcher'
        f" --nnodes {nodes} --nproc_per_node {processes}{place} --rdzv_backend c10d --rdzv_endpoint {endpoint}"
        f" --rdzv_id {specs.macros.app_id}" + (f" --max_restarts {max_restarts}" if max_restarts else "")
    )
    quoted = shlex.join(["-m", "dlrm_mtl", *command]).replace("$", "$$")

    # Local jobs inherit this process's environment, as Slurm's do; in a container the variable is unset and python is meant.
    os.environ.setdefault("DLRM_MTL_PYTHON", sys.executable)
    return specs.AppDef(
        name=name,
        roles=[
            specs.Role(
                name=name,
                image=image,
                entrypoint="bash",
                args=["-c", f"{start} {quoted}"],
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


def _terminal(role: str) -> dict[str, str]:
    """Environment variables that describe the user's terminal, which gets the job's output from a file, with a prefix."""
    if not sys.stderr.isatty():
        return {"COLUMNS": "120"}
    return {"COLUMNS": str(max(40, shutil.get_terminal_size().columns - len(f"{role}/0 "))), "DLRM_MTL_LIVE": "1"}
