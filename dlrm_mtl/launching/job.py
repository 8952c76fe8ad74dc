"""A torchx job of N hosts with M processes each, all running one command of ``dlrm-mtl``."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence

import torchx.specs as specs
from torchx.components import dist

from dlrm_mtl.launching.client import explain_errors, refuse
from dlrm_mtl.launching.kubernetes_secrets import give_secrets
from dlrm_mtl.launching.resources import named_resource

NAME = re.compile(r"[a-zA-Z]([\w-]{0,28}[a-zA-Z0-9])?", re.ASCII)
"""A name that every scheduler takes: with what torchx and Volcano add, a host's name in Kubernetes must have 63 characters."""


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
    secrets: Sequence[str] | None = None,
    rdzv_port: int = 29500,
    module: str = "dlrm_mtl",
) -> specs.AppDef:
    """Describe the job; a mistake ends the client in one sentence.

    Args:
        command: arguments of ``module``.
        name: name of the job; its letters and digits are the name of its role.
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
        secrets: secrets of Kubernetes, whose entries become environment variables.
        rdzv_port: port on the first host where hosts find one another.
        module: module that every process runs, as by ``python -m``.
    """
    if not NAME.fullmatch(name):
        refuse(
            f"--name: '{name}' cannot be the name of a job; it has up to 30 letters, digits, hyphens and underscores, begins "
            "with a letter, and ends with a letter or a digit."
        )
    # In Kubernetes the role is part of an environment variable's name, in which torchx leaves hyphens, and bash has none.
    role_name = re.sub("[^a-z0-9]", "", name.lower())[:12]
    explain_errors(role_name)
    try:
        min_nodes, max_nodes, processes, nodes = dist.parse_nnodes(j)
    except ValueError:
        refuse(
            f"-j: '{j}' is not a number of hosts and processes; write 2 (processes), 4x8 (hosts x processes), 2:4x8."
        )
    if min(min_nodes, processes) < 1 or max_nodes < min_nodes:
        refuse(f"-j: '{j}' asks for no process; hosts and processes must be at least 1, and MIN:N must rise.")
    try:
        resource = named_resource(h) if h else specs.resource(cpu=cpu, gpu=gpu, memMB=memMB)
    except KeyError as error:
        refuse(f"-h: there is no named resource '{h}'; {error.args[0]}; or use --cpu, --gpu and --memMB.")

    # Evaluated by bash on the host: the first host's name is known only there. One host picks a free port by itself.
    endpoint = "localhost:0" if max_nodes == 1 else f'"$${{{specs.macros.rank0_env}:=localhost}}:{rdzv_port}"'
    place = "" if max_nodes == 1 else f" --node_rank {specs.macros.replica_id}"  # so that the first host has rank 0
    start = (
        # exec, so that the scheduler's signals reach Python.
        'exec "$${DLRM_MTL_PYTHON:-python}" -m dlrm_mtl.launcher'
        f" --nnodes {nodes} --nproc_per_node {processes}{place} --rdzv_backend c10d --rdzv_endpoint {endpoint}"
        f" --rdzv_id {specs.macros.app_id}" + (f" --max_restarts {max_restarts}" if max_restarts else "")
    )
    quoted = shlex.join(["-m", module, *command]).replace("$", "$$")

    # Local jobs inherit this process's environment, as Slurm's do; in a container the variable is unset and python is meant.
    os.environ.setdefault("DLRM_MTL_PYTHON", sys.executable)
    role = specs.Role(
        name=role_name,
        image=image,
        entrypoint="bash",
        args=["-c", f"{start} {quoted}"],
        env={**_terminal(role_name), "PYTHONUNBUFFERED": "1", **(env or {})},
        num_replicas=max_nodes,
        min_replicas=min_nodes,
        max_retries=max_retries,
        resource=resource,
        port_map={"c10d": rdzv_port},
        mounts=specs.parse_mounts(mounts) if mounts else [],
    )
    if secrets:
        give_secrets(role, secrets)
    return specs.AppDef(name=name, roles=[role])


def _terminal(role: str) -> dict[str, str]:
    """Environment variables that describe the user's terminal, which gets the job's output from a file, with a prefix."""
    if not sys.stderr.isatty():
        return {"COLUMNS": "120"}
    return {"COLUMNS": str(max(40, shutil.get_terminal_size().columns - len(f"{role}/0 "))), "DLRM_MTL_LIVE": "1"}
