"""What eight configurations reach, beside what they reached: ``python -m tests.quality`` (``make quality``).

Three seeds of each are trained for an epoch, by the sweep of the package; started again, it goes on. A mean that lies
further from the recorded one than its tolerance is shown, with exit code 1. ``--record`` writes the file anew, only for a
change that is meant to change results.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

from dlrm_mtl.experiments.config import SweepConfig
from dlrm_mtl.experiments.summary import source_line
from dlrm_mtl.experiments.sweep import Sweep

RECORD = Path(__file__).with_name("record.json")
CONFIGS = ("logistic_regression", "neumf", "shared_bottom", "mmoe", "ple", "adatt", "cross_stitch", "esmm")
SEEDS = 3
TOLERANCE = {"mean/auc": 0.002, "auc": 0.006, "normalized_entropy": 0.006}
"""Largest difference of the mean over seeds by metric. Rare tasks vary by this much from one processor to the next."""
METRICS = ("auc", "normalized_entropy")


def reached(name: str, folder: Path, parallel: int | None) -> dict[str, float]:
    """Mean over seeds of the test metrics of a configuration."""
    sweep = SweepConfig(config=f"configs/kuairand_{name}.yaml", set={"training.epochs": 1}, seeds=SEEDS)
    result = Sweep(sweep, folder / name, parallel).run()
    if result.failed:
        sys.exit(f"{name}: {result.failed[0].reason}")
    outcomes = result.tried[0].outcomes
    keys = [key for key in outcomes[0].test if key.rpartition("/")[2] in METRICS]
    return {key: statistics.fmean(outcome.test[key] for outcome in outcomes) for key in keys}


def tolerance(key: str) -> float:
    """Largest difference of a metric."""
    return TOLERANCE.get(key, TOLERANCE[key.rpartition("/")[2]])


def differences(found: dict[str, float], recorded: dict[str, float]) -> list[str]:
    """A sentence for each metric that is missing, not a number, or too far from the record."""
    sentences = []
    for key, before in recorded.items():
        now = found.get(key, math.nan)
        if not abs(now - before) <= tolerance(key):
            sentences.append(f"{key} is {now:.4f}, recorded {before:.4f} (tolerance {tolerance(key):g})")
    return sentences


def main() -> None:
    """Train, compare, and say what differs."""
    parser = argparse.ArgumentParser("python -m tests.quality", description=__doc__)
    parser.add_argument("--record", action="store_true", help="write the record anew")
    parser.add_argument("--only", choices=CONFIGS, action="append", help="only this configuration; may be repeated")
    parser.add_argument("--parallel", type=int, help="trainings at a time; default: the number of cores")
    parser.add_argument("--folder", type=Path, default=Path("runs/quality"), help="where the trainings go")
    arguments = parser.parse_args()
    record: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.is_file() else {"metrics": {}}
    wrong = 0
    for name in arguments.only or CONFIGS:
        found = reached(name, arguments.folder, arguments.parallel)
        if arguments.record:
            record["metrics"][name] = found
            record["source"] = source_line()
            RECORD.write_text(json.dumps(record, indent=1) + "\n")
            continue
        sentences = differences(found, record["metrics"][name])
        for sentence in sentences:
            print(f"{name}: {sentence}", flush=True)
        wrong += len(sentences)
        if not sentences:
            print(f"{name}: as recorded; mean AUC {found['mean/auc']:.4f}", flush=True)
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
