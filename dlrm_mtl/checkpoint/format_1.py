"""Checkpoint format 1, which ``torch.distributed.checkpoint`` wrote: only read, and nothing in it is executed.

Its ``.metadata`` is a pickle, read by an unpickler that accepts only its data classes. Tensors are in ``*.distcp`` files as
written by ``torch.save``; they are read with ``weights_only=True``. There are no checksums.
"""

from __future__ import annotations

import io
import pickle
import re
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from dlrm_mtl.checkpoint.format import DTYPES, Chunk, Index, StoredFile, StoredTensor
from dlrm_mtl.checkpoint.reader import Target, copy_part, overlaps
from dlrm_mtl.checkpoint.state import REMEDY
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.storage.run_store import Range, RunStore

METADATA_FILE = ".metadata"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_CLASSES = {
    "torch.distributed.checkpoint.metadata": (
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size", *(str(dtype).removeprefix("torch.") for dtype in _NAMES)),
    "pathlib": ("PosixPath",),
}
"""Names that a pickle of format 1 may contain."""
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class MetadataUnpickler(pickle.Unpickler):
    """Unpickler that accepts only :data:`_CLASSES`."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the class or value ``module.name``; raises UnpicklingError for any name that is not allowed."""
        if name not in _CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint does")
        if module == "pathlib":
            return lambda *parts: "/".join(parts)  # an unused path
        return super().find_class(module, name)


def read_metadata(content: bytes | None, place: str, step: int) -> Index:
    """Index of the checkpoint in the folder ``place``, from its ``.metadata``.

    Raises:
        UserError: the file is missing, damaged, or names anything but data.
    """
    where = f"{place}/{METADATA_FILE}"
    if content is None:
        raise UserError(f"{where}: is missing; use another checkpoint.")
    try:
        metadata = MetadataUnpickler(io.BytesIO(content)).load()
        return _index(metadata, step)
    except Exception as error:  # a damaged pickle raises anything
        raise UserError(f"{where}: cannot be read ({str(error)[:200] or type(error).__name__}); {REMEDY}.") from None


def _index(metadata: Metadata, step: int) -> Index:
    index = Index(format=1, run="", step=step, files={}, tensors={})
    places: dict[tuple[str, tuple[int, ...]], tuple[str, int, int]] = {}
    for key, info in (metadata.storage_data or {}).items():
        if not _FILE_NAME.fullmatch(info.relative_path):
            raise ValueError(f"{info.relative_path!r} is no name of a file in this folder")
        places[key.fqn, tuple(key.offset or ())] = (info.relative_path, int(info.offset), int(info.length))
    for name, stored in metadata.state_dict_metadata.items():
        if not isinstance(stored, TensorStorageMetadata):
            continue
        chunks = []
        for part in stored.chunks:
            file, start, length = places[name, tuple(part.offsets)]
            shape = tuple(int(size) for size in part.sizes)
            offset = tuple(int(first) for first in part.offsets)
            index.files.setdefault(file, StoredFile(size=0, header=0, sha256=""))
            chunks.append(
                Chunk(file=file, offset=offset, shape=shape, start=start, stop=start + length, sums=0, sha256="")
            )
        dtype = _NAMES[stored.properties.dtype]
        index.tensors[name] = StoredTensor(dtype=dtype, shape=tuple(stored.size), chunks=chunks)
    return index


class OldReader:
    """Reader of the tensors of one checkpoint of format 1; a stored part is read whole.

    Args:
        store: files of the run.
        folder: folder of the checkpoint, relative to the run.
        index: index of the checkpoint.
    """

    def __init__(self, store: RunStore, folder: str, index: Index) -> None:
        self.store = store
        self.folder = folder
        self.index = index

    def fill(self, wanted: list[Target]) -> None:
        """Fill the targets; raises :class:`UserError` if a stored part cannot be read."""
        parts = defaultdict(list)
        for part in overlaps(self.index, wanted, f"{self.store.place}/{self.folder}/{METADATA_FILE}"):
            parts[part.chunk.file, part.chunk.start].append(part)

        def using(some: list[Any]) -> Any:
            def use(content: memoryview) -> None:
                tensor = self._tensor(content, some[0].name, some[0].chunk)
                for part in some:
                    copy_part(tensor, part.chunk.offset, part)

            return use

        self.store.read_ranges(
            Range(f"{self.folder}/{file}", start, some[0].chunk.stop, using(some))
            for (file, start), some in parts.items()
        )

    def verify(self) -> None:
        """Read every stored part; raises :class:`UserError` for an unreadable one.

        Without checksums, flipped bits are not found.
        """

        def checking(name: str, chunk: Chunk) -> Any:
            def use(content: memoryview) -> None:
                self._tensor(content, name, chunk)

            return use

        self.store.read_ranges(
            Range(f"{self.folder}/{chunk.file}", chunk.start, chunk.stop, checking(name, chunk))
            for name, tensor in self.index.tensors.items()
            for chunk in tensor.chunks
        )

    def _tensor(self, content: memoryview, name: str, chunk: Chunk) -> Tensor:
        place = f"{self.store.place}/{self.folder}/{chunk.file}"
        try:
            tensor = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # damaged bytes raise anything
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
            raise UserError(f"{place}: {name} cannot be read ({reason}); {REMEDY}.") from None
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != chunk.shape:
            raise UserError(f"{place}: {name} does not have its shape {list(chunk.shape)}; {REMEDY}.")
        return tensor
