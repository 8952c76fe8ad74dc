"""All runs of the study, several at a time; each is stored as soon as it is finished."""

from __future__ import annotations

import json
import os
import signal
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dlrm_mtl.core.errors import UserError
from studies.taobao_balancing.runs import METHODS, WATCHED, Run, Scale, train

TUNING_SEEDS = 1000
"""Seeds from here on are for the choice of the learning rate only."""


@dataclass(frozen=True)
class Plan:
    """The list of runs."""

    scale: Scale
    seeds: int
    tuning_seeds: int = 2
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)

    @property
    def tuning(self) -> list[Run]:
        """The runs that choose the learning rate: vanilla's, with separate seeds."""
        seeds = range(TUNING_SEEDS, TUNING_SEEDS + self.tuning_seeds)
        return [Run("vanilla", rate, seed) for seed in seeds for rate in self.rates]

    def study(self, rate: float) -> list[Run]:
        """The runs that are compared, seed by seed."""
        return [Run(method, rate, seed) for seed in range(1, self.seeds + 1) for method in METHODS]

    def best_rate(self, results: Sequence[dict[str, Any]]) -> float:
        """The rate with the highest mean of the watched metric over the tuning runs in ``results``."""
        return max(self.rates, key=lambda rate: statistics.fmean(self.watched(results)[rate]))

    def watched(self, results: Sequence[dict[str, Any]]) -> dict[float, list[float]]:
        """By rate, the watched metric of the best epochs of the tuning runs."""
        found: dict[float, list[float]] = {rate: [] for rate in self.rates}
        for result in results:
            if result["seed"] >= TUNING_SEEDS:
                found[result["rate"]].append(result["validation"][WATCHED])
        return found


class Ledger:
    """The results of finished runs, in a JSON file if there is one.

    Raises:
        UserError: the file is of another study.
    """

    def __init__(self, path: Path | None, scale: Scale) -> None:
        self.path = path
        self.scale = json.loads(json.dumps(asdict(scale)))
        self.data: dict[str, int] = {}
        self.results: list[dict[str, Any]] = []
        if path is not None and path.is_file():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                scale_then, self.data, self.results = content["scale"], content["data"], content["runs"]
            except (ValueError, KeyError, TypeError):
                raise UserError(f"--json {path}: is not a file of this study; name another one.") from None
            for key, value in self.scale.items():
                if scale_then.get(key) != value:
                    raise UserError(
                        f"--json {path}: its runs have {key} {scale_then.get(key)} and not {value}; set it so, or name "
                        "another file."
                    )

    def missing(self, runs: Sequence[Run]) -> list[Run]:
        """Runs of ``runs`` that are not finished."""
        done = {(result["method"], result["rate"], result["seed"]) for result in self.results}
        return [run for run in runs if (run.method, run.rate, run.seed) not in done]

    def of(self, runs: Sequence[Run]) -> list[dict[str, Any]]:
        """The results of ``runs``, in their order."""
        by_run = {(result["method"], result["rate"], result["seed"]): result for result in self.results}
        return [by_run[run.method, run.rate, run.seed] for run in runs]

    def add(self, result: dict[str, Any]) -> None:
        """Store a finished run, on disk as well."""
        self.results.append(result)
        if self.path is not None:
            content = {"scale": self.scale, "data": self.data, "runs": self.results}
            beside = self.path.with_name(self.path.name + ".part")
            beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            os.replace(beside, self.path)


def make(
    runs: Sequence[Run],
    ledger: Ledger,
    folder_of: Callable[[int], Path],
    jobs: int,
    processes: int,
    tell: Callable[[str], None],
) -> None:
    """Make the ``runs`` that the ledger lacks, ``jobs`` at a time, each with its tables over ``processes`` processes."""
    missing = ledger.missing(runs)
    if len(missing) < len(runs):
        tell(f"{len(runs) - len(missing)} of {len(runs)} runs are finished already")
    with _results(missing, ledger.scale, folder_of, jobs, processes) as results:
        for number, result in enumerate(results):
            ledger.add(result)
            figures, curve = result["validation"], result["curve"]
            tell(
                f"[{number + 1}/{len(missing)}] {result['method']}, rate {result['rate']:g}, seed {result['seed']}: validation "
                f"{WATCHED} {figures[WATCHED]:.2%} after epoch {result['best_epoch']} of {len(curve)}, "
                f"{result['seconds']:.0f} s"
            )


@contextmanager
def _results(
    runs: Sequence[Run], scale: dict[str, Any], folder_of: Callable[[int], Path], jobs: int, processes: int
) -> Iterator[Iterator[dict[str, Any]]]:
    tasks = [(run, Scale(**scale), folder_of(run.seed)) for run in runs]
    if jobs == 1 or len(tasks) < 2:
        yield (_one(*task, processes) for task in tasks)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_quiet_start) as pool:
        try:
            yield (future.result() for future in as_completed([pool.submit(_one, *task, processes) for task in tasks]))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _quiet_start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends with the study, without a traceback


def _one(run: Run, scale: Scale, folder: Path, processes: int) -> dict[str, Any]:
    if processes == 1:
        torch.set_num_threads(1)
        return train(run, scale, folder)
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"{run.method}_{run.seed}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="spawn",
    )
    results: dict[int, dict[str, Any]] = elastic_launch(launch, train)(run, scale, folder)
    return results[0]
