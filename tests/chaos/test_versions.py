"""Ten kills of a training that publishes and of the server that follows it; `python -m tests.chaos.versions` makes hundreds."""

from __future__ import annotations

import random
from pathlib import Path

from tests.chaos.versions import Scene, one_kill

TARGETS = (
    "server",
    "worker",
    "publisher",
    "worker",
    "server",
    "publisher",
    "worker",
    "publisher",
    "server",
    "publisher",
)


def test_ten_kills_and_no_answer_of_a_wrong_version(tmp_path: Path) -> None:
    scene = Scene(tmp_path, processes=[1])
    scene.start_publisher(random.Random(0))
    scene.start_server()
    try:
        outcomes = [one_kill(scene, number, 0, TARGETS) for number in range(len(TARGETS))]
        assert [outcome.problems for outcome in outcomes] == [[] for _ in TARGETS]
        assert sum(outcome.versions for outcome in outcomes) >= len(TARGETS)
        last = scene.newest
        assert scene.watch(lambda: scene.newest > last, 60.0), "the server goes on after the last kill"
        assert scene.check() == []
    finally:
        scene.end()
