"""Reading a checkpoint: every process reads and checks the bytes that its own shards need."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlrm_mtl.checkpoint.format import BLOCK, DTYPES, Chunk, Index, block_sums, blocks, sha256
from dlrm_mtl.checkpoint.state import REMEDY
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.storage.run_store import Range, RunStore

Box = tuple[tuple[int, int], ...]
"""First and last-plus-one coordinate in every dimension."""


@dataclass(frozen=True, eq=False)
class Target:
    """A tensor to fill, and its position in the whole tensor ``name``."""

    name: str
    tensor: Tensor
    offset: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ChunkPart:
    """Part of a stored chunk for a target, as a box of the whole tensor."""

    name: str
    chunk: Chunk
    target: Target
    box: Box


def targets(tensors: dict[str, Any]) -> list[Target]:
    """Tensors of this process among ``tensors``; one target per shard of a sharded tensor."""
    found = []
    for name, value in tensors.items():
        if not hasattr(value, "local_shards"):  # a ShardedTensor is also a Tensor
            found.append(Target(name, value, (0,) * value.dim()))
        else:
            for shard in value.local_shards():
                found.append(Target(name, shard.tensor, tuple(shard.metadata.shard_offsets)))
    return found


def overlaps(index: Index, wanted: list[Target], place: str) -> list[ChunkPart]:
    """Stored parts that cover all of ``wanted``.

    Raises:
        UserError: the chunks of a tensor do not cover it.
    """
    found = []
    for target in wanted:
        covered = 0
        for chunk in index.tensors[target.name].chunks:
            box = tuple(
                (max(first, other), min(first + count, other + more))
                for first, count, other, more in zip(
                    target.offset, target.tensor.shape, chunk.offset, chunk.shape, strict=True
                )
            )
            if all(first < last for first, last in box):
                covered += math.prod(last - first for first, last in box)
                found.append(ChunkPart(target.name, chunk, target, box))
        if covered != target.tensor.numel():
            raise UserError(
                f"{place}: holds {covered:,} of {target.tensor.numel():,} numbers of {target.name}; {REMEDY}."
            )
    return found


def copy_part(stored: Tensor, offset: tuple[int, ...], wanted: ChunkPart) -> None:
    """Copy the overlap of ``stored``, at ``offset`` of the whole tensor, and the wanted box to the target."""
    source, target = stored, wanted.target.tensor.detach()
    for dimension, (first, last) in enumerate(wanted.box):
        begin = max(first, offset[dimension])
        end = min(last, offset[dimension] + stored.shape[dimension])
        if begin >= end:
            return
        source = source.narrow(dimension, begin - offset[dimension], end - begin)
        target = target.narrow(dimension, begin - wanted.target.offset[dimension], end - begin)
    target.copy_(source)


class Reader:
    """Reader of the tensors of one checkpoint of format 2.

    Args:
        store: files of the run.
        folder: folder of the checkpoint, relative to the run.
        index: index of the checkpoint.
    """

    def __init__(self, store: RunStore, folder: str, index: Index) -> None:
        self.store = store
        self.folder = folder
        self.index = index
        self._sums: dict[tuple[str, int], bytes] = {}

    def fill(self, wanted: list[Target]) -> None:
        """Fill the targets.

        Raises:
            UserError: a byte cannot be read, or a checksum differs; the file and the tensor are named.
        """
        parts = overlaps(self.index, wanted, self._place("index.json"))
        chunks = {(part.chunk.file, part.chunk.start): (part.name, part.chunk) for part in parts}
        self._read_sums(list(chunks.values()))
        self.store.read_ranges(piece for part in parts for piece in self._pieces(part))

    def verify(self) -> None:
        """Read and check every byte of the tensors; raises :class:`UserError`."""
        for name, tensor in self.index.tensors.items():
            if sum(math.prod(chunk.shape) for chunk in tensor.chunks) != math.prod(tensor.shape):
                raise UserError(f"{self._place('index.json')}: does not hold all of {name}; {REMEDY}.")
        everything = [(name, chunk) for name, tensor in self.index.tensors.items() for chunk in tensor.chunks]
        self._read_sums(everything)
        step = max(1, self.store.piece // BLOCK) * BLOCK
        self.store.read_ranges(
            Range(self._name(chunk.file), start, min(start + step, chunk.stop), self._checking(name, chunk, start))
            for name, chunk in everything
            for start in range(chunk.start, chunk.stop, step)
        )

    def _read_sums(self, chunks: list[tuple[str, Chunk]]) -> None:
        """Read and check the headers of files, and the checksums of blocks."""
        ranges = []
        for file in {chunk.file for _, chunk in chunks}:
            expected = self.index.files[file]

            def check(content: memoryview, file: str = file, expected: str = expected.sha256) -> None:
                if sha256(content) != expected:
                    raise UserError(
                        f"{self._place(file)}: its header does not have its checksum, or is of another step or run; {REMEDY}."
                    )

            ranges.append(Range(self._name(file), 0, expected.header, check))
        for name, chunk in chunks:

            def keep(content: memoryview, name: str = name, chunk: Chunk = chunk) -> None:
                if sha256(content) != chunk.sha256:
                    raise UserError(f"{self._place(chunk.file)}: the checksums of {name} are damaged; {REMEDY}.")
                self._sums[chunk.file, chunk.start] = bytes(content)

            count = blocks(chunk.stop - chunk.start)
            ranges.append(Range(self._name(chunk.file), chunk.sums, chunk.sums + 4 * count, keep))
        self.store.read_ranges(ranges)

    def _pieces(self, part: ChunkPart) -> Iterator[Range]:
        """Blocks with the wanted rows, piece by piece."""
        chunk, dtype = part.chunk, DTYPES[self.index.tensors[part.name].dtype]
        shape = chunk.shape or (1,)
        row = math.prod(shape[1:]) * dtype.itemsize
        first, last = part.box[0] if part.box else (0, 1)
        offset = chunk.offset or (0,)
        step = max(1, self.store.piece // row)
        for begin in range(first, last, step):
            end = min(begin + step, last)
            start = (begin - offset[0]) * row // BLOCK * BLOCK
            stop = min(-(-((end - offset[0]) * row) // BLOCK) * BLOCK, chunk.stop - chunk.start)
            check = self._checking(part.name, chunk, chunk.start + start)

            def use(
                content: memoryview, begin: int = begin, end: int = end, start: int = start, check: Any = check
            ) -> None:
                check(content)
                at = (begin - offset[0]) * row - start
                numbers = torch.frombuffer(content[at : at + (end - begin) * row], dtype=dtype)
                if not chunk.shape:
                    part.target.tensor.detach().copy_(numbers[0])
                    return
                copy_part(numbers.view(end - begin, *shape[1:]), (begin, *offset[1:]), part)

            yield Range(self._name(chunk.file), chunk.start + start, chunk.start + stop, use)

    def _checking(self, name: str, chunk: Chunk, start: int) -> Any:
        """Function that checks blocks of a chunk, the first of which begins at ``start`` in the file."""

        def check(content: memoryview) -> None:
            first = (start - chunk.start) // BLOCK
            expected = self._sums[chunk.file, chunk.start][4 * first : 4 * (first + blocks(len(content)))]
            if block_sums(content) != expected:
                raise UserError(f"{self._place(chunk.file)}: {name} does not have its checksum; {REMEDY}.")

        return check

    def _name(self, file: str) -> str:
        return f"{self.folder}/{file}"

    def _place(self, file: str) -> str:
        return f"{self.store.place}/{self.folder}/{file}"
