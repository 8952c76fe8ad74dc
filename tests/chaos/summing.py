"""One process of a job of `tests.chaos.restarts`: it sums up with the others, leaves a file, and waits to be killed."""

import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from dlrm_mtl.core.processes import process_group

for number in (signal.SIGINT, signal.SIGTERM):  # the agent's handlers came with the fork
    signal.signal(number, signal.SIG_DFL)
with process_group():
    for moment in range(10**6):
        total = torch.ones(1)
        dist.all_reduce(total)
        if moment == 0:
            (Path(sys.argv[1]) / f"summed-{os.getpid()}-{total.item():.0f}").touch()
        time.sleep(0.05)
