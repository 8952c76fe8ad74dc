"""torchx's client while it submits one of our jobs: its errors in one sentence, its signals passed on, its exit code."""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import warnings
from types import FrameType, TracebackType
from typing import NoReturn

import torchx.specs as specs
from torchx.schedulers import local_scheduler, slurm_scheduler

from dlrm_mtl.core.errors import EXIT_CODE

PROGRAMS = {"sbatch": "Slurm", "sacct": "Slurm", "bsub": "LSF", "bhosts": "LSF", "bjobs": "LSF"}
"""Programs of schedulers that the client calls."""


def refuse(sentence: str) -> NoReturn:
    """End the client for a user's mistake."""
    print(sentence, file=sys.stderr)
    raise SystemExit(EXIT_CODE)


def explain_errors(role: str) -> None:
    """Show the client's later errors in a sentence, where one is known, and pass its signals on to jobs on this machine.

    Args:
        role: name of the job's role, of which files of output are named.
    """
    client = logging.getLogger("torchx.cli.cmd_run")
    if not any(isinstance(each, _Reports) for each in client.filters):
        client.addFilter(_Reports())
    warnings.filterwarnings("ignore", message="failed to load kube config")  # the error that follows says so
    sys.excepthook = functools.partial(_show, role)
    # Set only while jobs run on this machine. It ends them at once and shows nothing of what they still have to say.
    if signal.getsignal(signal.SIGINT) is local_scheduler._terminate_process_handler:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _stop_jobs)


class _Reports(logging.Filter):
    """Takes the place of two of the client's reports: of a job that failed, and of a missing option."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep all other reports."""
        if isinstance(record.msg, specs.AppStatus):  # a table of empty fields; the job has said what is wrong
            if _exit_code(record.msg) == EXIT_CODE:
                raise SystemExit(EXIT_CODE)
            return False
        missing = re.search(
            r"incorrect or missing required option: `(.*?)`.*configuration for `(.*?)`", str(record.msg), re.S
        )
        if missing:
            key, scheduler = missing.groups()
            refuse(
                f"-cfg: the scheduler {scheduler} needs the option {key}, or another type of it; write -cfg {key}=VALUE before "
                f"the component (torchx runopts {scheduler} lists all options)."
            )
        return True


def _exit_code(status: specs.AppStatus) -> int | None:
    """Exit code that :mod:`dlrm_mtl.launcher` stored for the client of a job on this machine; None without one."""
    try:
        return int(json.loads(status.structured_error_msg)["exit_code"])
    except (ValueError, KeyError, TypeError):
        return None


def _show(role: str, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sentence = _how_to_follow(error, role) if _program(error) == "sacct" else explain(error)
    if sentence is None:
        sys.__excepthook__(kind, error, trace)
        return
    print(sentence, file=sys.stderr, flush=True)
    sys.stdout.flush()
    submitted = _program(error) == "sacct" and not {"--wait", "--log"} & set(sys.argv)
    os._exit(0 if submitted else EXIT_CODE)  # a hook cannot choose the exit code otherwise


def _program(error: BaseException) -> str | None:
    """The program that was called, if it failed or is not there."""
    if isinstance(error, subprocess.CalledProcessError):
        return os.path.basename(error.cmd[0] if isinstance(error.cmd, list) else str(error.cmd))
    return str(error.filename) if isinstance(error, FileNotFoundError) else None


def explain(error: BaseException) -> str | None:
    """Advice on an error of torchx's client, or of a program that it calls; None for a defect."""
    module, text = type(error).__module__.partition(".")[0], _first_line(error)
    program = _program(error)
    if program in PROGRAMS and isinstance(error, FileNotFoundError):
        return (
            f"{PROGRAMS[program]}: there is no {program} on this machine; call torchx on a login node of the cluster, or use "
            "-s local_cwd for this machine."
        )
    if program in PROGRAMS:
        return f"{PROGRAMS[program]}: {program} refused the job; what it said stands above."
    if isinstance(error, AssertionError) and "requires memMB" in text:
        return (
            "AWS Batch: it needs the size of a host; write --cpu and --memMB after the component, such as --cpu 8 --memMB "
            "32000."
        )
    if isinstance(error, KeyError) and "image_repo" in text:
        return (
            '-cfg: an image that is built here needs a place; write -cfg image_repo=REPOSITORY, or --workspace "" to use '
            "--image as it is."
        )
    if module == "docker":
        return (
            f'Docker: there is no engine to reach ({text}); start one, write --workspace "" where --image is built already, '
            "or use -s local_cwd for this machine."
        )
    if module in ("botocore", "boto3"):
        return f"AWS: {text}; set the region and the credentials, as the command aws needs them: aws configure."
    if module in ("kubernetes", "urllib3"):
        return (
            f"Kubernetes: {text}; check that kubectl get queues works here: it needs a configuration, a cluster that answers, "
            "and Volcano in it."
        )
    if isinstance(error, ModuleNotFoundError):
        return (
            f"-s: this scheduler needs the Python package {error.name}, which is not installed; install it, or choose another "
            "scheduler."
        )
    return None


def _how_to_follow(error: BaseException, role: str) -> str:
    """Advice on a submitted Slurm job whose state torchx's client cannot learn, as without accounting."""
    job = error.cmd[-1] if isinstance(error, subprocess.CalledProcessError) else "JOBID"
    folder = slurm_scheduler._get_job_dirs().get(job, os.getcwd())
    return (
        f"Slurm: job {job} is submitted. Without accounting torchx cannot tell its state: squeue -j {job} can, scancel {job} "
        f"ends it, and its output is in {folder}/slurm-{job}-{role}-0.out."
    )


def _first_line(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text.strip().splitlines()[0][:200].rstrip(". ")


def _stop_jobs(number: int, frame: FrameType | None) -> None:
    """Pass the first signal on to the jobs, which save, say so and leave; a second one ends them at once."""
    for again in (signal.SIGINT, signal.SIGTERM):
        signal.signal(again, local_scheduler._terminate_process_handler)
    sys.excepthook = lambda kind, error, trace: (
        None if kind is local_scheduler.SignalException else sys.__excepthook__(kind, error, trace)
    )
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        for pid in children.read().split():
            os.kill(int(pid), number)
