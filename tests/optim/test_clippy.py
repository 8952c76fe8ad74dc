"""The rule: published vectors, AdaGrad where nothing is clipped, its bound, and what happens at the edges."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dlrm_mtl.optim.clippy import (
    PAPER,
    TFRS,
    ClippyOptions,
    allowed_change,
    clipping_factor,
    clippy_update,
    largest_ratio,
    never_clips,
    preset,
)


def shrink(change: Tensor, reference: Tensor, relative: float, absolute: float) -> Tensor:
    options = ClippyOptions(lambda_rel=relative, lambda_abs=absolute)
    return clipping_factor(largest_ratio(change, allowed_change(reference, torch.ones(()), options)))


@pytest.mark.parametrize(
    ("change", "reference", "relative", "absolute", "factor"),
    [
        ([2.0], [4.0], 0.1, 0.02, 0.21),
        ([1.0, 1.0], [1.0, 0.1], 0.1, 0.01, 0.02),
        ([1.0], [0.0], 0.1, 0.0, 0.0),
        ([0.0], [0.0], 0.1, 0.0, 1.0),
        ([0.0], [1.0], 0.1, 0.02, 1.0),
        ([0.1], [1.0], 0.5, 0.01, 1.0),
    ],
)
def test_vectors_of_tf_recommenders_for_the_factor(
    change: list[float], reference: list[float], relative: float, absolute: float, factor: float
) -> None:
    found = shrink(torch.tensor(change), torch.tensor(reference), relative, absolute)
    assert float(found) == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize(("clip_accumulator", "accumulator"), [(False, 0.01 + 100), (True, 0.01 + (0.03 * 10) ** 2)])
def test_step_of_tf_recommenders(clip_accumulator: bool, accumulator: float) -> None:
    options = ClippyOptions(
        lambda_rel=0.4,
        lambda_abs=0.1,
        accumulator="delayed",
        accumulator_relative_threshold=0.01,
        eps_inside=True,
        clip_accumulator_update=clip_accumulator,
    )
    weight, gradient = torch.tensor([1.0, 2.0]), torch.tensor([10.0, 10.0])
    update = clippy_update(weight, gradient, torch.full((2,), 0.01), 0.2, options)
    torch.testing.assert_close(update.weight, torch.tensor([0.4, 1.4]))
    assert float(update.factor) == pytest.approx(0.6 * 0.1 / (10 * 0.2))
    torch.testing.assert_close(update.accumulator, torch.full((2,), accumulator))


def test_algorithm_1_by_hand() -> None:
    update = clippy_update(torch.tensor([2.0, 0.0]), torch.tensor([3.0, 4.0]), torch.tensor([16.0, 9.0]), 0.1)
    # r = [3/5, 4/5]; lr r = [.06, .08]; allowed [1.01, .01]; sigma = .125
    assert float(update.factor) == pytest.approx(0.125)
    torch.testing.assert_close(update.weight, torch.tensor([2 - 0.1 * 0.125 * 0.6, -0.01]))
    torch.testing.assert_close(update.accumulator, torch.tensor([25.0, 25.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("initial", [0.0, 0.1])
def test_without_clipping_it_is_adagrad_bit_for_bit(dtype: torch.dtype, initial: float) -> None:
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(101, generator=generator, dtype=dtype) * 1e-3)
    weight, accumulator = parameter.detach().clone(), torch.full_like(parameter, initial).detach()
    theirs = torch.optim.Adagrad([parameter], lr=0.01, initial_accumulator_value=initial, eps=1e-10)
    for _ in range(20):
        parameter.grad = torch.randn(101, generator=generator, dtype=dtype) * 1000
        update = clippy_update(weight, parameter.grad, accumulator, 0.01, ClippyOptions(eps=1e-10))
        theirs.step()
        weight, accumulator = update.weight, update.accumulator
        assert float(update.factor) == 1  # lr = lambda_abs: also where |r| is 1 and rounding could make it more
        assert torch.equal(weight, parameter.detach())
        assert torch.equal(accumulator, theirs.state[parameter]["sum"])


def magnitudes(limit: float) -> st.SearchStrategy[float]:
    """Zero and numbers of all sizes up to 10 ** limit, of both signs."""
    sizes = st.floats(-limit, limit).map(lambda exponent: 10.0**exponent)
    return st.one_of(st.just(0.0), sizes, sizes.map(lambda size: -size))


def assert_bound(before: Tensor, after: Tensor, lr: float, options: ClippyOptions) -> None:
    """|delta w| <= lambda_rel |w| + lambda_abs, in float64, up to rounding.

    In units of u, half the distance from 1 to the next number: allowed move 3 (lambdas and their sum), r 3, ratio 1, factor 2,
    tolerance before clipping 16, its product with lr, gradient and root 4: within 32 u of the allowed move. Rounding the new
    weight: u of the larger weight. 1e-26 for products that are not normal numbers, over the smallest root.
    """
    assert lr >= 0
    unit = torch.finfo(before.dtype).eps / 2
    old, new = before.double(), after.double()
    allowed = options.lambda_rel * old.abs() + options.lambda_abs
    rounding = unit * torch.maximum(old.abs(), new.abs())
    assert bool(((new - old).abs() <= allowed * (1 + 32 * unit) + rounding + 1e-26).all())


coordinates = st.lists(st.tuples(magnitudes(15), magnitudes(18), magnitudes(15)), min_size=1, max_size=8)


@settings(max_examples=1000, deadline=None)
@given(
    coordinates,
    st.floats(-6, 4).map(lambda exponent: 10.0**exponent),
    st.sampled_from([0.0, 0.1, 0.5, 2.0]),
    st.sampled_from([0.0, 1e-12, 1e-7, 1e-2, 10.0]),
    st.sampled_from(["standard", "delayed"]),
    st.booleans(),
)
def test_no_coordinate_moves_further_than_allowed(
    coordinates: list[tuple[float, float, float]],
    lr: float,
    relative: float,
    absolute: float,
    accumulator: str,
    eps_inside: bool,
) -> None:
    if relative == absolute == 0:
        relative = 0.5
    options = ClippyOptions(lambda_rel=relative, lambda_abs=absolute, accumulator=accumulator, eps_inside=eps_inside)
    weight, gradient, state = (torch.tensor(values) for values in zip(*coordinates, strict=True))
    state = state.abs()
    update = clippy_update(weight, gradient, state, lr, options)
    assert bool(update.finite)
    assert 0 <= float(update.factor) <= 1
    assert_bound(weight, update.weight, lr, options)
    assert torch.equal(update.weight[gradient == 0], weight[gradient == 0])


@settings(max_examples=200, deadline=None)
@given(coordinates, st.lists(st.tuples(magnitudes(15), magnitudes(15)), max_size=5), st.sampled_from([0.0, 1e-2]))
def test_coordinates_without_gradient_never_change_the_factor(
    coordinates: list[tuple[float, float, float]], still: list[tuple[float, float]], absolute: float
) -> None:
    options = ClippyOptions(lambda_abs=absolute)
    weight, gradient, state = (torch.tensor(values) for values in zip(*coordinates, strict=True))
    alone = clippy_update(weight, gradient, state.abs(), 0.5, options)
    others = torch.tensor([*still, (0.0, 0.0)])
    joined = clippy_update(
        torch.cat([weight, others[:, 0]]),
        torch.cat([gradient, torch.zeros(len(others))]),
        torch.cat([state.abs(), others[:, 1].abs()]),
        0.5,
        options,
    )
    assert torch.equal(alone.factor, joined.factor)
    assert torch.equal(joined.weight[len(weight) :], others[:, 0])


def test_row_wise_state() -> None:
    weight, gradient = torch.randn(5, 4), torch.randn(5, 4) * 10
    squares = gradient.square().mean(dim=1, keepdim=True)
    state = torch.full((5, 1), 0.1)
    update = clippy_update(weight, gradient, state, 0.5, squares=squares)
    whole = clippy_update(weight, gradient, (state + squares).expand(5, 4), 0.5, squares=torch.zeros(5, 4))
    assert update.accumulator.shape == (5, 1)
    torch.testing.assert_close(update.accumulator, state + squares)
    torch.testing.assert_close(update.weight, whole.weight)


def test_empty_tensor() -> None:
    empty = torch.zeros(0)
    update = clippy_update(empty, empty, empty, 0.1)
    assert float(update.factor) == 1
    assert update.weight.shape == (0,)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_gradients_that_are_not_finite_change_nothing(bad: float) -> None:
    weight, state = torch.tensor([1.0, -0.0]), torch.tensor([0.1, 0.2])
    update = clippy_update(weight, torch.tensor([1.0, bad]), state, 0.1)
    assert not bool(update.finite)
    assert torch.equal(update.weight.view(torch.int32), weight.view(torch.int32))
    assert torch.equal(update.accumulator, state)


def test_gradient_whose_square_underflows_beside_an_empty_accumulator() -> None:
    update = clippy_update(torch.tensor([1.0]), torch.tensor([1e-30]), torch.zeros(1), 0.02)
    assert float(update.factor) == 1
    assert abs(float(update.weight) - 1) <= 0.02


def test_presets() -> None:
    assert preset("paper") == PAPER == ClippyOptions()
    assert (PAPER.lambda_rel, PAPER.lambda_abs, PAPER.initial_accumulator_value) == (0.5, 1e-2, 0.1)
    assert preset("tfrs") == TFRS
    assert (TFRS.lambda_rel, TFRS.lambda_abs, TFRS.accumulator, TFRS.eps_inside) == (0.1, 1e-7, "delayed", True)
    with pytest.raises(ValueError, match="preset is 'adam'; it must be one of 'paper', 'tfrs'"):
        preset("adam")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lambda_rel": -0.5}, "lambda_rel is -0.5; it must be a number of at least 0"),
        ({"lambda_abs": math.nan}, "lambda_abs is nan"),
        ({"eps": math.inf}, "eps is inf"),
        ({"initial_accumulator_value": -1}, "initial_accumulator_value is -1"),
        ({"accumulator_relative_threshold": -1e-3}, "accumulator_relative_threshold is -0.001"),
        ({"accumulator": "late"}, "accumulator is 'late'; it must be 'standard' or 'delayed'"),
        ({"lambda_rel": 0, "lambda_abs": 0}, "both 0, so that no weight could ever move; raise one of them"),
        ({"clip_accumulator_update": True}, "set accumulator='delayed'"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClippyOptions(**options)  # type: ignore[arg-type]


def test_never_clips() -> None:
    assert "can never clip at lr=0.01" in (never_clips(0.01, PAPER) or "")
    assert never_clips(0.011, PAPER) is None
    assert never_clips(0.01, ClippyOptions(accumulator="delayed")) is None
