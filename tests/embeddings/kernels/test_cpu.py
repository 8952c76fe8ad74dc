"""The native kernels against the plain ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.huge_pages import use_huge_pages
from dlrm_mtl.embeddings.kernels import cpu, dispatch, reference
from dlrm_mtl.embeddings.kernels.layout import NON_FINITE, RowGradients, TableGroup, Update, empty_gradients

native = pytest.mark.skipif(cpu.native_status() is not None, reason=str(cpu.native_status()))
THREADS = (1, 2, 4)


def ways() -> list[tuple[str, int]]:
    """Instruction sets and numbers of threads that all have to give the same bits."""
    return [("", threads) for threads in THREADS] + [(isa, 2) for isa in instruction_sets()]


def instruction_sets() -> list[str]:
    """Those of this processor."""
    if cpu.native_status() is not None:
        return []
    best, found = cpu.isa(), []
    for name in ("portable", "avx2", "avx512"):
        try:
            found.append(cpu.isa(name))
        except ValueError:
            continue
    cpu.isa(best)
    return found


@pytest.fixture(autouse=True)
def leave_settings() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    if cpu.native_status() is None:
        cpu.isa("")


@dataclass(repr=False)
class Case:
    """Tables and a batch for them."""

    group: TableGroup
    state: Tensor
    indices: Tensor
    offsets: Tensor
    bags: int
    bag_weights: Tensor | None
    gradient: Tensor
    made_of: str

    def __repr__(self) -> str:
        return f"Case({self.made_of})"

    def copy(self) -> Case:
        group = replace(self.group, weights=self.group.weights.clone())
        return replace(self, group=group, state=self.state.clone())


def make(
    tables: list[tuple[int, int]],
    features: list[int],
    lengths: Tensor,
    seed: int = 0,
    *,
    half: bool = False,
    weighted: bool = False,
    skew: float = 1.0,
    weight_size: float = 1.0,
    gradient_size: float = 1.0,
    means: list[bool] | None = None,
) -> Case:
    """``tables`` are (rows, dim), ``features`` their tables, ``lengths`` [F, B] sizes of bags; ``skew`` repeats ids."""
    numbers = torch.Generator().manual_seed(seed)
    sizes, rows = [r * d for r, d in tables], [r for r, _ in tables]
    dims = torch.tensor([d for _, d in tables])
    weights = torch.randn(sum(sizes), generator=numbers) * weight_size
    group = TableGroup(
        weights=weights.half() if half else weights,
        weight_offsets=torch.tensor([0, *sizes]).cumsum(0)[:-1].contiguous(),
        row_offsets=torch.tensor([0, *rows]).cumsum(0),
        dims=dims,
        feature_tables=torch.tensor(features, dtype=torch.int64),
        means=None if means is None else torch.tensor(means),
    )
    limits = torch.tensor([rows[table] for table in features], dtype=torch.int64).repeat_interleave(lengths.sum(dim=1))
    draws = torch.rand(len(limits), generator=numbers, dtype=torch.float64) ** skew
    return Case(
        group,
        torch.rand(sum(rows), generator=numbers) + 0.01,
        (draws * limits).long(),
        torch.cat([torch.zeros(1, dtype=torch.int64), lengths.flatten().cumsum(0)]),
        lengths.shape[1],
        torch.randn(len(limits), generator=numbers) if weighted else None,
        torch.randn(lengths.shape[1], group.output_offsets()[-1], generator=numbers) * gradient_size,
        f"{tables}, {features}, {lengths.tolist()}, {seed}, {half=}, {weighted=}, {skew=}, {weight_size=}, {gradient_size=}, "
        f"{means=}",
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    dims = st.sampled_from([4, 8, 12, 16, 20, 28, 32, 48, 64, 76, 100, 128, 256])
    tables = draw(st.lists(st.tuples(st.integers(1, 60), dims), min_size=1, max_size=4))
    features = sorted(draw(st.lists(st.integers(0, len(tables) - 1), min_size=1, max_size=5)))
    bags, longest = draw(st.integers(0, 9)), draw(st.sampled_from([0, 1, 3, 12]))
    numbers = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    lengths = torch.randint(longest + 1, (len(features), bags), generator=numbers)
    return make(
        tables,
        features,
        lengths,
        draw(st.integers(0, 2**31)),
        half=draw(st.booleans()),
        means=draw(st.none() | st.lists(st.booleans(), min_size=len(features), max_size=len(features))),
        weighted=draw(st.booleans()),
        skew=draw(st.sampled_from([1.0, 4.0])),
        weight_size=10.0 ** draw(st.integers(-3, 1)),
        gradient_size=10.0 ** draw(st.integers(-15, 12)),
    )


rules = st.builds(
    Update,
    kind=st.sampled_from(["clippy", "adagrad", "sgd"]),
    lambda_rel=st.sampled_from([0.0, 0.1, 0.5]),
    lambda_abs=st.sampled_from([1e-2, 1e-4]),
    eps=st.sampled_from([0.0, 1e-7, 1e-2]),
    eps_inside=st.booleans(),
    delayed=st.booleans(),
    per_row=st.booleans(),
)


def mean_squares(case: Case, collected: RowGradients) -> Tensor:
    return collected.square_sums / case.group.dims.repeat_interleave(collected.table_offsets.diff())


def collect(kernels: dispatch.Kernels, case: Case) -> RowGradients:
    return kernels.collect(case.group, case.indices, case.offsets, case.bags, case.gradient, case.bag_weights)


def train(kernels: dispatch.Kernels, case: Case, rule: Update, steps: int = 2) -> list[Tensor]:
    """Everything that a few steps produce."""
    case, results = case.copy(), []
    for _ in range(steps):
        results.append(kernels.lookup(case.group, case.indices, case.offsets, case.bags, case.bag_weights))
        collected = collect(kernels, case)
        means = mean_squares(case, collected)
        factors = kernels.factors(case.group, case.state, collected, means, rule, 0.3)
        results += [collected.rows, collected.table_offsets, collected.square_sums, factors]
        results.append(kernels.row_factors(case.group, case.state, collected, means, rule, 0.3))
        results.append(kernels.largest_moves(case.group, case.state, collected, means, rule, 0.3))
        kernels.apply(case.group, case.state, collected, means, factors.clamp(min=0), rule, 0.3)
        results += [case.group.weights, case.state.clone(), collected.gradients]
        case.group = replace(case.group, weights=case.group.weights.clone())
    return results


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    """Bit for bit, as two numbers that are not numbers are the same."""
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def assert_near(found: list[Tensor], expected: list[Tensor]) -> None:
    """Within 1e-6 of the tensor's largest number; in float16, where that may flip a rounding, within one place."""
    for ours, theirs in zip(found, expected, strict=True):
        if not theirs.is_floating_point() or not theirs.numel():
            assert torch.equal(ours, theirs)
            continue
        size = float(theirs[theirs.isfinite()].abs().max()) if bool(theirs.isfinite().any()) else 0.0
        relative, absolute = (1e-3, 1e-7) if theirs.dtype == torch.float16 else (1e-6, 1e-6 * size)
        torch.testing.assert_close(ours, theirs, rtol=relative, atol=absolute, equal_nan=True)


