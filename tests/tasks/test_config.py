"""The ``tasks`` part of a configuration: what it accepts, and what a mistake looks like."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml

from dlrm_mtl.config.load import dump_config, json_schema, load_config
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.registry import registry
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.tasks.check import check_labels, remarks, starting_logits
from dlrm_mtl.tasks.config import TaskConfig
from tests import synthetic

SPEC = DatasetSpec.model_validate(
    {
        "name": "shop",
        "splits": {},
        "features": [],
        "labels": [{"name": "click"}, {"name": "buy"}, {"name": "seconds", "kind": "real"}],
    }
)


def load(tmp_path: Path, tasks: list[dict[str, object]]) -> list[TaskConfig]:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(synthetic.config(Path("data"), tasks=tasks)))
    return load_config(path).tasks


def test_a_loss_by_name_and_with_options(tmp_path: Path) -> None:
    short, long, default = load(
        tmp_path,
        [
            {"name": "a", "loss": "focal"},
            {"name": "b", "loss": {"name": "focal", "gamma": 1, "detach_factor": True}},
            {"name": "c"},
        ],
    )
    assert (short.loss.gamma, short.loss.detach_factor) == (2.0, False)
    assert (long.loss.gamma, long.loss.detach_factor) == (1.0, True)
    assert default.loss.name == "binary_cross_entropy"
    assert [short.kind, TaskConfig(name="d", loss="huber").kind] == ["binary", "real"]


def test_a_dumped_configuration_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    tasks = [{"name": "a", "loss": "huber"}, {"name": "b", "only_where": "click", "negative_sampling": 0.1}]
    path.write_text(yaml.safe_dump(synthetic.config(Path("data"), tasks=tasks)))
    config = load_config(path)
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(again) == config


def test_editors_accept_both_forms_of_a_loss() -> None:
    schema = json.loads(json_schema())
    loss = json.dumps(schema["$defs"]["TaskConfig"]["properties"]["loss"])
    names = set(registry("loss").names())
    assert all(f'"{name}"' in loss for name in names)
    assert "FocalConfig" in loss


@pytest.mark.parametrize(
    ("task", "parts"),
    [
        ({"loss": "foca"}, ["tasks.0.loss", "'foca' is not a choice", "did you mean 'focal'?", "huber"]),
        ({"loss": {"name": "focal", "gama": 1}}, ["tasks.0.loss.gama", "did you mean 'gamma'?"]),
        ({"loss": {"name": "huber", "delta": 0}}, ["tasks.0.loss.delta", "0", "greater than 0"]),
        ({"loss": 3}, ["tasks.0.loss", "3"]),
        ({"loss": "huber", "positive_weight": 2}, ["tasks.0", "positive_weight 2", "huber", "remove it"]),
        ({"loss": "mean_squared_error", "negative_sampling": 0.5}, ["tasks.0", "negative_sampling 0.5", "remove it"]),
        ({"negative_sampling": 0}, ["tasks.0.negative_sampling", "0", "greater than 0"]),
        ({"negative_sampling": 1.5}, ["tasks.0.negative_sampling", "1.5", "less than or equal to 1"]),
        ({"positive_weight": -1}, ["tasks.0.positive_weight", "-1"]),
        ({"only_where": "a"}, ["tasks.0", "only_where", "own label 'a'"]),
        ({"onlywhere": "b"}, ["tasks.0.onlywhere", "did you mean 'only_where'?"]),
    ],
)
def test_mistakes_name_place_value_and_remedy(tmp_path: Path, task: dict[str, object], parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, [{"name": "a", **task}])
    message = str(error.value)
    assert len(message.splitlines()) == 1, message
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(
    ("task", "parts"),
    [
        ({"name": "clik"}, ["tasks.0.label", "'clik'", "did you mean 'click'?"]),
        ({"name": "a", "label": "seconds"}, ["tasks.0.label", "'seconds' is a real number", "mean_squared_error"]),
        ({"name": "a", "label": "seconds", "loss": "focal"}, ["tasks.0.label", "focal needs a binary label"]),
        ({"name": "buy", "only_where": "clck"}, ["tasks.0.only_where", "'clck'", "did you mean 'click'?"]),
        ({"name": "buy", "only_where": "seconds"}, ["tasks.0.only_where", "'seconds' is a real number"]),
    ],
)
def test_tasks_that_do_not_fit_the_data(task: dict[str, object], parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        check_labels([TaskConfig.model_validate(task)], SPEC)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    for part in parts:
        assert part in message, message


def test_tasks_that_fit() -> None:
    tasks = [
        TaskConfig(name="click", loss="focal"),
        TaskConfig(name="buy", only_where="click", positive_weight=3),
        TaskConfig(name="watch", label="seconds", loss="huber", only_where="click"),
        TaskConfig(name="score", label="click", loss="mean_squared_error"),  # a rating of 0 or 1 is a number, too
    ]
    check_labels(tasks, SPEC)
    assert remarks(tasks) == []


def test_a_positive_weight_that_is_ignored_gets_a_remark() -> None:
    (remark,) = remarks([TaskConfig(name="a"), TaskConfig(name="b", loss="focal", positive_weight=3)])
    for part in ("tasks.1.positive_weight", "3", "ignored", "focal"):
        assert part in remark


def test_logits_start_from_what_the_data_set_says() -> None:
    labels = [
        {"name": "click", "mean": 0.2},
        {"name": "never", "mean": 0.0},
        {"name": "buy"},
        {"name": "seconds", "kind": "real", "mean": 0.2},
    ]
    spec = DatasetSpec.model_validate({"name": "shop", "splits": {}, "features": [], "labels": labels})
    tasks = [TaskConfig(name="click"), TaskConfig(name="never"), TaskConfig(name="buy")]
    tasks += [TaskConfig(name="seconds", loss="huber"), TaskConfig(name="a", label="click", loss="huber")]
    assert starting_logits(tasks, spec) == [pytest.approx(math.log(0.25)), None, None, 0.2, 0.2]
