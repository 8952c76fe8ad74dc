"""Native updates with state per element: the bits of the rules' own functions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_mtl.embeddings.kernels import arithmetic, cpu, cpu_elements
from dlrm_mtl.embeddings.kernels.layout import ELEMENT_KINDS, ElementUpdate, TableGroup
from dlrm_mtl.embeddings.rules import FTRL, RowWiseAdam, TableAdagrad, TableAdam, TableRule, TouchedRows

pytestmark = pytest.mark.skipif(cpu.native_status() is not None, reason=str(cpu.native_status()))

RULES: list[TableRule] = [
    TableAdagrad(initial_accumulator_value=0.1),
    TableAdagrad(eps=1e-3),
    TableAdam(),
    TableAdam(betas=(0.0, 0.5), eps=1e-3),
    RowWiseAdam(),
    RowWiseAdam(betas=(0.7, 0.0)),
    FTRL(),
    FTRL(l1=0.3, l2=0.1, beta=0.0),
]


@pytest.fixture(autouse=True)
def _best_instruction_set() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    cpu.isa("")
    torch.set_num_threads(threads)


@settings(max_examples=80, deadline=None)
@given(
    rule=st.sampled_from(RULES),
    tables=st.lists(st.tuples(st.integers(1, 40), st.sampled_from([4, 8, 12, 16, 28, 64])), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
    half=st.booleans(),
    weighted=st.booleans(),
    isa=st.sampled_from(["portable", "avx2", ""]),
    threads=st.sampled_from([1, 3]),
    size=st.sampled_from([1e-20, 1e-3, 1.0, 1e4]),
)
def test_native_updates_have_the_bits_of_the_rule(
    rule: TableRule,
    tables: list[tuple[int, int]],
    seed: int,
    half: bool,
    weighted: bool,
    isa: str,
    threads: int,
    size: float,
) -> None:
    try:
        cpu.isa(isa)
    except ValueError:
        cpu.isa("portable")
    torch.set_num_threads(threads)
    numbers = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([[rows, rows * dim] for rows, dim in tables]).cumsum(0)
    weights = torch.randn(int(sizes[-1, 1]), generator=numbers)
    group = TableGroup(
        weights=weights.half() if half else weights,
        weight_offsets=torch.cat([torch.zeros(1, dtype=torch.int64), sizes[:-1, 1]]),
        row_offsets=torch.cat([torch.zeros(1, dtype=torch.int64), sizes[:, 0]]),
        dims=torch.tensor([dim for _, dim in tables]),
        feature_tables=torch.arange(len(tables)),
    )
    wanted_weights = group.weights.clone()
    states = [torch.full((int(sizes[-1, int(spec.per == "element")]),), spec.initial) for spec in rule.states]
    wanted = [state.clone() for state in states]
    update = rule.native_elements()
    assert update is not None
    rates = [rule.learning_rate * (1 + index) for index in range(len(tables))]
    for step in range(1, 4):
        ids = torch.cat([torch.randint(rows, (14,), generator=numbers) for rows, _ in tables])
        gradient = torch.randn(7, group.output_offsets()[-1], generator=numbers) * size
        gradient[2, 1] = 0.0
        bag_weights = torch.randn(len(ids), generator=numbers) if weighted else None
        offsets = torch.arange(7 * len(tables) + 1) * 2
        collected = cpu.collect(group, ids, offsets, 7, gradient, bag_weights)
        widths = torch.repeat_interleave(group.dims, collected.table_offsets.diff())
        means = collected.square_sums / widths
        cpu_elements.apply(group, states, collected, means, update, rates, step)
        for table, (rows, dim) in enumerate(tables):
            touched_rows = collected.part(collected.rows, table)
            start = {"row": int(group.row_offsets[table]), "element": int(group.weight_offsets[table])}
            views = [
                state[start[spec.per] :][: rows * (dim if spec.per == "element" else 1)].view(
                    (rows, dim) if spec.per == "element" else (rows,)
                )
                for spec, state in zip(rule.states, wanted, strict=True)
            ]
            matrix = wanted_weights[start["element"] :][: rows * dim].view(rows, dim)
            touched = TouchedRows(
                matrix[touched_rows].float(),
                collected.gradient(group, table),
                collected.part(means, table),
                {spec.name: view[touched_rows] for spec, view in zip(rule.states, views, strict=True)},
            )
            rule.update(touched, rates[table], step, torch.ones(len(touched_rows)))
            matrix[touched_rows] = touched.weights.to(matrix.dtype)
            for spec, view in zip(rule.states, views, strict=True):
                view[touched_rows] = touched.states[spec.name]
        assert torch.equal(group.weights, wanted_weights)
        for state, of_rule in zip(states, wanted, strict=True):
            assert torch.equal(state, of_rule)


def test_wrong_arguments_are_refused() -> None:
    group = TableGroup(torch.zeros(16), torch.tensor([0]), torch.tensor([0, 4]), torch.tensor([4]), torch.tensor([0]))
    collected = cpu.collect(group, torch.tensor([1]), torch.tensor([0, 1]), 1, torch.ones(1, 4))
    means = collected.square_sums / 4
    adagrad = ElementUpdate("adagrad", eps=1e-8)
    with pytest.raises(ValueError, match="16 float32 in a row are needed"):
        cpu_elements.apply(group, [torch.zeros(4)], collected, means, adagrad, [0.1], 1)
    with pytest.raises(ValueError, match="2 learning rates for 1 tables"):
        cpu_elements.apply(group, [torch.zeros(16)], collected, means, adagrad, [0.1, 0.1], 1)
    with pytest.raises(ValueError, match="unknown rule 'lion'"):
        cpu_elements.apply(group, [torch.zeros(16)], collected, means, ElementUpdate("lion"), [0.1], 1)


def test_the_structure_is_that_of_the_library() -> None:
    header = Path(cpu.__file__).parent / "csrc" / "layout.h"
    body = re.search(r"struct ElementUpdate \{(.*?)\n\};", header.read_text(), re.DOTALL)
    assert body is not None
    names = re.findall(r"^\s*(?:const )?(?:int64_t|float)\*? (\w+);", body[1], re.MULTILINE)
    assert names == [name for name, *_ in cpu_elements._ElementUpdate._fields_]
    kinds = {name.lower(): int(number) for name, number in re.findall(r"k(\w+) = (\d+)", body[1])}
    assert kinds == {name.replace("_", ""): number for number, name in enumerate(ELEMENT_KINDS)}


def test_arithmetic_is_found_out_under_any_default_device() -> None:
    with torch.device("meta"):
        found = arithmetic._root_function(), arithmetic._addcmul_rounds_once()
    assert found == (arithmetic._root_function(), arithmetic._addcmul_rounds_once())
