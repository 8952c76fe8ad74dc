"""The loss of another process of the job: told in one sentence, and by one of those that are left."""

from __future__ import annotations

import torch.distributed as dist


def is_lost_peer(error: BaseException) -> bool:
    """True if ``error`` comes from communication with a process that is gone."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("gloo" in text.lower() or "NCCL" in text)


def sentence(rank: int, host: str) -> str:
    """The sentence of a process that is left."""
    return (
        f"process {rank} on {host} lost another process of the job, which has ended or is out of reach: its own output or the "
        "launcher's table of failures says why. Go on from the last checkpoint with --resume."
    )
