"""Initial weights have the bits of torch.Tensor.normal_, block by block."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from dlrm_mtl.embeddings.kernels import cpu, initial_rows
from dlrm_mtl.embeddings.kernels.initial_rows import BLOCK_ROWS, BlockPart, fill_blocks
from dlrm_mtl.embeddings.tables import fill_rows


def by_torch(rows: int, columns: int, std: float, key: str) -> Tensor:
    """The first ``rows`` rows of a table, by PyTorch alone."""
    blocks = []
    for block in range(-(-rows // BLOCK_ROWS)):
        digest = hashlib.blake2b(f"{key}/{block}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        blocks.append(torch.empty(BLOCK_ROWS, columns).normal_(0.0, 1.0, generator=generator).mul_(std))
    return torch.cat(blocks)[:rows]


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


@pytest.mark.parametrize("kernels", ["", "reference"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("columns", [1, 4, 10, 16, 64, 100])
def test_bits_are_those_of_torch(columns: int, threads: int, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLRM_MTL_KERNELS", kernels)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        expected = by_torch(2 * BLOCK_ROWS + 77, columns, 0.013, "3/user")
        whole = torch.full_like(expected, torch.nan)
        fill_rows(whole, 0, 0, columns, 0.013, "3/user")
        assert same_bits(whole, expected)
        for row, rows in ((0, 1), (5, BLOCK_ROWS), (BLOCK_ROWS - 1, 2), (BLOCK_ROWS + 9, BLOCK_ROWS)):
            for column, width in ((0, columns), (columns // 2, columns - columns // 2), (columns - 1, 1)):
                part = torch.full((rows, width), torch.nan)
                fill_rows(part, row, column, columns, 0.013, "3/user")
                assert same_bits(part, expected[row : row + rows, column : column + width].contiguous())
    finally:
        torch.set_num_threads(before)


def test_parts_between_other_numbers_and_in_other_formats() -> None:
    expected = by_torch(500, 12, 0.5, "k")
    wide = torch.zeros(500, 20)
    fill_rows(wide[:, 4:16], 0, 0, 12, 0.5, "k")
    assert same_bits(wide[:, 4:16].contiguous(), expected)
    assert not wide[:, [0, 1, 2, 3, 16, 17, 18, 19]].any()
    for other in (torch.empty(500, 12, dtype=torch.float16), torch.empty(12, 500).t()):
        fill_rows(other, 0, 0, 12, 0.5, "k")
        assert torch.equal(other, expected.to(other.dtype))


@pytest.mark.skipif(cpu.native_status() is not None, reason="no native kernels")
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_the_kernel_has_both_of_pytorchs_forms(capability: str) -> None:
    code = (
        "import torch; from dlrm_mtl.embeddings.kernels.initial_rows import *; from dlrm_mtl.embeddings.kernels import "
        "initial_rows as i\n"
        "parts = [BlockPart(torch.empty(4096, 40), 0, 0, 40, 0.1, seed) for seed in range(8)]\n"
        "i.fill_blocks(parts); expected = torch.empty(4096, 40)\n"
        "for p in parts: i._fill_by_torch(BlockPart(expected, 0, 0, 40, 0.1, p.seed)); assert torch.equal(expected, p.out)\n"
        "print(torch.backends.cpu.get_cpu_capability(), i.native_form())"
    )
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "DLRM_MTL_KERNELS": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    used, form = done.stdout.split()
    assert form == ("1" if used == "AVX2" else "0")


@pytest.mark.slow
@pytest.mark.skipif(initial_rows.native_form() is None, reason="no native kernels")
def test_many_numbers() -> None:
    """Every one of the 2^24 uniform numbers on both inputs of the transform, some times."""
    for seed in range(1000):
        expected, found = torch.empty(BLOCK_ROWS, 64), torch.empty(BLOCK_ROWS, 64)
        initial_rows._fill_by_torch(BlockPart(expected, 0, 0, 64, 1.0, seed))
        fill_blocks([BlockPart(found, 0, 0, 64, 1.0, seed)])
        assert same_bits(found, expected)
