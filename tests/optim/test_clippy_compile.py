"""A compiled step equals an eager one, and is one graph."""

import math
import shutil

import pytest
import torch
from torch import nn

from dlrm_mtl.optim.clippy_adagrad import ClippyAdagrad

COMPILER = any(shutil.which(name) for name in ("c++", "g++", "clang++"))


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=[pytest.mark.slow, pytest.mark.skipif(not COMPILER, reason="no C++ compiler for torch.compile")],
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_compiled_step_equals_eager(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator) for shape in [(30, 40), (7,), (0,)]]
    pairs = [[nn.Parameter(value.clone()) for value in values] for _ in range(2)]
    rates = [torch.tensor(0.3) for _ in pairs]
    eager, compiled = (
        ClippyAdagrad(parameters, rate, weight_decay=0.01) for parameters, rate in zip(pairs, rates, strict=True)
    )
    torch._dynamo.reset()
    step = torch.compile(compiled.step, backend=backend, fullgraph=True)
    for number in range(5):
        for index, value in enumerate(values):
            gradient = torch.randn(value.shape, generator=generator) * 3
            if number == 2 and index == 1:
                gradient[3] = math.nan
            for parameters in pairs:
                parameters[index].grad = gradient.clone()
        for rate in rates:
            rate.mul_(0.9)  # a schedule does not compile anew
        before = [p.detach().clone() for p in pairs[1]]
        eager.step()
        step()
        for one, other in zip(*pairs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
        if number == 2:
            assert all(torch.equal(one, other.detach()) for one, other in zip(before, pairs[1], strict=True))
        torch.testing.assert_close(compiled.clipping_factors(), eager.clipping_factors())
        torch.testing.assert_close(compiled.update_norms(), eager.update_norms())
        assert compiled.nonfinite_parameters() == eager.nonfinite_parameters()
    assert (int(compiled.skipped_steps), int(compiled.clipped_steps)) == (1, 4)
    assert float(compiled.state[pairs[1][0]]["step"]) == 4
