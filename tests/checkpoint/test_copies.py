"""Copies of tensors from which a checkpoint is written in the background."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dlrm_mtl.checkpoint import copies
from dlrm_mtl.checkpoint.copies import HostCopies
from dlrm_mtl.checkpoint.writer import TensorPart

GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"))


def parts(device: str) -> list[TensorPart]:
    """Tensors of several types and shapes: none and several pieces, rows that are not contiguous, one number."""
    wide = torch.arange(40_000, dtype=torch.float32, device=device).view(400, 100)
    tensors = {
        "wide": wide,
        "columns": wide[:, 30:50],
        "ids": torch.arange(700, device=device),
        "halves": torch.full((3, 5), 2.5, dtype=torch.float16, device=device),
        "number": torch.tensor(7.0, device=device),
        "empty": torch.empty(0, 8, device=device),
        "host": torch.arange(9),
    }
    return [TensorPart(name, tensor, (0,) * tensor.dim(), tuple(tensor.shape)) for name, tensor in tensors.items()]


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_copies_keep_their_values_and_their_memory(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(copies, "PIECE", 4096)
    given, host = parts(device), HostCopies()
    expected = [part.tensor.clone().cpu() for part in given]
    taken = host.take(given)
    for part in given:
        part.tensor.zero_()
    assert [part.key for part in taken] == [part.key for part in given]
    for part, value in zip(taken, expected, strict=True):
        assert part.tensor.device.type == "cpu"
        assert torch.equal(part.tensor, value)
    again = host.take(given)
    for before, after in zip(taken, again, strict=True):
        assert before.tensor.data_ptr() == after.tensor.data_ptr()
        assert torch.equal(after.tensor, torch.zeros_like(after.tensor))


def test_another_shape_gets_other_memory() -> None:
    host, part = HostCopies(), parts("cpu")[0]
    (first,) = host.take([part])
    grown = TensorPart(part.name, torch.ones(500, 100), (0, 0), (500, 100))
    (second,) = host.take([grown])
    assert torch.equal(second.tensor, grown.tensor)
    assert torch.equal(first.tensor, part.tensor)


@pytest.mark.parametrize(("count", "bytes_"), [(0, 1), (1, 4), (1024, 4096), (1025, 8192), (5_000_000, 1 << 25)])
def test_pinned_memory_is_counted_as_it_is_taken(count: int, bytes_: int) -> None:
    """PyTorch's allocator of pinned memory takes a power of two."""
    with FakeTensorMode():
        on_a_gpu: Tensor = torch.empty(count, device="cuda")
        assert copies._size(on_a_gpu) == bytes_
    assert copies._size(torch.empty(count)) == 4 * count
