"""Every architecture against a literal, loop-written version of its equations, its parameter formula and its promises."""

from __future__ import annotations

import shutil

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.registry import registry
from dlrm_mtl.core.schema import validate
from dlrm_mtl.models.blocks import ParallelMLP
from dlrm_mtl.models.config import ModelConfig
from dlrm_mtl.models.multitask import MultitaskConfig, build_multitask
from dlrm_mtl.models.multitask.adatt import AdaTT, AdaTTConfig, AdaTTSpConfig
from dlrm_mtl.models.multitask.aitm import AITM, AITMConfig
from dlrm_mtl.models.multitask.cross_stitch import CrossStitch, CrossStitchConfig
from dlrm_mtl.models.multitask.multi_level_mmoe import MultiLevelMMoE, MultiLevelMMoEConfig
from dlrm_mtl.models.multitask.omoe import OMoE, OMoEConfig
from dlrm_mtl.models.multitask.ple import PLE, PLEConfig
from dlrm_mtl.models.multitask.single_task import SingleTask

WIDTH, TASKS = 7, 3
TWO_LEVELS = [[6, 5], [4]]
SMALL = {
    "shared_bottom": {"layers": [8, 4]},
    "single_task": {"layers": [8, 4]},
    "omoe": {"experts": 3, "layers": [8]},
    "mmoe": {"experts": 3, "layers": [8]},
    "multi_level_mmoe": {"experts": 3, "levels": TWO_LEVELS},
    "ple": {"task_experts": [2, 1, 3], "shared_experts": 2, "levels": TWO_LEVELS},
    "cross_stitch": {"levels": TWO_LEVELS},
    "adatt_sp": {"task_experts": 2, "levels": TWO_LEVELS},
    "adatt": {"task_experts": [2, 1, 3], "shared_experts": 2, "levels": TWO_LEVELS},
    "aitm": {"layers": [8, 4]},
}


def small(name: str, **changes: object) -> MultitaskConfig:
    return TypeAdapter(MultitaskConfig).validate_python({"name": name, **SMALL[name], **changes})


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def P(width: int, layers: list[int]) -> int:
    return sum(h * (d + 1) for d, h in zip([width, *layers], layers, strict=False))


def widths(levels: list[list[int]]) -> list[int]:
    return [WIDTH, *(layers[-1] for layers in levels)]


def literal_stack(stack: ParallelMLP, number: int, x: Tensor) -> Tensor:
    for layer in stack.layers:
        if hasattr(layer, "weight"):
            x = torch.relu(F.linear(x, layer.weight[number], layer.bias[number]))
    return x


def literal_gates(gates: nn.Module, sees: list[list[int]], inputs: list[Tensor]) -> list[Tensor]:
    """Each gate's weights over the experts it sees, [B, len(seen)]."""
    weights, row = [], 0
    for seen, x in zip(sees, inputs, strict=True):
        rows = slice(row, row + len(seen))
        weights.append(torch.softmax(F.linear(x, gates.weight[rows], gates.bias[rows]), dim=1))
        row += len(seen)
    assert row == len(gates.weight)
    return weights


def close(actual: Tensor, expected: list[Tensor]) -> None:
    torch.testing.assert_close(actual, torch.stack(expected, dim=1), rtol=1e-6, atol=1e-6)


def test_every_architecture_is_covered_here() -> None:
    assert set(SMALL) == set(registry("architecture").described())
    assert all(registry("architecture").described().values())
    assert all(
        not module.__module__.endswith("ranker") for module in (entry.part for entry in registry("architecture"))
    )


def test_single_task() -> None:
    module = build_multitask(small("single_task"), WIDTH, TASKS)
    assert isinstance(module, SingleTask)
    assert size(module) == TASKS * P(WIDTH, [8, 4])
    x = torch.randn(5, WIDTH)
    close(module(x), [literal_stack(module.bottoms, t, x) for t in range(TASKS)])


@pytest.mark.parametrize(("experts", "layers"), [(1, [4]), (3, [8, 5])])
def test_omoe(experts: int, layers: list[int]) -> None:
    module = OMoE(OMoEConfig(experts=experts, layers=layers), WIDTH, TASKS)
    assert size(module) == experts * P(WIDTH, layers) + (WIDTH + 1) * experts
    x = torch.randn(5, WIDTH)
    gate = torch.softmax(F.linear(x, module.gate.weight[0], module.gate.bias[0]), dim=1)
    mixed = sum(gate[:, e : e + 1] * literal_stack(module.experts, e, x) for e in range(experts))
    close(module(x), [mixed] * TASKS)


