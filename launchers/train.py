"""The torchx component that trains a model: ``torchx run -s SCHEDULER launchers/train.py:ddp``.

torchx executes this file inside its own module ``torchx.specs.finder``: ``__file__`` is not this file, the folder is not on
``sys.path``, and the names defined here replace names of that module. Its checker knows ``typing.Dict``, ``List`` and
``Optional`` only, and no ``from __future__ import annotations``.
"""

import os
import sys
from typing import Dict, List, Optional

import torchx.specs as specs

sys.path.append(os.getcwd())  # where torchx has a Python of its own, without this package
from dlrm_mtl.launching.check import check_config, overrides_of
from dlrm_mtl.launching.job import job


def ddp(
    *script_args: str,
    config: str = "configs/kuairand_mmoe.yaml",
    j: str = "1x2",
    set: str = "",
    output: Optional[str] = None,
    resume: bool = False,
    check: bool = True,
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
    secrets: Optional[List[str]] = None,
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
        check: False to submit without checking the configuration here, as where a plugin is installed in the image only
        name: the job's name
        image: the container image, for schedulers that use containers; it needs dlrm_mtl and its pinned set installed
        h: a named resource, such as h100x8 (takes precedence over cpu, gpu and memMB)
        cpu: CPU cores per host; -1 leaves it to the scheduler
        gpu: GPUs per host
        memMB: memory in MB per host; -1 leaves it to the scheduler
        env: environment variables of the job, as in ``A=1,B=2``
        max_restarts: how often the processes are restarted after one has failed; they resume from the latest checkpoint
        max_retries: how often the scheduler may start the whole job anew
        mounts: volumes for containers, as in ``type=bind,src=/data,dst=/data,readonly``
        secrets: secrets of Kubernetes, whose entries become environment variables
        rdzv_port: port on the first host at which the hosts find one another
    """
    overrides = overrides_of(set)
    check_config(config, overrides, script_args, check)
    command = ["train", config]
    for override in overrides:
        command += ["--set", override]
    command += ["--output", output] if output else []
    command += ["--resume"] if resume else []
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
        max_restarts=max_restarts,
        max_retries=max_retries,
        mounts=mounts,
        secrets=secrets,
        rdzv_port=rdzv_port,
    )
