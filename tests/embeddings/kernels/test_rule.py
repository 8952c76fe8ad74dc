"""The kernels' update is the rule of dlrm_mtl.optim.clippy, with one accumulator per row."""

from __future__ import annotations

import pytest
import torch

from dlrm_mtl.embeddings.kernels import reference
from dlrm_mtl.embeddings.kernels.layout import RowGradients, TableGroup
from dlrm_mtl.embeddings.rules import ClippyRowWiseAdagrad
from dlrm_mtl.optim.clippy import ClippyOptions, clippy_update


@pytest.mark.parametrize("accumulator", ["standard", "delayed"])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("initial", [0.0, 0.1])
def test_reference_kernels_follow_the_rule(accumulator: str, scale: float, initial: float) -> None:
    torch.manual_seed(0)
    rows, dim, lr = 7, 8, 0.3
    weights, state = torch.randn(rows, dim) * 0.1, torch.full((rows,), initial)
    touched = torch.tensor([0, 2, 3, 6])
    gradient = torch.randn(4, dim) * scale
    gradient[1] = 0.0
    options = ClippyOptions(eps_inside=True, accumulator=accumulator, initial_accumulator_value=initial)  # type: ignore[arg-type]
    squares = gradient.square().mean(dim=1, keepdim=True)
    wanted = clippy_update(weights[touched], gradient, state[touched].unsqueeze(1), lr, options, squares)

    group = TableGroup(
        weights=weights.flatten(),
        weight_offsets=torch.tensor([0]),
        row_offsets=torch.tensor([0, rows]),
        dims=torch.tensor([dim]),
        feature_tables=torch.tensor([0]),
    )
    collected = RowGradients(touched, torch.tensor([0, 4]), gradient.flatten(), gradient.square().sum(dim=1))
    rule = ClippyRowWiseAdagrad(learning_rate=lr, accumulator=accumulator).native()  # type: ignore[arg-type]
    means = squares.flatten()
    factor = reference.factors(group, state, collected, means, rule, lr)
    reference.apply(group, state, collected, means, factor, rule, lr)
    torch.testing.assert_close(factor[0], wanted.factor, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(group.table(0)[touched], wanted.weight, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(state[touched], wanted.accumulator.flatten(), rtol=1e-6, atol=0.0)
    assert group.weights.isfinite().all()
