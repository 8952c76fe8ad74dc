"""Columns of several tensors side by side, with means, against PyTorch's slices, divisions and concatenation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_mtl.embeddings.kernels import cpu
from dlrm_mtl.embeddings.kernels.arrange import ColumnRange, arrange, plain

pytestmark = pytest.mark.skipif(cpu.native_status() is not None, reason=str(cpu.native_status()))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_same_bits_as_slices(data: st.DataObject) -> None:
    rows = data.draw(st.integers(0, 70))
    widths = data.draw(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=3))
    parts = []
    for source, blocks in enumerate(widths):
        for number, width in enumerate(blocks):
            count = data.draw(st.none() | st.integers(0, 2))
            parts.append(ColumnRange(source, sum(blocks[:number]), width, count))
    parts = data.draw(st.permutations(parts))
    numbers = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    counts = torch.randint(0, 7, (3, rows), generator=numbers, dtype=torch.int32)
    sources = [torch.randn(rows, sum(blocks), generator=numbers) for blocks in widths]
    ours, theirs = ([source.clone().requires_grad_() for source in sources] for _ in range(2))
    found, wanted = arrange(ours, parts, counts), plain(theirs, parts, counts)
    assert torch.equal(found, wanted)
    gradient = torch.randn(found.shape, generator=numbers)
    found.backward(gradient)
    wanted.backward(gradient)
    for own, their in zip(ours, theirs, strict=True):
        assert torch.equal(own.grad, their.grad)  # type: ignore[arg-type]


def test_columns_in_order_are_not_copied() -> None:
    source = torch.randn(5, 7)
    assert (
        arrange([source], [ColumnRange(0, 0, 3), ColumnRange(0, 3, 4)], torch.zeros(1, 5, dtype=torch.int64)) is source
    )


def test_threads_change_nothing() -> None:
    source, counts = torch.randn(3000, 64), torch.randint(0, 5, (1, 3000))
    parts = [ColumnRange(0, 32, 32, 0), ColumnRange(0, 0, 32)]
    one = arrange([source], parts, counts)
    torch.set_num_threads(2)
    try:
        assert torch.equal(arrange([source], parts, counts), one)
    finally:
        torch.set_num_threads(1)


def test_the_reference_is_plain_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLRM_MTL_KERNELS", "reference")
    found = arrange(
        [torch.randn(3, 4, requires_grad=True)], [ColumnRange(0, 0, 4, 0)], torch.ones(1, 3, dtype=torch.int64)
    )
    assert found.grad_fn is not None
    assert "Arrange" not in found.grad_fn.name()
