"""The dense optimizer against the rule and against torch.optim.Adagrad, in all its forms."""

import copy
import math
import pickle
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dlrm_mtl.optim.clippy import ClippyOptions, clippy_update, preset
from dlrm_mtl.optim.clippy_adagrad import ClippyAdagrad
from dlrm_mtl.optim.clippy_passes import BLOCK

FORMS = [pytest.param(None, id="blocked"), pytest.param(True, id="foreach")]
SHAPES = [(40, 50), (7,), (), (0, 3), (3, 2, 5), (130, 130), (BLOCK + 17,)]
OPTIONS = {
    "paper": {},
    "tfrs": preset("tfrs").as_dict(),
    "delayed, clipped accumulator": {"accumulator": "delayed", "clip_accumulator_update": True, "eps": 1e-7},
    "tightening": {"accumulator_relative_threshold": 1e-3, "eps": 1e-7, "eps_inside": True},
    "nothing absolute": {"lambda_abs": 0.0},
    "nothing relative": {"lambda_rel": 0.0, "lambda_abs": 0.05},
}


def make(
    seed: int = 0, dtype: torch.dtype = torch.float32, shapes: list[tuple[int, ...]] = SHAPES
) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in shapes]


def set_gradients(parameters: list[nn.Parameter], seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale
        parameter.grad = values.to(parameter.dtype)


def copies(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    return [nn.Parameter(parameter.detach().clone()) for parameter in parameters]


def bits(optimizer: torch.optim.Optimizer) -> list[bytes]:
    """Every weight and state, so that NaN and the sign of zero count."""
    tensors = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            tensors += [parameter.detach(), *optimizer.state[parameter].values()]
    return [tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for tensor in tensors]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("foreach", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_every_form_follows_the_rule(foreach: bool | None, dtype: torch.dtype, options: dict[str, Any]) -> None:
    parameters = make(dtype=dtype)
    optimizer = ClippyAdagrad(parameters, 0.3, foreach=foreach, **options)
    rule = ClippyOptions(**options)
    expected = [(p.detach().clone(), torch.full_like(p, rule.initial_accumulator_value)) for p in parameters]
    for step in range(4):
        set_gradients(parameters, step, scale=3.0)
        before = [p.detach().clone() for p in parameters]
        updates = [clippy_update(w, p.grad, a, 0.3, rule) for (w, a), p in zip(expected, parameters, strict=True)]
        optimizer.step()
        expected = [(update.weight, update.accumulator) for update in updates]
        tolerance = {"rtol": 1e-6, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 1e-14, "atol": 1e-15}
        rows = zip(
            parameters,
            before,
            updates,
            optimizer.clipping_factors().values(),
            optimizer.update_norms().values(),
            strict=True,
        )
        for parameter, old, update, factor, norm in rows:
            torch.testing.assert_close(parameter.detach(), update.weight, **tolerance)
            torch.testing.assert_close(optimizer.state[parameter]["sum"], update.accumulator, rtol=1e-6, atol=0)
            torch.testing.assert_close(factor, update.factor, rtol=1e-6, atol=0)
            moved = (update.weight - old).abs().amax() if old.numel() else torch.zeros((), dtype=dtype)
            torch.testing.assert_close(norm, moved, rtol=1e-4, atol=1e-6)
    assert int(optimizer.clipped_steps) == 4
    assert all(float(optimizer.state[p]["step"]) == 4 for p in parameters)


@pytest.mark.parametrize("foreach", FORMS)
@pytest.mark.parametrize("theirs", [True, False], ids=["torch foreach", "torch single"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("maximize", [False, True])
def test_adagrad_bit_for_bit_where_nothing_can_be_clipped(
    foreach: bool | None, theirs: bool, dtype: torch.dtype, maximize: bool
) -> None:
    ours = make(dtype=dtype)
    reference = copies(ours)
    with pytest.warns(UserWarning, match="can never clip"):
        optimizer = ClippyAdagrad(ours, 0.01, eps=1e-10, maximize=maximize, foreach=foreach)
    adagrad = torch.optim.Adagrad(
        reference, lr=0.01, eps=1e-10, initial_accumulator_value=0.1, maximize=maximize, foreach=theirs
    )
    for step in range(5):
        for parameters in (ours, reference):
            set_gradients(parameters, step, scale=10.0 ** (step - 2))
        optimizer.step()
        adagrad.step()
    assert bits(optimizer) == bits(adagrad)


def assert_bound(before: Tensor, after: Tensor, options: ClippyOptions) -> None:
    """As in test_clippy.py, where the 32 units are accounted for."""
    unit = torch.finfo(before.dtype).eps / 2
    old, new = before.double(), after.double()
    allowed = options.lambda_rel * old.abs() + options.lambda_abs
    rounding = unit * torch.maximum(old.abs(), new.abs())
    assert bool(((new - old).abs() <= allowed * (1 + 32 * unit) + rounding + 1e-26).all())


@pytest.mark.parametrize("foreach", FORMS)
@pytest.mark.parametrize("accumulator", ["standard", "delayed"])
@pytest.mark.parametrize("absolute", [1e-2, 0.0])
def test_bound_holds_for_thousands_of_extreme_tensors(foreach: bool | None, accumulator: Any, absolute: float) -> None:
    generator = torch.Generator().manual_seed(1)

    def extreme(count: int, low: float, high: float) -> Tensor:
        exponents = torch.empty(count).uniform_(low, high, generator=generator)
        values = 10**exponents * torch.randn(count, generator=generator).sign()
        return values * (torch.rand(count, generator=generator) > 0.1)

    parameters = [nn.Parameter(extreme(5, -20, 15)) for _ in range(500)]
    options = ClippyOptions(lambda_abs=absolute, accumulator=accumulator, initial_accumulator_value=0.0)
    optimizer = ClippyAdagrad(parameters, 3.0, foreach=foreach, **options.as_dict())
    for _ in range(3):
        before = [p.detach().clone() for p in parameters]
        for parameter in parameters:
            parameter.grad = extreme(5, -30, 18)
        optimizer.step()
        for old, parameter in zip(before, parameters, strict=True):
            assert_bound(old, parameter.detach(), options)
    assert int(optimizer.skipped_steps) == 0


@pytest.mark.parametrize("foreach", FORMS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30], ids=str)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"accumulator": "delayed", "clip_accumulator_update": True}], ids=["paper", "delayed"]
)
def test_a_gradient_that_is_not_finite_changes_no_bit(
    foreach: bool | None, bad: float, maximize: bool, options: dict[str, Any]
) -> None:
    parameters = make()
    with torch.no_grad():
        parameters[1][:2] = torch.tensor([0.0, -0.0])
    optimizer = ClippyAdagrad(
        [("first", parameters[0]), *((f"layer{i}", p) for i, p in enumerate(parameters[1:], start=1))],
        0.3,
        weight_decay=0.1,
        maximize=maximize,
        foreach=foreach,
        **options,
    )
    set_gradients(parameters, 0)
    optimizer.step()
    with torch.no_grad():
        parameters[1][:2] = torch.tensor([0.0, -0.0])
    before = bits(optimizer)
    set_gradients(parameters, 1)
    parameters[5].grad[3, 4] = bad
    optimizer.step()
    assert bits(optimizer) == before
    assert int(optimizer.skipped_steps) == 1
    assert optimizer.nonfinite_parameters() == ["layer5"]
    assert all(float(factor) == 0 for factor in optimizer.clipping_factors().values())
    set_gradients(parameters, 2)
    optimizer.step()
    assert bits(optimizer) != before
    assert int(optimizer.skipped_steps) == 1
    assert optimizer.nonfinite_parameters() == []


@pytest.mark.parametrize("foreach", FORMS)
@pytest.mark.parametrize("flag", [torch.tensor(False), torch.tensor(0.0), torch.tensor(0)], ids=str)
def test_two_phases(foreach: bool | None, flag: Tensor) -> None:
    ours, reference = make(), make()
    optimizer = ClippyAdagrad(ours, 0.3, weight_decay=0.01, foreach=foreach)
    other = ClippyAdagrad(reference, 0.3, weight_decay=0.01, foreach=foreach)
    set_gradients(ours, 0)
    before = bits(optimizer)
    measurement = optimizer.measure()
    assert bool(measurement.finite)
    assert bits(optimizer) == before
    optimizer.step(measurement=measurement, apply_if=flag)
    assert bits(optimizer) == before
    assert int(optimizer.skipped_steps) == 1
    optimizer.step(measurement=optimizer.measure(), apply_if=flag == 0)
    set_gradients(reference, 0)
    other.step()
    assert bits(optimizer) == bits(other)
    ours[0].grad[0, 0] = math.nan
    before, measurement = bits(optimizer), optimizer.measure()
    assert not bool(measurement.finite)
    optimizer.step(measurement=measurement, apply_if=torch.tensor(True))
    assert bits(optimizer) == before
    with pytest.raises(ValueError, match="pass one of them"):
        optimizer.step(lambda: 1.0, measurement=measurement)


def test_gradients_are_released_after_the_step() -> None:
    parameters = make()
    optimizer = ClippyAdagrad(parameters, 0.3)
    set_gradients(parameters, 0)
    gradient = weakref.ref(parameters[0].grad)
    optimizer.step()
    optimizer.zero_grad()
    assert gradient() is None


class HostReads(TorchDispatchMode):
    """Counts what would wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._opname in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique_dim"):
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("lr", [0.3, torch.tensor(0.3)], ids=["float", "tensor"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_foreach_reads_nothing_on_the_host(lr: float | Tensor, options: dict[str, Any]) -> None:
    parameters = make()
    optimizer = ClippyAdagrad(parameters, lr, weight_decay=0.1, foreach=True, **options)
    set_gradients(parameters, 0)
    with HostReads() as reads:
        optimizer.step()
        optimizer.clipping_factors()
        optimizer.update_norms()
    assert reads.count == 0


@pytest.mark.parametrize("foreach", FORMS)
@pytest.mark.parametrize("sparse_dimensions", [1, 2])
def test_sparse_equals_dense_on_touched_rows(foreach: bool | None, sparse_dimensions: int) -> None:
    table = torch.randn(10, 4, 3, generator=torch.Generator().manual_seed(0))
    dense, sparse = nn.Parameter(table.clone()), nn.Parameter(table.clone())
    optimizers = [ClippyAdagrad([p], 0.5, foreach=foreach) for p in (dense, sparse)]
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(0, 10, (5,), generator=generator)
        rows[1] = rows[0]  # summed before squaring
        values = torch.randn(5, 4, 3, generator=generator) * 5
        gradient = torch.sparse_coo_tensor(rows.unsqueeze(0), values, (10, 4, 3))
        dense.grad = gradient.to_dense()
        sparse.grad = gradient if sparse_dimensions == 1 else dense.grad.to_sparse(2)
        for optimizer in optimizers:
            optimizer.step()
        assert float(optimizers[0].clipping_factors()["0.0"]) < 1
        assert optimizers[0].clipping_factors() == optimizers[1].clipping_factors()
        assert bits(optimizers[0]) == bits(optimizers[1])


@pytest.mark.parametrize("foreach", FORMS)
def test_sparse_gradients_of_an_embedding(foreach: bool | None) -> None:
    embedding = nn.EmbeddingBag(20, 4, sparse=True, mode="sum")
    linear = nn.Linear(4, 1)
    optimizer = ClippyAdagrad([*embedding.parameters(), *linear.parameters()], 0.5, foreach=foreach)
    before = embedding.weight.detach().clone()
    linear(embedding(torch.tensor([[1, 2, 2], [5, 1, 2]]))).mul(1e3).sum().backward()
    optimizer.step()
    moved = (embedding.weight.detach() != before).any(dim=1).nonzero().flatten().tolist()
    assert moved == [1, 2, 5]
    assert_bound(before, embedding.weight.detach(), ClippyOptions())
    before_bits = bits(optimizer)
    embedding.weight.grad = torch.sparse_coo_tensor(torch.tensor([[3]]), torch.full((1, 4), math.nan), (20, 4))
    optimizer.step()
    assert bits(optimizer) == before_bits
    embedding.weight.grad = torch.sparse_coo_tensor(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(0, 4), (20, 4))
    linear.zero_grad()
    optimizer.step()
    assert int(optimizer.skipped_steps) == 1


def test_sparse_gradients_with_weight_decay_are_refused() -> None:
    parameter = nn.Parameter(torch.randn(4, 2))
    parameter.grad = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1, 2), (4, 2))
    optimizer = ClippyAdagrad([parameter], 0.5, weight_decay=0.1)
    with pytest.raises(ValueError, match=r"weight_decay=0\.1.*put the parameter into a group with weight_decay=0"):
        optimizer.step()


@pytest.mark.parametrize("foreach", FORMS)
@pytest.mark.parametrize("lr", [0.3, torch.tensor(0.3), torch.tensor([0.3])], ids=["float", "0-dim", "1-element"])
def test_weight_decay_is_decoupled(foreach: bool | None, lr: float | Tensor) -> None:
    decayed, plain = make(), make()
    optimizers = [
        ClippyAdagrad(decayed, lr, weight_decay=0.1, foreach=foreach),
        ClippyAdagrad(plain, 0.3, foreach=foreach),
    ]
    before = copies(plain)
    for parameters, optimizer in zip((decayed, plain), optimizers, strict=True):
        set_gradients(parameters, 0)
        optimizer.step()
    for one, other, old in zip(decayed, plain, before, strict=True):
        torch.testing.assert_close(one.detach(), other.detach() - 0.03 * old.detach())


@pytest.mark.parametrize("foreach", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_float32_arithmetic_and_state(foreach: bool | None, dtype: torch.dtype) -> None:
    parameters = make(dtype=dtype)
    optimizer = ClippyAdagrad(parameters, 0.3, foreach=foreach)
    state = [torch.full(p.shape, 0.1) for p in parameters]
    for step in range(3):
        set_gradients(parameters, step)
        old = [p.detach().clone() for p in parameters]
        optimizer.step()
        for index, (parameter, weight) in enumerate(zip(parameters, old, strict=True)):
            update = clippy_update(weight.float(), parameter.grad.float(), state[index], 0.3)
            state[index] = update.accumulator
            assert parameter.dtype == dtype
            assert optimizer.state[parameter]["sum"].dtype == torch.float32
            torch.testing.assert_close(optimizer.state[parameter]["sum"], update.accumulator)
            torch.testing.assert_close(parameter.detach(), update.weight.to(dtype), rtol=1e-2, atol=1e-6)
    saved = copy.deepcopy(optimizer.state_dict())
    again = ClippyAdagrad(parameters, 0.3, foreach=foreach)
    again.load_state_dict(saved)
    assert bits(again) == bits(optimizer)


@pytest.mark.parametrize("foreach", FORMS)
def test_memory_layouts(foreach: bool | None) -> None:
    base = torch.randn(6, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    gradient = torch.randn(6, 8, 4, 4, generator=torch.Generator().manual_seed(1)) * 5
    layouts = {
        "plain": base.clone(),
        "channels last": base.clone().to(memory_format=torch.channels_last),
        "transposed": base.clone().transpose(0, 1).contiguous().transpose(0, 1),
        "strided": torch.empty(6, 8, 4, 8)[..., ::2].copy_(base),
    }
    results = []
    for values in layouts.values():
        parameter = nn.Parameter(values)
        optimizer = ClippyAdagrad([parameter], 0.5, foreach=foreach)
        for one in (gradient, gradient.flip(0), torch.ones(1, 1, 1, 1).expand(6, 8, 4, 4)):
            parameter.grad = one
            optimizer.step()
        results.append((parameter.detach(), optimizer.state[parameter]["sum"]))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-6, atol=1e-7)


def test_result_does_not_depend_on_threads() -> None:
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        parameters = make()
        optimizer = ClippyAdagrad(parameters, 0.3)
        for step in range(3):
            set_gradients(parameters, step, scale=3.0)
            optimizer.step()
        results.append(bits(optimizer))
    assert results[0] == results[1]


def test_state_round_trip() -> None:
    parameters = make()
    optimizer = ClippyAdagrad(
        [{"params": parameters[:2], "lr": 0.5}, {"params": parameters[2:], "lambda_rel": 0.1}],
        0.3,
        accumulator="delayed",
        accumulator_relative_threshold=1e-3,
    )
    set_gradients(parameters, 0)
    optimizer.step()
    saved = pickle.loads(pickle.dumps(optimizer.state_dict()))
    others = copies(parameters)
    again = ClippyAdagrad([{"params": others[:2]}, {"params": others[2:]}], 0.02)
    again.load_state_dict(saved)
    for one, other in zip(optimizer.param_groups, again.param_groups, strict=True):
        assert all(one[name] == other[name] for name in one if name != "params")
    for own in (parameters, others):
        set_gradients(own, 1)
    optimizer.step()
    again.step()
    assert bits(optimizer) == bits(again)


def test_copies_and_pickles_keep_everything() -> None:
    parameters = make()
    optimizer = ClippyAdagrad(parameters, 0.3)
    set_gradients(parameters, 0)
    parameters[0].grad[0, 0] = math.inf
    optimizer.step()
    for again in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert bits(again) == bits(optimizer)
        assert int(again.skipped_steps) == 1
        again.step()


@pytest.mark.parametrize("theirs", [{"foreach": True}, {"fused": True}], ids=["foreach", "fused"])
def test_loading_an_adagrad(theirs: dict[str, bool]) -> None:
    parameters = make()
    adagrad = torch.optim.Adagrad(parameters, lr=0.05, initial_accumulator_value=0.2, weight_decay=0.1, **theirs)
    for step in range(3):
        set_gradients(parameters, step)
        adagrad.step()
    others = copies(parameters)
    optimizer = ClippyAdagrad(others, 0.3, lambda_rel=0.25, weight_decay=0.01)
    optimizer.load_state_dict(adagrad.state_dict())
    group = optimizer.param_groups[0]
    assert (group["lr"], group["lambda_rel"], group["weight_decay"]) == (0.05, 0.25, 0.01)
    for parameter, other in zip(parameters, others, strict=True):
        assert torch.equal(adagrad.state[parameter]["sum"], optimizer.state[other]["sum"])
        assert float(optimizer.state[other]["step"]) == 3
    set_gradients(others, 3)
    optimizer.step()
    assert float(adagrad.state[parameters[0]]["step"]) == 3  # nothing is shared


def test_older_states_get_defaults() -> None:
    optimizer = ClippyAdagrad(make(), 0.3)
    state = optimizer.__getstate__()
    for group in state["param_groups"]:
        del group["lambda_rel"], group["foreach"]
    again = ClippyAdagrad.__new__(ClippyAdagrad)
    again.__setstate__(state)
    assert again.param_groups[0]["lambda_rel"] == 0.5
    again.step()


def test_schedulers_and_tensor_learning_rate() -> None:
    tensors, floats = make(), make()
    optimizers = [ClippyAdagrad(tensors, torch.tensor(0.3)), ClippyAdagrad(floats, 0.3)]
    schedulers = [torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, total_iters=5) for o in optimizers]
    for step in range(6):
        for parameters, optimizer, scheduler in zip((tensors, floats), optimizers, schedulers, strict=True):
            set_gradients(parameters, step)
            optimizer.step()
            scheduler.step()
    for one, other in zip(tensors, floats, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_gradient_scaler() -> None:
    parameters = make()
    optimizer = ClippyAdagrad(parameters, 0.3)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = bits(optimizer)
    scaler.scale(sum((p * math.inf).sum() for p in parameters[:2])).backward()
    scaler.step(optimizer)
    scaler.update()
    assert bits(optimizer) == before


def test_closure() -> None:
    parameter = nn.Parameter(torch.tensor([1.0]))
    optimizer = ClippyAdagrad([parameter], 0.3)

    def closure() -> float:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 1.0
    assert parameter.item() < 1


def test_groups_added_later() -> None:
    first, second = make(0), make(1)
    optimizer = ClippyAdagrad(first, 0.3)
    optimizer.add_param_group({"params": second, "lambda_rel": 0.1})
    set_gradients(first + second, 0)
    optimizer.step()
    assert list(optimizer.clipping_factors()) == [f"{g}.{i}" for g in (0, 1) for i in range(len(SHAPES))]
    empty = ClippyAdagrad([{"params": []}], 0.3)
    empty.step()


def test_parameters_without_gradient_stay() -> None:
    parameters = make()
    optimizer = ClippyAdagrad(parameters, 0.3)
    before = bits(optimizer)
    optimizer.step()
    assert bits(optimizer) == before
    parameters[0].grad = torch.ones_like(parameters[0])
    optimizer.step()
    assert bits(optimizer)[3:] == before[3:]
    assert float(optimizer.clipping_factors()["0.1"]) == 1
    assert float(optimizer.update_norms()["0.1"]) == 0


def test_mixed_dtypes_in_one_group() -> None:
    parameters = [*make(dtype=torch.float64), *make(dtype=torch.float32), *make(dtype=torch.bfloat16)]
    optimizer = ClippyAdagrad(parameters, 0.3)
    set_gradients(parameters, 0)
    old = [p.detach().clone() for p in parameters]
    optimizer.step()
    for parameter, weight in zip(parameters[: len(SHAPES)], old, strict=False):
        update = clippy_update(weight, parameter.grad, torch.full_like(weight, 0.1), 0.3)
        torch.testing.assert_close(parameter.detach(), update.weight, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "lr is -0.1; it must be a number of at least 0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"lr": torch.tensor([0.1, 0.2])}, r"lr is a tensor of shape \(2,\); it must have one element"),
        ({"lambda_rel": -1.0}, "lambda_rel is -1.0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; it must be a number of at least 0"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClippyAdagrad(make(), **{"lr": 0.1, **options})
    with pytest.raises(ValueError, match=message):
        ClippyAdagrad([{"params": make(), **options}], 0.1)


def test_unknown_option_and_complex_parameter() -> None:
    with pytest.raises(ValueError, match="lambda_rell is no option of ClippyAdagrad; lambda_rel was probably meant"):
        ClippyAdagrad([{"params": make(), "lambda_rell": 0.1}], 0.1)
    ClippyAdagrad([{"params": make(), "name": "head"}], 0.1)
    with pytest.raises(ValueError, match=r"complex64; .*view_as_real"):
        ClippyAdagrad([nn.Parameter(torch.zeros(2, dtype=torch.complex64))], 0.1)


def test_warning_only_where_nothing_can_be_clipped() -> None:
    with pytest.warns(UserWarning, match=r"can never clip at lr=0\.005: .* raise lr above lambda_abs") as caught:
        ClippyAdagrad(make(), 0.005)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ClippyAdagrad(make(), 0.02)
        ClippyAdagrad(make(), 0.005, accumulator="delayed")


class TestDefectsOfOtherPorts:
    """Errors of the public PyTorch port, one test each; the numbers are those of docs/clippy.md."""

    def test_1_sparse_gradients_are_clipped(self) -> None:
        parameter = nn.Parameter(torch.full((3, 1), 0.001))
        parameter.grad = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.tensor([[1e3]]), (3, 1))
        ClippyAdagrad([parameter], 1.0).step()
        assert float((parameter[1] - 0.001).abs()) == pytest.approx(0.0105, rel=1e-5)

    def test_2_factor_has_the_precision_of_the_parameter(self) -> None:
        parameter = nn.Parameter(torch.tensor([0.3], dtype=torch.float64))
        parameter.grad = torch.tensor([1e3], dtype=torch.float64)
        ClippyAdagrad([parameter], 1.0).step()
        assert float(parameter) == pytest.approx(0.3 - 0.16, rel=1e-15)

    @pytest.mark.parametrize("order", [1, -1])
    def test_3_sparse_gradients_beside_other_dtypes(self, order: int) -> None:
        dense = nn.Parameter(torch.ones(3, dtype=torch.float64))
        sparse = nn.Parameter(torch.ones(3, 1))
        dense.grad = torch.ones_like(dense)
        sparse.grad = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1, 1), (3, 1))
        ClippyAdagrad([dense, sparse][::order], 0.1, maximize=True, foreach=True).step()
        assert bool((dense > 1).all())
        assert float(sparse[1]) > 1

    @pytest.mark.parametrize("foreach", FORMS)
    def test_4_zero_over_zero(self, foreach: bool | None) -> None:
        parameter = nn.Parameter(torch.tensor([0.0, 1.0]))
        parameter.grad = torch.tensor([0.0, 1.0])
        optimizer = ClippyAdagrad(
            [parameter], 0.1, lambda_abs=0.0, initial_accumulator_value=0.0, eps=0.0, foreach=foreach
        )
        optimizer.step()
        assert parameter.tolist() == pytest.approx([0.0, 0.9])
        parameter.grad = torch.tensor([1.0, 1.0])  # may not move from 0, and its tensor with it
        optimizer.step()
        assert parameter.tolist() == pytest.approx([0.0, 0.9])
        assert float(optimizer.clipping_factors()["0.0"]) == 0

    def test_5_empty_parameter(self) -> None:
        parameter = nn.Parameter(torch.zeros(0))
        parameter.grad = torch.zeros(0)
        ClippyAdagrad([parameter], 0.1).step()

    def test_6_first_update_follows_the_gradient(self) -> None:
        moves = []
        for size in (1e-6, 1e-3):
            parameter = nn.Parameter(torch.ones(1, dtype=torch.float64))
            parameter.grad = torch.full((1,), size, dtype=torch.float64)
            ClippyAdagrad([parameter], 0.1).step()
            moves.append(1 - float(parameter))
        assert moves[1] / moves[0] == pytest.approx(1000, rel=1e-3)
