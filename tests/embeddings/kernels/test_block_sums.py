"""Checksums of blocks are those of zlib, whatever the lengths and positions in memory."""

from __future__ import annotations

import random
import zlib

import pytest

from dlrm_mtl.embeddings.kernels import block_sums, cpu
from dlrm_mtl.embeddings.kernels.block_sums import crc32_of_blocks


def by_zlib(content: memoryview, block: int) -> bytes:
    parts = [content[start : start + block] for start in range(0, len(content), block)]
    return b"".join(zlib.crc32(part).to_bytes(4, "little") for part in parts)


@pytest.mark.parametrize("kernels", ["", "reference"])
def test_sums_are_those_of_zlib(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLRM_MTL_KERNELS", kernels)
    content = memoryview(random.Random(0).randbytes(1 << 18))
    for start in (0, 1, 8, 15):
        for length in (*range(200), 4095, 4096, 65535, 65536, 65537, 200_001):
            some = content[start : start + length]
            assert crc32_of_blocks(some, 65536) == by_zlib(some, 65536)
    for block in (1, 63, 64, 65, 1000, 4096):
        assert crc32_of_blocks(content[3:20_003], block) == by_zlib(content[3:20_003], block)
    for same in (b"\0" * 65536, b"\xff" * 65536):
        assert crc32_of_blocks(memoryview(same), 65536) == by_zlib(memoryview(same), 65536)


def test_known_value() -> None:
    """The check value of CRC-32/ISO-HDLC in the catalogue of parametrised CRC algorithms."""
    assert int.from_bytes(crc32_of_blocks(memoryview(b"123456789"), 65536), "little") == 0xCBF43926


def test_every_bit_counts() -> None:
    content = bytearray(random.Random(1).randbytes(333))
    sums = {crc32_of_blocks(memoryview(content), 65536)}
    for bit in range(8 * len(content)):
        content[bit // 8] ^= 1 << bit % 8
        sums.add(crc32_of_blocks(memoryview(content), 65536))
        content[bit // 8] ^= 1 << bit % 8
    assert len(sums) == 1 + 8 * len(content)


def test_a_library_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    if cpu.native_status() is not None:
        pytest.skip("no native library")
    assert block_sums._function.__wrapped__() is not None
    monkeypatch.setattr(block_sums, "INTERFACE", 99)
    assert block_sums._function.__wrapped__() is None
