"""Writing a folder of tensors that appears whole, by all processes together: of a checkpoint, or of a published version."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist

from dlrm_mtl.checkpoint.format import INDEX_FILE, Index, sha256
from dlrm_mtl.checkpoint.room import Need, check_room
from dlrm_mtl.checkpoint.save import Works
from dlrm_mtl.checkpoint.writer import TensorPart, join_indices, size_of, write_files
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.storage.output import write_whole
from dlrm_mtl.storage.run_store import RunStore

T = TypeVar("T")


@dataclass(frozen=True)
class TensorFolder:
    """A folder that is about to be written.

    Args:
        store: files in which it appears.
        name: its name there.
        run: identity of the run.
        step: step of the tensors.
        threads: threads of a process that write.
        last: name of the file that marks it as complete.
        room: end of the sentence about too little room: how to need less.
    """

    store: RunStore
    name: str
    run: str
    step: int
    threads: int
    last: str
    room: str

    @property
    def place(self) -> str:
        """The folder, for errors."""
        return f"{self.store.place}/{self.name}"

    def work(self, action: Callable[[], T], only_first: bool = False) -> Callable[[], T | None]:
        """``action`` as a work of a :class:`~dlrm_mtl.checkpoint.save.Save`, on all processes or only the first one."""

        def run() -> T | None:
            try:
                return action() if dist.get_rank() == 0 or not only_first else None
            except OSError as error:
                raise UserError(
                    f"{self.place}: cannot be written ({error.strerror or error}); make room, or correct the permissions."
                ) from None

        return run

    def works(self, files: dict[str, list[TensorPart]], text: Callable[[Index, str], str]) -> Works:
        """Works that write the folder.

        Args:
            files: parts that this process writes, by the name of the file.
            text: gives the text of the last file from the index of all files, and the SHA-256 of ``index.json``.
        """

        def begin() -> Need:
            room = self.store.begin_folder(self.name)
            return Need(self.store.host(), sum(map(size_of, files.values())), len(files), room)

        needs = yield self.work(begin)
        check_room(needs, self.place, self.room)
        path = self.store.temporary(self.name)
        written = yield self.work(lambda: write_files(path, files, self.run, self.step, self.threads))
        index = join_indices(written, self.place)
        content = index.model_dump_json()

        def upload() -> dict[str, int]:
            if dist.get_rank() == 0:
                write_whole(path / INDEX_FILE, content)
            return self.store.upload_folder(self.name)

        sizes: dict[str, int] = {}
        for some in (yield self.work(upload)):
            sizes.update(some)
        last = text(index, sha256(content.encode()))
        yield self.work(lambda: self.store.publish_folder(self.name, self.last, last, sizes), only_first=True)
        yield self.work(lambda: self.store.drop_folder(self.name))
