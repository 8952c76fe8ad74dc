"""Blocks and architectures against literal, loop-written versions of their equations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlrm_mtl.core.batch_random import BatchRandom
from dlrm_mtl.models.blocks import ACTIVATIONS, NORMS, ParallelMLP, StackConfig
from dlrm_mtl.models.dropout import LaneDropout, connect_dropout
from dlrm_mtl.models.multitask import build_multitask
from dlrm_mtl.models.multitask.mmoe import MMoE, MMoEConfig
from dlrm_mtl.models.multitask.shared_bottom import SharedBottom, SharedBottomConfig


def stack_size(width: int, layers: list[int]) -> int:
    """P(d; [h1..hk]) = sum_i h_i (h_{i-1} + 1)."""
    return sum(h * (d + 1) for d, h in zip([width, *layers], layers, strict=False))


def literal_stack(stack: ParallelMLP, number: int, x: Tensor) -> Tensor:
    linears = [layer for layer in stack.layers if hasattr(layer, "weight") and layer.weight.dim() == 3]
    for linear in linears:
        x = torch.relu(F.linear(x, linear.weight[number], linear.bias[number]))
    return x


@pytest.mark.parametrize(
    ("experts", "layers", "tasks", "width"), [(1, [4], 1, 3), (4, [8, 5], 3, 7), (3, [6, 6, 2], 2, 10)]
)
def test_mmoe(experts: int, layers: list[int], tasks: int, width: int) -> None:
    mmoe = MMoE(MMoEConfig(experts=experts, layers=layers), width, tasks)
    assert (
        sum(p.numel() for p in mmoe.parameters()) == experts * stack_size(width, layers) + tasks * (width + 1) * experts
    )
    x = torch.randn(6, width)
    out = mmoe(x)
    assert out.shape == (6, tasks, layers[-1])
    outputs = [literal_stack(mmoe.experts, e, x) for e in range(experts)]
    for t in range(tasks):
        gate = torch.softmax(x @ mmoe.gates.weight[t].T + mmoe.gates.bias[t], dim=1)
        expected = sum(gate[:, e : e + 1] * outputs[e] for e in range(experts))
        torch.testing.assert_close(out[:, t], expected, rtol=1e-6, atol=1e-6)


def test_shared_bottom() -> None:
    bottom = SharedBottom(SharedBottomConfig(layers=[8, 4]), 5, 3)
    assert sum(p.numel() for p in bottom.parameters()) == stack_size(5, [8, 4])
    x = torch.randn(6, 5)
    out = bottom(x)
    for t in range(3):
        torch.testing.assert_close(out[:, t], literal_stack(bottom.bottom.stack, 0, x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "config", [MMoEConfig(layers=[8], norm="layer"), SharedBottomConfig(layers=[8, 8], activation="gelu")]
)
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_rows_are_independent_and_all_parameters_learn(config: MMoEConfig | SharedBottomConfig, rows: int) -> None:
    module = build_multitask(config, 6, 2)
    x = torch.randn(rows, 6)
    out = module(x)
    assert out.shape == (rows, 2, module.out_features)
    if rows > 1:
        torch.testing.assert_close(module(x[1:2]), out[1:2], rtol=1e-5, atol=1e-6)
    if rows == 5:
        (out * torch.randn_like(out)).sum().backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name


def test_parallel_stack_is_linear_layers_side_by_side() -> None:
    stack = ParallelMLP(3, 4, StackConfig(layers=[5], norm="layer", activation="tanh"))
    x = torch.randn(7, 3, 4)
    linear, norm = stack.layers[0], stack.layers[1]
    for n in range(3):
        one = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh())
        one[0].weight.data, one[0].bias.data = linear.weight[n].data, linear.bias[n].data
        one[1].weight.data, one[1].bias.data = norm.weight[n].data, norm.bias[n].data
        torch.testing.assert_close(stack(x)[:, n], one(x[:, n]), rtol=1e-6, atol=1e-6)
    assert ParallelMLP(3, 4, StackConfig(layers=[]))(torch.ones(2, 4)).shape == (2, 3, 4)


def test_batch_norm_is_batch_norms_side_by_side() -> None:
    stack = ParallelMLP(3, 4, StackConfig(layers=[5], norm="batch", activation="tanh"))
    linear = stack.layers[0]
    ones = [nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh()) for _ in range(3)]
    for n, one in enumerate(ones):
        one[0].weight.data, one[0].bias.data = linear.weight[n].data, linear.bias[n].data
    for rows in (7, 9):
        x = torch.randn(rows, 3, 4)
        out = stack(x)
        for n, one in enumerate(ones):
            torch.testing.assert_close(out[:, n], one(x[:, n]), rtol=1e-5, atol=1e-6)
    stack.eval()
    for n, one in enumerate(ones):
        torch.testing.assert_close(stack(x)[:, n], one.eval()(x[:, n]), rtol=1e-5, atol=1e-6)


def test_batch_norm_of_fewer_than_two_rows_uses_and_keeps_the_running_averages() -> None:
    norm = NORMS["batch"](2, 3)
    norm(torch.randn(9, 2, 3))
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    x = torch.randn(1, 2, 3)
    out = norm(x)
    assert torch.equal(out, norm.eval()(x))
    assert norm.train()(x[:0]).shape == (0, 2, 3)
    assert all(torch.equal(buffer, before[name]) for name, buffer in norm.named_buffers())


def test_prelu() -> None:
    prelu = ACTIVATIONS["prelu"](2, 3)
    prelu.slope.data = torch.randn(2, 3)
    x = torch.randn(5, 2, 3)
    for n in range(2):
        torch.testing.assert_close(prelu(x)[:, n], F.prelu(x[:, n], prelu.slope[n]))


def test_dice() -> None:
    dice = ACTIVATIONS["dice"](2, 3)
    dice.slope.data = torch.randn(2, 3)
    x = torch.randn(5, 2, 3)
    out = dice(x)
    for n in range(2):
        for c in range(3):
            s = x[:, n, c]
            p = torch.sigmoid((s - s.mean()) / torch.sqrt(s.var(unbiased=False) + 1e-8))
            torch.testing.assert_close(out[:, n, c], p * s + (1 - p) * dice.slope[n, c] * s, rtol=1e-5, atol=1e-6)
    dice.eval()
    p = torch.sigmoid((x - 0.1 * x.mean(0)) / torch.sqrt(0.9 + 0.1 * x.var(0) + 1e-8))
    torch.testing.assert_close(dice(x), p * x + (1 - p) * dice.slope * x, rtol=1e-5, atol=1e-6)


def test_dropout_masks_do_not_depend_on_the_number_of_processes() -> None:
    whole, model = torch.ones(8, 3, 5), nn.Sequential(LaneDropout(0.4), LaneDropout(0.4))

    def masks(lanes: range, step: int, rows: Tensor) -> Tensor:
        stream = BatchRandom(7, lanes)
        stream.step = step
        connect_dropout(model, stream)
        return torch.cat([layer(rows) for layer in model], dim=2)

    together = masks(range(4), 3, whole)
    parts = [masks(range(2 * p, 2 * p + 2), 3, whole[4 * p : 4 * p + 4]) for p in range(2)]
    assert torch.equal(together, torch.cat(parts))
    assert not torch.equal(together, masks(range(4), 4, whole)), "steps differ"
    assert not torch.equal(together[..., :5], together[..., 5:]), "layers differ"
    model.eval()
    assert torch.equal(model(whole), whole)


def test_dropout_keeps_the_mean() -> None:
    layer = LaneDropout(0.25)
    connect_dropout(layer, BatchRandom(1, range(1)))
    out = layer(torch.ones(200_000, 1))
    assert out.mean().item() == pytest.approx(1.0, abs=0.01)
    torch.testing.assert_close(out.unique(), torch.tensor([0.0, 4 / 3]))
