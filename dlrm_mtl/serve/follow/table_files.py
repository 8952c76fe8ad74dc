"""Files of tables that are written in place: a new file of tensors to fill, and a float32 one turned into another format."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dlrm_mtl.checkpoint.format import DTYPES, header
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.embeddings.row_formats import FORMATS, PIECE, FormatName
from dlrm_mtl.serve.tensor_files import map_tensors, tensor_places

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def new_tensors(
    path: Path, kinds: Mapping[str, tuple[torch.dtype, Iterable[int]]], run: str, step: int
) -> dict[str, Tensor]:
    """Write a file of zeros, and map its tensors to be filled.

    Args:
        path: file to write.
        kinds: type and shape of each tensor by name, in the order of the file.
        run: name of the run, for the header.
        step: step of the version, for the header.

    Raises:
        OSError: the file cannot be written.
    """
    entries: dict[str, tuple[str, Iterable[int], int]] = {}
    for name, (dtype, shape) in kinds.items():
        entries[name] = (_NAMES[dtype], shape, int(np.prod(list(shape), dtype=np.int64)) * dtype.itemsize)
    head = header(entries, run, step)
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(len(head) + sum(size for _, _, size in entries.values()))
    content = torch.from_numpy(np.memmap(path, np.uint8, mode="r+"))
    return {name: place.of(content) for name, place in tensor_places(path).items()}


def encode_tables(path: Path, name: FormatName, run: str, step: int) -> None:
    """Turn a bundle's file of float32 tables into one of another format, row by row; ids stay as they are.

    Args:
        path: the file, which is replaced.
        name: format of the rows.
        run: name of the run, for the header.
        step: step of the version, for the header.

    Raises:
        UserError: the format cannot hold a value.
        OSError: the file cannot be written.
    """
    format = FORMATS[name]
    whole = map_tensors(path)
    dtype = torch.float16 if name == "fp16" else torch.uint8
    kinds: dict[str, tuple[torch.dtype, Iterable[int]]] = {}
    for key, tensor in whole.items():
        if key.startswith("tables."):
            rows, dim = tensor.shape
            kinds[key] = (dtype, (rows, format.row_bytes(dim) // dtype.itemsize))
        else:
            kinds[key] = (tensor.dtype, tensor.shape)
    temporary = path.with_name(f"{path.name}.tmp")
    stored = new_tensors(temporary, kinds, run, step)
    for key, tensor in whole.items():
        for start in range(0, len(tensor), PIECE):
            piece = tensor[start : start + PIECE]
            if key.startswith("tables."):
                try:
                    piece = format.encode(piece, first=start).view(dtype)
                except ValueError as error:
                    table = key.removeprefix("tables.")
                    raise UserError(f"--tables {name}: table {table}: {error}; choose fp32.") from None
            stored[key][start : start + PIECE] = piece
    os.replace(temporary, path)
