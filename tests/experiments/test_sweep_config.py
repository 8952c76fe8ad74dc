"""What a sweep may be, and the sentences about what it may not be."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.schema import validate
from dlrm_mtl.experiments.config import SweepConfig, grid, parse_grid, parse_interval, read_sweep
from dlrm_mtl.experiments.sweep import Sweep, SweepResult, corners

CONFIG = "configs/kuairand_mmoe_debug.yaml"
RATE = "optimizer.dense.learning_rate"


def sweep(**values):
    return validate(SweepConfig, {"config": CONFIG, **values}, "sweep.yaml")


def test_a_grid_has_every_combination():
    points = list(grid({"a": [1, 2], "b": ["x", "y", "z"]}))
    assert len(points) == 6
    assert points[0] == {"a": 1, "b": "x"}
    assert points[-1] == {"a": 2, "b": "z"}


def test_options_become_lists_and_intervals():
    assert parse_grid("model.tower.layers=[32],[64, 32]") == ("model.tower.layers", [[32], [64, 32]])
    assert parse_grid("optimizer.dense={name: adam},adagrad")[1] == [{"name": "adam"}, "adagrad"]
    key, interval = parse_interval(f"{RATE}=0.001..1:log")
    assert (key, interval.low, interval.high, interval.log) == (RATE, 0.001, 1.0, True)
    assert parse_interval("model.embeddings.dim=4..32:log:int")[1].integer


def test_methods_add_their_own_settings_and_parameters():
    config = sweep(
        set={"training.epochs": 2},
        parameters={"model.embeddings.dim": [4, 8]},
        methods={
            "adam": {"set": {"optimizer.dense": "adam"}, "parameters": {RATE: [0.1]}},
            "sgd": {"set": {"optimizer.dense": "sgd"}},
        },
        metric="mean/auc",
    )
    settings = config.settings("adam", {RATE: 0.1, "model.embeddings.dim": 4})
    assert settings["training.epochs"] == 2
    assert settings["optimizer.dense"] == "adam"
    assert settings[RATE] == 0.1
    assert settings["training.early_stopping.metric"] == "mean/auc"
    assert set(config.parameters_of("sgd")) == {"model.embeddings.dim"}


def test_final_seeds_are_none_of_the_tuning_seeds():
    assert sweep(seeds=[3, 7], final_seeds=2).fresh_seeds == [8, 9]


def test_every_value_is_among_the_corners():
    config = sweep(parameters={"a": [1, 2, 3], "b": {"low": 1, "high": 9, "integer": True}}, search="random", trials=1)
    seen = list(corners(config, "all"))
    assert {point["a"] for point in seen} == {1, 2, 3}
    assert {point["b"] for point in seen} == {1, 9}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"parameters": {RATE: []}}, "the list of values is empty"),
        ({"parameters": {RATE: {"low": 1, "high": 2}}}, "a grid needs a list of values"),
        ({"parameters": {RATE: [1]}, "search": "tpe"}, "needs trials"),
        ({"search": "tpe", "trials": 2}, "has no parameters to draw"),
        ({"parameters": {RATE: [1]}, "trials": 3}, "a grid has all its points"),
        ({"parameters": {RATE: {"low": 2, "high": 1}}, "search": "tpe", "trials": 1}, "is not below high"),
        ({"parameters": {RATE: {"low": 0, "high": 1, "log": True}}, "search": "tpe", "trials": 1}, "has no logarithm"),
        ({"seeds": [1, 1]}, "names one twice"),
        ({"seeds": []}, "names none"),
        ({"seed": 3}, "seed"),
        ({"baseline": "x", "methods": {"a": {}}}, "is none of the methods"),
        (
            {"equal_effort": True, "methods": {"a": {"parameters": {"x": [1]}}, "b": {"parameters": {"x": [1, 2]}}}},
            "a 1, b 2",
        ),
        ({"prune": True}, "prune goes with"),
    ],
)
def test_what_cannot_be_swept_is_one_sentence(values, words):
    with pytest.raises(UserError, match=words) as error:
        sweep(**values)
    assert "sweep.yaml" in str(error.value)


@pytest.mark.parametrize("option", ["a", "=1", f"{RATE}="])
def test_a_grid_option_of_another_form_is_one_sentence(option):
    with pytest.raises(UserError, match="--grid"):
        parse_grid(option)


@pytest.mark.parametrize("option", ["a", "a=1", "a=1..x", "a=1..2:lin", "a=2..1"])
def test_a_range_option_of_another_form_is_one_sentence(option):
    with pytest.raises(UserError, match="--range"):
        parse_interval(option)


def test_keys_and_values_are_checked_before_anything_is_trained(tmp_path):
    for values, words in (
        ({"parameters": {"optimizer.dense.learning_rat": [0.1]}}, "learning_rat"),
        ({"parameters": {RATE: [0.1, -1]}}, RATE),
        ({"metric": "mean/acu"}, "mean/acu"),
        ({"metric": "is_click/rmse"}, "is_click/rmse"),
    ):
        with pytest.raises(UserError, match=words):
            Sweep(sweep(**values), tmp_path / "sweep")
        assert not (tmp_path / "sweep").exists()


def test_a_folder_of_another_sweep_is_refused(tmp_path):
    Sweep(sweep(parameters={RATE: [0.1]}), tmp_path)
    Sweep(sweep(parameters={RATE: [0.1]}, final_seeds=3), tmp_path)  # more of the same
    with pytest.raises(UserError, match=r"holds another sweep \(other parameters\)"):
        Sweep(sweep(parameters={RATE: [0.2]}), tmp_path)


def test_a_sweep_names_its_configuration_relative_to_itself(tmp_path):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"config": "inner/run.yaml", "parameters": {RATE: [1]}}))
    assert read_sweep(tmp_path / "s.yaml").config == str(tmp_path / "inner/run.yaml")


@pytest.mark.parametrize("path", sorted(Path("studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_sweeps_of_studies_are_valid(path, tmp_path):
    Sweep(read_sweep(path), tmp_path / "sweep")


def test_a_grid_is_trained_seed_by_seed(tmp_path):
    methods = {"a": {}, "b": {"parameters": {RATE: [0.01, 0.1]}}}
    started = Sweep(sweep(methods=methods, seeds=2), tmp_path)
    result = SweepResult(started.config, started.metric, [], {}, [])
    names = [trial.name for trial, _ in started._tuning(result)]
    assert names == [f"{point}-seed{seed}" for seed in (1, 2) for point in ("a-000", "b-000", "b-001")]
