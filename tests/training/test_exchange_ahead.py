"""`training.exchange_ahead`: ids of the next batch exchanged during the present one, and results equal to the last bit."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.errors import UserError
from tests import synthetic
from tests.commands import read_metrics
from tests.processes import run_processes

STEPS = 12
"""An epoch has 7, the last of them short."""
FLATTENED = {
    "embeddings": {"dim": 8, "features": {"history": {"pooling": "flattened", "length": 3}}},
    "multitask": {"name": "mmoe", "experts": 2, "layers": [8], "dropout": 0.1},
}
DRAWING = {"name": "multitask_net", "user": "user", "item": "item", "regression": {"layers": [8]}}
RUNS: dict[str, dict[str, Any]] = {
    "plain": {"sharding": {"default": "row_wise"}},
    "micro-batches, with and without pooling": {"model": FLATTENED, "micro_batches": 2},
    "balanced, with losses after the update": {"balancing": "famo", "sharding": {"default": "column_wise"}},
    "drawn items": {"model": DRAWING, "tasks": [{"name": "click", "loss": "bpr"}, {"name": "buy"}]},
    "negatives": {"negatives": {"each": 1, "item": "item"}},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_dataset(tmp_path_factory.mktemp("data"), rows=420)


def configured(dataset: Path, ahead: bool, **changes: Any) -> RunConfig:
    """A run that evaluates and saves between its steps."""
    training = {"epochs": 2, "max_steps": STEPS, "log_every": 1, "evaluate_every": 5, "checkpoint_every": 3}
    training |= {"exchange_ahead": ahead, "micro_batches": changes.pop("micro_batches", 1)}
    content = synthetic.config(dataset, training=training)
    negatives = changes.pop("negatives", None)
    if negatives is not None:
        content["data"] = {**content["data"], "negatives": negatives}  # type: ignore[dict-item]
    return RunConfig.model_validate({**content, **changes})


def trained(rank: int, dataset: Path, folder: Path, stop_at: int | None = None) -> dict[str, int]:
    """Train every run without and with the exchange ahead; how many were made with it."""
    from dlrm_mtl.embeddings.torchrec.exchange import ExchangeAhead
    from dlrm_mtl.run.train import run_training
    from dlrm_mtl.training.events import Listener, Step
    from dlrm_mtl.training.interruption import Interrupted

    made: dict[str, int] = {}
    start = ExchangeAhead.start

    class Signal(Listener):
        every_process = True

        def on_step(self, event: Step) -> None:
            if event.step == stop_at and rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    for name, changes in RUNS.items():

        def counted(self: ExchangeAhead, inputs: Any, name: str = name) -> None:
            made[name] = made.get(name, 0) + 1
            start(self, inputs)

        ExchangeAhead.start = counted  # type: ignore[method-assign]
        for ahead in (False, True):
            config, output = configured(dataset, ahead, **dict(changes)), folder / f"{name} {ahead}"
            if ahead and stop_at is not None:
                with pytest.raises(Interrupted):
                    run_training(config, output, resume=False, listeners=[Signal()])
            run_training(config, output, resume=stop_at is not None)
    return made


def results(folder: Path) -> list[dict[str, Any]]:
    """Everything that a run says about losses and metrics."""
    times = ("seconds", "rows_per_second", "data_wait_share")
    entries = [
        {key: value for key, value in entry.items() if key not in times}
        for entry in read_metrics(folder / "metrics.jsonl")
    ]
    return [*entries, json.loads((folder / "results.json").read_text())]


@pytest.mark.parametrize("stop_at", [None, 4], ids=["uninterrupted", "interrupted and resumed"])
def test_losses_are_the_same_to_the_last_bit(dataset: Path, tmp_path: Path, stop_at: int | None) -> None:
    made = run_processes(2, trained, dataset, tmp_path, stop_at)
    assert made[0] == made[1]
    for name in RUNS:
        assert results(tmp_path / f"{name} True") == results(tmp_path / f"{name} False"), name
        assert made[0][name] >= STEPS - 2, f"{name}: all steps but the first of each epoch"


def test_it_does_not_go_with_unbounded_ids(dataset: Path) -> None:
    content = synthetic.config(dataset, training={"exchange_ahead": True})
    content["data"] = {**content["data"], "unbounded": {"item": {"rows": 50}}}  # type: ignore[dict-item]
    with pytest.raises((UserError, ValueError), match="exchange_ahead: true does not go with"):
        RunConfig.model_validate(content)
