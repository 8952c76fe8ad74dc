"""Watch over the processes of a job: one that is stopped, stuck or cut off is named, and the job ends instead of waiting.

Every process tells the job's store, every few seconds, which phase it is in and where its main thread stands. The phases of
all processes are the same sequence, so a process with fewer of them behind it keeps the others waiting. The first process
looks at all of them, and the second one at the first.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch.distributed as dist

FRAMES = 12
"""Frames of a stack that are shown: the innermost three, and those above them of this package or outside of installed ones."""
PACKAGE = str(Path(__file__).parents[1])
NAMED = 4
"""Processes that are named, with their stacks."""
END = "the job ends here, and a launcher with --max-restarts starts it again."
WAITING = ("torch/distributed/", "torchrec/distributed/types.py", "torchrec/distributed/dist_data.py")
"""Files in which a main thread that waits for other processes is found."""


@dataclass
class Status:
    """Message of a process about itself."""

    host: str
    pid: int
    beat: int = 0
    count: int = 0
    """Phases entered so far."""
    phase: str = "setting up"
    lasting: bool = True
    """True if the phase may take any time on all processes at once."""
    stack: list[str] = field(default_factory=list)
    """Frames of the main thread, innermost last."""
    left: bool = False
    """True if the process has left the job, in good order."""


_count, _phase, _lasting = 0, "setting up", True


def enter_phase(name: str, lasting: bool = False) -> None:
    """Note that this process begins a phase; to be called on every process in the same sequence.

    Args:
        name: words that fit behind "in", such as "the update of step 12".
        lasting: True for a phase that may take any time on all processes at once, such as a save.
    """
    global _count, _phase, _lasting
    _count, _phase, _lasting = _count + 1, name, lasting


class JobWatch:
    """Threads that tell of this process and look at others; the process ends with code 1 when a verdict is reached.

    Args:
        store: one that all processes of the job share, through a connection of its own.
        rank: rank of this process.
        world_size: number of processes.
        patience: seconds without a sign of life, or without progress while others wait.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int, patience: float) -> None:
        self.store, self.rank, self.world_size, self.patience = store, rank, world_size, patience
        self.interval = min(10.0, patience / 20)
        self.own = Status(socket.gethostname(), os.getpid())
        self._watched = [
            other for other in (range(world_size) if rank == 0 else [0] if rank == 1 else []) if other != rank
        ]
        self._known = {rank: self.own}
        now = time.monotonic()
        self._heard = dict.fromkeys(self._watched, now)
        self._least = -1  # phases of the processes that are behind
        self._entered = now  # when they entered the last one
        self._moved = now  # when they last moved, or were in a lasting phase with all others
        self._answered = now
        self._end = threading.Event()
        self._warned = False
        self._main = threading.main_thread().ident
        self._threads = [
            threading.Thread(target=target, name=f"job watch ({target.__name__})", daemon=True)
            for target in (self._beat, self._guard)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Leave the job in good order."""
        self._end.set()
        for thread in self._threads:
            thread.join(timeout=5.0)

    def first_to_tell(self) -> bool:
        """True for the first process of the job that asks: it tells the user why the job ends."""
        try:
            return bool(self.store.add("told", 1) == 1)
        except (RuntimeError, OSError):
            return True

    def _beat(self) -> None:
        try:
            while not self._end.wait(self.interval if self.own.beat else 0.0):
                self._tell()
                self._look()
                self._answered = time.monotonic()
            self.own.left = True
            self._tell()
        except RuntimeError:  # the store is gone: its process has ended, and whoever needs it will hear of it
            self._end.set()

    def _tell(self) -> None:
        frame = sys._current_frames().get(self._main or 0)
        own = self.own
        own.beat, own.count, own.phase, own.lasting = own.beat + 1, _count, _phase, _lasting
        frames = traceback.extract_stack(frame)
        shown = [entry for entry in frames[:-3] if _is_told(entry.filename)] + frames[-3:]
        own.stack = [f"{entry.filename}:{entry.lineno} in {entry.name}" for entry in shown[-FRAMES:]]
        self.store.set(str(self.rank), json.dumps(asdict(own)))

    def _look(self) -> None:
        now = time.monotonic()
        there = [rank for rank in self._watched if rank in self._known or self.store.check([str(rank)])]
        found = self.store.multi_get([str(rank) for rank in there]) if there else []
        for rank, content in zip(there, found, strict=True):
            status = Status(**json.loads(content))
            if rank not in self._known or self._known[rank].beat != status.beat:
                self._heard[rank] = now
            self._known[rank] = status
        active = [rank for rank in self._watched if not (rank in self._known and self._known[rank].left)]
        silent = [rank for rank in active if now - self._heard[rank] > self.patience]
        if silent:
            seconds = f"{self.patience:.0f} seconds"
            self._give_up(silent, f"gave no sign of life for {seconds}: stopped, or cut off from the others")
        if self.rank == 0 and len(self._known) == self.world_size == len(active) + 1:
            self._look_for_stuck(now)

    def _look_for_stuck(self, now: float) -> None:
        least = min(status.count for status in self._known.values())
        behind = sorted(rank for rank, status in self._known.items() if status.count == least)
        if least != self._least:
            self._least, self._entered, self._moved, self._warned = least, now, now, False
        if len(behind) == self.world_size and self.own.lasting:
            self._moved = now
            if now - self._entered > self.patience and not self._warned:
                self._warned = True
                text = f"all processes have been in {self.own.phase} for {now - self._entered:.0f} seconds"
                print(f"warning: {text}.", file=sys.stderr, flush=True)
        elif now - self._moved > self.patience:
            stuck = [rank for rank in behind if not is_waiting(self._known[rank].stack)] or behind
            heard = [now - self._heard[rank] for rank in stuck if rank != self.rank]
            if max(heard, default=0.0) < 3 * self.interval:  # otherwise it is silent, which is told when it is certain
                seconds = f"{now - self._moved:.0f} seconds"
                self._give_up(stuck, f"made no progress for {seconds}, and the others wait")

    def _name(self, ranks: list[int]) -> str:
        hosts = {rank: f" ({status.host}, pid {status.pid})" for rank, status in self._known.items()}
        shown = ", ".join(f"{rank}{hosts.get(rank, '')}" for rank in ranks[:NAMED])
        more = f" and {len(ranks) - NAMED} more" if len(ranks) > NAMED else ""
        return f"process{'es' * (len(ranks) > 1)} {shown}{more}"

    def _give_up(self, ranks: list[int], problem: str) -> None:
        """End this process, after saying what is wrong with ``ranks`` and where they stood."""
        if self.first_to_tell():
            last = f"; last seen in {self._known[ranks[0]].phase}" if ranks[0] in self._known else ""
            lines = [f"error: {self._name(ranks)} {problem}{last}; {END}"]
            for rank in ranks[:NAMED]:
                if rank in self._known:
                    lines += [f"  where process {rank} stood:", *(f"    {each}" for each in self._known[rank].stack)]
            print("\n".join(lines), file=sys.stderr, flush=True)
        os._exit(1)

    def _guard(self) -> None:
        """End this process if the store does not answer: its process is stopped, or out of reach."""
        while not self._end.wait(self.interval):
            if time.monotonic() - self._answered > 2 * self.patience:
                print(
                    f"error: process {self.rank} on {self.own.host}: the store of the job did not answer for "
                    f"{2 * self.patience:.0f} seconds, so the process or host that holds it, usually the first one, is stopped "
                    f"or cut off; {END}",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)


def _is_told(filename: str) -> bool:
    return filename.startswith(PACKAGE) or "site-packages" not in filename


def is_waiting(stack: list[str]) -> bool:
    """True if the innermost frames show a wait for other processes."""
    return any(place in frame for frame in stack[-3:] for place in WAITING)
