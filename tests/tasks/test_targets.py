"""Label masks and negative sampling."""

from __future__ import annotations

import pytest
import torch

from dlrm_mtl.core.batch_random import BatchRandom
from dlrm_mtl.tasks.config import TaskConfig
from dlrm_mtl.tasks.targets import Targets, label_columns, predictions

CLICK, BUY = TaskConfig(name="click"), TaskConfig(name="buy", only_where="click")


def test_labels_that_only_masks_need_come_last_and_once() -> None:
    tasks = [
        TaskConfig(name="a", only_where="m"),
        TaskConfig(name="b", only_where="m"),
        TaskConfig(name="c", only_where="a"),
    ]
    assert label_columns(tasks) == ["a", "b", "c", "m"]
    assert label_columns([CLICK, BUY]) == ["click", "buy"]


def test_a_masked_task_counts_where_the_other_label_is_one() -> None:
    labels = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    weights = torch.tensor([[2.0, 2.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])  # click null in row 2, buy null in row 3
    before = weights.clone()
    own, counted = Targets([CLICK, BUY])(labels, weights)
    assert torch.equal(own, labels)
    assert counted.tolist() == [[2.0, 2.0], [1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]
    assert torch.equal(weights, before), "the batch stays as it is"


def test_a_mask_whose_label_is_null_counts_nothing() -> None:
    labels, weights = torch.ones(1, 2), torch.tensor([[0.0, 1.0]])
    assert Targets([CLICK, BUY])(labels, weights)[1].tolist() == [[0.0, 0.0]]


def test_a_mask_that_is_no_task() -> None:
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0]])  # buy, click
    own, counted = Targets([BUY])(labels, torch.ones(2, 2))
    assert own.tolist() == [[1.0], [1.0]]
    assert counted.tolist() == [[0.0], [1.0]]


def tasks(rate: float) -> list[TaskConfig]:
    return [
        TaskConfig(name="a"),
        TaskConfig(name="b", negative_sampling=rate),
        TaskConfig(name="c", negative_sampling=rate),
    ]


def sampled(rate: float, lanes: range, labels: torch.Tensor, step: int = 0, seed: int = 1) -> torch.Tensor:
    stream = BatchRandom(seed, lanes)
    stream.step = step
    own, weights = Targets(tasks(rate)).sampled(labels, 2 * torch.ones_like(labels), stream)
    assert torch.equal(own, labels)
    return weights


def test_sampling_keeps_positives_and_a_share_of_negatives() -> None:
    labels = (torch.rand(40_000, 3, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    weights = sampled(0.1, range(4), labels)
    assert set(weights.unique().tolist()) == {0.0, 2.0}
    assert (weights[:, 0] == 2).all()
    for task in (1, 2):
        negative = labels[:, task] == 0
        assert (weights[~negative, task] == 2).all()
        kept = (weights[negative, task] > 0).float().mean().item()
        assert kept == pytest.approx(0.1, abs=0.008)
    assert not torch.equal(weights[:, 1], weights[:, 2]), "each task draws its own"


def test_what_is_drawn_depends_on_seed_step_and_row_only() -> None:
    labels = torch.zeros(64, 3)
    whole = sampled(0.5, range(4), labels, step=7)
    assert torch.equal(whole, sampled(0.5, range(4), labels, step=7))
    halves = [sampled(0.5, range(0, 2), labels[:32], step=7), sampled(0.5, range(2, 4), labels[32:], step=7)]
    assert torch.equal(whole, torch.cat(halves))
    assert not torch.equal(whole, sampled(0.5, range(4), labels, step=8))
    assert not torch.equal(whole, sampled(0.5, range(4), labels, step=7, seed=2))


def test_predictions_are_probabilities_of_binary_labels_only() -> None:
    both = [TaskConfig(name="a"), TaskConfig(name="b", loss="huber")]
    assert predictions(torch.tensor([[0.0, 12.5]]), both).tolist() == [[0.5, 12.5]]
