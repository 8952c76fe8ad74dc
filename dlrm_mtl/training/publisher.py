"""Publishing versions of a model in training: a whole model, and then the rows that have changed."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dlrm_mtl.checkpoint.copies import HostCopies
from dlrm_mtl.checkpoint.folder import TensorFolder
from dlrm_mtl.checkpoint.format import Index
from dlrm_mtl.checkpoint.save import Save, Works
from dlrm_mtl.checkpoint.state import RunState
from dlrm_mtl.checkpoint.tensors import flatten
from dlrm_mtl.checkpoint.writer import TensorPart, files_of, own_parts
from dlrm_mtl.config.publish import PublishConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.job_watch import enter_phase
from dlrm_mtl.core.processes import first_process_only
from dlrm_mtl.embeddings.two_phase import TwoPhaseOptimizer
from dlrm_mtl.training.golden_rows import GoldenRows
from dlrm_mtl.training.sharded_model import ShardedModel
from dlrm_mtl.versions.chain import Chain
from dlrm_mtl.versions.format import (
    FORMAT,
    GOLDEN_ROWS,
    GOLDEN_SCORES,
    VERSION_FILE,
    Version,
    parse_version,
    version_name,
    version_text,
)

ONLY_TRAINING = ("task_weighting.", "balancing.")
"""Beginnings of the names of weights that only training needs."""
SERVED = ("name", "plugins", "data", "tasks", "model", "serving")
"""Parts of a run's configuration that describe its model."""
_ROOM = "keep fewer versions with training.publish.keep"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """The model of a run whose versions are published."""

    model: ShardedModel
    optimizer: TwoPhaseOptimizer
    golden: GoldenRows
    state: RunState
    """State of the run, with its configuration and contract; the training updates it."""
    raw: Mapping[str, bytes]
    """Parts of a base that describe raw rows, by name; of the first process only."""


