"""Checkpoint format 2: raw tensors in safetensors files, an index in JSON, and a checksum of every byte.

A checkpoint ``step_N/`` holds

- ``rank_*.safetensors``, written by one process each. A stored part of a tensor, a *chunk*, is cut into blocks of
  :data:`BLOCK` bytes; their CRC-32 sums are the file's last tensor, :data:`SUMS` (one uint32 a block).
- ``index.json``: the chunks of each tensor and their positions, with the SHA-256 of each chunk's sums and of each file's
  header.
- ``progress.json``: the run's state, the SHA-256 of ``index.json``, and one of itself. It is written last.

So a process that reads a few rows checks only the blocks that hold them, and every byte used has a checksum that leads to
``progress.json``. The run's identity and the step are in every file.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from pydantic import ValidationError

from dlrm_mtl.checkpoint.state import REMEDY, RunState, parse_state
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.json_text import parse_mapping
from dlrm_mtl.core.schema import Strict
from dlrm_mtl.embeddings.kernels.block_sums import crc32_of_blocks

FORMAT = 2
INDEX_FILE = "index.json"
BLOCK = 64 << 10
"""Number of bytes of a chunk with one checksum."""
SUMS = "block_checksums"
"""Name of the tensor of checksums in a file."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Element types by their names in safetensors."""
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class Chunk(Strict):
    """A part of a tensor in a file."""

    file: str
    offset: tuple[int, ...]
    """Start of the part in the whole tensor."""
    shape: tuple[int, ...]
    start: int
    """Start of its bytes in the file."""
    stop: int
    sums: int
    """Start of its blocks' checksums in the file."""
    sha256: str
    """SHA-256 of these checksums."""


class StoredTensor(Strict):
    """A whole tensor."""

    dtype: str
    shape: tuple[int, ...]
    chunks: list[Chunk]

    @property
    def size(self) -> int:
        """Number of bytes of all chunks."""
        return sum(chunk.stop - chunk.start for chunk in self.chunks)


class StoredFile(Strict):
    """A file of chunks."""

    size: int
    header: int
    """Number of bytes before the first chunk."""
    sha256: str
    """SHA-256 of these bytes."""


class Index(Strict):
    """The content of ``index.json``."""

    format: int
    run: str
    """Identity of the run, drawn at its first checkpoint."""
    step: int
    files: dict[str, StoredFile]
    tensors: dict[str, StoredTensor]


def sha256(content: bytes | memoryview) -> str:
    """Checksum of small content, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def blocks(size: int) -> int:
    """Number of blocks of a chunk of ``size`` bytes."""
    return -(-size // BLOCK)


def block_sums(content: memoryview) -> bytes:
    """Checksums of the blocks of ``content``, which starts at a block: uint32, little-endian."""
    return crc32_of_blocks(content, BLOCK)


def state_text(state: RunState, run: str, index: str) -> str:
    """Text of ``progress.json`` for a checkpoint whose ``index.json`` has the SHA-256 ``index``."""
    content = {"format": FORMAT, "run": run, "index": index, **state.as_dict()}
    return json.dumps({**content, "sha256": sha256(json.dumps(content).encode())}, indent=1)


def parse_state_text(text: bytes, place: str) -> tuple[int, str, str, RunState]:
    """Format, run identity, SHA-256 of the index, and state of a ``progress.json``.

    Identity and SHA-256 are empty in format 1, which has no checksums.

    Raises:
        UserError: the format is unknown, or the text was changed.
    """
    content = parse_mapping(text, place, REMEDY)
    format = content.pop("format", None)
    if format == 1:
        return 1, "", "", parse_state(content, place)
    if format != FORMAT or isinstance(format, bool):
        newer = "a newer version of dlrm-mtl wrote it" if isinstance(format, int) and format > FORMAT else REMEDY
        raise UserError(
            f"{place}: this checkpoint has the format {format!r} and this version of dlrm-mtl reads 1 and {FORMAT}; {newer}."
        )
    expected = content.pop("sha256", None)
    if sha256(json.dumps({"format": format, **content}).encode()) != expected:
        raise UserError(f"{place}: does not have its checksum; {REMEDY}.")
    run, index = content.pop("run", None), content.pop("index", None)
    if not isinstance(run, str) or not isinstance(index, str):
        raise UserError(f"{place}: lacks the identity of the run or of the index; {REMEDY}.")
    return FORMAT, run, index, parse_state(content, place)


def parse_index(text: bytes, place: str) -> Index:
    """Validate the content of an ``index.json``; raises :class:`UserError` if it is inconsistent."""
    try:
        index = Index.model_validate(parse_mapping(text, place, REMEDY))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{place}: {where}: {first['msg']}; {REMEDY}.") from None
    check_index(index, place)
    return index


def check_index(index: Index, place: str) -> None:
    """Check that chunks are inside their files and tensors; raises :class:`UserError`."""

    def refuse(what: str) -> UserError:
        return UserError(f"{place}: {what}; {REMEDY}.")

    for name in index.files:
        if not _FILE_NAME.fullmatch(name):
            raise refuse(f"{name!r} is no name of a file in this folder")
    for name, tensor in index.tensors.items():
        if tensor.dtype not in DTYPES:
            raise refuse(f"{name} has the unknown type {tensor.dtype!r}")
        for chunk in tensor.chunks:
            file = index.files.get(chunk.file)
            size = math.prod(chunk.shape) * DTYPES[tensor.dtype].itemsize
            inside = len(chunk.shape) == len(chunk.offset) == len(tensor.shape) and all(
                first >= 0 and count >= 0 and first + count <= whole
                for first, count, whole in zip(chunk.offset, chunk.shape, tensor.shape, strict=True)
            )
            fits = file is not None and 0 <= chunk.start <= chunk.stop <= file.size and chunk.stop - chunk.start == size
            if not inside or not fits or file is None or chunk.sums + 4 * blocks(size) > file.size:
                raise refuse(f"a part of {name} lies outside of it or of the file {chunk.file}")


def header(entries: dict[str, tuple[str, Iterable[int], int]], run: str, step: int) -> bytes:
    """Header of a safetensors file, preceded by the bytes of its length.

    Args:
        entries: type, shape and number of bytes by name, in the order of the file.
        run: identity of the run.
        step: step of the checkpoint.
    """
    content: dict[str, Any] = {"__metadata__": {"format": "pt", "run": run, "step": str(step)}}
    at = 0
    for name, (dtype, shape, size) in entries.items():
        content[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
