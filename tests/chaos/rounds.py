"""A round of `tests.chaos`: a training that is killed at random moments until it is finished, and what came of it."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.compare import differences
from tests.chaos.configurations import CHECKPOINT_EVERY, ROWS, TRAININGS, Training, arrive
from tests.chaos.job import Job
from tests.commands import read_metrics, write_config

TARGETS = ("rank", "agent", "agent alone", "job")
"""What is killed. After ``rank`` the launcher starts the workers again; after ``agent alone`` this agent is started again
beside the other one, as a pod is; after ``agent`` and ``job`` all processes are killed, and the command is run again."""
SECONDS = 240.0
"""Seconds after which a job is taken to hang."""
LATE_SECONDS = 20.0
"""Seconds after the end of training until agents are killed that wait for a rank that was killed after it."""


@dataclass(frozen=True)
class Kill:
    """A planned kill."""

    target: str
    moment: str
    """``save``: while a checkpoint is written; ``step``: after some steps; ``time``: at any moment, from the start on."""
    count: int
    """Number of saves or steps to wait for."""
    delay: float
    """Seconds to wait after that."""
    victim: int
    """Number of the rank or agent."""

    def __str__(self) -> str:
        what = self.target if self.target == "job" else f"{self.target} {self.victim}"
        when = "" if self.moment == "time" else f"{self.moment} {self.count} and "
        return f"{what} after {when}{self.delay:.3f} s"


@dataclass
class Outcome:
    """What a round came to."""

    training: str
    kills: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    in_saves: int = 0
    """Number of kills at which a checkpoint was half written."""
    gave_up: int = 0
    """Number of times that the launcher did not go on by itself, where it need not, and the command was run again: an agent
    was lost while the agents looked for each other, or a rank after the end of training."""
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def planned(seed: int, number: int) -> tuple[str, list[Kill]]:
    """Training and kills of a round."""
    draw = random.Random(f"{seed}/{number}")
    kills = []
    for _ in range(draw.choice((1, 1, 2, 3))):
        target = draw.choice(("rank", "rank", "agent", "agent alone", "job", "job"))
        moment = draw.choice(("save", "step", "time"))
        delay = draw.uniform(0, {"save": 0.03, "step": 0.1, "time": 6.0}[moment])
        kills.append(Kill(target, moment, draw.randint(1, 4), delay, draw.randrange(4 if target == "rank" else 2)))
    return list(TRAININGS)[number % len(TRAININGS)], kills


class Round:
    """A training that is killed until it is finished.

    Args:
        folder: empty folder for data and run.
        source: data set that the training uses.
        training: what is trained.
        kills: kills in their order.
        checkpoint_every: number of steps between checkpoints.
        cold: see :class:`~tests.chaos.job.Job`.
        processes: number of processes of each of the two agents.
    """

    def __init__(
        self,
        folder: Path,
        source: Path,
        training: str,
        kills: Sequence[Kill],
        checkpoint_every: int = CHECKPOINT_EVERY,
        cold: bool = False,
        processes: int = 2,
    ) -> None:
        self.folder, self.source, self.cold, self.processes = folder, source, cold, processes
        self.training: Training = TRAININGS[training]
        self.outcome = Outcome(training)
        self._kills = list(kills)
        self._struck = 0.0
        folder.mkdir(parents=True)
        self.run = folder / "run"
        self.config = write_config(folder / "run.yaml", self.training.config(folder / "data", checkpoint_every))

    def train(self) -> Outcome:
        """Train to the end, with all kills."""
        for part in range(self.training.parts):
            arrive(self.source, self.folder / "data", self.training, part)
            last = part == self.training.parts - 1
            left = len(self._kills) if last else len(self._kills) // 2
            kills, self._kills = self._kills[:left], self._kills[left:]
            resume = part > 0
            (self.run / "results.json").unlink(missing_ok=True)  # of the part before
            while not self.outcome.problems and not self._attempt(kills, resume):
                resume = True
        return self.outcome

    def _attempt(self, kills: list[Kill], resume: bool) -> bool:
        """Run the command once, with the next of ``kills``; True if it ended well."""
        job = Job(
            ["train", self.config, "--output", self.run, *(["--resume"] if resume else [])],
            self.folder / "log",
            processes=self.processes,
            cold=self.cold,
        )
        killed = False
        try:
            end = time.monotonic() + SECONDS
            while kills and self._moment(job, kills[0]):
                kill = kills.pop(0)
                killed = True
                self._strike(job, kill)
                if kill.target in ("agent", "job"):
                    time.sleep(kill.delay)  # the others notice, or do not
                    return False
            finished = 0.0
            while job.exit_code() is None:
                if killed and (self.run / "results.json").exists():
                    finished = finished or time.monotonic()
                if time.monotonic() > end or (finished and time.monotonic() > finished + LATE_SECONDS):
                    break
                time.sleep(0.02)
            code = job.exit_code()
            if code == 0:
                return True
            after = self.outcome.kills[-1] if killed else "no kill"
            done = (self.run / "results.json").exists()
            if not killed or (not done and (code is None or not after.startswith("agent alone"))):
                how = f"no end within {SECONDS:.0f} s" if code is None else f"exit code {code}"
                self.outcome.problems.append(f"{how} after {after}")
            else:
                self.outcome.gave_up += 1
            return False
        finally:
            job.kill()

    def _moment(self, job: Job, kill: Kill) -> bool:
        """Wait for the moment of a kill; False if the job ends before."""
        end = time.monotonic() + SECONDS
        for arrived in self._counts(kill):
            if arrived:
                time.sleep(kill.delay)
                return job.exit_code() is None
            if job.exit_code() is not None or time.monotonic() > end:
                return False
            time.sleep(0.001)
        return False

    def _counts(self, kill: Kill) -> Iterator[bool]:
        """Whether as many saves or steps as the kill waits for have begun."""
        saves, now, first = 0, "", self._last_step()
        while True:
            if kill.moment == "time":
                yield True
            elif kill.moment == "step":
                yield self._last_step() >= first + kill.count
            else:
                before, now = now, self._half_written()
                saves += bool(now) and now != before
                yield saves >= kill.count

    def _last_step(self) -> int:
        metrics = self.run / "metrics.jsonl"
        return max((entry["step"] for entry in read_metrics(metrics)), default=0) if metrics.is_file() else 0

    def _half_written(self) -> str:
        """Name of the folder that a checkpoint is written into now; not of one that an earlier kill has left."""
        for path in (self.run / "checkpoints").glob("step_*.tmp"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ctime > self._struck:
                    return path.name
        return ""

    def _strike(self, job: Job, kill: Kill) -> None:
        self.outcome.in_saves += bool(self._half_written())
        self.outcome.kills.append(str(kill))
        self.outcome.targets.append(kill.target)
        self._struck = time.time() + 0.1  # files that are being closed
        if kill.target == "job":
            job.kill()
        elif kill.target.startswith("agent"):
            number = 1 if kill.target == "agent alone" else kill.victim  # the first one keeps the job's store
            job.agents[number].kill()
            if kill.target == "agent alone":
                job.start_again(number)
        else:
            agent, rank = divmod(kill.victim, self.processes)
            while len(workers := job.agents[agent].workers()) <= rank and job.exit_code() is None:
                time.sleep(0.001)
            if len(workers) > rank:
                os.kill(workers[rank], signal.SIGKILL)


class Reference:
    """Runs that are not killed and have a checkpoint after every step, one for each training.

    Args:
        folder: folder for them.
        processes: number of processes of each of the two agents.
    """

    def __init__(self, folder: Path, processes: int = 2) -> None:
        self.folder = folder
        self.processes = processes
        self._rounds: dict[str, Round] = {}

    def round(self, training: str) -> Round:
        """The run of a training; made when it is first asked for."""
        if training not in self._rounds:
            home = self.folder / training.replace(" ", "_")
            shutil.rmtree(home, ignore_errors=True)
            source = TRAININGS[training].write_dataset(home / "source", ROWS)
            found = Round(home / "whole", source, training, [], checkpoint_every=1, processes=self.processes)
            problems = found.train().problems
            assert not problems, f"{training}: the run that is not killed: {problems}; see {home}"
            self._rounds[training] = found
        return self._rounds[training]


def chaos(folder: Path, reference: Reference, training: str, kills: Sequence[Kill], cold: bool = False) -> Outcome:
    """One round in ``folder``, which is removed if all is well."""
    shutil.rmtree(folder, ignore_errors=True)
    whole = reference.round(training)
    round = Round(folder, whole.source, training, kills, cold=cold, processes=reference.processes)
    outcome = round.train()
    if not outcome.problems:
        outcome.problems += [f"differs: {name}" for name in differences(round.run, whole.run, whole.training)]
    if not outcome.problems:
        shutil.rmtree(folder)
    return outcome