class Publisher:
    """Publishes versions of a model. Every process calls the methods after the same steps.

    A version that cannot be written is only reported, as training does not depend on it; the next one is then a base. The
    first version of every start of a run is a base, too: what changed before is not known.

    Args:
        config: ``training.publish`` part of the configuration.
        chain: chain to publish to.
        identity: identity of the chain.
        published: the model.
        guard: called on the first process before every write; raises :class:`UserError` if writing is not allowed.
        background: write while training goes on, from copies.
    """

    def __init__(
        self,
        config: PublishConfig,
        chain: Chain,
        identity: str,
        published: Published,
        guard: Callable[[], None],
        background: bool,
    ) -> None:
        self.config = config
        self.chain = chain
        self.identity = identity
        self.published = published
        self.guard = guard
        self.background = background
        self._marks = published.optimizer.mark_touched()
        self._forget_changes()
        self._number = 0
        self._before: str | None = None
        """SHA-256 of the last version; None if the next one must be a base."""
        self._deltas = 0
        self._bytes = self._base_bytes = 0
        self._save: Save | None = None
        self._time = time.monotonic()

    def due(self, step: int) -> bool:
        """True if a version is due after ``step``: on every process by the steps, on the first one by the time."""
        if self.config.every_steps is not None:
            return step % self.config.every_steps == 0
        assert self.config.every_minutes is not None
        return dist.get_rank() == 0 and time.monotonic() - self._time >= 60 * self.config.every_minutes

    def publish(self) -> None:
        """Publish the model as it is, in the background while training goes on; waits for the version before."""
        self.finish()
        self._time = time.monotonic()
        state, model = self.published.state, self.published.model
        enter_phase(f"the version of step {state.step}", lasting=True)
        training = model.module.training
        scored = self.published.golden.scored_by(model)
        model.module.train(training)
        base = self._before is None or self._deltas >= self.config.base_every
        base = base or self._bytes > self.config.base_share * self._base_bytes
        parts = self._base_parts() if base else self._delta_parts()
        self._forget_changes()
        if dist.get_rank() == 0:
            parts.append(_whole(GOLDEN_SCORES, torch.from_numpy(scored.scores)))
            if base:
                rows = json.dumps(self.published.golden.read, default=float).encode()
                for name, content in {GOLDEN_ROWS: rows, **self.published.raw}.items():
                    parts.append(_whole(name, torch.frombuffer(bytearray(content), dtype=torch.uint8)))
        background = self.background
        if base and background:
            copies = HostCopies()
            background = copies.fit(parts, self.chain.store.host())
            parts = copies.take(parts) if background else parts
        try:
            if self._before is None:
                self._number = 1 + max(first_process_only(self.chain.numbers), default=0)
            first_process_only(self.guard)
        except UserError as error:
            self._failed(error)
            return
        version = Version(
            format=FORMAT,
            chain=self.identity,
            number=self._number,
            kind="base" if base else "delta",
            step=state.step,
            applies_to=None if base else self._before,
            index="",
            size=0,
            golden_batches=self.published.golden.sizes,
            golden_sums=scored.sums,
            contract=state.contract if base else None,
            config=_of_model(state.config) if base else None,
        )
        self._save = Save(self._works(version, files_of(parts, dist.get_rank())), background)
        if not background:
            self.finish()

    def poll(self) -> None:
        """Go on with a version that is written in the background, without waiting."""
        if self._save is not None:
            self._go_on(self._save.poll)

    def finish(self) -> None:
        """Wait for a version that is written in the background."""
        if self._save is not None:
            self._go_on(self._save.finish)

    def abandon(self) -> None:
        """Stop writing in the background, where processes may not agree any more; the version does not appear."""
        if self._save is not None:
            self._save.abandon()
            self._save = None

    def _go_on(self, method: Callable[[], bool | None]) -> None:
        try:
            if method() is not False:
                self._save = None
        except UserError as error:
            self._failed(error)

    def _failed(self, error: UserError) -> None:
        self._save = self._before = None
        self.chain.store.drop_folder(version_name(self._number))
        if dist.get_rank() == 0:
            logger.warning("WARNING: a version is not published, and training goes on: %s", error)

    def _works(self, version: Version, files: dict[str, list[TensorPart]]) -> Works:
        name = version_name(version.number)
        folder = TensorFolder(self.chain.store, name, version.chain, version.step, 1, VERSION_FILE, _ROOM)
        written: list[Version] = []

        def text(index: Index, digest: str) -> str:
            size = sum(file.size for file in index.files.values())
            written.append(version.model_copy(update={"index": digest, "size": size}))
            return version_text(written[0])

        yield from folder.works(files, text)
        complete = parse_version(version_text(written[0]).encode(), folder.place)
        self._number, self._before = version.number + 1, complete.digest
        base, size = version.kind == "base", complete.version.size
        self._deltas, self._bytes = (0, 0) if base else (self._deltas + 1, self._bytes + size)
        self._base_bytes = size if base else self._base_bytes
        if base:
            yield folder.work(self._prune, only_first=True)

    def _prune(self) -> None:
        """Remove all versions before the oldest base to keep, the oldest first."""
        numbers = self.chain.numbers()
        bases: list[int] = []
        for number in reversed(numbers):
            if len(bases) == self.config.keep:
                break
            if self._is_base(number):
                bases.append(number)
        for number in numbers:
            if len(bases) == self.config.keep and number < bases[-1]:
                self.chain.store.remove(f"{version_name(number)}/{VERSION_FILE}")
                self.chain.store.remove(version_name(number))

    def _is_base(self, number: int) -> bool:
        try:
            return self.chain.read(number).version.kind == "base"
        except UserError:  # damaged; it goes with those around it
            return False

    def _base_parts(self) -> list[TensorPart]:
        """This process's shards of all tensors."""
        model = self.published.model
        tree: dict[str, Any] = {
            "tables": model.table_weights(),
            "ids": {name: each["ids"] for name, each in model.ids.state().items()},
            "dense": self._dense(),
        }
        return own_parts(flatten(tree), dist.get_rank())

    def _delta_parts(self) -> list[TensorPart]:
        """Copies of this process's changes; the first process adds the dense weights and replicated tables."""
        first = dist.get_rank() == 0
        parts = []
        for changed in self._marks.changed(replicated=first):
            place = f"{changed.column}:{int(changed.rows[0])}:{changed.table}"
            parts += [_whole(f"rows:{place}", changed.rows), _whole(f"values:{place}", changed.values)]
        for name, slots in self.published.model.ids.slots.items():
            assert slots.changed is not None
            places = slots.changed.nonzero().flatten()
            if len(places):
                rows, ids = places.cpu() + slots.first_row, slots.ids[places].cpu()
                place = f"{int(rows[0])}:{name}"
                parts += [_whole(f"id_rows:{place}", rows), _whole(f"ids:{place}", ids)]
        if first:
            parts += [_whole(f"dense.{name}", value.detach().clone()) for name, value in self._dense().items()]
        return parts

    def _dense(self) -> dict[str, Tensor]:
        dense = self.published.model.dense_weights()
        return {name: value for name, value in dense.items() if not name.startswith(ONLY_TRAINING)}

    def _forget_changes(self) -> None:
        self._marks.clear()
        for slots in self.published.model.ids.slots.values():
            slots.mark_changed()


def _of_model(config: dict[str, Any]) -> dict[str, Any]:
    """The parts of a configuration that describe the model; servers need not know parts of plugins in the others."""
    return {key: value for key, value in config.items() if key in SERVED}


def _whole(name: str, tensor: Tensor) -> TensorPart:
    return TensorPart(name, tensor, (0,) * tensor.dim(), tuple(tensor.shape))
