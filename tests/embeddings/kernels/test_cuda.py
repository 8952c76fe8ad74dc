"""The Triton kernels against the plain ones: on CUDA where there is a device, else in Triton's interpreter on the CPU.

Triton decides when it is imported whether it interprets. So the checks run in a process of their own, which is this file run
as a program; no other test sees the interpreter.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import random
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dlrm_mtl.embeddings.kernels import reference
from dlrm_mtl.embeddings.kernels.layout import NON_FINITE, RowGradients, TableGroup, Update

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

CHECKS: dict[str, Callable[[str], None]] = {}
"""Name -> check of the kernels on a device ("cpu" for the interpreter, "cuda")."""

RULES = [
    Update(),
    Update(delayed=True, lambda_abs=1e-3, eps=1e-6, eps_inside=False),
    Update(per_row=True, lambda_rel=0.1, eps=1e-8),
    Update(kind="adagrad", eps=1e-8),
    Update(kind="sgd"),
]


@dataclasses.dataclass
class Case:
    """Random tables and a batch for them, on one device."""

    group: TableGroup
    state: Tensor
    indices: Tensor
    offsets: Tensor
    bags: int
    gradient: Tensor
    bag_weights: Tensor | None

    @property
    def batch(self) -> tuple[Tensor, Tensor, int]:
        return self.indices, self.offsets, self.bags


def check(*arguments: object) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function of the device, and of one of ``arguments`` if there are any."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        name = function.__name__
        for argument in arguments:
            CHECKS[f"{name}-{argument}"] = lambda device, argument=argument: function(device, argument)
        if not arguments:
            CHECKS[name] = function
        return function

    return register


def make_group(device: str, dims: list[int], rows: list[int], features: list[int], dtype: torch.dtype) -> TableGroup:
    sizes = torch.tensor([row * dim for row, dim in zip(rows, dims, strict=True)])
    return TableGroup(
        weights=torch.randn(int(sizes.sum())).to(device, dtype),
        weight_offsets=sizes.cumsum(0) - sizes,
        row_offsets=torch.tensor([0, *rows]).cumsum(0),
        dims=torch.tensor(dims),
        feature_tables=torch.tensor(features, dtype=torch.int64),
    )


def make_case(
    device: str,
    dims: list[int],
    rows: list[int],
    features: list[int],
    bags: int,
    longest: int = 5,
    weighted: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Case:
    group = make_group(device, dims, rows, features, dtype)
    lengths = torch.randint(0, longest + 1, (len(features) * bags,))
    ids = [torch.randint(0, rows[features[k // bags]], (length,)) for k, length in enumerate(lengths.tolist())]
    indices = torch.cat([torch.empty(0, dtype=torch.int64), *ids])
    return Case(
        group=group,
        state=(torch.rand(sum(rows)) + 0.1).to(device),
        indices=indices.to(device),
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(device),
        bags=bags,
        gradient=torch.randn(bags, sum(dims[table] for table in features)).to(device),
        bag_weights=torch.rand(len(indices)).to(device) if weighted else None,
    )


def random_case(device: str, seed: int) -> Case:
    torch.manual_seed(seed)
    choice = random.Random(seed)
    tables = choice.randint(1, 4)
    return make_case(
        device,
        dims=[choice.choice([4, 8, 12, 20, 64, 100, 256]) for _ in range(tables)],
        rows=[choice.choice([1, 3, 40, 200]) for _ in range(tables)],
        # Sorted draws: some tables serve several features, some none.
        features=sorted(choice.randrange(tables) for _ in range(choice.randint(1, 5))),
        bags=choice.choice([1, 2, 7, 19]),
        longest=choice.choice([1, 4, 9]),
        weighted=choice.random() < 0.5,
        dtype=torch.float16 if choice.random() < 0.3 else torch.float32,
    )


def near(actual: Tensor, expected: Tensor, magnitude: Tensor) -> None:
    """Within 1e-6 of the size of what was summed."""
    assert actual.shape == expected.shape
    assert actual.dtype == torch.float32
    excess = (actual.double() - expected.double()).abs() - 1e-6 * magnitude.double()
    assert bool((excess <= 0).all()), f"off by {excess.max()} more than allowed"


def same_rows(actual: RowGradients, expected: RowGradients, magnitude: RowGradients) -> None:
    """``expected`` and ``magnitude``, with the sums of absolute values, are in float64."""
    assert torch.equal(actual.rows, expected.rows)
    assert torch.equal(actual.table_offsets, expected.table_offsets)
    assert actual.table_offsets.device.type == "cpu"
    near(actual.gradients, expected.gradients, magnitude.gradients)
    near(actual.square_sums, expected.square_sums, 2 * magnitude.square_sums)


def collect_both(case: Case) -> Any:
    """Collect with the kernels, compared with the reference in float64."""
    from dlrm_mtl.embeddings.kernels import cuda

    weights = None if case.bag_weights is None else case.bag_weights.double()
    actual = cuda.collect(case.group, *case.batch, case.gradient, case.bag_weights)
    expected = reference.collect(case.group, *case.batch, case.gradient.double(), weights)
    same_rows(actual, expected, reference.collect(case.group, *case.batch, case.gradient.double().abs(), weights))
    again = cuda.collect(case.group, *case.batch, case.gradient, case.bag_weights)
    assert torch.equal(again.square_sums, actual.square_sums)
    return again


def means(group: TableGroup, gradients: RowGradients) -> Tensor:
    return gradients.square_sums / torch.repeat_interleave(group.dims, gradients.table_offsets.diff()).to(
        gradients.square_sums.device
    )


def update_both(case: Case, gradients: RowGradients, mean_squares: Tensor, rule: Update, lr: float = 0.3) -> None:
    """Both phases with the kernels, before and after the row gradients are written out, and with the reference.

    Not to the bit: PyTorch's square root is not always the nearest number on a CPU; that of the kernels is.
    """
    from dlrm_mtl.embeddings.kernels import cuda

    group = case.group
    arguments = gradients, mean_squares
    factor = cuda.factors(group, case.state, *arguments, rule, lr)
    other, state = dataclasses.replace(group, weights=group.weights.clone()), case.state.clone()
    cuda.apply(other, state, *arguments, factor, rule, lr)
    shared = other.weights, state
    assert len(gradients.gradients) == (gradients.table_offsets.diff() * group.dims).sum()  # writes them out
    assert torch.equal(factor, cuda.factors(group, case.state, *arguments, rule, lr))

    expected = reference.factors(group, case.state, *arguments, rule, lr)
    near(factor, expected, expected)
    other, state = dataclasses.replace(group, weights=group.weights.clone()), case.state.clone()
    magnitude = group.weights.abs()
    reference.apply(other, state, *arguments, factor, rule, lr)
    cuda.apply(group, case.state, *arguments, factor, rule, lr)
    assert torch.equal(group.weights, shared[0])
    assert torch.equal(case.state, shared[1])
    assert torch.equal(case.state, state)
    magnitude = magnitude.maximum(other.weights.abs())
    if group.weights.dtype == torch.float16:
        # What differs by 1e-6 may be rounded to neighbours, which are 1e-3 apart.
        assert ((group.weights - other.weights).abs() <= 1e-3 * magnitude).all()
        assert (group.weights != other.weights).float().mean() < 1e-2
    else:
        near(group.weights, other.weights, magnitude)


@check(*range(24))
def random_cases(device: str, seed: int) -> None:
    from dlrm_mtl.embeddings.kernels import cuda

    case = random_case(device, seed)
    out = cuda.lookup(case.group, *case.batch, case.bag_weights)
    magnitude = dataclasses.replace(case.group, weights=case.group.weights.abs())
    near(
        out,
        reference.lookup(case.group, *case.batch, case.bag_weights),
        reference.lookup(magnitude, *case.batch, case.bag_weights),
    )
    gradients = collect_both(case)
    update_both(case, gradients, means(case.group, gradients), RULES[seed % len(RULES)])


@check(*range(len(RULES)))
def several_steps(device: str, rule: int) -> None:
    torch.manual_seed(rule)
    case = make_case(device, dims=[8, 64], rows=[30, 12], features=[0, 0, 1], bags=12)
    case.state.fill_(0.1)
    for _ in range(3):
        gradients = collect_both(case)
        update_both(case, gradients, means(case.group, gradients), RULES[rule], lr=2.0)


@check("weighted", "unweighted")
def hot_rows(device: str, kind: str) -> None:
    """Rows that occur far more often than the others, also as often as a piece is long, and one more."""
    from dlrm_mtl.embeddings.kernels import cuda

    torch.manual_seed(0)
    case = make_case(device, dims=[8, 20], rows=[50, 50], features=[0, 1], bags=2, weighted=False)
    counts = [300, 7, cuda.SHORT, 1], [cuda.SHORT + 1, 1, 2 * cuda.SHORT, 150]
    per_feature = [torch.arange(len(count)).repeat_interleave(torch.tensor(count)) for count in counts]
    case.indices = torch.cat([ids[torch.randperm(len(ids))] for ids in per_feature]).to(device)
    half, total = len(per_feature[0]), len(case.indices)
    case.offsets = torch.tensor([0, 20, half, half + 100, total]).to(device)
    case.bag_weights = torch.rand(total).to(device) if kind == "weighted" else None
    gradients = collect_both(case)
    assert torch.equal(gradients.gradients, collect_both(case).gradients)
    # Many rows that occur once beside the hot ones, so that the gradients are not written out at first.
    once = make_case(device, dims=[8, 20], rows=[300, 300], features=[0, 1], bags=2)
    once.indices = torch.cat([torch.randperm(130) + 100, torch.full((70,), 7), torch.randperm(60)]).to(device)
    once.offsets = torch.tensor([0, 150, 200, 201, 260]).to(device)
    once.bag_weights = torch.rand(260).to(device) if kind == "weighted" else None
    for rule in RULES[:2] if kind == "weighted" else RULES[2:]:
        gradients = collect_both(once)
        assert gradients.sources is not None
        update_both(once, gradients, means(once.group, gradients), rule)


@check()
def the_order_of_a_sum_depends_on_the_row_alone(device: str) -> None:
    from dlrm_mtl.embeddings.kernels import cuda

    torch.manual_seed(1)
    group = make_group(device, dims=[64], rows=[9], features=[0], dtype=torch.float32)
    indices = torch.full((200,), 4, device=device)
    gradient = torch.randn(200, 64, device=device)
    alone = cuda.collect_unpooled(group, indices, [200], gradient)
    others = torch.randint(5, 9, (333,), device=device)
    among = cuda.collect_unpooled(
        group, torch.cat([others, indices]), [533], torch.cat([torch.randn(333, 64, device=device), gradient])
    )
    assert among.rows[0] == 4
    assert torch.equal(alone.gradients, among.gradients[:64])


@check()
def wide_and_narrow_tables_together(device: str) -> None:
    torch.manual_seed(2)
    case = make_case(device, dims=[1024, 4, 4], rows=[5, 9, 3], features=[0, 1, 2, 2], bags=3, longest=3)
    for rule in RULES:
        gradients = collect_both(case)
        update_both(case, gradients, means(case.group, gradients), rule)


@check(torch.float32, torch.float16)
def unpooled(device: str, dtype: torch.dtype) -> None:
    from dlrm_mtl.embeddings.kernels import cuda

    torch.manual_seed(3)
    case = make_case(device, dims=[12, 12, 12], rows=[10, 20, 5], features=[0, 0, 2], bags=1, dtype=dtype)
    lengths = [30, 0, 11]
    case.indices = torch.cat([torch.randint(0, 10, (30,)), torch.randint(0, 5, (11,))]).to(device)
    gradient = torch.randn(41, 12, device=device)
    actual = cuda.collect_unpooled(case.group, case.indices, lengths, gradient)
    expected = reference.collect_unpooled(case.group, case.indices, lengths, gradient.double())
    same_rows(actual, expected, reference.collect_unpooled(case.group, case.indices, lengths, gradient.double().abs()))
    sorted_before = cuda.sort_unpooled(case.group, case.indices, lengths)
    again = cuda.collect_unpooled(case.group, case.indices, lengths, gradient, sorted_before)
    assert torch.equal(again.gradients, actual.gradients)
    update_both(case, actual, means(case.group, actual), Update())


@check()
def merged(device: str) -> None:
    from dlrm_mtl.embeddings.kernels import cuda

    torch.manual_seed(4)
    first = make_case(device, dims=[8, 16, 4], rows=[20, 10, 9], features=[0, 1], bags=6)
    second = make_case(device, dims=[8, 16, 4], rows=[20, 10, 9], features=[0, 1], bags=4)
    empty = make_case(device, dims=[8, 16, 4], rows=[20, 10, 9], features=[0, 1], bags=4, longest=0)
    parts = [cuda.collect(first.group, *part.batch, part.gradient) for part in (first, empty, second)]
    wide = [RowGradients(p.rows, p.table_offsets, p.gradients.double(), p.square_sums) for p in parts]
    magnitude = [RowGradients(p.rows, p.table_offsets, p.gradients.double().abs(), p.square_sums) for p in parts]
    actual = cuda.merge(first.group, parts)
    same_rows(actual, reference.merge(first.group, wide), reference.merge(first.group, magnitude))
    assert not len(cuda.merge(first.group, [parts[1], parts[1]]).rows)
    alone = cuda.merge(first.group, [parts[1], parts[2]])
    assert torch.equal(alone.gradients, parts[2].gradients)
    update_both(first, actual, means(first.group, actual), Update())


@check("no bags", "empty bags", "no features")
def empty_batches(device: str, kind: str) -> None:
    from dlrm_mtl.embeddings.kernels import cuda

    bags = 0 if kind == "no bags" else 3
    case = make_case(device, [8, 4], [5, 5], features=[] if kind == "no features" else [0, 1], bags=bags, longest=0)
    out = cuda.lookup(case.group, *case.batch)
    assert torch.equal(out, reference.lookup(case.group, *case.batch))
    gradients = cuda.collect(case.group, *case.batch, case.gradient)
    assert [len(gradients.rows), len(gradients.gradients), len(gradients.square_sums)] == [0, 0, 0]
    assert gradients.table_offsets.tolist() == [0, 0, 0]
    update_both(case, gradients, gradients.square_sums, Update())


@check(*range(len(RULES)))
def not_finite(device: str, rule: int) -> None:
    from dlrm_mtl.embeddings.kernels import cuda

    torch.manual_seed(5)
    case = make_case(device, dims=[8, 8, 8, 8], rows=[60, 60, 60, 60], features=[0, 1, 2], bags=20)
    filled = case.offsets.diff().view(3, case.bags) > 0
    # The last is finite; its square is not.
    for table, value in enumerate([torch.inf, torch.nan, 1e30]):
        case.gradient[filled[table].nonzero()[-1], 8 * table + 3] = value
    gradients = cuda.collect(case.group, *case.batch, case.gradient)
    for bad in [0], [0, 1], [1, 2]:
        mean_squares = means(case.group, gradients)
        for table in range(4):
            if table not in bad:
                gradients.part(mean_squares, table).nan_to_num_(nan=1.0, posinf=1.0)
        expected = reference.factors(case.group, case.state, gradients, mean_squares, RULES[rule], 0.1)
        factor = cuda.factors(case.group, case.state, gradients, mean_squares, RULES[rule], 0.1)
        assert torch.equal(factor, expected)
        assert (factor == NON_FINITE).nonzero().flatten().tolist() == bad
        assert factor[3] == 1


@check()
def zero_gradients(device: str) -> None:
    """A row whose gradient is zero does not move, also where its accumulator is zero."""
    torch.manual_seed(6)
    case = make_case(device, dims=[8], rows=[10], features=[0], bags=4)
    case.state.zero_()
    case.gradient[:, :4] = 0
    case.gradient[1:3] = 0
    for rule in RULES:
        gradients = collect_both(case)
        if not rule.delayed:
            update_both(case, gradients, means(case.group, gradients), rule)
    assert torch.isfinite(case.group.weights).all()


@check()
def barely_clipped(device: str) -> None:
    """Rows that move a little farther than lambda_abs, as far, and less far; each the only one of its table."""
    from dlrm_mtl.embeddings.kernels import cuda

    case = make_case(device, dims=[8] * 5, rows=[1] * 5, features=[0, 1, 2, 3, 4], bags=1)
    case.indices, case.offsets = torch.zeros(5, dtype=torch.int64, device=device), torch.arange(6, device=device)
    case.group.weights.zero_()
    case.state.copy_(torch.tensor([0.0, 1.0, 2.9, 3.0, 8.0]))
    gradients = cuda.collect(case.group, *case.batch, torch.ones(1, 40, device=device))
    rule = Update(lambda_abs=0.01)
    factor = cuda.factors(case.group, case.state, gradients, means(case.group, gradients), rule, lr=0.02)
    expected = ((1 + case.state).sqrt() / 2).clamp(max=1)
    near(factor, expected, expected)
    assert (factor < 1).tolist() == [True, True, True, False, False]
    update_both(case, gradients, means(case.group, gradients), rule, lr=0.02)


@check("pooled", "unpooled")
def ids_outside_their_table(device: str, kind: str) -> None:
    from dlrm_mtl.embeddings.kernels import cuda

    case = make_case(device, dims=[4, 4], rows=[5, 6], features=[0, 1], bags=2)
    case.offsets = torch.tensor([0, 1, 2, 3, 5]).to(device)
    for wrong in -1, 6:
        case.indices = torch.tensor([4, 0, 1, 2, wrong]).to(device)
        out = cuda.lookup(case.group, *case.batch)
        assert out.isnan().tolist() == [[False] * 8, [False] * 4 + [True] * 4]
        message = f"feature 1 has id {wrong}; its table 1 has rows 0 to 5"
        if kind == "pooled":
            with pytest.raises(IndexError, match=message):
                cuda.collect(case.group, *case.batch, case.gradient)
        else:
            with pytest.raises(IndexError, match=message):
                cuda.collect_unpooled(case.group, case.indices, [2, 3], torch.ones(5, 4, device=device))


@check()
def more_rows_than_32_bits_count(device: str) -> None:
    rows = [3_000_000_000, 2_000_000_000]
    case = make_case(device, dims=[4, 8], rows=[5, 5], features=[0, 1], bags=2)
    group = dataclasses.replace(case.group, row_offsets=torch.tensor([0, *rows]).cumsum(0))
    case = dataclasses.replace(case, group=group, offsets=torch.tensor([0, 2, 3, 4, 5]).to(device))
    case.indices = torch.tensor([rows[0] - 1, 0, rows[0] - 1, rows[1] - 1, 7]).to(device)
    assert collect_both(case).rows.tolist() == [0, rows[0] - 1, 7, rows[1] - 1]


@check()
def sorted_in_the_forward_pass(device: str) -> None:
    from dlrm_mtl.embeddings.kernels import cuda

    torch.manual_seed(7)
    case = make_case(device, dims=[8], rows=[10], features=[0, 0], bags=5, weighted=True)
    occurrences = cuda.sort_pooled(case.group, *case.batch, case.bag_weights)
    expected = collect_both(case)
    # An expanded gradient, as ``sum().backward()`` makes it, is not contiguous.
    for gradient in case.gradient, torch.ones(1, 1, device=device).expand(5, 16):
        actual = cuda.collect(case.group, *case.batch, gradient, case.bag_weights, occurrences)
        assert torch.equal(actual.rows, expected.rows)
        again = cuda.collect(case.group, *case.batch, gradient.contiguous(), case.bag_weights)
        assert torch.equal(actual.gradients, again.gradients)


@check("weighted", "unweighted")
def more_ids_than_a_block(device: str, kind: str) -> None:
    """Rows of all kinds in several blocks and across their bounds, and tables that begin and end within a block."""
    torch.manual_seed(8)
    case = make_case(
        device, [4, 8, 4], [3000, 30, 5], features=[0, 0, 1, 2], bags=400, longest=6, weighted=kind == "weighted"
    )
    few = torch.rand(len(case.indices)) < 0.3
    case.indices[few.to(device)] %= 4
    gradients = collect_both(case)
    assert len(case.indices) > 4000
    update_both(case, gradients, means(case.group, gradients), Update(lambda_abs=1e-4))


@check()
def sorted_for_wider_tables(device: str) -> None:
    """As gradients of several tasks are collected side by side."""
    from dlrm_mtl.embeddings.kernels import cuda

    torch.manual_seed(9)
    case = make_case(device, dims=[8, 12], rows=[10, 20], features=[0, 1, 1], bags=5)
    occurrences = cuda.sort_pooled(case.group, *case.batch)
    wide = dataclasses.replace(case.group, weight_offsets=case.group.weight_offsets * 3, dims=case.group.dims * 3)
    gradient = torch.randn(5, 96, device=device)
    sorted_before = cuda.collect(wide, *case.batch, gradient, None, occurrences)
    expected = cuda.collect(wide, *case.batch, gradient)
    assert torch.equal(sorted_before.gradients, expected.gradients)
    assert torch.equal(sorted_before.square_sums, expected.square_sums)


@check()
def views_that_begin_anywhere(device: str) -> None:
    """Compiled kernels expect data aligned to 16 bytes; for unaligned views they are compiled again."""
    from dlrm_mtl.embeddings.kernels import cuda

    torch.manual_seed(10)
    case = make_case(device, dims=[8], rows=[40], features=[0, 0], bags=7)
    expected = collect_both(case)
    out = cuda.lookup(case.group, *case.batch)
    for name in "indices", "offsets", "gradient":
        whole = getattr(case, name)
        view = torch.cat([whole.flatten()[:1], whole.flatten()])[1:].view(whole.shape)
        other = dataclasses.replace(case, **{name: view})
        assert torch.equal(cuda.lookup(other.group, *other.batch), out)
        assert torch.equal(collect_both(other).gradients, expected.gradients)


@check()
def dims_that_are_no_multiples_of_four(device: str) -> None:
    from dlrm_mtl.embeddings.kernels import cuda

    case = make_case(device, dims=[8, 6], rows=[5, 5], features=[0, 1], bags=2)
    with pytest.raises(ValueError, match="table 1 has dim 6: the CUDA kernels need a positive multiple of 4"):
        cuda.lookup(case.group, *case.batch)


POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.int32: "*i32", torch.int64: "*i64"}


def record_launches(launches: set[str]) -> None:
    """Add to ``launches`` every kernel that the interpreter is asked for, with the types of its arguments, as JSON."""
    from triton.runtime.interpreter import InterpretedFunction

    run = InterpretedFunction.run

    def recording(self: Any, *arguments: Any, **options: Any) -> None:
        values = dict(zip(self.arg_names, arguments, strict=False))
        values.update({name: value for name, value in options.items() if name in self.arg_names})
        types = [
            POINTERS[v.dtype] if isinstance(v, Tensor) else type(v).__name__ for v in map(values.pop, self.arg_names)
        ]
        assert not values
        launches.add(
            json.dumps([self.__name__, types, {name: value for name, value in options.items() if name.isupper()}])
        )
        run(self, *arguments, **options)

    InterpretedFunction.run = recording


def compile_for_hopper(launches: list[str]) -> None:
    """Compile the kernels for an H100, as they were launched, down to machine code; needs no device."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from dlrm_mtl.embeddings.kernels import cuda, layout, triton_kernels

    assert triton_kernels._NON_FINITE.value == layout.NON_FINITE
    # One size of tile and one formula of the root for each way to launch a kernel.
    ways = {}
    for name, types, constants in map(json.loads, launches):
        alike = "ROWS", "COLUMNS", "BLOCK", "EPS_INSIDE", "DELAYED"
        flags = {key: value for key, value in constants.items() if key not in alike}
        ways[json.dumps([name, types, flags])] = name, types, constants
    for name, types, constants in ways.values():
        kernel = getattr(triton_kernels, name)
        types = [{"int": "i32", "float": "fp32"}.get(kind, kind) for kind in types]
        signature = dict(zip(kernel.arg_names, types, strict=True))
        signature.update(dict.fromkeys(constants, "constexpr"))
        aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] == "*"}
        source = ASTSource(kernel, signature, constants, aligned)
        result = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(cuda.OPTIONS))
        assert result.asm["cubin"]
        assert "fma" not in result.asm["ptx"], name
        if name in ("lookup_kernel", "sum_kernel", "apply_kernel") and signature.get("weights") != "*fp16":
            assert "ld.global.v4.b32" in result.asm["ptx"], f"rows of {name} do not move 16 bytes at once"
    assert {name for name, *_ in ways.values()} == {name for name in vars(triton_kernels) if name.endswith("_kernel")}


