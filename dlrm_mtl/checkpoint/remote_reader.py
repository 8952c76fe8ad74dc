"""Loading a checkpoint from an object store: every process reads the bytes that its own shards need, and no others.

``torch.distributed.checkpoint`` keeps many tensors in one file, each in the format of ``torch.save``. Its own reader copies
what another sharding plan has stored whole before it cuts out a part; with tables of terabytes that part has to be found first.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import IO, Any, cast

import torch
from pyarrow import NativeFile
from torch import Tensor
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint import LoadPlan, LoadPlanner, Metadata, ReadItem, StorageReader
from torch.distributed.checkpoint.planner import LoadItemType
from torch.futures import Future

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.storage.remote_folder import THREADS, Mirror

WHOLE = 1 << 20
"""Bytes up to which a stored tensor is read whole: the dense part, in few requests."""
ENDS = 16 << 10
"""Bytes at either end of a stored tensor in which its description lies: its type, its strides and where its numbers begin."""
PIECE = 16 << 20
"""Bytes that one request asks for at most, so that a process holds no more than :data:`THREADS` times as many."""
GAP = 64 << 10
"""Bytes that are read and thrown away, at most, where this saves a request."""
ROUND = 16 * THREADS
"""Requests after which their failures are counted anew."""
METADATA_FILE = ".metadata"


@dataclass(frozen=True, eq=False)
class _Range:
    """Bytes of a file, and what to do with them: ``use`` gets them as a tensor, uint8, [stop - start]."""

    file: str
    start: int
    stop: int
    use: Callable[[Tensor], None]


@dataclass(eq=False)
class _Stored:
    """A tensor as it lies in a file, what is wanted of it, and what is known of its bytes, by their offsets in the file."""

    file: str
    start: int
    stop: int
    items: list[ReadItem] = field(default_factory=list)
    known: dict[int, bytes] = field(default_factory=dict)

    @property
    def large(self) -> bool:
        """Whether to read no more of it than what is wanted."""
        return self.stop - self.start > WHOLE and self.items[0].type == LoadItemType.TENSOR


class StoreReader(StorageReader):
    """Reads the checkpoint in the folder ``folder`` of ``mirror``; for ``torch.distributed.checkpoint.load``.

    Of a tensor that was cut by rows, or not at all, the rows that are wanted are read; whoever wants some of the columns of a
    row reads all that are stored beside them. Transfers that fail are repeated as all those of a :class:`Mirror`.
    """

    def __init__(self, mirror: Mirror, folder: str) -> None:
        super().__init__()
        self.mirror = mirror
        self.folder = folder
        self._metadata: Metadata | None = None
        self._opened: dict[str, NativeFile] = {}

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept from one load to the next but what does not change."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What the checkpoint holds; read once.

        Raises:
            UserError: it is not there.
        """
        if self._metadata is None:
            content = self.mirror.read(f"{self.folder}/{METADATA_FILE}")
            if content is None:
                raise UserError(f"{self._place()}: has no {METADATA_FILE}; resume from another checkpoint.")
            self._metadata = pickle.loads(content)
        return self._metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to prepare."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are."""
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Never: whoever wants this reader says so."""
        return False

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the tensors of ``planner``.

        Raises:
            UserError: something cannot be read, and has not become readable.
        """
        stored = self._stored(plan)
        self.mirror.transfer("read", {one.file for one in stored}, self.folder, self._open)
        large = [one for one in stored if one.large]
        whole = [_whole(one, planner) for one in stored if not one.large]
        self._read([*whole, *(end for one in large for end in _ends(one))])
        self._read([part for one in large for part in self._parts(one, planner)])
        for file in self._opened.values():
            file.close()
        self._opened.clear()
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _stored(self, plan: LoadPlan) -> list[_Stored]:
        """The stored tensors of which ``plan`` wants something."""
        places = self.read_metadata().storage_data
        stored: dict[Any, _Stored] = {}
        for item in plan.items:
            place = places[item.storage_index]
            one = stored.setdefault(
                item.storage_index, _Stored(place.relative_path, place.offset, place.offset + place.length)
            )
            one.items.append(item)
        return list(stored.values())

    def _parts(self, one: _Stored, planner: LoadPlanner) -> Iterable[_Range]:
        """The bytes of a large tensor that are wanted, piece by piece."""
        view = cast(IO[bytes], _View(one, self._bytes_beyond))
        described = torch.load(view, map_location="meta", weights_only=True)
        if not described.is_contiguous() or described.dim() == 0:
            yield _whole(one, planner)
            return
        size, row = described.element_size(), described.nbytes // described.size(0)
        begin = one.start + described.untyped_storage()._checkpoint_offset + described.storage_offset() * size
        wanted = defaultdict(list)
        for item in one.items:
            wanted[item.storage_offsets[0], item.lengths[0]].append(item)
        for (first, count), items in wanted.items():
            for number in range(first, first + count, max(1, PIECE // row)):
                rows = min(max(1, PIECE // row), first + count - number)
                start = begin + number * row
                shape = (rows, *described.shape[1:])
                fill = _filling(items, planner, number - first, shape, described.dtype)
                yield _Range(one.file, start, start + rows * row, fill)

    def _read(self, ranges: Iterable[_Range]) -> None:
        groups = iter(_neighbours(ranges))
        while some := list(islice(groups, ROUND)):
            self.mirror.transfer("read", some, self.folder, self._read_group)

    def _read_group(self, group: list[_Range]) -> None:
        start, stop = group[0].start, max(each.stop for each in group)
        data = self._bytes(group[0].file, start, stop)
        for each in group:
            each.use(data[each.start - start : each.stop - start])

    def _bytes(self, file: str, start: int, stop: int) -> Tensor:
        opened, data = self._opened[file], torch.empty(stop - start, dtype=torch.uint8)
        if opened.size() < stop:
            raise OSError(f"{file} ends after {opened.size():,} bytes, before {stop:,}")
        with opened.get_stream(start, stop - start) as stream:
            count = stream.readinto(data.numpy())
        if count != stop - start:
            raise OSError(f"{file}: {count:,} bytes came where {stop - start:,} were asked for")
        return data

    def _bytes_beyond(self, file: str, start: int, stop: int) -> Tensor:
        """What a description needs beyond the ends of a tensor, which happens with none that torch writes today."""
        found: list[Tensor] = []
        self._read([_Range(file, start, stop, found.append)])
        return found[0]

    def _open(self, file: str) -> None:
        self._opened[file] = self.mirror.open(f"{self.folder}/{file}")

    def _place(self) -> str:
        return f"{self.mirror.uri}/{self.folder}"


class _View(io.RawIOBase):
    """A stored tensor as a file; ``read`` is asked for what is not known of it."""

    def __init__(self, one: _Stored, read: Callable[[str, int, int], Tensor]) -> None:
        super().__init__()
        self.one = one
        self.ask = read
        self.at = one.start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at - self.one.start

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: self.one.start, io.SEEK_CUR: self.at, io.SEEK_END: self.one.stop}[whence]
        self.at = base + offset
        return self.tell()

    def readinto(self, target: Any) -> int:
        stop = min(self.at + len(target), self.one.stop)
        for start, known in self.one.known.items():
            if start <= self.at and stop <= start + len(known):
                found = known[self.at - start : stop - start]
                break
        else:
            found = self.ask(self.one.file, self.at, stop).numpy().tobytes() if self.at < stop else b""
        target[: len(found)] = found
        self.at += len(found)
        return len(found)


def _neighbours(ranges: Iterable[_Range]) -> list[list[_Range]]:
    """The ranges that one request reads together."""
    groups: list[list[_Range]] = []
    stop = 0
    for one in sorted(ranges, key=lambda one: (one.file, one.start)):
        group = groups[-1] if groups else None
        if group and group[0].file == one.file and one.start - stop <= GAP and one.stop - group[0].start <= PIECE:
            group.append(one)
            stop = max(stop, one.stop)
        else:
            groups.append([one])
            stop = one.stop
    return groups


def _ends(one: _Stored) -> Iterable[_Range]:
    for start, stop in ((one.start, one.start + ENDS), (one.stop - ENDS, one.stop)):

        def keep(data: Tensor, start: int = start) -> None:
            one.known[start] = data.numpy().tobytes()

        yield _Range(one.file, start, stop, keep)


def _whole(one: _Stored, planner: LoadPlanner) -> _Range:
    def fill(data: Tensor) -> None:
        content = io.BytesIO(data.numpy().tobytes())
        if one.items[0].type == LoadItemType.BYTE_IO:
            planner.load_bytes(one.items[0], content)
            return
        tensor = torch.load(content, map_location="cpu", weights_only=True)
        for item in one.items:
            target = planner.resolve_tensor(item).detach()
            target.copy_(narrow_tensor_by_index(tensor, item.storage_offsets, item.lengths))
            planner.commit_tensor(item, target)

    return _Range(one.file, one.start, one.stop, fill)


def _filling(
    items: list[ReadItem], planner: LoadPlanner, first: int, shape: tuple[int, ...], dtype: torch.dtype
) -> Callable[[Tensor], None]:
    """Copies stored rows, [rows, ...], to the rows from ``first`` on of what ``items`` want."""

    def fill(data: Tensor) -> None:
        aligned = data if data.storage_offset() % dtype.itemsize == 0 else data.clone()
        rows = aligned[: math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
        for item in items:
            target = planner.resolve_tensor(item).detach()
            part = narrow_tensor_by_index(rows, (0, *item.storage_offsets[1:]), (shape[0], *item.lengths[1:]))
            target.narrow(0, first, shape[0]).copy_(part)
            planner.commit_tensor(item, target)

    return fill
