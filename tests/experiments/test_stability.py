"""Optimizers at rising learning rates: what counts as diverged, and a small study with real trainings."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.experiments.stability import Setting, has_diverged, micro_divergences, settings_of
from tests.commands import run


def test_a_training_that_ends_above_its_first_loss_has_diverged():
    falling = np.linspace(1.5, 1.2, 40)
    assert not has_diverged(falling)
    assert has_diverged(np.concatenate([falling[:20], np.full(20, 6e7)]))
    assert has_diverged(np.append(falling, [np.nan] * 4))
    assert has_diverged(np.append(falling, [np.inf] * 4))
    peak = falling.copy()
    peak[10:20] = 1e4  # it came back
    assert not has_diverged(peak)
    assert not has_diverged(np.empty(0))


def test_a_rise_that_goes_back_is_one_micro_divergence():
    losses = np.full(60, 1.0)
    assert micro_divergences(losses) == 0
    losses[20] = 2.0
    losses[40:44] = [3.0, np.nan, 100.0, 2.0]
    assert micro_divergences(losses) == 2
    losses[50:] = 9.0  # never comes back
    assert micro_divergences(losses) == 2


def test_every_optimizer_is_trained_at_every_rate():
    found = settings_of(["adagrad", "adagrad+gc:0.01"], ["0.5x", "8x"])
    assert found == [
        Setting("adagrad", 0.5),
        Setting("adagrad", 8.0),
        Setting("adagrad+gc:0.01", 0.5),
        Setting("adagrad+gc:0.01", 8.0),
    ]


@pytest.mark.parametrize(
    ("optimizers", "multiples", "words"),
    [
        (["clipy"], ["1x"], "did you mean 'clippy'|clippy"),
        (["clippy:0.1"], ["1x"], "takes no threshold"),
        (["adagrad+gc:-1"], ["1x"], "takes no threshold"),
        (["clippy"], ["2"], "is no multiple"),
        (["clippy"], ["0x"], "is no multiple"),
        (["clippy", "clippy"], ["1x"], "stands there twice"),
        (["clippy"], ["1x", "1.0x"], "stands there twice"),
    ],
)
def test_what_cannot_be_studied_is_one_sentence(optimizers, multiples, words):
    with pytest.raises(UserError, match=words):
        settings_of(optimizers, multiples)


def test_a_small_study_shows_rates_losses_and_factors(tmp_path):
    done = run(
        *(
            "stability",
            "configs/kuairand_mmoe_debug.yaml",
            "--lr",
            "1x,1000x",
            "--optimizers",
            "adagrad+gc,lamb,clippy",
        ),
        *(
            "--seeds",
            1,
            "--output",
            tmp_path / "out",
            "--html",
            tmp_path / "page.html",
            "--json",
            tmp_path / "all.json",
        ),
        *("--set", "training.max_steps=8", "--set", "training.evaluate_every=4", "--set", "training.log_every=1"),
        *("--set", "optimizer.sparse={name: clippy_rowwise_adagrad, learning_rate: 0.02}"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "all.json").read_text())
    assert {(each["optimizer"], each["multiple"]) for each in found["settings"]} == {
        (name, multiple) for name in ("adagrad+gc", "lamb", "clippy") for multiple in (1.0, 1000.0)
    }
    clippy = yaml.safe_load((tmp_path / "out/trials/clippy@1000x-000-seed1/config.yaml").read_text())["optimizer"]
    assert clippy["sparse"]["learning_rate"] == pytest.approx(20.0)
    assert clippy["dense"]["name"] == "clippy_adagrad"
    assert clippy["dense"]["learning_rate"] == pytest.approx(1.0)  # Adam's default rate, 0.001, a thousand times
    page = (tmp_path / "page.html").read_text()
    assert "Clipping factors" in page
    for described in (
        "validation mean/auc by learning rate",
        "training loss at 1000x",
        "clipping factors at clippy@1000x",
    ):
        assert f'alt="{described}' in page
    assert "clipping factors at adagrad+gc" not in page
