"""The record of what configurations reach, and how it is compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.quality.__main__ import CONFIGS, RECORD, differences


def test_the_record_has_every_configuration():
    record = json.loads(RECORD.read_text())
    assert set(record["metrics"]) == set(CONFIGS)
    for name, metrics in record["metrics"].items():
        assert Path(f"configs/kuairand_{name}.yaml").is_file()
        assert 0.5 < metrics["mean/auc"] < 1


@pytest.mark.parametrize(
    ("now", "sentences"),
    [
        ({"mean/auc": 0.7001, "a/auc": 0.805}, 0),
        ({"mean/auc": 0.7021, "a/auc": 0.8}, 1),
        ({"mean/auc": 0.6979, "a/auc": 0.793}, 2),
        ({"mean/auc": 0.7}, 1),
        ({"mean/auc": float("nan"), "a/auc": 0.8}, 1),
    ],
)
def test_a_metric_outside_its_tolerance_is_one_sentence(now, sentences):
    assert len(differences(now, {"mean/auc": 0.7, "a/auc": 0.8})) == sentences
