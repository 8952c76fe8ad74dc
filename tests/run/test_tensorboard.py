"""A run in TensorBoard, read by TensorBoard's own code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups
from tensorboard.util.tensor_util import make_ndarray

import dlrm_mtl
from tests import commands, synthetic


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = synthetic.write_dataset(tmp_path_factory.mktemp("data"), rows=800)
    content = synthetic.config(folder, training={"epochs": 1, "log_every": 2, "evaluate_every": 4})
    return commands.write_config(folder / "run.yaml", content)


@pytest.fixture(scope="module")
def runs(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that differ in a learning rate."""
    folder = tmp_path_factory.mktemp("runs")
    for name, rate in (("slow", 0.01), ("fast", 0.1)):
        loaded = dlrm_mtl.load_config(config, overrides=[f"optimizer.sparse.learning_rate={rate}"])
        dlrm_mtl.train(loaded, folder / name, progress=False)
    return folder


def accumulated(run: Path) -> EventAccumulator:
    found = EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    return found


def test_test_metrics_are_scalars_at_the_last_step(runs: Path) -> None:
    results = json.loads((runs / "slow" / "results.json").read_text())
    shown = accumulated(runs / "slow")
    tags = [tag for tag in shown.Tags()["scalars"] if tag.startswith("test/")]
    assert {tag.removeprefix("test/") for tag in tags} == set(results["test"])
    for tag in tags:
        (point,) = shown.Scalars(tag)
        assert point.step == results["last_step"]
        assert point.value == pytest.approx(results["test"][tag.removeprefix("test/")], rel=1e-6, nan_ok=True)


def test_the_configuration_is_a_text(runs: Path) -> None:
    (entry,) = accumulated(runs / "fast").Tensors("configuration/text_summary")
    text = make_ndarray(entry.tensor_proto).item().decode()
    yaml = "".join(line.removeprefix("    ") + "\n" for line in text.splitlines())
    assert yaml == (runs / "fast" / "config.yaml").read_text()


def test_hyperparameters_stand_beside_the_metrics_of_their_run(runs: Path) -> None:
    """As the tab HPARAMS asks for them: one session for each run, and no run beside."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(runs))
    multiplexer.Reload()
    assert set(multiplexer.Runs()) == {"slow/tensorboard", "fast/tensorboard"}
    provider = MultiplexerDataProvider(multiplexer, str(runs))
    context = backend_context.Context(Backend(provider))
    request_context = RequestContext()
    experiment = context.experiment_from_metadata(
        request_context, "", True, context.hparams_metadata(request_context, ""),
        provider.list_hyperparameters(request_context, experiment_ids=[""], limit=1000),
    )  # fmt: skip
    statuses = [api_pb2.STATUS_SUCCESS, api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_RUNNING, api_pb2.STATUS_FAILURE]
    request = api_pb2.ListSessionGroupsRequest(
        allowed_statuses=statuses,
        slice_size=10,
        col_params=[api_pb2.ColParams(metric=metric.name) for metric in experiment.metric_infos],
        include_metrics=True,
    )
    groups = list_session_groups.Handler(request_context, context, "", request).run().session_groups
    by_rate = {group.hparams["optimizer.sparse.learning_rate"].number_value: group for group in groups}
    assert sorted(by_rate) == [0.01, 0.1]
    for rate, name in ((0.01, "slow"), (0.1, "fast")):
        group = by_rate[rate]
        assert [session.status for session in group.sessions] == [api_pb2.STATUS_SUCCESS]
        assert group.hparams["seed"].number_value == 3
        assert group.hparams["model.tower.layers"].string_value.startswith("[")
        assert group.hparams["training.epochs"].number_value == 1
        # Of the plan, only the rounding of what processes exchange decides on the result.
        of_plan = sorted(key for key in group.hparams if key.startswith("sharding"))
        assert of_plan == ["sharding.communication.backward", "sharding.communication.forward"]
        assert not [key for key in group.hparams if key.startswith(("data.path", "training.log_every"))]
        values = {metric.name.tag: metric.value for metric in group.metric_values}
        assert values["test/click/auc"] == pytest.approx(
            json.loads((runs / name / "results.json").read_text())["test"]["click/auc"], rel=1e-6
        )
        assert {"test/mean/auc", "test/buy/auc", "validation/mean/auc"} <= set(values)


class Backend:
    """The interface of TensorBoard that the plugin's code needs."""

    def __init__(self, data_provider: MultiplexerDataProvider) -> None:
        self.data_provider = data_provider
        self.flags: Any = None
        self.window_title = self.logdir = ""


def test_a_finished_run_says_so_and_gets_no_further_file(
    runs: Path, config: Path, call: Callable[..., tuple[int, str]]
) -> None:
    run = runs / "slow"
    before = sorted((run / "tensorboard").iterdir())
    assert len(before) == 1
    rate = "optimizer.sparse.learning_rate=0.01"
    code, said = call("train", config, "--set", rate, "--output", run, "--resume")
    assert code == 0
    last = json.loads((run / "results.json").read_text())["last_step"]
    assert f"{run}: this run was finished after step {last}; nothing is left to do" in said
    assert sorted((run / "tensorboard").iterdir()) == before
    code, said = call("evaluate", run)
    assert code == 0
    assert sorted((run / "tensorboard").iterdir()) == before


def test_growing_data_without_a_new_file_leave_none(config: Path, tmp_path: Path) -> None:
    loaded = dlrm_mtl.load_config(config, overrides=["data.growing=true"])
    for _ in range(2):
        dlrm_mtl.train(loaded, tmp_path / "run", resume=True, progress=False)
        assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1


def test_a_resumed_run_shows_each_step_once(config: Path, tmp_path: Path) -> None:
    for steps in (4, 8):
        loaded = dlrm_mtl.load_config(config, overrides=[f"training.max_steps={steps}"])
        dlrm_mtl.train(loaded, tmp_path / "run", resume=True, progress=False)
    shown = accumulated(tmp_path / "run")
    assert [point.step for point in shown.Scalars("train/loss/click")] == [2, 4, 6, 8]
    assert [point.step for point in shown.Scalars("test/click/auc")] == [4, 8]
    assert [entry.step for entry in shown.Tensors("configuration/text_summary")] == [0, 4]
