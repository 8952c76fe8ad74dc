"""Events that listeners of a run receive, on one process and on several; the trace of a few steps."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dlrm_mtl.run.saved_scores import read_scores, score_file
from tests import synthetic
from tests.commands import read_metrics
from tests.processes import run_processes

STEPS = 12


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_dataset(tmp_path_factory.mktemp("data"), rows=512)


def trained(rank: int, data: Path, output: Path, **training: Any) -> dict[str, list[Any]]:
    """Train with a listener of the first process and one of every process; what each has heard, and what was raised."""
    from dlrm_mtl.config.run import RunConfig
    from dlrm_mtl.run.train import run_training
    from dlrm_mtl.training.events import Listener

    def recorder(heard: list[Any], fails_at: int | None = None) -> Listener:
        def note(event: Any) -> None:
            plain = (int, float, str, dict, type(None))
            fields = {key: value for key, value in vars(event).items() if isinstance(value, plain)}
            heard.append((type(event).__name__, fields, type(getattr(event, "error", None)).__name__))
            if fails_at is not None and fields.get("step") == fails_at and type(event).__name__ == "Log":
                raise RuntimeError("the tracker is down")

        methods = {name: lambda self, event: note(event) for name in dir(Listener) if name.startswith("on_")}
        listener: Listener = type("Recorder", (Listener,), methods)()
        return listener

    fails_at = training.pop("fails_at", None)
    options = {"epochs": 2, "log_every": 2, "evaluate_every": 6, "checkpoint_every": 3, "max_steps": STEPS, **training}
    config = RunConfig.model_validate(synthetic.config(data, training=options))
    first: list[Any] = []
    every: list[Any] = []
    on_every = recorder(every)
    on_every.every_process = True
    raised: list[Any] = []
    try:
        run_training(config, output, resume=False, listeners=[recorder(first, fails_at), on_every])
    except RuntimeError as error:
        raised.append(str(error))
    return {"first": first, "every": every, "raised": raised}


def of(heard: list[Any], kind: str) -> list[dict[str, Any]]:
    return [fields for name, fields, _ in heard if name == kind]


def test_a_run_tells_what_happens(dataset: Path, tmp_path: Path) -> None:
    profile = {"start": 3, "steps": 2}
    told = run_processes(2, trained_with, dataset, tmp_path / "run", {"profile": profile})
    first = told[0]["first"]
    assert told[1]["first"] == []
    names = [name for name, _, _ in first]
    assert names[:2] == ["Start", "RoundStart"]
    assert names[-1] == "End"
    assert names.count("RoundEnd") == 1
    counts = Counter(names)
    assert counts["Step"] == STEPS
    assert counts["Log"] == STEPS // 2
    assert counts["CheckpointStart"] == counts["CheckpointSaved"] == STEPS // 3
    assert [fields["step"] for fields in of(first, "Step")] == list(range(1, STEPS + 1))
    evaluations = of(first, "Evaluation")
    assert [(fields["step"], fields["split"]) for fields in evaluations[:2]] == [(6, "validation"), (12, "validation")]
    assert evaluations[-1]["split"] == "test"
    assert evaluations[-1]["rows"] == 128
    assert any(fields["is_best"] for fields in evaluations)
    assert names.index("RoundEnd") < len(names) - 1 - names[::-1].index("Evaluation")
    progress = of(first, "Progress")
    assert progress[0] == {"work": "validate", "done": 0, "total": 2, "brief": True}
    assert {fields["work"] for fields in progress} == {"validate", "evaluate test"}
    assert of(first, "End")[0]["metrics"] == evaluations[-1]["metrics"]
    assert json.loads((tmp_path / "run" / "results.json").read_text())["test"] == evaluations[-1]["metrics"]
    for heard in (told[0]["every"], told[1]["every"]):
        assert [name for name, _, _ in heard] == names
    for evaluation in (evaluations[-1], next(fields for fields in evaluations if fields["is_best"])):
        check_scores(tmp_path / "run" / "scores", evaluation)

    entries = read_metrics(tmp_path / "run" / "metrics.jsonl")
    logged = [{"kind": "train", "step": fields["step"], **fields["values"]} for fields in of(first, "Log")]
    found = [entry for entry in entries if entry["kind"] == "train"]
    for entry, values in zip(found, logged, strict=True):
        assert entry == {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in values.items()}

    for rank in range(2):
        with gzip.open(tmp_path / "run" / "profile" / f"rank_{rank}.json.gz", "rt") as file:
            trace = json.load(file)
        spans = Counter(event.get("name") for event in trace["traceEvents"] if event.get("cat") == "user_annotation")
        assert spans["## forward ##"] == spans["## optimizer step ##"] == 2


def check_scores(folder: Path, evaluation: dict[str, Any]) -> None:
    """The file of the split has the evaluated rows, from all processes."""
    scores = read_scores(score_file(folder, evaluation["split"]))
    assert scores.step in (STEPS // 2, STEPS)
    for task in ("click", "buy"):
        bins = scores.tasks[task]
        assert bins.rows.sum() == bins.weight.sum() <= evaluation["rows"]
        if scores.step == evaluation["step"]:
            assert bins.positives.sum() == bins.observed.sum() == evaluation["metrics"][f"{task}/positives"]
            calibration = bins.predicted.sum() / bins.observed.sum()
            assert calibration == pytest.approx(evaluation["metrics"][f"{task}/calibration"], rel=1e-6)


def trained_with(rank: int, data: Path, output: Path, options: dict[str, Any]) -> dict[str, list[Any]]:
    return trained(rank, data, output, **options)


def test_what_a_listener_raises_ends_the_run_and_every_listener_hears_of_the_end(dataset: Path, tmp_path: Path) -> None:
    told = run_processes(1, trained_with, dataset, tmp_path / "run", {"fails_at": 4})[0]
    assert told["raised"] == ["the tracker is down"]
    for heard in (told["first"], told["every"]):
        assert [name for name, _, _ in heard][-2:] == ["RoundEnd", "End"]
        assert heard[-1][2] == "RuntimeError"
        assert of(heard, "End") == [{"step": 4, "metrics": None}]


def skipped(rank: int, data: Path) -> list[Any]:
    """Train with learning rates that spoil the model; return the events of the skipped steps."""
    from dlrm_mtl.config.run import RunConfig
    from dlrm_mtl.core.errors import UserError
    from dlrm_mtl.run.train import run_training
    from dlrm_mtl.training.events import Listener, Skip

    heard: list[Any] = []

    class Skips(Listener):
        def on_skip(self, event: Skip) -> None:
            heard.append((event.in_a_row, event.reason))

    optimizer = {"sparse": {"name": "sgd", "learning_rate": 1e30}, "dense": {"name": "sgd", "learning_rate": 1e30}}
    content = synthetic.config(data, optimizer=optimizer, training={"max_skipped_steps": 3})
    with pytest.raises(UserError, match="3 steps in a row"):
        run_training(RunConfig.model_validate(content), data / "spoiled", resume=False, listeners=[Skips()])
    return heard


def test_skipped_steps_are_told(dataset: Path) -> None:
    heard = run_processes(1, skipped, dataset)[0]
    assert [number for number, _ in heard] == [1, 2, 3]
    assert "tasks with such a loss" in heard[0][1]


def with_registered(rank: int, data: Path) -> list[Any]:
    """Train with listeners that a plugin has registered; what they heard."""
    from typing import Literal

    from dlrm_mtl import Listener, RunConfig, UserError, register
    from dlrm_mtl.core.schema import Strict, validate
    from dlrm_mtl.run.train import run_training

    heard: list[Any] = []

    @register("listener", "plain")
    class Plain(Listener):
        def on_end(self, event: Any) -> None:
            heard.append(("plain", event.step))

    class PagerConfig(Strict):
        name: Literal["pager"] = "pager"
        threshold: float = 0.5

    @register("listener", "pager", config=PagerConfig)
    class Pager(Listener):
        def __init__(self, config: PagerConfig) -> None:
            self.config = config

        def on_end(self, event: Any) -> None:
            heard.append(("pager", self.config.threshold))

    def config(*listeners: Any) -> RunConfig:
        training = {"max_steps": 2, "listeners": list(listeners)}
        return validate(RunConfig, synthetic.config(data, training=training), "run.yaml")

    run_training(config("plain", "pager", {"name": "pager", "threshold": 2}), data / "registered", resume=False)
    for wrong in ("plane", {"name": "pager", "treshold": 2}, {"name": "plain", "x": 1}):
        with pytest.raises(UserError) as error:
            config(wrong)
        heard.append(str(error.value))
    return heard


def test_a_configuration_names_registered_listeners(dataset: Path) -> None:
    *ends, unknown, misspelt, without = run_processes(1, with_registered, dataset)[0]
    assert ends == [("pager", 2.0), ("pager", 0.5), ("plain", 2)]
    assert "training.listeners: there is no listener 'plane'; did you mean 'plain'" in unknown
    assert "there is no key 'treshold' here; did you mean 'threshold'" in misspelt
    assert "the listener 'plain' has no options; name it alone." in without
