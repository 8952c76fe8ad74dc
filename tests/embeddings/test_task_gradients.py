"""Gradients of several tasks on sharded tables against a literal implementation that writes every gradient out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.embeddings import two_phase_model as tiny
from tests.embeddings.test_two_phase import PLAIN, compare, plans, rule_of
from tests.processes import run_processes

TASKS = 3
STEPS = 6


def heads() -> Tensor:
    """[T, sum of dims] what turns pooled features into each task's number."""
    width = sum(tiny.TABLES[table][1] for table in tiny.FEATURES.values())
    return torch.randn(TASKS, width, generator=torch.Generator().manual_seed(8))


def coefficients(grams: Tensor) -> Tensor:
    """[tables, T], some function of [tables, T, T] inner products that no symmetry hides a mistake from."""
    norms = grams.diagonal(dim1=1, dim2=2).clamp(min=1e-12).sqrt()
    return grams[:, :, 0] / norms / norms[:, :1] + torch.tensor([0.2, 0.5, 1.0])


class Reference(tiny.Reference):
    """Each task's gradient of each whole table, combined one by one."""

    def combined_step(self, *steps: int) -> Tensor:
        """One update with the batches together; the inner products [tables, T, T]."""
        gradients: dict[str, list[Tensor]] = {table: [] for table in tiny.TABLES}
        for task in range(TASKS):
            leaves = {table: weight.clone().requires_grad_() for table, weight in self.weights.items()}
            for step in steps:
                self.loss_of(task, leaves, step).backward()
            for table, leaf in leaves.items():
                assert leaf.grad is not None
                gradients[table].append(leaf.grad)
        grams = torch.stack(
            [
                torch.tensor([[float((a.double() * b.double()).sum()) for a in parts] for b in parts])
                for parts in gradients.values()
            ]
        ).double()
        for table, weights in zip(tiny.TABLES, coefficients(grams), strict=True):
            parts = zip(weights, gradients[table], strict=True)
            self.update(table, torch.stack([float(weight) * part for weight, part in parts]).sum(dim=0))
        return grams

    def loss_of(self, task: int, tables: dict[str, Tensor], step: int) -> Tensor:
        ids, _, target = tiny.batch(step)
        rows = []
        for bag in range(tiny.BATCH):
            pooled = [tables[table][ids[f][bag]].sum(dim=0) for f, table in tiny.FEATURES.items()]
            rows.append(torch.cat(pooled))
        return ((torch.tanh(torch.stack(rows)) @ heads()[task] - target) ** 2).mean()


class SeveralTasks(nn.Module):
    """The same for sharding."""

    def __init__(self, tables: nn.Module) -> None:
        super().__init__()
        self.tables = tables
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, ids: Any) -> Tensor:
        pooled = self.tables(ids).to_dict()
        return torch.cat([pooled[name] for name in tiny.FEATURES], dim=1)


def train(rank: int, shardings: dict[str, dict[str, Any]], micro_batches: int) -> dict[str, Any]:
    """Weights, accumulators and inner products after some steps under each plan."""
    import torch.distributed as dist

    from dlrm_mtl.embeddings.task_gradients import TaskGradients
    from dlrm_mtl.embeddings.two_phase import TwoPhaseOptimizer

    world_size, results = dist.get_world_size(), {}
    for name, sharding in shardings.items():
        model = tiny.shard(sharding, model=SeveralTasks)
        optimizer = TwoPhaseOptimizer(model, rule_of(PLAIN))
        tasks = TaskGradients(optimizer, TASKS)
        seen = []
        for step in range(STEPS):
            with tasks.per_task():
                for micro in range(micro_batches):
                    ids, target = tiny.local_batch(step * micro_batches + micro, rank, world_size, False)
                    features = model.module(ids)
                    outputs = torch.tanh(features) @ heads().T  # [B, T]
                    losses = ((outputs - target.unsqueeze(1)) ** 2).sum(dim=0) * world_size / tiny.BATCH
                    gradients = [torch.autograd.grad(loss, features, retain_graph=True) for loss in losses]
                    tasks.backward([features], gradients)
                grams = tasks.grams()
                dist.all_reduce(grams)
                tasks.combine(coefficients(grams))
            optimizer.step()
            seen.append(grams)
        assert [n.rpartition(".")[2] for n in tasks.names] == sorted(tiny.TABLES)
        results[name] = (*tiny.tables_of(model, optimizer), [{}]), seen
    return results


@pytest.mark.parametrize(("world_size", "micro_batches"), [(1, 1), (2, 1), (4, 1), (2, 2)])
def test_every_plan_gives_the_unsharded_result(world_size: int, micro_batches: int) -> None:
    reference = Reference(PLAIN)
    expected = [
        reference.combined_step(*range(step * micro_batches, (step + 1) * micro_batches)) for step in range(STEPS)
    ]
    for plan, (result, grams) in run_processes(world_size, train, plans(world_size), micro_batches)[0].items():
        compare(result, reference, plan, rtol=1e-6)
        for ours, theirs in zip(grams, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6 * float(theirs.abs().max()))
