"""AdaGrad with a factor for every tensor, against the equations in NumPy and against PyTorch's AdaGrad."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dlrm_mtl.optim.dense.layerwise_adagrad import LayerwiseAdagradConfig

SHAPES = [(4, 3), (3,), ()]


def literal(weights, gradients, config):
    """All steps, from the equations."""
    sums = [np.full_like(weight, config.initial_accumulator_value) for weight in weights]
    weights = [weight.copy() for weight in weights]
    for step in gradients:
        for number, g in enumerate(step):
            w = weights[number]
            sums[number] = sums[number] + g * g
            r = g / (np.sqrt(sums[number]) + config.eps)
            norm = np.sqrt((g * g).sum())
            if config.scale == "gradient_norm":
                s = min(1.0, config.threshold / norm)
            elif config.scale == "adaptive":
                s = min(1.0, config.threshold * max(np.sqrt((w * w).sum()), 1e-3) / norm)
            else:
                of_w, of_r = np.sqrt((w * w).sum()), np.sqrt((r * r).sum())
                s = config.threshold * (of_w / of_r if of_w > 0 and of_r > 0 else 1.0)
            weights[number] = w - config.learning_rate * s * r
    return weights


@pytest.mark.parametrize("scale", ["gradient_norm", "adaptive", "lamb"])
@pytest.mark.parametrize("threshold", [0.01, 0.5, 100.0])
def test_steps_are_those_of_the_equations(scale, threshold):
    generator = np.random.default_rng(1)
    weights = [generator.normal(size=shape) for shape in SHAPES]
    weights[1][:] = 0.0  # biases begin at zero
    gradients = [
        [generator.normal(size=shape) * 10.0 ** generator.integers(-2, 3) for shape in SHAPES] for _ in range(6)
    ]
    config = LayerwiseAdagradConfig(learning_rate=0.1, scale=scale, threshold=threshold)
    parameters = [nn.Parameter(torch.tensor(weight, dtype=torch.float64)) for weight in weights]
    optimizer = config.build([(str(number), parameter) for number, parameter in enumerate(parameters)])
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    for parameter, expected in zip(parameters, literal(weights, gradients, config), strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12, atol=1e-15)


def test_a_bound_that_is_never_reached_leaves_pytorchs_adagrad():
    generator = torch.Generator().manual_seed(2)
    ours, theirs = (nn.Parameter(torch.ones(5, 4, dtype=torch.float64)) for _ in range(2))
    config = LayerwiseAdagradConfig(learning_rate=0.05, threshold=1e9)
    optimizer = config.build([("w", ours)])
    other = torch.optim.Adagrad(
        [theirs], lr=0.05, initial_accumulator_value=config.initial_accumulator_value, eps=1e-10
    )
    for _ in range(20):
        ours.grad = torch.randn(5, 4, dtype=torch.float64, generator=generator)
        theirs.grad = ours.grad.clone()
        optimizer.step()
        other.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", ["gradient_norm", "adaptive", "lamb"])
def test_a_step_of_zeros_creates_the_state_and_changes_nothing(scale):
    weight = nn.Parameter(torch.ones(3))
    optimizer = LayerwiseAdagradConfig(scale=scale, initial_accumulator_value=0.0, eps=0.0).build([("w", weight)])
    weight.grad = torch.zeros(3)
    optimizer.step()
    assert torch.equal(weight, torch.ones(3))
    assert torch.equal(optimizer.state[weight]["sum"], torch.zeros(3))
