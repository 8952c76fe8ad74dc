"""Optimizers at rising learning rates: what counts as diverged, and a small study with real trainings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.experiments.stability import Setting, has_diverged, micro_divergences, settings_of
from dlrm_mtl.reports.run_files import RunContent
from dlrm_mtl.reports.runs import RecordedRun
from tests.commands import run


def recorded(losses, **validation):
    entries = [{"kind": "train", "step": n + 1, "loss/click": float(loss)} for n, loss in enumerate(losses)]
    if validation:
        entries.append({"kind": "validation", "step": len(losses), **validation})
    return RecordedRun("run", Path("run"), {}, RunContent(entries))


def test_a_training_no_better_than_constants_has_diverged():
    falling = np.linspace(1.5, 1.2, 40)

    def ends(click, like):  # the entropies of the labels are 0.5 and 0.1
        tasks = {"click": (click, 0.5), "like": (like, 0.1)}
        found = {f"{task}/log_loss": loss for task, (loss, _) in tasks.items()}
        found |= {f"{task}/normalized_entropy": loss / of for task, (loss, of) in tasks.items()}
        return found | {"mean/normalized_entropy": 9.0}

    assert not has_diverged(recorded(falling, **ends(0.4, 0.08)))
    assert not has_diverged(recorded(falling, **ends(0.4, 0.12)))  # one task is overfit, not all are lost
    assert has_diverged(recorded(falling, **ends(0.5, 0.1)))
    assert has_diverged(recorded(falling, **ends(0.45, 0.2)))
    assert has_diverged(recorded(falling, **{"click/log_loss": None, "click/normalized_entropy": None}))
    assert not has_diverged(recorded(falling, **{"click/log_loss": 0.3, "click/normalized_entropy": None}))
    assert has_diverged(recorded(np.append(falling, [np.nan] * 4), **ends(0.4, 0.08)))


def test_without_an_entropy_a_training_that_ends_above_its_first_loss_has_diverged():
    falling = np.linspace(1.5, 1.2, 40)
    assert not has_diverged(recorded(falling))
    assert has_diverged(recorded(np.concatenate([falling[:20], np.full(20, 6e7)])))
    assert has_diverged(recorded(np.append(falling, [np.inf] * 4)))
    peak = falling.copy()
    peak[10:20] = 1e4  # it came back
    assert not has_diverged(recorded(peak, **{"rating/mse": 1.0}))
    assert not has_diverged(recorded([]))


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
            "--figures",
            tmp_path / "figures",
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
        assert f'aria-label="{described}' in page
    assert "clipping factors at adagrad+gc" not in page
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert drawn >= {"training_loss_at_1000x.svg", "clipping_factors_at_clippy_1000x.svg"}
    assert (tmp_path / "figures/validation_mean_auc_by_learning_rate.svg").read_text().startswith("<svg")
