"""The command ``python -m tests.chaos.restarts``: kill ranks and agents of small jobs, and count the restarts that succeed.

The workers sum up a number over all processes; then one rank, or one agent, is killed. A restart has succeeded when all
processes have summed up again.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.job import Job

SECONDS = 90.0
"""Seconds after which a restart has failed."""
SHARED = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


@dataclass(frozen=True)
class Case:
    """What is restarted."""

    launcher: str
    agents: int
    victim: str
    """``rank`` or ``agent``; an agent is started again beside the others."""
    own_store: bool = True
    """False to start torchrun without TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1. Ours sets it."""

    def __str__(self) -> str:
        store = "" if self.launcher == "dlrm_mtl.launcher" else f", {SHARED} {'set' if self.own_store else 'unset'}"
        return f"{self.launcher}{store}: {self.agents} agent{'s' * (self.agents > 1)}, one {self.victim} killed"


OURS, TORCHRUN = "dlrm_mtl.launcher", "torch.distributed.run"
CASES = [
    Case(OURS, 1, "rank"),
    Case(OURS, 2, "rank"),
    Case(OURS, 2, "agent"),
    Case(TORCHRUN, 1, "rank"),
    Case(TORCHRUN, 1, "rank", own_store=False),
    Case(TORCHRUN, 2, "rank"),
    Case(TORCHRUN, 2, "agent"),
]


def restarts(case: Case, count: int, folder: Path) -> int:
    """Number of restarts that succeed one after the other, at most ``count``; the job ends at the first that does not."""
    environment = {} if case.launcher == OURS or not case.own_store else {SHARED: "1"}
    job = Job(
        [folder],
        folder / "log",
        case.agents,
        2 if case.agents == 1 else 1,
        launcher=case.launcher,
        max_restarts=3 * count,
        worker="summing.py",
        environment=environment,
    )
    try:
        seen: set[str] = set()
        for number in range(count + 1):
            if not _summed_up(job, folder, seen, 2):
                return number - 1
            if number < count:
                victim = job.agents[-1]
                if case.victim == "agent":
                    victim.kill_all()
                    victim.wait_until_gone()
                    job.start_again(len(job.agents) - 1)
                else:
                    os.kill(victim.workers()[-1], signal.SIGKILL)
        return count
    finally:
        job.kill()


def _summed_up(job: Job, folder: Path, seen: set[str], processes: int) -> bool:
    """Wait until processes that have not been seen before have summed up together."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and job.exit_code() is None:
        there = {path.name for path in folder.glob("summed-*")} - seen
        if len(there) >= processes:
            seen |= there
            return True
        time.sleep(0.02)
    return False


def main() -> int:
    """Print how many restarts succeeded in each case; 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.restarts", description=str(__doc__).splitlines()[0])
    parser.add_argument("--count", type=int, default=20, help="number of restarts in each case")
    count = parser.parse_args().count
    failed = False
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            done = restarts(case, count, Path(folder))
        failed |= done < count
        print(f"{done} of {count}: {case}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