@pytest.mark.parametrize(("experts", "levels"), [(3, [[4]]), (2, TWO_LEVELS), (4, [[5], [4], [3]])])
def test_multi_level_mmoe(experts: int, levels: list[list[int]]) -> None:
    module = MultiLevelMMoE(MultiLevelMMoEConfig(experts=experts, levels=levels), WIDTH, TASKS)
    d, last = widths(levels), len(levels) - 1
    assert size(module) == sum(
        experts * P(d[n], levels[n]) + (TASKS if n == last else experts) * experts * (WIDTH + 1)
        for n in range(len(levels))
    )
    x = torch.randn(5, WIDTH)
    slots = [x] * experts
    for n in range(len(levels)):
        outputs = [literal_stack(module.experts[n], e, slots[e]) for e in range(experts)]
        gates = TASKS if n == last else experts
        weights = literal_gates(module.gates[n], [list(range(experts))] * gates, [x] * gates)
        slots = [sum(w[:, e : e + 1] * outputs[e] for e in range(experts)) for w in weights]
    close(module(x), slots)


@pytest.mark.parametrize("levels", [[[4]], TWO_LEVELS, [[5], [4], [3]]])
@pytest.mark.parametrize(("counts", "shared"), [([1, 1, 1], 1), ([2, 2, 2], 3), ([2, 1, 3], 2), ([2, 1, 1], 0)])
def test_ple(levels: list[list[int]], counts: list[int], shared: int) -> None:
    module = PLE(PLEConfig(levels=levels, task_experts=counts, shared_experts=shared), WIDTH, TASKS)
    d, M = widths(levels), sum(counts)
    assert size(module) == sum(
        (M + shared) * P(d[n], levels[n])
        + (M + TASKS * shared) * (d[n] + 1)
        + (M + shared) * (d[n] + 1) * (n < len(levels) - 1 and shared > 0)
        for n in range(len(levels))
    )
    x = torch.randn(5, WIDTH)
    unit = [t for t, m in enumerate(counts) for _ in range(m)] + [TASKS] * shared
    slots = [x] * (TASKS + 1)
    for n, level in enumerate(module.levels):
        outputs = [literal_stack(level.experts, e, slots[unit[e]]) for e in range(M + shared)]
        sees = [[e for e, u in enumerate(unit) if u in (t, TASKS)] for t in range(TASKS)]
        if shared and n < len(levels) - 1:
            sees.append(list(range(M + shared)))  # the shared gate sees all experts; the last level has none
        weights = literal_gates(level.gates, sees, slots[: len(sees)])
        slots = [
            sum(w[:, i : i + 1] * outputs[e] for i, e in enumerate(seen)) for w, seen in zip(weights, sees, strict=True)
        ]
    assert len(slots) == TASKS
    close(module(x), slots)


def test_ple_formula_of_equal_counts() -> None:
    """The formula in the form in which it is usually written, for T tasks of m experts each."""
    m, shared = 2, 3
    module = build_multitask(small("ple", task_experts=m, shared_experts=shared), WIDTH, TASKS)
    d, E = widths(TWO_LEVELS), TASKS * m + shared
    assert size(module) == sum(
        E * P(d[n], TWO_LEVELS[n]) + TASKS * (m + shared) * (d[n] + 1) + (n == 0) * E * (d[n] + 1) for n in range(2)
    )


@pytest.mark.parametrize("levels", [[[4]], TWO_LEVELS])
def test_cross_stitch(levels: list[list[int]]) -> None:
    module = CrossStitch(CrossStitchConfig(levels=levels, start="uniform"), WIDTH, TASKS)
    d = widths(levels)
    assert size(module) == sum(TASKS * P(d[n], levels[n]) + TASKS**2 for n in range(len(levels)))
    x = torch.randn(5, WIDTH)
    slots = [x] * TASKS
    for stack, stitch in zip(module.stacks, module.stitches, strict=True):
        outputs = [literal_stack(stack, t, slots[t]) for t in range(TASKS)]
        slots = [sum(stitch[t, s] * outputs[s] for s in range(TASKS)) for t in range(TASKS)]
    close(module(x), slots)


