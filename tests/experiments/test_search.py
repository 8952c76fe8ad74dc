"""Points of a search: reproducible, complete, and kept across a kill."""

from __future__ import annotations

import math

import pytest

from dlrm_mtl.core.schema import validate
from dlrm_mtl.experiments.config import SweepConfig
from dlrm_mtl.experiments.search import Drawn, Grid, MedianRule

PARAMETERS = {
    "rate": {"low": 0.001, "high": 1, "log": True},
    "width": {"low": 4, "high": 64, "integer": True},
    "optimizer": [{"name": "adam"}, "sgd"],
}


def drawn(path, search="tpe", trials=20):
    values = {"config": "run.yaml", "parameters": PARAMETERS, "search": search, "trials": trials}
    return Drawn(validate(SweepConfig, values, "sweep.yaml"), "all", path, lower_is_better=True)


def loss(point):
    return abs(math.log10(point["rate"]) + 2) + (0 if point["optimizer"] == "sgd" else 1)


def test_a_grid_ends_after_its_last_point():
    search = Grid({"a": [1, 2]})
    assert [search.ask(), search.ask(), search.ask()] == [(0, {"a": 1}), (1, {"a": 2}), None]


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_draws_lie_in_their_intervals_and_are_reproducible(tmp_path, search):
    points = []
    for number in range(2):
        source = drawn(tmp_path / str(number), search, trials=12)
        own = []
        while (asked := source.ask()) is not None:
            source.tell(asked[0], loss(asked[1]))
            own.append(asked[1])
        points.append(own)
    assert points[0] == points[1]
    assert len(points[0]) == 12
    for point in points[0]:
        assert 0.001 <= point["rate"] <= 1
        assert isinstance(point["width"], int)
        assert 4 <= point["width"] <= 64
        assert point["optimizer"] in PARAMETERS["optimizer"]


def test_the_estimator_finds_better_points_than_its_first_draws(tmp_path):
    source, values = drawn(tmp_path / "draws", trials=40), []
    while (asked := source.ask()) is not None:
        values.append(loss(asked[1]))
        source.tell(asked[0], values[-1])
    assert sum(values[-10:]) < sum(values[:10])


def test_points_that_were_not_finished_come_again(tmp_path):
    first = drawn(tmp_path / "draws", trials=3)
    number, _ = first.ask()
    first.tell(number, 1.0)
    lost = first.ask()
    again = drawn(tmp_path / "draws", trials=3)
    assert again.ask() == lost
    assert again.ask()[0] == 2
    assert again.ask() is None


def test_a_training_below_the_median_of_earlier_ones_is_hopeless():
    rule = MedianRule(lower_is_better=False)
    assert not any(rule.hopeless(10, value) for value in (0.1, 0.9, 0.5, 0.6, 0.7))  # too few to judge
    assert rule.hopeless(10, 0.55)
    assert not rule.hopeless(10, 0.65)
    assert not rule.hopeless(20, 0.1)  # another step
    assert rule.hopeless(20, math.nan)
    falling = MedianRule(lower_is_better=True)
    for value in (1, 2, 3, 4, 5):
        falling.hopeless(10, value)
    assert falling.hopeless(10, 4.0)
    assert not falling.hopeless(10, 2.0)
