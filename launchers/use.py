"""The torchx components around training: check the hosts, prepare a data set, evaluate a run, predict with it.

``torchx run -s SCHEDULER launchers/use.py:predict --run runs/mine --input new --output scores.parquet``; so ``:evaluate``,
``:prepare`` and ``:doctor``. torchx executes this file as it does ``train.py``.
"""

import os
import sys
from typing import Dict, List, Optional

import torchx.specs as specs

sys.path.append(os.getcwd())  # where torchx has a Python of its own, without this package
from dlrm_mtl.launching.check import check_adapter, check_run, overrides_of
from dlrm_mtl.launching.job import job


def evaluate(
    *script_args: str,
    run: str,
    split: str = "test",
    j: str = "1x2",
    set: str = "",
    check: bool = True,
    name: str = "evaluate",
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
    """Evaluates a trained run: the processes of all hosts run ``dlrm-mtl evaluate``.

    Args:
        script_args: further arguments of ``dlrm-mtl evaluate``, after ``--``, such as ``--checkpoint latest``
        run: the folder of the run, on storage that all hosts see, or a URI
        split: the split of its data set
        j: [[MIN:]N x]M, the number of hosts and the number of processes on each
        set: overrides of the run's configuration, as in ``data.evaluation_batch_size=8192``
        check: False to submit without checking the configuration here
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
    overrides = overrides_of(set)
    check_run(run, overrides, script_args, check)
    command = ["evaluate", run, "--split", split]
    for override in overrides:
        command += ["--set", override]
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
    )


def predict(
    *script_args: str,
    run: str,
    input: str,
    output: str,
    j: str = "1x2",
    set: str = "",
    check: bool = True,
    name: str = "predict",
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
    """Predicts with a trained run: the processes of all hosts share the rows of ``dlrm-mtl predict``.

    Args:
        script_args: further arguments of ``dlrm-mtl predict``, after ``--``, as in ``--carry=user_id --carry=video_id``
        run: the folder of the run, on storage that all hosts see, or a URI
        input: Parquet file, or folder of them, on storage that all hosts see, or a URI
        output: file to write, by its ending .parquet, .csv, .csv.gz or .jsonl; path or URI
        j: [[MIN:]N x]M, the number of hosts and the number of processes on each
        set: overrides of the run's configuration, as in ``data.out_of_range=unknown``
        check: False to submit without checking the configuration here
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
    overrides = overrides_of(set)
    check_run(run, overrides, script_args, check)
    command = ["predict", run, "--input", input, "--output", output]
    for override in overrides:
        command += ["--set", override]
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
    )


def prepare(
    *script_args: str,
    adapter: str = "table",
    plugin: Optional[str] = None,
    name: str = "prepare",
    image: str = "dlrm_mtl",
    h: Optional[str] = None,
    cpu: int = -1,
    memMB: int = -1,
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    mounts: Optional[List[str]] = None,
    secrets: Optional[List[str]] = None,
) -> specs.AppDef:
    """Prepares a data set in one process: ``dlrm-mtl prepare ADAPTER``.

    Args:
        script_args: the options of ``dlrm-mtl prepare ADAPTER``, after ``--``
        adapter: which data set: ``table`` for your own files
        plugin: module that registers adapters of your own
        name: the job's name
        image: the container image, for schedulers that use containers
        h: a named resource, such as cpu.xlarge (takes precedence over cpu and memMB)
        cpu: CPU cores; -1 leaves it to the scheduler
        memMB: memory in MB; -1 leaves it to the scheduler
        env: environment variables of the job, as in ``A=1,B=2``
        max_retries: how often the scheduler may start the job anew
        mounts: volumes for containers, as in ``type=bind,src=/data,dst=/data``
        secrets: secrets of Kubernetes, whose entries become environment variables
    """
    check_adapter(adapter, plugin)
    command = ["prepare", *(["--plugin", plugin] if plugin else []), adapter]
    return job(
        [*command, *script_args],
        name=name,
        image=image,
        h=h,
        cpu=cpu,
        memMB=memMB,
        env=env,
        max_retries=max_retries,
        mounts=mounts,
        secrets=secrets,
    )


def doctor(
    *script_args: str,
    j: str = "1x2",
    path: Optional[str] = None,
    output: Optional[str] = None,
    name: str = "doctor",
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
    """Checks the hosts of a job before hours are spent: ``dlrm-mtl doctor --distributed`` between all their processes.

    Args:
        script_args: further arguments of ``dlrm-mtl doctor``, after ``--``
        j: [[MIN:]N x]M, the number of hosts and the number of processes on each
        path: file or folder that all hosts must see alike, such as the data set, or a URI
        output: folder that all hosts must share and write to, or a URI
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
    places = [*(["--path", path] if path else []), *(["--output", output] if output else [])]
    return job(
        ["doctor", "--distributed", *places, *script_args],
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
    )
