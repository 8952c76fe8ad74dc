"""The command ``python -m tests.chaos.versions``: kill a training that publishes, and the server that follows it.

A training of one or two processes publishes a version after each step. A server follows it, and a client asks it for the
scores of the same rows all the time. ``kill -9`` hits the training, the server or one of its workers at random moments, and
what was killed is started again. Each answer names a version, and its scores must be those of this version, bit for bit:
they are computed from the bundle that base and deltas make. And newer versions must be served after each kill.

Kills that are done are kept in ``kills.jsonl``; the same command goes on after them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq

import dlrm_mtl
from dlrm_mtl.serve.follow.assemble import write_version
from dlrm_mtl.storage.run_store import LocalStore
from dlrm_mtl.versions.chain import Chain
from dlrm_mtl.versions.format import CHAIN_FILE, VERSION_FILE, StoredVersion
from tests import commands, hashed

TARGETS = ("publisher", "publisher", "server", "worker")
"""What is killed, as often as it is named."""
SECONDS = 120.0
"""Seconds after which no newer version is expected any more."""
JSON = {"Content-Type": "application/json"}
PLUGIN = "tests.chaos.pause"
ROWS = 40
LATEST = 0.6
"""Largest number of seconds between a new version and a kill."""


@dataclass
class KillOutcome:
    """What a kill came to."""

    target: str
    while_writing: bool = False
    """True if a version was half written."""
    answers: int = 0
    """Answers since the kill before."""
    versions: int = 0
    """Different versions among them."""
    problems: list[str] = field(default_factory=list)


class Scene:
    """A training, a server that follows it, and a client.

    Args:
        folder: folder for all files; what is there is gone on with.
        processes: numbers of processes that a training may have.
    """

    def __init__(self, folder: Path, processes: Sequence[int] = (1, 2)) -> None:
        self.folder, self.processes = folder, processes
        self.versions, self.archive = folder / "versions", folder / "archive"
        if not (folder / "data").exists():
            hashed.write_dataset(folder / "data", rows=400)
        self.archive.mkdir(exist_ok=True)
        self.rows: list[dict[str, Any]] = pq.read_table(folder / "data" / "test").slice(0, ROWS).to_pylist()
        names = [name for name in self.rows[0] if name not in ("click", "buy", "row")]
        self.body = json.dumps({"rows": [{name: row[name] for name in names} for row in self.rows]}).encode()
        training = {"epochs": 10**6, "checkpoint_every": 4, "log_every": 100, "evaluate_every": 10**6, "publish": {}}
        training["publish"] = {
            "every_steps": 1,
            "to": str(self.versions),
            "base_every": 4,
            "base_share": 99.0,
            "keep": 6,
        }
        content = hashed.config(
            folder / "data",
            {"user": {"rows": 41, "eviction": "lru"}, "item": 150},
            plugins=[PLUGIN],
            training={**training, "listeners": ["pause"]},
            sharding={"default": "row_wise"},
        )
        self.config = commands.write_config(folder / "run.yaml", content)
        self.publisher: commands.Command | None = None
        self.server: commands.Command | None = None
        self.url = ""
        self.log = folder / "server.log"
        self.answers: dict[str, set[bytes]] = {}
        """Different scores of each version that was named since the last check."""
        self.count = 0
        self.newest = 0
        """Number of the newest version that was named."""
        self.client = httpx.Client(timeout=60.0, trust_env=False)
        self._ended = threading.Event()
        self._keeping = threading.Thread(target=self._keep_versions, name="archive", daemon=True)
        self._keeping.start()

    def start_publisher(self, draw: random.Random) -> None:
        """Start the training, or go on with it."""
        arguments = ["train", self.config, "--output", self.folder / "run", "--resume"]
        self.publisher = commands.start(
            *arguments, processes=draw.choice(self.processes), log=self.folder / "publisher.log"
        )

    def start_server(self) -> None:
        """Start the server, which takes a new port."""
        self.log.unlink(missing_ok=True)
        self.url = ""
        options = [
            "--plugin",
            PLUGIN,
            "--follow",
            self.versions,
            "--cache",
            self.folder / "cache",
            "--every",
            0.1,
            "--workers",
            2,
            "--port",
            0,
        ]
        self.server = commands.start("serve", *options, log=self.log)

    def strike(self, target: str, draw: random.Random) -> bool:
        """Kill, and start again; True if a version was half written."""
        writing = any(self.versions.glob("*.tmp"))
        if target == "publisher":
            assert self.publisher is not None
            ranks = children(self.publisher.pid)
            if ranks and draw.random() < 0.5:
                os.kill(draw.choice(ranks), signal.SIGKILL)
                time.sleep(draw.uniform(0, 0.05))
            commands.kill_tree(self.publisher)
            writing = any(self.versions.glob("*.tmp"))
            self.start_publisher(draw)
        elif target == "worker":
            assert self.server is not None
            for pid in draw.sample(children(self.server.pid), 1):
                os.kill(pid, signal.SIGKILL)
        else:
            assert self.server is not None
            os.kill(self.server.pid, signal.SIGKILL)
            commands.kill_tree(self.server)
            self.start_server()
        return writing

    def watch(self, enough: Callable[[], bool], seconds: float) -> bool:
        """Ask until ``enough``; False if it is not after ``seconds``."""
        end = time.monotonic() + seconds
        while not enough():
            if time.monotonic() > end:
                return False
            self.ask()
        return True

    def ask(self) -> None:
        """Ask once, if the server answers."""
        if not self.url:
            found = re.search(r"(http://\S+): answers", self.log.read_text() if self.log.exists() else "")
            if found is None:
                time.sleep(0.02)
                return
            self.url = found.group(1)
        try:
            answer = self.client.post(f"{self.url}/v1/score", content=self.body, headers=JSON)
        except httpx.HTTPError:  # what was asked has been killed
            time.sleep(0.02)
            return
        if answer.status_code == 503:
            time.sleep(0.02)
            return
        assert answer.status_code == 200, answer.text
        content = answer.json()
        scores = b"".join(np.array(values, np.float32).tobytes() for _, values in sorted(content["scores"].items()))
        self.answers.setdefault(content["version"], set()).add(scores)
        self.count += 1
        self.newest = max(self.newest, int(content["version"].partition("-")[0]))

    def _keep_versions(self) -> None:
        while not self._ended.wait(0.02):
            self.keep_versions()

    def keep_versions(self) -> None:
        """Link all complete versions into the archive, as old ones are removed."""
        for path in self.versions.glob(f"version_????????/{VERSION_FILE}"):
            kept = self.archive / path.parent.name
            if not kept.exists():
                temporary = self.archive / "new"
                shutil.rmtree(temporary, ignore_errors=True)
                try:
                    shutil.copytree(path.parent, temporary, copy_function=os.link)
                except (FileNotFoundError, shutil.Error):  # it was removed meanwhile
                    continue
                temporary.rename(kept)
        if (self.versions / CHAIN_FILE).exists() and not (self.archive / CHAIN_FILE).exists():
            shutil.copy(self.versions / CHAIN_FILE, self.archive / CHAIN_FILE)

    def check(self) -> list[str]:
        """Compare all answers with the versions that they name; what differs."""
        problems = []
        chain = Chain(LocalStore(self.archive))
        known = {stored.id: stored for stored in map(chain.read, chain.numbers())}
        for version, found in sorted(self.answers.items()):
            stored = known.get(version)
            if stored is None:
                problems.append(f"version {version} was served and not published")
            elif found != {self._wanted(chain, stored)}:
                problems.append(f"version {version}: {len(found)} different answers, not only those of this version")
        self.answers, self.count = {}, 0
        return problems

    def _wanted(self, chain: Chain, stored: StoredVersion) -> bytes:
        versions = chain.newest(until=stored.version.number).versions
        bundle = self.folder / "checked"
        shutil.rmtree(bundle, ignore_errors=True)
        write_version(chain.store, versions, bundle, [PLUGIN])
        scores = dlrm_mtl.Scorer(bundle, plugins=[PLUGIN]).score(self.rows)
        return b"".join(values.tobytes() for _, values in sorted(scores.items()))

    def end(self) -> None:
        """Kill what is left."""
        self._ended.set()
        self._keeping.join()
        self.client.close()
        for process in (self.publisher, self.server):
            if process is not None:
                commands.kill_tree(process)


def children(pid: int) -> list[int]:
    """Process numbers of the children of a process."""
    try:
        return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def one_kill(scene: Scene, number: int, seed: int, targets: Sequence[str] = TARGETS) -> KillOutcome:
    """Wait for a new version, kill at a random moment after it, and check all answers so far."""
    draw = random.Random(f"{seed}/{number}")
    outcome = KillOutcome(targets[number] if len(targets) > len(TARGETS) else draw.choice(targets))
    before = scene.newest
    if not scene.watch(lambda: scene.newest > before, SECONDS):
        outcome.problems.append(f"no version after {before} was served in {SECONDS:.0f} s")
    moment = time.monotonic() + draw.uniform(0, LATEST)
    scene.watch(lambda: time.monotonic() > moment, LATEST + 1)
    outcome.while_writing = scene.strike(outcome.target, draw)
    time.sleep(0.1)  # the archive gets the last versions
    outcome.answers, outcome.versions = scene.count, len(scene.answers)
    outcome.problems += scene.check()
    return outcome


def main() -> int:
    """Kill; 1 if an answer was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.versions", description=str(__doc__).splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="number of kills")
    parser.add_argument("--seed", type=int, default=0, help="what the kills are drawn with")
    parser.add_argument("--folder", type=Path, default=Path("runs/chaos_versions"), help="where all files lie")
    given = parser.parse_args()
    folder = given.folder.resolve() / f"seed_{given.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "kills.jsonl"
    lines = record.read_text().splitlines() if record.exists() else []
    done = [json.loads(line) for line in lines]
    scene = Scene(folder)
    scene.start_publisher(random.Random(given.seed))
    scene.start_server()
    try:
        for number in range(len(done), given.kills):
            done.append(asdict(one_kill(scene, number, given.seed)))
            with open(record, "a", encoding="utf-8") as file:
                file.write(json.dumps(done[-1]) + "\n")
            for problem in done[-1]["problems"]:
                print(f"kill {number} ({done[-1]['target']}): {problem}", flush=True)
    finally:
        scene.end()
    targets = Counter(entry["target"] for entry in done)
    print(
        f"{len(done)} kills ({', '.join(f'{name} {count}' for name, count in sorted(targets.items()))}), "
        f"{sum(entry['while_writing'] for entry in done)} while a version was written; "
        f"{sum(entry['answers'] for entry in done):,} answers, {sum(entry['versions'] for entry in done):,} versions checked; "
        f"{sum(bool(entry['problems']) for entry in done)} kills with problems"
    )
    return 1 if any(entry["problems"] for entry in done) else 0


if __name__ == "__main__":
    sys.exit(main())
