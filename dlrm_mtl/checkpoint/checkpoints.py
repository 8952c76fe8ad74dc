"""The checkpoints of a run: written atomically, checked when loaded, loadable under another plan."""

from __future__ import annotations

import copy
import json
import logging
import re
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from dlrm_mtl.checkpoint.copies import HostCopies
from dlrm_mtl.checkpoint.folder import TensorFolder
from dlrm_mtl.checkpoint.format import INDEX_FILE, Index, parse_index, parse_state_text, sha256, state_text
from dlrm_mtl.checkpoint.format_1 import METADATA_FILE, OldReader, read_metadata
from dlrm_mtl.checkpoint.reader import Reader, targets
from dlrm_mtl.checkpoint.save import Save, Works
from dlrm_mtl.checkpoint.state import CHECKPOINTS, REMEDY, STATE_FILE, RunState
from dlrm_mtl.checkpoint.tensors import Checkpointed, flatten
from dlrm_mtl.checkpoint.writer import TensorPart, files_of, own_parts
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.processes import first_process_only, gather_objects, on_every_process
from dlrm_mtl.storage.run_store import RunStore

POINTERS = ("best", "latest")
"""Files that name a checkpoint."""
IDENTITY_FILE = f"{CHECKPOINTS}/run.json"
"""File that identifies the run; a checkpoint of another run is refused."""
STEP_NAME = re.compile(r"step_\d{8,}")
"""Pattern of the name of a checkpoint and of its folder."""

THREADS = 4
"""Threads of a process that write while training waits."""
_ROOM = "keep fewer checkpoints with training.keep_checkpoints"

logger = logging.getLogger(__name__)

T = TypeVar("T")


class DamageError(UserError):
    """A file of a checkpoint is missing, unreadable, or changed."""


class SaveError(UserError):
    """A checkpoint could not be written: the disk is full, a folder is read-only, a store cannot be reached.

    Args:
        reason: sentence without its end.
        step: step of the checkpoint.
        newest: the newest checkpoint that is complete, if any.
    """

    def __init__(self, reason: str, step: int, newest: str | None) -> None:
        there = f"the newest checkpoint is {newest}" if newest else "there is no checkpoint yet"
        super().__init__(f"{reason}; {there}.")
        self.step = step
        self.newest = newest


@dataclass(frozen=True)
class Opened:
    """A complete checkpoint, with its state and index read and checked."""

    name: str
    state: RunState
    index: Index
    reader: Reader | OldReader