def assert_reference(case: Case, rule: Update) -> None:
    """Two steps, each kernel beside its reference on the same weights and mean squares."""
    ours, theirs = case.copy(), case.copy()
    for _ in range(2):
        pairs = [
            (kernels.lookup(c.group, c.indices, c.offsets, c.bags, c.bag_weights), collect(kernels, c))
            for kernels, c in ((cpu, ours), (reference, theirs))
        ]
        (our_out, our), (their_out, their) = pairs
        means = mean_squares(case, their)
        results = []
        factors = reference.factors(theirs.group, theirs.state, their, means, rule, 0.3)
        for kernels, c, collected in ((cpu, ours, our), (reference, theirs, their)):
            inputs = c.group, c.state, collected, means, rule, 0.3
            found = [kernels.factors(*inputs), kernels.row_factors(*inputs), kernels.largest_moves(*inputs)]
            kernels.apply(c.group, c.state, collected, means, factors.clamp(min=0), rule, 0.3)
            results.append([*found, c.group.weights, c.state])
        assert_near([our_out, our.rows, our.table_offsets], [their_out, their.rows, their.table_offsets])
        assert_near([our.gradients, our.square_sums], [their.gradients, their.square_sums])
        assert_near(*results)
        ours.group.weights.copy_(theirs.group.weights)