def _run(arguments: list[str], report: Path, interpret: bool) -> Any:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(__file__).resolve().parents[3]
    environment.update(TRITON_CACHE_DIR=str(report.parent / "cache"), PYTHONPATH=str(root))
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, __file__, str(report), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(report.read_text())


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``outcomes``: traceback of each check in the interpreter, empty where it passed; ``launches``: of its kernels."""
    return _run(list(CHECKS), tmp_path_factory.mktemp("interpreter") / "report.json", interpret=True)


@pytest.mark.parametrize("name", CHECKS)
def test_interpreted(name: str, interpreted: Any) -> None:
    assert not interpreted["outcomes"][name], interpreted["outcomes"][name]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CHECKS)
def test_on_a_device(name: str) -> None:
    CHECKS[name]("cuda")


def test_compiles_for_hopper(interpreted: Any, tmp_path: Path) -> None:
    """Whatever the checks launched."""
    launches = tmp_path / "launches.json"
    launches.write_text(json.dumps(interpreted["launches"]))
    _run(["compile", str(launches)], tmp_path / "report.json", interpret=False)


def main() -> None:
    """Write a report to the file named first: of the checks that the other arguments name, or of compiling launches."""
    report, *names = sys.argv[1:]
    torch.set_num_threads(1)
    if names[0] == "compile":
        compile_for_hopper(json.loads(Path(names[1]).read_text()))
        Path(report).write_text("null")
        return
    outcomes: dict[str, str] = {}
    launches: set[str] = set()
    record_launches(launches)
    for name in names:
        try:
            CHECKS[name]("cpu")
            outcomes[name] = ""
        except Exception:
            outcomes[name] = traceback.format_exc()
    Path(report).write_text(json.dumps({"outcomes": outcomes, "launches": sorted(launches)}))


if __name__ == "__main__":
    main()
