"""The command ``python -m tests.chaos``: kill trainings at random moments, and compare what they end with.

A round trains one of five small configurations with 2 agents x 2 processes. ``kill -9`` hits ranks, agents or the whole job,
a third of the time while a checkpoint is written, until the training is finished. Then every checkpoint, metric and result
must be that of a run that was not killed, byte by byte, and with growing data each row must have been used once.

Rounds that are done are kept in ``rounds.jsonl``; the same command goes on after them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tests.chaos.rounds import Reference, chaos, planned

COLD_EVERY = 10
"""Every tenth round starts all processes as users do, by a Python of their own."""


def main() -> int:
    """Run rounds; 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300, help="number of rounds")
    parser.add_argument("--seed", type=int, default=0, help="what the kills are drawn with")
    parser.add_argument("--round", type=int, help="only this round, again")
    parser.add_argument("--folder", type=Path, default=Path("runs/chaos"), help="where runs and rounds.jsonl lie")
    given = parser.parse_args()
    folder = given.folder.resolve() / f"seed_{given.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    done = read_rounds(folder / "rounds.jsonl")
    wanted = range(given.rounds) if given.round is None else [given.round]
    reference = Reference(folder / "whole")
    for number in wanted:
        if number in done and given.round is None:
            continue
        training, kills = planned(given.seed, number)
        cold = number % COLD_EVERY == COLD_EVERY - 1
        outcome = chaos(folder / f"round_{number}", reference, training, kills, cold)
        done[number] = outcome.as_dict()
        with open(folder / "rounds.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"round": number, **done[number]}) + "\n")
        if outcome.problems:
            how = f"{training}{', cold' if cold else ''}; {'; '.join(map(str, kills))}"
            again = f"python -m tests.chaos --seed {given.seed} --round {number}"
            lines = [*outcome.problems[:8], f"kept in {folder / f'round_{number}'}; again: {again}"]
            print(f"round {number} ({how}):", *lines, sep="\n  ", flush=True)
        elif sys.stdout.isatty():
            print(f"\r{number + 1}/{given.rounds}", end="", flush=True)
    return summarise({number: done[number] for number in wanted})


def read_rounds(path: Path) -> dict[int, dict[str, Any]]:
    """Rounds that are done, by number; the last one counts."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {entry.pop("round"): entry for entry in map(json.loads, lines)}


def summarise(rounds: dict[int, dict[str, Any]]) -> int:
    """Print what the rounds came to."""
    failed = [number for number, entry in rounds.items() if entry["problems"]]
    targets = Counter(target for entry in rounds.values() for target in entry["targets"])
    saves = sum(entry["in_saves"] for entry in rounds.values())
    print(
        f"chaos: {len(rounds) - len(failed)} of {len(rounds)} rounds as if nothing had happened; {targets.total()} kills "
        f"({', '.join(f'{name} {count}' for name, count in sorted(targets.items()))}), {saves} while a checkpoint was written"
    )
    if again := sum(entry["gave_up"] for entry in rounds.values()):
        print(
            f"{again} times the launcher gave up after the loss of an agent, or after the end, and the command was run again"
        )
    if failed:
        print(f"failed: {', '.join(map(str, failed))}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