@native
@settings(max_examples=300, deadline=None)
@given(cases(), rules, st.sampled_from(instruction_sets() or ["none"]))
def test_steps_are_the_reference_s(case: Case, rule: Update, isa: str) -> None:
    cpu.isa(isa)
    assert_reference(case, rule)


@native
@settings(max_examples=60, deadline=None)
@given(cases(), rules)
def test_threads_and_instruction_sets_do_not_show(case: Case, rule: Update) -> None:
    cpu.isa("")
    expected = train(cpu, case, rule)
    for isa, threads in ways():
        cpu.isa(isa)
        torch.set_num_threads(threads)
        assert_same(train(cpu, case, rule), expected)


LARGE = {
    "one table, random": ([(50_000, 16)], [0], 1.0),
    "one table, a row with most of the ids": ([(50_000, 100)], [0], 30.0),
    "several tables, one of them hot": ([(1000, 16), (30_000, 64), (7, 4)], [0, 1, 1, 1, 2], 2.0),
    "tables of a single row": ([(1, 64), (1, 8)], [0, 1], 1.0),
}


@native
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LARGE)
def test_large_batches(name: str, weighted: bool) -> None:
    tables, features, skew = LARGE[name]
    lengths = torch.randint(20, (len(features), 2500), generator=torch.Generator().manual_seed(5))
    case = make(tables, features, lengths, skew=skew, weighted=weighted, gradient_size=0.1)
    first: list[Tensor] = []
    for isa, threads in ways():
        cpu.isa(isa)
        torch.set_num_threads(threads)
        found = train(cpu, case, Update(), steps=1)
        first = first or found
        assert_same(found, first)
    assert_reference(case, Update())


@native
def test_tables_do_not_depend_on_their_neighbours() -> None:
    lengths = torch.randint(9, (3, 700), generator=torch.Generator().manual_seed(1))
    case = make([(300, 64), (20_000, 20), (40, 128)], [0, 1, 2], lengths)
    together = collect(cpu, case)
    columns = case.group.output_offsets()
    for table in range(3):
        offsets = case.offsets[table * 700 : (table + 1) * 700 + 1]
        group = TableGroup(
            case.group.table(table).flatten(),
            torch.tensor([0]),
            torch.tensor([0, len(case.group.table(table))]),
            case.group.dims[table : table + 1],
            torch.tensor([0]),
        )
        ids = case.indices[int(offsets[0]) : int(offsets[-1])]
        alone = cpu.collect(
            group, ids, offsets - offsets[0], 700, case.gradient[:, columns[table] : columns[table + 1]]
        )
        assert torch.equal(alone.rows, together.part(together.rows, table))
        assert torch.equal(alone.gradient(group, 0), together.gradient(case.group, table))
        assert torch.equal(alone.square_sums, together.part(together.square_sums, table))


@native
@settings(max_examples=150, deadline=None)
@given(cases(), rules.filter(lambda rule: rule.kind == "clippy"))
def test_no_coordinate_moves_farther_than_allowed(case: Case, rule: Update) -> None:
    before = case.group.weights.float()
    collected = collect(cpu, case)
    means = mean_squares(case, collected)
    factors = cpu.factors(case.group, case.state, collected, means, rule, 5.0)
    cpu.apply(case.group, case.state, collected, means, factors, rule, 5.0)
    allowed = rule.lambda_rel * before.abs() + rule.lambda_abs
    rounding = (1e-3 if case.group.weights.dtype == torch.float16 else 1e-6) * (before.abs() + allowed)
    assert bool(((case.group.weights.float() - before).abs() <= allowed + rounding).all())


