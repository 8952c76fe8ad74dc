"""Writing the tensors of a checkpoint: every process writes its own shards, in format 2."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlrm_mtl.checkpoint.format import (
    DTYPES,
    FORMAT,
    SUMS,
    Chunk,
    Index,
    StoredFile,
    StoredTensor,
    block_sums,
    blocks,
    check_index,
    header,
    sha256,
)
from dlrm_mtl.core.processes import gather_objects
from dlrm_mtl.storage.output import sync_folder

FILE_BYTES = 32 << 30
"""Number of bytes after which a process starts another file: S3 accepts 10,000 parts of a file, and Arrow makes parts of 10
MiB."""
PIECE = 4 << 20
"""Number of bytes that are copied, checksummed and written at a time; a multiple of a block."""
PART_BYTES = 1 << 10
"""Bytes of a part's entries in headers and the index, at most, unless its name is very long."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass
class TensorPart:
    """Part of the tensor ``name`` that this process writes."""

    name: str
    tensor: Tensor
    offset: tuple[int, ...]
    whole: tuple[int, ...]
    """Shape of the whole tensor."""

    @property
    def key(self) -> str:
        """Name of the part in its file, such as ``tables.item[100,0]`` for the part from row 100 on."""
        shape = tuple(self.tensor.shape)
        return self.name if shape == self.whole else f"{self.name}[{','.join(map(str, self.offset))}]"


def own_parts(tensors: dict[str, Any], rank: int) -> list[TensorPart]:
    """Parts of ``tensors`` that the process ``rank`` writes. Every process must call this.

    A process writes its shards. Replicated tensors are divided among the processes, with about the same number of bytes
    each.
    """
    parts, whole = [], {}
    for name, value in tensors.items():
        if not hasattr(value, "local_shards"):  # a ShardedTensor is also a Tensor
            whole[name] = value
            continue
        size = tuple(value.metadata().size)
        for shard in value.local_shards():
            if shard.tensor.numel():
                parts.append(TensorPart(name, shard.tensor, tuple(shard.metadata.shard_offsets), size))
    load: dict[int, int] = {}
    sizes: dict[str, int] = {}
    holders: dict[str, list[int]] = {}
    for holder, held in enumerate(gather_objects({name: value.nbytes for name, value in whole.items()})):
        load[holder] = 0
        sizes.update(held)
        for name in held:
            holders.setdefault(name, []).append(holder)
    for name in sorted(holders, key=lambda name: (-sizes[name], name)):
        writer = min(holders[name], key=lambda holder: (load[holder], holder))
        load[writer] += sizes[name]
        if writer == rank:
            tensor = whole[name]
            parts.append(TensorPart(name, tensor, (0,) * tensor.dim(), tuple(tensor.shape)))
    return parts


def files_of(parts: list[TensorPart], rank: int) -> dict[str, list[TensorPart]]:
    """The files of the process ``rank`` by name, with the parts in each."""
    files: list[list[TensorPart]] = [[]]
    size = 0
    for part in parts:
        if files[-1] and size + part.tensor.nbytes > FILE_BYTES:
            files.append([])
            size = 0
        files[-1].append(part)
        size += part.tensor.nbytes
    return {f"rank_{rank:05d}_{number}.safetensors": some for number, some in enumerate(files)}


def size_of(parts: list[TensorPart]) -> int:
    """Bytes that the files of ``parts`` take, a little more than exactly."""
    return sum(part.tensor.nbytes + 4 * blocks(part.tensor.nbytes) + PART_BYTES for part in parts)


def write_files(folder: Path, files: dict[str, list[TensorPart]], run: str, step: int, threads: int) -> Index:
    """Write files of this process.

    Args:
        folder: existing folder.
        files: parts by the name of the file.
        run: identity of the run.
        step: step of the checkpoint.
        threads: number of threads that sum and write pieces.

    Returns:
        The index of these files.

    Raises:
        OSError: a file cannot be written.
    """
    index = Index(format=FORMAT, run=run, step=step, files={}, tensors={})
    for name, parts in files.items():
        _write_file(folder / name, parts, index, threads)
    sync_folder(folder)
    return index


def join_indices(indices: list[Index], place: str) -> Index:
    """The index of the files of all processes; ``place`` names the checkpoint in errors."""
    whole = indices[0].model_copy(update={"files": {}, "tensors": {}})
    for index in indices:
        whole.files.update(index.files)
        for name, tensor in index.tensors.items():
            known = whole.tensors.setdefault(name, StoredTensor(dtype=tensor.dtype, shape=tensor.shape, chunks=[]))
            known.chunks.extend(tensor.chunks)
    check_index(whole, place)
    return whole


def _write_file(path: Path, parts: list[TensorPart], index: Index, threads: int) -> None:
    """Write one file, and add it and its chunks to ``index``."""
    entries: dict[str, tuple[str, Any, int]] = {}
    for part in parts:
        entries[part.key] = (_NAMES[part.tensor.dtype], part.tensor.shape, part.tensor.nbytes)
    total = sum(blocks(part.tensor.nbytes) for part in parts)
    entries[SUMS] = ("U32", (total,), 4 * total)
    head = header(entries, index.run, index.step)
    at = len(head)
    sums_at = at + sum(part.tensor.nbytes for part in parts)
    size = sums_at + 4 * total
    sums: list[bytes] = []
    with open(path, "wb", buffering=0) as file, ThreadPoolExecutor(threads) as pool:
        _write_at(file, head, 0)
        for part in parts:
            own = _write_pieces(file, part.tensor, at, pool)
            shape = tuple(part.tensor.shape)
            chunk = Chunk(
                file=path.name,
                offset=part.offset,
                shape=shape,
                start=at,
                stop=at + part.tensor.nbytes,
                sums=sums_at,
                sha256=sha256(own),
            )
            dtype = _NAMES[part.tensor.dtype]
            stored = index.tensors.setdefault(part.name, StoredTensor(dtype=dtype, shape=part.whole, chunks=[]))
            stored.chunks.append(chunk)
            sums.append(own)
            at, sums_at = chunk.stop, sums_at + len(own)
        _write_at(file, b"".join(sums), at)
        os.fsync(file.fileno())
    index.files[path.name] = StoredFile(size=size, header=len(head), sha256=sha256(head))


def _write_pieces(file: FileIO, tensor: Tensor, at: int, pool: ThreadPoolExecutor) -> bytes:
    """Write the bytes of ``tensor`` from ``at`` on; a thread copies a piece at most. Returns the checksums of the blocks."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)

    def write(start: int) -> bytes:
        piece = flat[start : start + PIECE].cpu().numpy().data
        _write_at(file, piece, at + start)
        return block_sums(piece)

    starts = range(0, flat.numel(), PIECE)
    return b"".join(pool.map(write, starts) if len(starts) > 1 else map(write, starts))


def _write_at(file: FileIO, content: bytes | memoryview, at: int) -> None:
    left = memoryview(content)
    while len(left):
        count = os.pwrite(file.fileno(), left, at)
        left, at = left[count:], at + count
