"""Formats of stored rows: what a row's bytes are, how exact they are, and lookups equal to a literal dequantisation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from dlrm_mtl.embeddings.kernels import cpu, stored
from dlrm_mtl.embeddings.row_formats import FORMATS, LARGEST, FormatName, QuantisedRows

BITS: dict[FormatName, int] = {"int8": 8, "int4": 4}
QUANTISED = sorted(BITS)


def literal_row(row: NDArray[np.uint8], name: FormatName, dim: int) -> NDArray[np.float32]:
    """A row's values, one by one, from its bytes."""
    scale, offset = (
        np.array([int(row[at]) << 16 | int(row[at + 1]) << 24], np.uint32).view(np.float32)[0] for at in (0, 2)
    )
    if name == "int8":
        codes = [int(code) for code in row[4 : 4 + dim]]
    else:
        codes = [int(row[4 + column // 2]) >> (4 if column % 2 else 0) & 15 for column in range(dim)]
    return np.array([np.float32(np.float32(code) * scale) + offset for code in codes], np.float32)


def literal(rows: Tensor, name: FormatName, dim: int) -> NDArray[np.float32]:
    if name == "fp32":
        return rows.numpy().view(np.float32)
    if name == "fp16":
        return rows.numpy().view(np.float16).astype(np.float32)
    return np.stack([literal_row(row, name, dim) for row in rows.numpy()])


def literal_sums(vectors: NDArray[np.float32], ids: list[int], offsets: list[int]) -> NDArray[np.float32]:
    """Sums of bags, one addition after the other."""
    sums = np.zeros((len(offsets), vectors.shape[1]), np.float32)
    for bag, (start, stop) in enumerate(zip(offsets, [*offsets, len(ids)][1:], strict=True)):
        for id_ in ids[start:stop]:
            sums[bag] = sums[bag] + vectors[id_]
    return sums


@pytest.fixture(params=["avx512", "avx2", "portable", "plain"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each instruction set that there is, and plain PyTorch."""
    if request.param == "plain":
        monkeypatch.setenv("DLRM_MTL_KERNELS", "reference")
        yield
        return
    reason = stored.stored_status()
    if reason is not None:
        pytest.skip(reason)
    before = cpu.isa()
    try:
        cpu.isa(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield
    cpu.isa(before)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", FORMATS)
def test_lookups_equal_a_literal_dequantisation(name: FormatName) -> None:
    @settings(max_examples=60, deadline=None)
    @given(
        st.integers(1, 150),
        st.integers(1, 12),
        st.lists(st.lists(st.integers(0, 11), max_size=9), max_size=6),
        st.integers(-30, 30),
        st.randoms(use_true_random=False),
    )
    def check(dim: int, rows: int, bags: list[list[int]], power: int, random: object) -> None:
        generator = torch.Generator().manual_seed(random.getrandbits(32))  # type: ignore[attr-defined]
        values = torch.randn(rows, dim, generator=generator) * 2.0 ** (power / 3)
        encoded = FORMATS[name].encode(values)
        ids = [id_ % rows for bag in bags for id_ in bag]
        offsets = np.cumsum([0, *(len(bag) for bag in bags)])[:-1].tolist()
        wanted = literal(encoded, name, dim)
        found = FORMATS[name].sums(encoded, dim, torch.tensor(ids, dtype=torch.int64), torch.tensor(offsets).long())
        assert np.array_equal(found.numpy(), literal_sums(wanted, ids, offsets))
        vectors = FORMATS[name].vectors(encoded, dim, torch.tensor(ids, dtype=torch.int64))
        assert np.array_equal(vectors.numpy(), wanted[np.array(ids, np.int64)])

    check()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", FORMATS)
def test_large_bags_on_several_threads(name: FormatName) -> None:
    generator = torch.Generator().manual_seed(1)
    encoded = FORMATS[name].encode(torch.randn(500, 68, generator=generator))
    lengths = torch.randint(0, 90, (300,), generator=generator)
    ids, offsets = torch.randint(0, 500, (int(lengths.sum()),), generator=generator), lengths.cumsum(0) - lengths
    wanted = literal_sums(literal(encoded, name, 68), ids.tolist(), offsets.tolist())
    assert np.array_equal(FORMATS[name].sums(encoded, 68, ids, offsets).numpy(), wanted)
    for bad in (-1, 500, 2**40):
        ids[len(ids) // 2] = bad
        with pytest.raises((IndexError, RuntimeError)):
            FORMATS[name].sums(encoded, 68, ids, offsets)


@pytest.mark.parametrize("name", QUANTISED)
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_codes_are_the_nearest(name: FormatName, data: st.DataObject) -> None:
    """Every value is off by at most half a step, a step is hardly larger than it must be, and every code is the nearest."""
    finite = st.floats(-LARGEST, LARGEST, width=32)
    near = st.floats(-1, 1, width=32)
    dim = data.draw(st.integers(1, 9))
    row = data.draw(st.lists(data.draw(st.sampled_from([finite, near])), min_size=dim, max_size=dim))
    values = np.array([row], np.float32)
    encoded = FORMATS[name].encode(torch.from_numpy(values))
    decoded = literal(encoded, name, dim).astype(np.float64)[0]
    exact = values.astype(np.float64)[0]
    scale, offset = encoded[0, :4].clone().view(torch.bfloat16).double().tolist()
    levels = 2 ** BITS[name] - 1
    rounding = 1e-6 * (np.abs(exact).max() + abs(offset)) + 1e-45
    assert offset <= exact.min()
    assert (exact.max() - offset) <= scale * levels + rounding
    widest = (exact.max() - exact.min()) + abs(exact.min()) / 64 + 1e-38
    assert scale * levels <= widest * (1 + 1 / 64) + 1e-37
    assert np.all(np.abs(decoded - exact) <= scale / 2 + rounding)


@pytest.mark.parametrize("name", QUANTISED)
def test_rows_that_are_exact(name: FormatName) -> None:
    """A row of zeros, of a number that bfloat16 holds, and of codes."""
    top = 2 ** BITS[name] - 1
    values = torch.tensor([[0.0, 0.0, 0.0], [1.5, 1.5, 1.5], [-4.0, -4.0 + 0.25 * top, -3.75]])
    assert torch.equal(FORMATS[name].decode(FORMATS[name].encode(values), 3), values)


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_does_not_depend_on_others(name: FormatName) -> None:
    values = torch.randn(200_000 if name == "int8" else 2000, 5, generator=torch.Generator().manual_seed(4))
    whole = FORMATS[name].encode(values)
    some = torch.tensor([0, 7, 1999, len(values) - 1])
    assert torch.equal(whole[some], FORMATS[name].encode(values[some]))
    assert torch.equal(whole[some], FORMATS[name].encode(values.t().contiguous().t()[some]))


def test_known_bytes() -> None:
    """The layout, which bundles on disk have."""
    values = torch.tensor([[-1.0, 0.0, 1.0], [0.1, 0.2, 0.35]])
    assert FORMATS["int8"].encode(values).tolist() == [[1, 60, 128, 191, 0, 127, 254], [129, 58, 204, 61, 0, 102, 254]]
    assert FORMATS["int4"].encode(values).tolist() == [[9, 62, 128, 191, 112, 15], [137, 60, 204, 61, 96, 15]]


def test_sizes() -> None:
    sizes = {name: each.row_bytes(64) / FORMATS["fp32"].row_bytes(64) for name, each in FORMATS.items()}
    assert sizes == {"fp32": 1, "fp16": 0.5, "int8": 0.265625, "int4": 0.140625}
    assert [FORMATS["int4"].row_bytes(dim) for dim in (1, 2, 3)] == [5, 5, 6]


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("int8", float("nan"), "nan"),
        ("int4", float("inf"), "inf"),
        ("int8", -1e31, "-1e\\+31"),
        ("fp16", 65535.0, "65535"),
    ],
)
def test_values_that_no_row_can_hold(name: FormatName, value: float, shown: str) -> None:
    values = torch.zeros(70_000, 2)
    values[69_999, 1] = value
    with pytest.raises(ValueError, match=f"row 69999 holds {shown}, which {name} cannot hold"):
        FORMATS[name].encode(values)
    assert FORMATS["fp32"].encode(values).shape == (70_000, 8)


def test_the_formats_of_the_native_kernels() -> None:
    for name, bits in BITS.items():
        format_ = FORMATS[name]
        assert isinstance(format_, QuantisedRows)
        assert format_.bits == bits
    assert [each.number for each in FORMATS.values()] == [0, 1, 2, 3]