def test_cross_stitch_starts() -> None:
    def start(name: str, tasks: int = TASKS) -> Tensor:
        return CrossStitch(CrossStitchConfig(levels=[[4]], start=name), WIDTH, tasks).stitches[0].detach()

    near = start("near_identity")
    torch.testing.assert_close(near.diagonal(), torch.full((TASKS,), 0.9))
    torch.testing.assert_close(near.sum(1), torch.ones(TASKS))
    assert torch.equal(start("near_identity", 1), torch.ones(1, 1))
    assert torch.equal(start("ones"), torch.ones(TASKS, TASKS))
    assert start("uniform").abs().max() <= TASKS**-0.5


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("levels", [[[4]], TWO_LEVELS, [[5], [4], [3]]])
@pytest.mark.parametrize(("counts", "shared"), [([1, 1, 1], 1), ([2, 2, 2], 1), ([2, 1, 3], 2), ([2, 2, 2], 0)])
def test_adatt(levels: list[list[int]], counts: list[int], shared: int, residual: bool) -> None:
    config = AdaTTConfig(levels=levels, task_experts=counts, shared_experts=shared, residual=residual)
    module = AdaTT(config, WIDTH, TASKS)
    units = [*counts, shared] if shared else counts
    d, M, E, L = widths(levels), sum(counts), sum(units), len(levels)
    learned = residual and set(units) != {1}
    assert size(module) == sum(
        E * P(d[n], levels[n]) + (TASKS if n == L - 1 else len(units)) * E * (d[n] + 1) for n in range(L)
    ) + learned * (L * M + (L - 1) * shared)
    assert all(parameter.numel() > 0 for parameter in module.parameters())
    x = torch.randn(5, WIDTH)
    unit = [u for u, m in enumerate(units) for _ in range(m)]
    slots = [x] * len(units)
    for n, level in enumerate(module.levels):
        outputs = [literal_stack(level.experts, e, slots[unit[e]]) for e in range(E)]
        fused = TASKS if n == L - 1 else len(units)
        gates = literal_gates(level.gates, [list(range(E))] * fused, slots[:fused])
        native = iter(level.native if learned else torch.ones(E))
        following = []
        for u in range(fused):
            mixed = sum(gates[u][:, e : e + 1] * outputs[e] for e in range(E))
            if residual:
                mixed = mixed + sum(next(native) * outputs[e] for e in range(E) if unit[e] == u)
            following.append(mixed)
        slots = following
    close(module(x), slots)


def test_adatt_is_native_weights_plus_gates_times_experts() -> None:
    level = build_multitask(small("adatt_sp", levels=[[4]]), WIDTH, TASKS).levels[0]
    x = torch.randn(5, WIDTH)
    v = torch.block_diag(*level.native.view(TASKS, 1, 2))
    torch.testing.assert_close(level(x), torch.einsum("bte,bed->btd", v + level.gates(x), level.experts(x)))
    assert level.native.abs().max() <= 2**-0.5


def test_adatt_with_single_experts_adds_each_tasks_own_expert() -> None:
    module = build_multitask(small("adatt_sp", levels=[[4]], task_experts=1), WIDTH, TASKS)
    bare = build_multitask(small("adatt_sp", levels=[[4]], task_experts=1, residual=False), WIDTH, TASKS)
    bare.load_state_dict(module.state_dict())
    x = torch.randn(5, WIDTH)
    torch.testing.assert_close(module(x) - bare(x), module.levels[0].experts(x))


def test_adatt_without_shared_experts_is_adatt_sp() -> None:
    sp = build_multitask(small("adatt_sp"), WIDTH, TASKS)
    general = build_multitask(small("adatt", task_experts=2, shared_experts=0), WIDTH, TASKS)
    general.load_state_dict(sp.state_dict())
    x = torch.randn(5, WIDTH)
    assert torch.equal(general(x), sp(x))


@pytest.mark.parametrize("tasks", [1, 2, 4])
@pytest.mark.parametrize("transfer", ["linear", "layer"])
def test_aitm(tasks: int, transfer: str) -> None:
    module = AITM(AITMConfig(layers=[8, 4], transfer=transfer), WIDTH, tasks)
    k = 4
    assert size(module) == tasks * P(WIDTH, [8, 4]) + (tasks - 1) * (k * k + k) + (tasks > 1) * 3 * (k * k + k)
    x = torch.randn(5, WIDTH)
    own = [literal_stack(module.bottoms, t, x) for t in range(tasks)]
    states = [own[0]]
    for t in range(1, tasks):
        step, h = module.transfers[t - 1], module.attention
        handed = step(states[-1]) if transfer == "linear" else literal_stack(step.stack, 0, states[-1])
        values, scores = [], []
        for token in (handed, own[t]):
            v, key, query = (F.linear(token, h.weight[n], h.bias[n]) for n in range(3))
            values.append(v)
            scores.append((key * query).sum(1) / k**0.5)
        weights = torch.softmax(torch.stack(scores, dim=1), dim=1)
        states.append(weights[:, :1] * values[0] + weights[:, 1:] * values[1])
    close(module(x), states)


