"""Served tables: rows in every format, pages that are checked on use, and rows that replace others."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dlrm_mtl.embeddings.row_formats import FORMATS, FormatName
from dlrm_mtl.serve.pages import PAGE, DamagedPageError, write_digests
from dlrm_mtl.serve.tables import ServedTable, StoredTables
from dlrm_mtl.serve.tensor_files import write_tensors

ROWS = 5000
DIM = 36
NAMES: list[FormatName] = ["fp32", "fp16", "int8", "int4"]


def write(folder: Path, weights: Tensor, name: FormatName) -> tuple[Path, Path]:
    """A file with the table ``item`` in a format, and its digests."""
    path, digests = folder / "tables.safetensors", folder / "tables.pages"
    with open(path, "wb") as file:
        stored = {"ids.item": torch.arange(len(weights)), "tables.item": FORMATS[name].encode(weights)}
        write_tensors(file, stored, "run", 1)
    write_digests(path, digests)
    return path, digests


def opened(folder: Path, weights: Tensor, name: FormatName) -> ServedTable:
    return StoredTables(*write(folder, weights, name), name).table("item", *weights.shape)


@pytest.fixture
def weights() -> Tensor:
    return torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(1))


def bags(rows: int) -> tuple[Tensor, Tensor]:
    """Ids of 200 bags, a few of them empty, and where they begin."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(0, 6, (200,), generator=generator)
    return torch.randint(0, rows, (int(lengths.sum()),), generator=generator), lengths.cumsum(0) - lengths


def literal_sums(vectors: Tensor, offsets: Tensor) -> Tensor:
    """Sums of bags, one addition after the other."""
    ends = [*offsets[1:].tolist(), len(vectors)]
    sums = []
    for start, stop in zip(offsets.tolist(), ends, strict=True):
        total = np.zeros(vectors.shape[1], np.float32)
        for vector in vectors[start:stop].numpy():
            total = total + vector
        sums.append(total)
    return torch.from_numpy(np.array(sums))


@pytest.mark.parametrize("name", NAMES)
def test_lookups(weights: Tensor, tmp_path: Path, name: FormatName) -> None:
    table = opened(tmp_path, weights, name)
    ids, offsets = bags(ROWS)
    decoded = FORMATS[name].decode(FORMATS[name].encode(weights), DIM)
    assert torch.equal(table.vectors(ids), decoded[ids])
    assert torch.equal(table.sums(ids, offsets), literal_sums(decoded[ids], offsets))
    if name == "fp32":
        assert torch.equal(decoded, weights)
    with pytest.raises((IndexError, RuntimeError)):
        table.vectors(torch.tensor([0, ROWS]))


@pytest.mark.parametrize("name", NAMES)
def test_replaced_rows_are_those_of_another_export(weights: Tensor, tmp_path: Path, name: FormatName) -> None:
    base = opened(tmp_path, weights, name)
    table, wanted = base, weights.clone()
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(ROWS, generator=generator)[:700].sort().values
        values = torch.randn(700, DIM, generator=generator)
        table = table.with_rows(rows, values)
        wanted[rows] = values
    (tmp_path / "other").mkdir()
    full = opened(tmp_path / "other", wanted, name)
    ids, offsets = bags(ROWS)
    assert torch.equal(table.vectors(ids), full.vectors(ids))
    assert torch.equal(table.sums(ids, offsets), full.sums(ids, offsets))
    assert torch.equal(table.stored(0, ROWS), full.stored(0, ROWS))
    assert torch.equal(base.stored(0, ROWS), FORMATS[name].encode(weights)), "the base is as it was"
    assert table.with_rows(torch.empty(0, dtype=torch.int64), torch.empty(0, DIM)).rows == ROWS


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([1, 1], "must ascend"),
        ([2, 1], "must ascend"),
        ([-1, 1], r"0\.\.4999"),
        ([1, ROWS], "within"),
        ([1], "expected"),
    ],
)
def test_rows_that_cannot_replace_others(weights: Tensor, tmp_path: Path, rows: list[int], sentence: str) -> None:
    table = opened(tmp_path, weights, "int8")
    with pytest.raises(ValueError, match=sentence):
        table.with_rows(torch.tensor(rows), torch.zeros(2, DIM))


def damage(path: Path, position: int) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_page_is_never_served(tmp_path: Path, name: FormatName) -> None:
    """A row is refused where a byte of it was changed, and served where the page of no row that is asked for was."""
    dim = 2500 if name == "fp32" else 200  # rows of several pages, or of a part of one
    count = 500 if name == "fp32" else 8000  # more bytes than are checked at once
    weights = torch.randn(count, dim, generator=torch.Generator().manual_seed(3))
    path, digests = write(tmp_path, weights, name)
    size, row_bytes = os.path.getsize(path), FORMATS[name].row_bytes(dim)
    first = size - count * row_bytes
    position = first + 250 * row_bytes + row_bytes // 2
    damage(path, position)
    page = position // PAGE
    inside = [
        row
        for row in range(count)
        if (first + row * row_bytes) // PAGE <= page <= (first + (row + 1) * row_bytes - 1) // PAGE
    ]
    assert 250 in inside
    table = StoredTables(path, digests, name).table("item", count, dim)
    outside = torch.tensor([row for row in range(count) if row not in inside])
    decoded = FORMATS[name].decode(FORMATS[name].encode(weights[outside]), dim)
    assert torch.equal(table.vectors(outside), decoded)
    for row in inside:
        for _ in range(2):
            with pytest.raises(DamagedPageError, match="does not have its checksum"):
                table.sums(torch.tensor([5, row]), torch.tensor([0]))
        with pytest.raises(DamagedPageError):
            table.vectors(torch.tensor([row]))
    with pytest.raises(DamagedPageError):
        table.check()
    changed = table.with_rows(torch.tensor(inside), torch.zeros(len(inside), dim))
    with pytest.raises(DamagedPageError):
        changed.stored(250, 251)
    assert torch.equal(changed.vectors(torch.tensor(inside)), torch.zeros(len(inside), dim)), (
        "needs no byte of the base"
    )


def test_a_damaged_header_and_damaged_ids_are_refused(weights: Tensor, tmp_path: Path) -> None:
    path, digests = write(tmp_path, weights, "fp32")
    damage(path, os.path.getsize(path) - weights.nbytes - 8 * 2000)
    stored = StoredTables(path, digests, "fp32")
    with pytest.raises(DamagedPageError):
        stored.ids("item")
    damage(path, 3)
    with pytest.raises(DamagedPageError):
        StoredTables(path, digests, "fp32")