class Checkpoints:
    """The checkpoints of one run: ``step_N`` folders, and the files ``latest`` and ``best`` that name one of them.

    Args:
        store: files of the run.
        keep: number of checkpoints kept besides the best one.
        guard: called on the first process before every write; raises :class:`UserError` if writing is not allowed.
    """

    def __init__(self, store: RunStore, keep: int = 2, guard: Callable[[], None] = lambda: None) -> None:
        self.store = store
        self.keep = keep
        self.guard = guard
        self.place = f"{store.place}/{CHECKPOINTS}"
        self._whole: set[str] = set()
        self._run = ""
        self.host = socket.gethostname()
        self._copies = HostCopies()
        self._copies_fit = True
        self._save: Save | None = None
        self._state: RunState | None = None

    def names(self) -> list[str]:
        """Names of the complete checkpoints, oldest first; for one process."""
        there = self.store.files(CHECKPOINTS)
        found = {name.split("/")[1] for name in there if re.fullmatch(rf"{CHECKPOINTS}/step_\d+/{STATE_FILE}", name)}
        return sorted(name for name in found if STEP_NAME.fullmatch(name))

    def path(self, name: str | None) -> str:
        """Name ``step_N`` of the checkpoint ``latest``, ``best`` or ``step_N``. Every process must call this.

        If the pointer ``latest`` is missing or broken, this is the newest complete checkpoint, with a remark. Without a
        name it is the best one or, with a remark, the latest one if no best one is known.

        Raises:
            UserError: there is no such checkpoint.
        """
        return first_process_only(lambda: self.find(name))

    def find(self, name: str | None) -> str:
        """Name ``step_N`` of a checkpoint, see :meth:`path`; for a single process."""
        return self._best_or_latest() if name is None else self._path(name)

    def discard(self, name: str) -> None:
        """Remove the checkpoint ``step_N``, beginning with the file that marks it as complete; for one process."""
        self.store.remove(f"{CHECKPOINTS}/{name}/{STATE_FILE}")
        self.store.remove(f"{CHECKPOINTS}/{name}")

    def _best_or_latest(self) -> str:
        if self.store.read(f"{CHECKPOINTS}/best") is not None:
            return self._path("best")
        latest = self._path("latest")
        logger.info("%s: no checkpoint of this run is known to be the best; taking the latest, %s", self.place, latest)
        return latest

    def _path(self, name: str) -> str:
        step = step_name(int(name[5:])) if re.fullmatch(r"step_\d{1,18}", name) else name
        if name in POINTERS:
            text = self.store.read(f"{CHECKPOINTS}/{name}")
            step = name if text is None else text.decode(errors="replace").strip()
            if "/" in step or "\\" in step or step.startswith("."):
                raise UserError(
                    f"{self.place}/{name}: names {step!r}, which lies outside of this folder; write the name of a checkpoint "
                    "there, such as step_00000100."
                )
        complete = self.names()
        if step in complete:
            if name == "best" and not self._is_best(step):
                if self.store.read(f"{CHECKPOINTS}/best") != text:  # a running job has written it meanwhile
                    return self._path(name)
                raise UserError(
                    f"{self.place}/best: names {step}, and the checkpoints themselves say that another one is the best; the "
                    "file was changed or is damaged: name a checkpoint with --checkpoint."
                )
            if name == "latest" and step < complete[-1]:
                logger.info("%s/latest: names %s, although %s is complete, too", self.place, step, complete[-1])
            return step
        if name == "latest" and not (STEP_NAME.fullmatch(step) and step in self.store.names(CHECKPOINTS)) and complete:
            said = "is missing" if step == name else f"names {step!r}, which is not there"
            logger.warning("%s/latest: %s; taking the newest complete checkpoint, %s", self.place, said, complete[-1])
            return complete[-1]
        if name in POINTERS and step != name and step in self.store.names(CHECKPOINTS):
            raise UserError(
                f"{self.place}/{step}/{STATE_FILE}: is missing, so this checkpoint is not complete"
                f"{self._advice([other for other in complete if other != step])}"
            )
        there = ", ".join(other for other in self.store.names(CHECKPOINTS) if not other.endswith(".tmp"))
        raise UserError(f"{self.place}: there is no checkpoint {name!r}; there is {there or 'none at all yet'}.")

    def _is_best(self, name: str) -> bool:
        """Whether the states of the checkpoint ``name`` and of the latest one agree that ``name`` is the best one."""

        def best_of(other: str) -> str | None:
            place = f"{CHECKPOINTS}/{other}/{STATE_FILE}"
            step = parse_state_text(self.store.read(place) or b"", f"{self.store.place}/{place}")[3].best_step
            return None if step is None else step_name(step)

        try:
            latest = self._path("latest")
            return best_of(name) == name and (latest <= name or best_of(latest) == name)
        except UserError:  # whatever is loaded is checked again
            return True

    def exists(self) -> bool:
        """Return True if there is a checkpoint to resume from. Every process must call this."""
        return first_process_only(lambda: self.store.read(f"{CHECKPOINTS}/latest") is not None or bool(self.names()))

    def has_best(self) -> bool:
        """Return True if a best checkpoint is known. Every process must call this."""
        return self.store.read_for_all(f"{CHECKPOINTS}/best") is not None

    def save(self, content: Checkpointed, state: RunState, background: bool = False) -> RunState | None:
        """Write ``step_N`` atomically. Every process must call this.

        Args:
            content: holder of the tensors.
            state: state of the run; a copy is written.
            background: return as soon as the tensors are copied, if the copies fit into the memory; :meth:`poll` goes on,
                :meth:`finish` waits.

        Returns:
            The state that was written; None while it is written in the background.

        Raises:
            SaveError: the checkpoint, or the one before that was still being written, cannot be written.
        """
        self.finish()
        first_process_only(self.guard)
        run = first_process_only(lambda: self.identity() or self._run or uuid.uuid4().hex)
        name = step_name(state.step)
        parts = [] if name in self._whole else own_parts(flatten(content.tensors()), dist.get_rank())
        if background and not self._copies.fit(parts, self.host):
            background = False
            if dist.get_rank() == 0 and self._copies_fit:
                logger.info(
                    "%s: training waits for checkpoints, as copies of the tensors need too much memory", self.place
                )
            self._copies_fit = False
        if background:
            parts = self._copies.take(parts)
        self._state = copy.deepcopy(state)
        threads = 1 if background else THREADS  # the cores are training's
        self._save = Save(self._works(name, files_of(parts, dist.get_rank()), run, self._state, threads), background)
        return None if background else self.finish()

    def poll(self) -> RunState | None:
        """The state of the checkpoint that was written in the background, once all processes have written it.

        Every process must call this after the same steps.

        Raises:
            SaveError: it cannot be written.
        """
        return self._state if self._save is not None and self._go_on(self._save.poll) else None

    def finish(self) -> RunState | None:
        """Wait for the checkpoint that is written in the background, if any; its state. Every process must call this.

        Raises:
            SaveError: it cannot be written.
        """
        return self._state if self._save is not None and self._go_on(self._save.finish) else None

    def abandon(self) -> None:
        """Stop writing in the background, where processes may not agree any more; the checkpoint does not appear."""
        if self._save is not None:
            self._save.abandon()
            self._save = None

    def _go_on(self, method: Callable[[], bool | None]) -> bool:
        assert self._state is not None
        try:
            done = method() is not False
        except UserError as error:
            self._save = None
            self.store.drop_folder(f"{CHECKPOINTS}/{step_name(self._state.step)}")
            newest = first_process_only(lambda: next(reversed(self.names()), None))
            raise SaveError(str(error).rstrip("."), self._state.step, newest) from None
        if done:
            self._save = None
        return done

    def _works(self, name: str, files: dict[str, list[TensorPart]], run: str, state: RunState, threads: int) -> Works:
        """The works of a save, see :class:`~dlrm_mtl.checkpoint.save.Save`."""
        place = f"{CHECKPOINTS}/{name}"
        folder = TensorFolder(self.store, place, run, state.step, threads, STATE_FILE, _ROOM)
        if name in self._whole:  # the same step with another state, as after the last evaluation
            yield folder.work(lambda: self._rewrite_state(place, state), only_first=True)
        else:
            yield folder.work(lambda: self._identify(run), only_first=True)
            yield from folder.works(files, lambda _, index: state_text(state, run, index))
            self._whole.add(name)
        yield folder.work(lambda: self._settle(state), only_first=True)

    def _identify(self, run: str) -> None:
        if self.identity() is None:
            self.store.write(IDENTITY_FILE, json.dumps({"run": run}))

    def _rewrite_state(self, folder: str, state: RunState) -> None:
        old = self.store.read(f"{folder}/{STATE_FILE}") or b""
        format, run, index, _ = parse_state_text(old, f"{self.store.place}/{folder}/{STATE_FILE}")
        text = json.dumps({"format": 1, **state.as_dict()}, indent=1) if format == 1 else state_text(state, run, index)
        self.store.write(f"{folder}/{STATE_FILE}", text)

    def identity(self) -> str | None:
        """Identity of the run; None before its first checkpoint, and in earlier versions. For one process."""
        content = self.store.read(IDENTITY_FILE)
        if content is None:
            return None
        try:
            run = json.loads(content)["run"]
        except (ValueError, KeyError, TypeError):
            run = None
        if not isinstance(run, str):
            raise UserError(
                f"{self.store.place}/{IDENTITY_FILE}: does not hold the identity of a run; remove it if the folder's "
                "checkpoints are known to be its own."
            )
        return run

    def settle(self, state: RunState) -> None:
        """Point ``best`` and ``latest`` to the checkpoints of ``state``, and remove superfluous ones.

        Every process must call this, when the checkpoint of ``state`` is complete, or when a run continues from it.
        """

        first_process_only(lambda: self._settle(state))

    def _settle(self, state: RunState) -> None:
        # ``best`` first: if killed in between, a run continues from the previous checkpoint and reaches this one again.
        best = None if state.best_step is None else step_name(state.best_step)
        latest = step_name(state.step)
        self.store.publish()
        if best is None:
            self.store.remove(f"{CHECKPOINTS}/best")
        else:
            self.store.write(f"{CHECKPOINTS}/best", best)
        self.store.write(f"{CHECKPOINTS}/latest", latest)
        for name in _superfluous(self.store.names(CHECKPOINTS), best, latest, self.keep):
            self.store.remove(f"{CHECKPOINTS}/{name}")

    def load(self, name: str, content: Checkpointed, fallback: bool = False) -> RunState:
        """Load a checkpoint into the tensors of ``content``. Every process must call this.

        Args:
            name: ``latest``, ``best`` or ``step_N``; leading zeros are optional.
            content: holder of the tensors to fill.
            fallback: True to use an older checkpoint, with a remark, if this one is damaged.

        Raises:
            UserError: there is no such checkpoint, it is damaged, or it belongs to another model or optimizer.
        """
        content.prepare_load()
        tensors = flatten(content.tensors())
        step, state = self._newest(name, fallback, lambda step: self._load(step, tensors))
        self._whole.add(step)
        content.loaded(state)
        return state

    def state(self, name: str, fallback: bool = False) -> RunState:
        """State in a checkpoint, without its tensors; arguments as in :meth:`load`. Every process must call this.

        Raises:
            UserError: there is no such checkpoint, or its state or index is damaged.
        """
        return self._newest(name, fallback, lambda step: self._opened(step).state)[1]

    def _newest(self, name: str, fallback: bool, read: Callable[[str], RunState]) -> tuple[str, RunState]:
        """Name of the checkpoint ``name`` and the result of ``read``; with ``fallback``, of the newest undamaged one."""
        step = self._first_choice(name, fallback)
        while True:
            try:
                return step, read(step)
            except DamageError as error:
                older = self._older(step) if fallback else None
                if older is None:
                    raise
                self._say_fallback(error, older)
                step = older

    def open_everywhere(self, name: str) -> Opened:
        """The same as :meth:`open`; to be called on every process."""
        return self._parse(name, *first_process_only(lambda: self._texts(name)))

    def _opened(self, name: str) -> Opened:
        with self._damage(name):
            return self.open_everywhere(name)

    def _load(self, name: str, tensors: dict[str, Any]) -> RunState:
        opened = self._opened(name)
        self._run = opened.index.run
        _check_fits(tensors, f"{self.place}/{opened.name}", opened.index)
        with self._damage(name):
            on_every_process(lambda: opened.reader.fill(targets(tensors)))
        return opened.state

    def _first_choice(self, name: str, fallback: bool) -> str:
        try:
            return self.path(name)
        except UserError:
            newest = first_process_only(lambda: next(reversed(self.names()), None))
            if not fallback or newest is None:
                raise
            return newest

    def _older(self, step: str) -> str | None:
        def find() -> str | None:
            return next((name for name in reversed(self.names()) if name < step), None)

        return first_process_only(find)

    def _say_fallback(self, error: UserError, older: str) -> None:
        if dist.get_rank() == 0:
            logger.warning("%s", error)
            logger.warning("%s: going back to %s", self.place, older)

    def _texts(self, name: str) -> tuple[bytes, bytes | None, str | None, dict[str, int]]:
        folder = f"{CHECKPOINTS}/{name}"
        state = self.store.read(f"{folder}/{STATE_FILE}")
        if state is None:
            raise UserError(f"{self.place}/{name}/{STATE_FILE}: is missing; {REMEDY}.")
        file = METADATA_FILE if parse_state_text(state, f"{self.place}/{name}/{STATE_FILE}")[0] == 1 else INDEX_FILE
        return state, self.store.read(f"{folder}/{file}"), self.identity(), self.store.files(folder)

    def _parse(
        self, name: str, state_bytes: bytes, index_bytes: bytes | None, identity: str | None, sizes: dict[str, int]
    ) -> Opened:
        place, folder = f"{self.place}/{name}", f"{CHECKPOINTS}/{name}"
        format, run, expected, state = parse_state_text(state_bytes, f"{place}/{STATE_FILE}")
        if step_name(state.step) != name:
            raise UserError(f"{place}/{STATE_FILE}: is of step {state.step}, not of this checkpoint; {REMEDY}.")
        if format == 1:
            old = read_metadata(index_bytes, place, state.step)
            return Opened(name, state, old, OldReader(self.store, folder, old))
        if identity is not None and run != identity:
            raise UserError(f"{place}/{STATE_FILE}: is of another run than the one in {IDENTITY_FILE}; {REMEDY}.")
        if index_bytes is None:
            raise UserError(f"{place}/{INDEX_FILE}: is missing; {REMEDY}.")
        if sha256(index_bytes) != expected:
            raise UserError(
                f"{place}/{INDEX_FILE}: does not have the checksum that {STATE_FILE} names, or is of another step or run; "
                f"{REMEDY}."
            )
        index = parse_index(index_bytes, f"{place}/{INDEX_FILE}")
        for file, stored in index.files.items():
            found = sizes.get(f"{folder}/{file}")
            if found != stored.size:
                there = "is missing" if found is None else f"has {found:,} bytes instead of {stored.size:,}"
                raise UserError(f"{place}/{file}: {there}; {REMEDY}.")
        return Opened(name, state, index, Reader(self.store, folder, index))

    def open(self, name: str) -> Opened:
        """State and index of the complete checkpoint ``step_N``; for one process.

        Raises:
            UserError: the checkpoint is damaged.
        """
        return self._parse(name, *self._texts(name))

    def verify(self, name: str) -> Opened:
        """Check every byte of the checkpoint ``step_N``; raises :class:`UserError` if one is damaged. For one process."""
        opened = self.open(name)
        opened.reader.verify()
        return opened

    @contextmanager
    def _damage(self, name: str) -> Iterator[None]:
        """Context that adds to an error, identically on all processes, which checkpoint to use instead of ``name``."""
        try:
            yield
        except UserError as error:
            advice = first_process_only(lambda: self._advice([one for one in self.names() if one != name]))
            raise DamageError(f"{str(error).rstrip('.')}{advice}") from None

    def _advice(self, others: list[str]) -> str:
        """End of an error sentence: the newest good one of ``others``."""
        good = next((name for name in reversed(others) if self._good(name)), None)
        if good is None:
            return "; there is no other good checkpoint of this run."
        return f"; the newest good one is {good}: use it with --checkpoint {good}, or go on from it with --resume --fallback."

    def _good(self, name: str) -> bool:
        try:
            self.verify(name)
        except UserError:
            return False
        return True