def test_aitm_calibrator() -> None:
    module = AITM(AITMConfig(layers=[4], calibrator=0.5), WIDTH, 3)
    p = torch.tensor([[0.5, 0.25, 0.125], [0.25, 0.5, 0.75], [0.5, 0.25, 0.5]])
    torch.testing.assert_close(module.penalty(torch.logit(p)), torch.tensor([0.0, 0.25, 0.125]))
    assert AITM(AITMConfig(layers=[4], calibrator=0), WIDTH, 3).penalty(p) is None
    assert AITM(AITMConfig(layers=[4]), WIDTH, 1).penalty(p) is None


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("tasks", [1, 3])
def test_rows_are_independent_and_every_parameter_learns(name: str, tasks: int) -> None:
    changes = {"task_experts": 2} if tasks == 1 and "task_experts" in SMALL[name] else {}
    torch.manual_seed(3)
    module = build_multitask(small(name, activation="prelu", norm="layer", **changes), WIDTH, tasks)
    x = torch.randn(6, WIDTH)
    out = module(x)
    assert out.shape == (6, tasks, module.out_features)
    torch.testing.assert_close(module(x[2:3]), out[2:3], rtol=1e-5, atol=1e-6)
    assert module(x[:0]).shape == (0, tasks, module.out_features)
    (out * torch.randn_like(out)).sum().backward()
    for parameter_name, parameter in module.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("rows", [0, 1])
def test_the_smallest_batches_have_gradients(name: str, rows: int) -> None:
    module = build_multitask(small(name, activation="dice", norm="batch"), WIDTH, TASKS)
    module(torch.randn(rows, WIDTH)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    assert all(buffer.isfinite().all() for buffer in module.buffers())


@pytest.mark.parametrize("name", SMALL)
def test_graphs_have_no_breaks(name: str) -> None:
    torch.manual_seed(0)
    module = build_multitask(small(name), WIDTH, TASKS)
    x = torch.randn(6, WIDTH)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("name", SMALL)
def test_compiles(name: str) -> None:
    module = build_multitask(small(name), WIDTH, TASKS)
    x = torch.randn(6, WIDTH)
    expected = module(x)
    torch.testing.assert_close(torch.compile(module, fullgraph=True)(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("multitask", "sentence"),
    [
        ({"name": "ple", "levels": []}, "run.yaml: multitask.levels: levels [] has no level"),
        ({"name": "ple", "levels": [[8], []]}, "run.yaml: multitask.levels: levels [[8], []] has no level or one"),
        ({"name": "adatt", "levels": [[8], [-4]]}, "run.yaml: multitask.levels: levels [[8], [-4]] holds a width"),
        ({"name": "mmoe", "layers": [0]}, "run.yaml: multitask.layers: layers [0] holds a width"),
        ({"name": "mmoe", "layers": [8], "experts": 0}, "run.yaml: multitask.experts: 0 does not fit"),
        ({"name": "ple", "levels": [[8]], "task_experts": [1, 0]}, "run.yaml: multitask.task_experts: [1, 0] does not"),
        ({"name": "ple", "levels": [[8]], "task_experts": "two"}, "run.yaml: multitask.task_experts: 'two' does not"),
        ({"name": "ple", "levels": [[8]], "shared_experts": -1}, "run.yaml: multitask.shared_experts: -1 does not fit"),
        ({"name": "cross_stitch", "levels": [[8]], "start": "one"}, "run.yaml: multitask.start: 'one' is not a choice"),
        ({"name": "mmoe", "layers": [8], "activation": "rellu"}, "did you mean 'relu'?"),
        ({"name": "mmoe", "layers": [8], "levels": [[8]]}, "run.yaml: multitask.levels: there is no key 'levels' here"),
        ({"name": "aitm", "layers": []}, "aitm needs one layer"),
        ({"name": "moe", "layers": [8]}, "run.yaml: multitask.name: 'moe' is not a choice; did you mean 'omoe'?"),
    ],
)
def test_mistakes_in_a_configuration(multitask: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        validate(ModelConfig, {"multitask": multitask}, "run.yaml")
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_expert_counts_that_do_not_fit_the_tasks() -> None:
    config = small("ple")
    with pytest.raises(ValueError, match=r"task_experts \[2, 1, 3\] has 3 entries and there are 2 tasks"):
        build_multitask(config, WIDTH, 2)
    assert config.task_experts == [2, 1, 3]
    with pytest.raises(ValidationError):
        AdaTTSpConfig(levels=[[4]], task_experts=True)
