"""Checkpoints: written under a temporary name, renamed when complete, loadable under another plan."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from dlrm_mtl.checkpoint.remote_reader import StoreReader
from dlrm_mtl.checkpoint.state import CHECKPOINTS, STATE_FILE, RunState, read_state
from dlrm_mtl.checkpoint.tensors import Checkpointed, flatten
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.processes import first_process_only, gather_objects, local_rank, on_every_process
from dlrm_mtl.storage.remote_folder import Mirror

FORMAT = 1
FILE_BYTES = 32 << 30
"""Bytes from which on a process writes another file: S3 takes 10,000 parts of a file, which Arrow makes 10 MiB each."""
POINTERS = (f"{CHECKPOINTS}/best", f"{CHECKPOINTS}/latest")
"""The files, in a run's folder, that name a checkpoint."""


class Checkpoints:
    """The checkpoints of one run: ``step_N`` folders, and the files ``latest`` and ``best`` that name one of them.

    Args:
        folder: where they lie; without ``mirror`` all processes share it.
        keep: how many are kept besides the best one.
        mirror: where they belong, if that is an object store; in ``folder``, one of each host, lies no more than the checkpoint
            that is being written, then, and the files that name one.
    """

    def __init__(self, folder: Path, keep: int = 2, mirror: Mirror | None = None) -> None:
        self.folder = folder
        self.keep = keep
        self.mirror = mirror

    def path(self, name: str) -> Path:
        """The folder of checkpoint ``latest``, ``best`` or ``step_N``, there or on the store; to be called on every process.

        Raises:
            UserError: there is no such checkpoint.
        """
        pointer = self.folder / name
        if name in ("latest", "best") and pointer.is_file():
            pointer = self.folder / pointer.read_text(encoding="utf-8").strip()
        if self._progress(pointer.name) is None:
            names = self.mirror.children(CHECKPOINTS) if self.mirror else sorted(p.name for p in self.folder.glob("*"))
            there = ", ".join(name for name in names if not name.endswith(".tmp"))
            raise UserError(f"{self.folder}: there is no checkpoint {name!r}; there is {there or 'none at all yet'}.")
        return pointer

    def _progress(self, name: str) -> str | None:
        """The progress.json of ``step_N``; None if that is not complete, or not there."""
        if self.mirror is None:
            file = self.folder / name / STATE_FILE
            return file.read_text(encoding="utf-8") if file.is_file() else None
        content = self.mirror.read_for_all(f"{CHECKPOINTS}/{name}/{STATE_FILE}")
        return None if content is None else content.decode()

    def exists(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return (self.folder / "latest").is_file()

    def save(self, content: Checkpointed, progress: RunState) -> None:
        """Write ``step_N``; to be called on every process. A checkpoint either exists as a whole or not at all."""
        name, description = _name(progress.step), json.dumps({"format": FORMAT, **progress.as_dict()}, indent=1)
        target, temporary = self.folder / name, self.folder / f"{name}.tmp"
        if self._writes_here():
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob("*.tmp"):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        dist.barrier()
        mirror = self.mirror
        if self._progress(name) is None:
            state = content.tensors()
            dcp.save(state, storage_writer=dcp.FileSystemWriter(temporary, thread_count=_files(state)))
            if self._writes_here():
                _write(temporary / STATE_FILE, description)
                os.rename(temporary, target)
            if mirror is not None:
                mirror.upload_checkpoint(f"{CHECKPOINTS}/{name}", STATE_FILE)
                if self._writes_here():
                    shutil.rmtree(target)
        elif mirror is None and self._writes_here():
            _write(target / STATE_FILE, description)
        if mirror is not None:
            first_process_only(lambda: mirror.write(f"{CHECKPOINTS}/{name}/{STATE_FILE}", description))
        self.settle(progress)

    def settle(self, progress: RunState) -> None:
        """Let ``best`` and ``latest`` name the checkpoints of ``progress``, and remove those that count no more.

        To be called on every process, when the checkpoint of ``progress`` is complete, or when a run goes on from there.
        """
        # The best one first: killed in between, a run goes on from the checkpoint before and comes to this one again.
        best = None if progress.best_step is None else _name(progress.best_step)
        latest = _name(progress.step)
        if self._writes_here():
            if best is None:
                (self.folder / "best").unlink(missing_ok=True)
            else:
                _write(self.folder / "best", best)
            _write(self.folder / "latest", latest)
            for name in _superfluous(os.listdir(self.folder), best, latest, self.keep):
                shutil.rmtree(self.folder / name)
        mirror = self.mirror
        if mirror is not None:
            first_process_only(lambda: self._settle_remote(mirror, best, latest))
        dist.barrier()

    def _settle_remote(self, mirror: Mirror, best: str | None, latest: str) -> None:
        mirror.publish()
        if best is None:
            mirror.remove(f"{CHECKPOINTS}/best")
        else:
            mirror.write(f"{CHECKPOINTS}/best", best)
        mirror.write(f"{CHECKPOINTS}/latest", latest)
        for name in _superfluous(mirror.children(CHECKPOINTS), best, latest, self.keep):
            mirror.remove(f"{CHECKPOINTS}/{name}")

    def _writes_here(self) -> bool:
        """Whether this process does for the folder what only one process may do."""
        return (local_rank() if self.mirror else dist.get_rank()) == 0

    def load(self, name: str, content: Checkpointed) -> RunState:
        """Load a checkpoint into the tensors of ``content``; to be called on every process.

        Raises:
            UserError: there is no such checkpoint, or it belongs to another model or optimizer.
        """
        path = self.path(name)
        content.prepare_load()
        wanted = content.tensors()
        reader = StoreReader(self.mirror, f"{CHECKPOINTS}/{path.name}") if self.mirror else dcp.FileSystemReader(path)
        _check_fits(wanted, path, reader)
        try:
            dcp.load(wanted, storage_reader=reader)
        except dcp.CheckpointException as failure:
            for error, _ in failure.failures.values():
                if isinstance(error, UserError):
                    raise UserError(str(error)) from None
            raise
        state = read_state(self._progress(path.name) or "", FORMAT, f"{path}/{STATE_FILE}")
        content.loaded(state)
        return state


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _superfluous(there: list[str], best: str | None, latest: str, keep: int) -> list[str]:
    """The checkpoints to remove: old ones, and later ones than the latest, which an attempt that was killed has left."""
    steps = sorted(name for name in there if re.fullmatch(r"step_\d+", name) and name != best)
    until = [name for name in steps if name <= latest]
    return until[:-keep] + steps[len(until) :]


def _check_fits(wanted: dict[str, Any], path: Path, reader: dcp.StorageReader) -> None:
    found: list[Metadata] = []

    def read() -> None:
        try:
            found.append(reader.read_metadata())
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{path}: this checkpoint cannot be read ({error}); resume from another one.") from None

    on_every_process(read)
    stored = found[0].state_dict_metadata
    sizes = {key: tuple(value.size) for key, value in stored.items() if isinstance(value, TensorStorageMetadata)}
    flat: dict[str, tuple[int, ...]] = {}
    for names in gather_objects({key: tuple(value.size()) for key, value in flatten(wanted).items()}):
        flat.update(names)  # a process knows the optimizer state of its own shards only
    for key, size in flat.items():
        if key not in sizes:
            raise UserError(
                f"{path}: this is a checkpoint of another model or optimizer: it holds no {key}; "
                "use the configuration that lies in its run's folder."
            )
        if sizes[key] != size:
            raise UserError(
                f"{path}: this is a checkpoint of another model or sharding: its {key} has the size {list(sizes[key])} "
                f"and the configuration wants {list(size)}; use the configuration that lies in its run's folder."
            )
    parts = {key.split(".")[0] for key in flat}
    extra = sorted(key for key in sizes if key.split(".")[0] in parts and key not in flat)
    if extra:
        raise UserError(
            f"{path}: this is a checkpoint of another model: it holds {extra[0]}, which the configuration does not have; "
            "use the configuration that lies in its run's folder."
        )


def _files(state: dict[str, Any]) -> int:
    """The number of files for what this process has of ``state``; a shard of a table is never cut."""
    here = 0
    for value in flatten(state).values():
        shards = value.local_shards() if hasattr(value, "local_shards") else None
        here += value.nbytes if shards is None else sum(shard.tensor.nbytes for shard in shards)
    return 1 + here // FILE_BYTES


def _write(path: Path, text: str) -> None:
    """Write a small file so that it is seen either before or after, never in between."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
