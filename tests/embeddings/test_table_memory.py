"""Memory of tables that are filled after their construction."""

from __future__ import annotations

import torch
from torch import nn

from dlrm_mtl.embeddings.torchrec.table_memory import LARGE, PAGE, TableMemory, untouched_zeros


def test_large_zeros_are_new_memory_and_stay_until_they_are_written_to() -> None:
    with TableMemory():
        large = torch.zeros(LARGE, device=torch.device("cpu"), dtype=torch.float32)
        small = torch.zeros(2, 3)
        shaped = torch.zeros((LARGE, 2), dtype=torch.float16)
    assert large.data_ptr() % PAGE == 0
    assert [(each.shape, each.dtype) for each in (large, small, shaped)] == [
        ((LARGE,), torch.float32),
        ((2, 3), torch.float32),
        ((LARGE, 2), torch.float16),
    ]
    assert not any(each.any() for each in (large, small, shaped))
    large.add_(1)
    view = large[LARGE // 2 :]
    del large  # the view keeps the memory
    assert view.sum().item() == LARGE // 2


def test_uniform_weights_are_not_drawn_inside_only() -> None:
    parameter = nn.Parameter(torch.zeros(100))
    with TableMemory():
        parameter.data.uniform_(1, 2)
        nn.init.uniform_(parameter, 1, 2)
    assert not parameter.any()
    parameter.data.uniform_(1, 2)
    assert parameter.min().item() >= 1


def test_zeros_need_no_memory_before_they_are_used() -> None:
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    before = resident()
    zeros = untouched_zeros(64 << 20)
    assert resident() - before < 64 << 20
    assert zeros.numel() == 64 << 20
