"""The torchx component that measures the scaling benchmark on a cluster.

``torchx run -s SCHEDULER launchers/bench.py:scaling -j NxM --json scaling.json --html scaling.html``. torchx executes this file
as it does ``train.py``; the hosts need the repository's folder, where the benchmarks are.
"""

import os
import sys
from typing import Dict, List, Optional

import torchx.specs as specs

sys.path.append(os.getcwd())  # where torchx has a Python of its own, without this package
from dlrm_mtl.launching.job import job


def scaling(
    *script_args: str,
    j: str = "1x2",
    json: str = "scaling.json",
    html: str = "scaling.html",
    compare: str = "",
    quick: bool = False,
    name: str = "scaling",
    image: str = "dlrm_mtl",
    h: Optional[str] = None,
    cpu: int = -1,
    gpu: int = 0,
    memMB: int = -1,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    secrets: Optional[List[str]] = None,
    rdzv_port: int = 29500,
) -> specs.AppDef:
    """Measures training steps by sharding type and shape of the tables on the processes of all hosts.

    Args:
        script_args: further arguments of ``python -m benchmarks scaling``, after ``--``
        j: [[MIN:]N x]M, the number of hosts and the number of processes on each
        json: file for the figures, on the first host
        html: file for the page, on the first host
        compare: figures of ``python -m benchmarks scaling --json`` with a simulation of as many processes
        quick: True for fewer and smaller cases
        name: the job's name
        image: the container image, for schedulers that use containers
        h: a named resource, such as h100x8 (takes precedence over cpu, gpu and memMB)
        cpu: CPU cores per host; -1 leaves it to the scheduler
        gpu: GPUs per host
        memMB: memory in MB per host; -1 leaves it to the scheduler
        env: environment variables of the job, as in ``A=1,B=2``
        mounts: volumes for containers, as in ``type=bind,src=/data,dst=/data,readonly``
        secrets: secrets of Kubernetes, whose entries become environment variables
        rdzv_port: port on the first host at which the hosts find one another
    """
    command = ["scaling", "--json", json, "--html", html]
    command += ["--compare", compare] if compare else []
    command += ["--quick"] if quick else []
    return job(
        [*command, *script_args],
        name=name,
        image=image,
        j=j,
        h=h,
        cpu=cpu,
        gpu=gpu,
        memMB=memMB,
        env=env,
        mounts=mounts,
        secrets=secrets,
        rdzv_port=rdzv_port,
        module="benchmarks",
    )