def step_name(step: int) -> str:
    """Name of the checkpoint after ``step`` steps."""
    return f"step_{step:08d}"


def _superfluous(there: list[str], best: str | None, latest: str, keep: int) -> list[str]:
    """Checkpoints to remove: old ones, and those later than the latest, left by an attempt that was killed."""
    steps = sorted(name for name in there if re.fullmatch(r"step_\d+", name) and name != best)
    until = [name for name in steps if name <= latest]
    return until[:-keep] + steps[len(until) :]


def _check_fits(wanted: dict[str, Any], place: str, index: Index) -> None:
    """Check that the checkpoint holds exactly the tensors ``wanted``, with their sizes."""
    sizes = {name: tensor.shape for name, tensor in index.tensors.items()}
    flat: dict[str, tuple[int, ...]] = {}
    for names in gather_objects({key: tuple(value.size()) for key, value in wanted.items()}):
        flat.update(names)  # a process knows only the optimizer state of its own shards
    for key, size in flat.items():
        if key not in sizes:
            raise UserError(
                f"{place}: this is a checkpoint of another model or optimizer: it holds no {key}; "
                "use the configuration that lies in its run's folder."
            )
        if sizes[key] != size:
            raise UserError(
                f"{place}: this is a checkpoint of another model or sharding: its {key} has the size {list(sizes[key])} "
                f"and the configuration wants {list(size)}; use the configuration that lies in its run's folder."
            )
    parts = {key.split(".")[0] for key in flat}
    extra = sorted(key for key in sizes if key.split(".")[0] in parts and key not in flat)
    if extra:
        raise UserError(
            f"{place}: this is a checkpoint of another model: it holds {extra[0]}, which the configuration does not have; "
            "use the configuration that lies in its run's folder."
        )