@native
@pytest.mark.parametrize("isa", instruction_sets())
def test_unpooled_and_merge(isa: str) -> None:
    cpu.isa(isa)
    for half in (False, True):
        case = make([(30, 20), (5000, 20)], [0, 0, 1], torch.randint(8, (3, 300)), half=half)
        lengths = case.offsets[::300].diff().tolist()
        gradient = torch.randn(len(case.indices), 20)
        assert torch.equal(
            cpu.lookup_unpooled(case.group, case.indices, lengths),
            reference.lookup_unpooled(case.group, case.indices, lengths),
        )
        found, expected = (k.collect_unpooled(case.group, case.indices, lengths, gradient) for k in (cpu, reference))
        pooled = [collect(kernels, case) for kernels in (cpu, reference)]
        empty = empty_gradients(case.group)
        merged = [
            cpu.merge(case.group, [found, pooled[0], empty]),
            reference.merge(case.group, [expected, pooled[1], empty]),
        ]
        for ours, theirs in ((found, expected), tuple(merged)):
            assert_near(
                [ours.rows, ours.table_offsets, ours.gradients, ours.square_sums],
                [theirs.rows, theirs.table_offsets, theirs.gradients, theirs.square_sums],
            )


@native
def test_gradients_of_other_kernels_and_changed_gradients_count() -> None:
    case = make([(30, 20), (50, 64)], [0, 1], torch.randint(5, (2, 40)), weighted=True)
    for rule in (Update(), Update(kind="sgd")):
        for change in (1.0, 0.5):
            results = []
            for kernels, source in ((cpu, cpu), (cpu, reference), (reference, cpu), (reference, reference)):
                copy, collected = case.copy(), collect(source, case)
                means = mean_squares(case, collected)
                for table in range(2):
                    if change != 1:
                        collected.gradient(copy.group, table).mul_(change)
                factors = kernels.factors(copy.group, copy.state, collected, means, rule, 0.3)
                kernels.apply(copy.group, copy.state, collected, means, factors, rule, 0.3)
                results.append([factors, copy.group.weights, copy.state])
            for result in results[:-1]:
                assert_near(result, results[-1])


@native
@pytest.mark.parametrize("isa", instruction_sets())
def test_every_float16_is_read_and_written_as_by_torch(isa: str) -> None:
    cpu.isa(isa)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16)
    for dim in (4, 16, 64):
        rows = len(every) // dim
        layout = torch.tensor([0]), torch.tensor([0, rows]), torch.tensor([dim]), torch.tensor([0])
        read = cpu.lookup_unpooled(TableGroup(every.clone(), *layout), torch.arange(rows), [rows]).flatten()
        torch.testing.assert_close(read, every.float(), rtol=0, atol=0, equal_nan=True)
        # Halfway between neighbours, just beside that, and beyond the largest.
        finite = every[every.isfinite()].float()
        steps = torch.nextafter(finite.half(), torch.tensor(float("inf"), dtype=torch.float16)).float()
        half_way = (finite + steps.clamp(max=65536.0)) / 2
        values = torch.cat([half_way, torch.nextafter(half_way, torch.tensor(0.0)), finite * 1.0001, finite / 3])
        values = values[: len(values) // dim * dim]
        rows = len(values) // dim
        layout = torch.tensor([0]), torch.tensor([0, rows]), torch.tensor([dim]), torch.tensor([0])
        group = TableGroup(torch.zeros(len(values), dtype=torch.float16), *layout)
        collected = cpu.collect_unpooled(group, torch.arange(rows), [rows], -values.view(rows, dim))
        cpu.apply(group, torch.empty(0), collected, collected.square_sums, torch.ones(1), Update(kind="sgd"), 1.0)
        assert torch.equal(group.weights, values.half())


@native
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_only_the_table_with_a_broken_gradient_is_named(broken: float) -> None:
    for column in (0, 19, 30):
        case = make([(30, 20), (50, 16), (9, 4)], [0, 1, 2], torch.full((3, 40), 2))
        case.gradient[7, column] = broken
        collected = collect(cpu, case)
        for rule in (Update(), Update(per_row=True), Update(kind="adagrad"), Update(kind="sgd")):
            factors = cpu.factors(case.group, case.state, collected, mean_squares(case, collected), rule, 0.1)
            assert ((factors == NON_FINITE) == torch.tensor([column < 20, column >= 20, False])).all()
            assert bool((factors[factors != NON_FINITE] > 0).all())


@native
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("wrong", [-1, 9, 2**40, -(2**63)])
def test_an_id_that_is_no_row_is_named_with_its_table(wrong: int, threads: int) -> None:
    torch.set_num_threads(threads)
    for weighted in (False, True):
        case = make([(30_000, 64), (9, 64)], [0, 0, 1], torch.full((3, 500), 3), weighted=weighted)
        case.indices[-700] = wrong
        before = case.group.weights.clone()
        message = f"^id {wrong} is not a row of table 1$"
        with pytest.raises(IndexError, match=message):
            cpu.lookup(case.group, case.indices, case.offsets, case.bags, case.bag_weights)
        with pytest.raises(IndexError, match=message):
            collect(cpu, case)
        with pytest.raises(IndexError, match=message):
            cpu.lookup_unpooled(case.group, case.indices, [1500] * 3)
        with pytest.raises(IndexError, match=message):
            cpu.collect_unpooled(case.group, case.indices, [1500] * 3, torch.zeros(4500, 64))
        foreign = RowGradients(torch.tensor([wrong]), torch.tensor([0, 0, 1]), torch.ones(64), torch.ones(1))
        with pytest.raises(IndexError, match=message):
            cpu.apply(case.group, case.state, foreign, torch.ones(1), torch.ones(2), Update(), 0.1)
        assert torch.equal(case.group.weights, before)


@native
def test_what_does_not_fit_together_is_refused() -> None:
    case = make([(30, 8), (9, 8)], [0, 1], torch.full((2, 5), 3))
    group, ids, offsets = case.group, case.indices, case.offsets
    for moved in ([0, 3, 2], [0, 3, 10**12], [-5, 3, 6]):
        wrong = offsets.clone()
        wrong[:3] = torch.tensor(moved)
        with pytest.raises(ValueError, match="offsets of table 0"):
            cpu.lookup(group, ids, wrong, 5)
        with pytest.raises(ValueError, match="offsets of table 0"):
            cpu.collect(group, ids, wrong, 5, case.gradient)
    with pytest.raises(ValueError, match="10 offsets, not 11"):
        cpu.lookup(group, ids, offsets[1:], 5)
    with pytest.raises(ValueError, match="offsets of table 1"):
        cpu.lookup(group, ids[:-1], offsets, 5)
    with pytest.raises(ValueError, match="2 weights for 30 ids"):
        cpu.lookup(group, ids, offsets, 5, torch.ones(2))
    with pytest.raises(ValueError, match=r"gradient has the shape \[5, 15\], not \[5, 16\]"):
        cpu.collect(group, ids, offsets, 5, case.gradient[:, 1:])
    with pytest.raises(TypeError, match=r"gradient is torch.float64 on cpu"):
        cpu.collect(group, ids, offsets, 5, case.gradient.double())
    with pytest.raises(TypeError, match=r"tables are torch.bfloat16 on cpu"):
        cpu.lookup(replace(group, weights=group.weights.bfloat16()), ids, offsets, 5)
    collected = collect(cpu, case)
    with pytest.raises(ValueError, match=r"state is \[3\]"):
        cpu.factors(group, torch.ones(3), collected, collected.square_sums, Update(), 0.1)
    with pytest.raises(ValueError, match="1 mean squares"):
        cpu.factors(group, case.state, collected, torch.ones(1), Update(), 0.1)
    with pytest.raises(ValueError, match="unknown rule 'adam'"):
        cpu.factors(group, case.state, collected, collected.square_sums, Update(kind="adam"), 0.1)
    for changed, message in (
        ({"dims": torch.tensor([8, 6])}, "table 1 has dim 6; these kernels need a multiple of 4"),
        ({"weights": group.weights[:-1]}, "table 1 lies outside of the buffer"),
        ({"feature_tables": torch.tensor([1, 0])}, "features are not in the order of their tables"),
    ):
        with pytest.raises(ValueError, match=message):
            cpu.lookup(replace(group, **changed), ids, offsets, 5)
    with pytest.raises(ValueError, match="add up"):
        cpu.lookup_unpooled(group, ids, [1, 2])


@native
def test_a_gradient_that_is_one_number_for_all() -> None:
    case = make([(30, 8), (9, 64)], [0, 1], torch.full((2, 5), 3))
    case.gradient = torch.ones(()).expand(5, 72)  # as from out.sum().backward()
    assert torch.equal(collect(cpu, case).gradients, collect(reference, case).gradients)


@native
def test_huge_pages_change_no_value() -> None:
    weights = torch.arange(3_000_000, dtype=torch.float32)
    use_huge_pages(weights)
    assert torch.equal(weights, torch.arange(3_000_000, dtype=torch.float32))
    assert not use_huge_pages(torch.zeros(10))


def test_dispatch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    assert dispatch.kernels_for("cpu") is reference
    monkeypatch.setenv(dispatch.VARIABLE, "fast")
    with pytest.raises(ValueError, match="'fast'; it can be reference or native"):
        dispatch.kernels_for("cpu")
    monkeypatch.setenv(dispatch.VARIABLE, "native")
    with pytest.raises(RuntimeError, match="there are none for meta"):
        dispatch.kernels_for("meta")


def test_without_the_library_the_reference_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def forget() -> None:
        cpu._load.cache_clear()
        dispatch._native.cache_clear()

    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    monkeypatch.setattr(cpu, "LIBRARY", tmp_path / "_native.so")
    monkeypatch.setattr(cpu, "BUILD_LOG", tmp_path / "_native.log")
    try:
        forget()
        assert (
            cpu.native_status() == "the native kernels are missing: they have not been built; install the package again"
        )
        (tmp_path / "_native.log").write_text("no compiler\n\ndetails\n")
        forget()
        assert cpu.native_status() == "the native kernels are missing: no compiler"
        assert dispatch.kernels_for("cpu") is reference
        (tmp_path / "_native.so").write_text("no library")
        forget()
        assert str(cpu.native_status()).startswith("the native kernels cannot be loaded")
    finally:
        monkeypatch.undo()
        forget()


ALONE = """
import sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torchrec", "fbgemm_gpu"):
            raise AssertionError(f"{name} is imported")

sys.meta_path.insert(0, Forbidden())
import torch
from dlrm_mtl.embeddings.kernels import cpu, dispatch, layout, reference

kernels = dispatch.kernels_for("cpu")
group = layout.TableGroup(
    torch.ones(8), torch.tensor([0]), torch.tensor([0, 2]), torch.tensor([4]), torch.tensor([0])
)
assert kernels.lookup(group, torch.tensor([1, 0]), torch.tensor([0, 2]), 1).tolist() == [[2.0] * 4]
"""


def test_torch_is_all_that_the_kernels_need() -> None:
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", ALONE], check=True, cwd=root)


@native
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("skew", [1.0, 6.0])
def test_inner_products_of_tasks(weighted: bool, skew: float) -> None:
    """Four tasks beside each other in the columns; of the rows' gradients as a loop writes them out."""
    tasks = 4
    lengths = torch.tensor([[1, 0, 3, 2, 9], [2, 2, 0, 1, 40], [0, 0, 0, 0, 0]])
    case = make([(30, 16), (9, 32), (5, 16)], [0, 1, 2], lengths, weighted=weighted, skew=skew)
    batch = case.group, case.indices, case.offsets, case.bags, case.gradient, case.bag_weights
    plain = reference.collect(*batch)
    result = cpu.grams(case.group, cpu.collect(*batch), tasks)
    for table in range(3):
        rows = plain.gradient(case.group, table).double()
        wanted = torch.zeros(tasks, tasks, dtype=torch.float64)
        for row in rows:
            parts = row.view(tasks, -1)
            wanted += parts @ parts.T
        torch.testing.assert_close(result[table], wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reference.grams(case.group, plain, tasks), result, rtol=1e-5, atol=1e-5)
