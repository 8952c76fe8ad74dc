"""Warm start: parts of another run's checkpoint as the first weights of a new run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dlrm_mtl.checkpoint.reader import Target, targets
from dlrm_mtl.config.init_from import TRAINING_STATE, InitFromConfig, below, renamed
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.processes import first_process_only, on_every_process
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.data.contract import Contract
from dlrm_mtl.data.dataset import Dataset
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.optim.build import Optimizers
from dlrm_mtl.run.vocabulary_match import Match, VocabularyMatch
from dlrm_mtl.run.warm_source import KEY, beginnings, pair_tensors, source_of
from dlrm_mtl.training.sharded_model import ShardedModel

logger = logging.getLogger(__name__)

PIECE = 64 << 20
"""Bytes of rows that are read at a time where rows change places."""


@dataclass
class Report:
    """What a new run began with; the content of ``init.json``."""

    run: str
    checkpoint: str
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By table: the old name, rows taken, new rows with initial weights, and old rows without use."""
    dense: dict[str, str] = field(default_factory=dict)
    """Old name by new name."""
    optimizer_state: bool = False
    initialised: list[str] = field(default_factory=list)
    """Tensors that keep their initial weights."""
    left: list[str] = field(default_factory=list)
    """Tensors of the checkpoint without use."""


@torch.no_grad()
def warm_start(
    init: InitFromConfig, contract: Contract, dataset: Dataset, model: ShardedModel, optimizers: Optimizers
) -> tuple[Report, int]:
    """Fill ``model``, and on request the state of ``optimizers``, from a checkpoint; to be called on every process.

    Every process reads what its own shards need. The result does not depend on the plan or the number of processes.

    Args:
        init: what to take.
        contract: of the new run.
        dataset: of the new run.
        model: of the new run, with its initial weights.
        optimizers: of the new run, before the first step.

    Returns:
        What was taken, and the number of applied steps in the optimizer's state.

    Raises:
        UserError: the checkpoint cannot be read, lacks a name, or has other sizes.
    """
    return WarmStart(init, contract, dataset, model, optimizers).run()


class WarmStart:
    """One warm start; arguments as for :func:`warm_start`."""

    def __init__(
        self, init: InitFromConfig, contract: Contract, dataset: Dataset, model: ShardedModel, optimizers: Optimizers
    ) -> None:
        self.init, self.contract = init, contract
        self.model, self.optimizers = model, optimizers
        self.source = source_of(init, everywhere=True)
        self.report = Report(self.source.run, self.source.opened.name, optimizer_state=init.optimizer_state)
        was = self.source.contract
        self.vocabularies = VocabularyMatch(init.run, was, contract, dataset, init.vocabularies)
        self.owners = _owners(model, contract.dataset)
        """Owner of the vocabulary by table of the new model; without tables of no feature of the data set."""

    def run(self) -> tuple[Report, int]:
        """Fill the tensors; results as of :func:`warm_start`."""
        weights, dense = self.model.table_weights(), self.model.dense_weights()
        self._check_new_names([*weights, *dense])
        old_tables, old_dense = self.source.shapes("tables"), self.source.shapes("dense")
        skip = [*self.init.skip, *self.model.table_set.pretrained]
        of_tables = pair_tensors(old_tables, weights, self.init, self.init.tables, skip)
        training = () if self.init.optimizer_state else TRAINING_STATE
        of_dense = pair_tensors(old_dense, dense, self.init, self.init.dense, [*self.init.skip, *training])
        if not of_tables.taken and not of_dense.taken:
            raise UserError(
                f"{KEY}: nothing of {self.source.place} is taken; correct {KEY}.map, {KEY}.tables and {KEY}.dense, or remove "
                f"{KEY}."
            )
        for new, old in of_dense.taken.items():
            self._check_size(f"dense.{old}", old_dense[old], tuple(dense[new].shape), new)
        self._say_differences(bool(of_dense.taken))
        moves = {new: self._rows(new, old, weights[new]) for new, old in of_tables.taken.items()}
        jobs = [_Job(f"tables.{old}", weights[new], moves[new]) for new, old in of_tables.taken.items()]
        jobs += [_Job(f"dense.{old}", dense[new], None) for new, old in of_dense.taken.items()]
        jobs += self._unbounded(of_tables.taken)
        if self.init.optimizer_state:
            jobs += self._state(of_tables.taken, of_dense.taken, moves)
        on_every_process(lambda: self._fill(jobs))
        self._age_unbounded(of_tables.taken)
        for new, old in of_tables.taken.items():
            self.report.tables[new] = {
                "from": old,
                **_counts(moves[new], old_tables[old][0], int(weights[new].size(0))),
            }
        self.report.dense = of_dense.taken
        self.report.initialised = [
            *(f"tables.{name}" for name in of_tables.fresh if name not in self.model.table_set.pretrained),
            *(f"dense.{name}" for name in of_dense.fresh),
        ]
        self.report.left = [f"{kind}.{n}" for kind, c in (("tables", of_tables), ("dense", of_dense)) for n in c.left]
        return self.report, self._steps()

    def _check_new_names(self, names: Sequence[str]) -> None:
        known = {*names, *(feature.name for feature in self.contract.dataset.features)}
        entries = [("map", new) for new in self.init.map.values()] + [("skip", name) for name in self.init.skip]
        for key in ("tables", "dense"):
            wanted = getattr(self.init, key)
            entries += [(key, name) for name in wanted] if isinstance(wanted, list) else []
        for key, name in entries:
            if not any(below(other, name) for other in known):
                raise UserError(
                    f"{KEY}.{key}: this run has no table or parameter {name!r}; {suggest(name, beginnings(known))}."
                )

    def _check_size(self, old: str, was: tuple[int, ...], now: tuple[int, ...], new: str) -> None:
        if was != now:
            raise UserError(
                f"{KEY}: {self.source.place}: {old} has the size {list(was)}, and {new} of this run has {list(now)}; set "
                f"what makes this size as it was, or leave it out with {KEY}.skip: [{new}]."
            )

    def _say_differences(self, dense: bool) -> None:
        """Warn where parameters that are found by position stand for something else."""
        was = self.source.contract
        if was is None or not dense or dist.get_rank() != 0:
            return
        for what, before, after in (
            ("features", [feature.name for feature in was.features], [each.name for each in self.contract.features]),
            ("tasks", was.tasks, self.contract.tasks),
        ):
            before = [renamed(name, self.init.map) for name in before]
            if before != after:
                logger.warning(
                    "%s: the %s were %s and are %s; parameters that take them by position are taken as they are: leave out "
                    "with %s.skip what does not fit",
                    KEY,
                    what,
                    ", ".join(before),
                    ", ".join(after),
                    KEY,
                )

    def _rows(self, new: str, old: str, weight: Any) -> Tensor | None:
        """For each row of the table ``new`` its row in ``old``, -1 for none; None if every row remains where it is."""
        was, now = self.source.shapes("tables")[old], (int(weight.size(0)), int(weight.size(1)))
        owner = self.owners.get(new)
        old_owner = self._old_owner(old, owner)
        unbounded = owner in self.model.ids.vocabularies
        if unbounded != (f"ids.{old_owner}.ids" in self.source.opened.index.tensors):
            kinds = ("unbounded ids", "a vocabulary")
            raise UserError(
                f"{KEY}: {self.source.place}: tables.{old} has {kinds[unbounded]}, and {new} of this run has "
                f"{kinds[not unbounded]}; leave it out with {KEY}.skip: [{new}]."
            )
        if unbounded or was[1] != now[1]:
            self._check_size(f"tables.{old}", was, now, new)
            return None
        match, rows = self._match(old_owner, owner, was[0], now[0])
        if match.kind == "values":
            return rows
        if match.kind == "same" or (match.kind == "unknown" and was[0] == now[0]):
            self._check_size(f"tables.{old}", was, now, new)
            return None
        if self.init.grow == "append" and was[0] <= now[0]:
            rows = torch.arange(now[0])
            rows[was[0] :] = -1
            return rows
        remedies = [f"name its file with {KEY}.vocabularies"] if match.kind == "changed" else []
        if was[0] <= now[0]:
            remedies.append(f"set {KEY}.grow: append if the first {was[0]:,} ids have remained the same")
        remedies.append(f"leave it out with {KEY}.skip: [{new}]")
        raise UserError(
            f"{KEY}: {self.source.place}: tables.{old} has {was[0]:,} rows, {new} of this run has {now[0]:,}, and which rows "
            f"have the same values is not known ({match.reason}); {', or '.join(remedies)}."
        )

    def _match(
        self, old_owner: str | None, owner: str | None, rows_before: int, rows: int
    ) -> tuple[Match, Tensor | None]:
        """The relation of two vocabularies and, if values are matched, the old row of each new one; on every process."""
        found: list[Match] = []

        def match() -> Match:
            found.append(self.vocabularies.match(old_owner, owner, rows_before, rows))
            return replace(found[0], rows=None)

        told = first_process_only(match)
        if told.kind != "values":
            return told, None
        moved = torch.empty(rows, dtype=torch.int64)
        if found and found[0].rows is not None:
            moved.copy_(torch.from_numpy(found[0].rows))
        dist.broadcast(moved, 0)
        return told, moved

    def _old_owner(self, table: str, owner: str | None) -> str | None:
        """Owner of the vocabulary of the old ``table``, whose new one belongs to ``owner``."""
        former = {new: old for old, new in self.init.map.items()}
        names = [table] if owner is None else [table, former.get(owner, owner)]
        return next((found for name in names if (found := self.source.owner(name)) is not None), None)

    def _unbounded(self, taken: Mapping[str, str]) -> list[_Job]:
        """The maps from unbounded ids to rows of the tables that are taken."""
        jobs = []
        for name, old in self._old_vocabularies(taken).items():
            for key, tensor in self.model.ids.state()[name].items():
                jobs.append(_Job(f"ids.{old}.{key}", tensor, None))
        return jobs

    def _old_vocabularies(self, taken: Mapping[str, str]) -> dict[str, str]:
        """Old name of every unbounded vocabulary with a table that is taken, by its new one."""
        found: dict[str, str] = {}
        for name, vocabulary in self.model.ids.vocabularies.items():
            for table in sorted(vocabulary.tables & set(taken)):
                owner = self._old_owner(taken[table], name)
                assert owner is not None  # its map is in the checkpoint
                if found.setdefault(name, owner) != owner:
                    raise UserError(
                        f"{KEY}: the tables of {name!r} come from those of {found[name]!r} and {owner!r}, whose ids have "
                        f"different rows; leave one out with {KEY}.skip."
                    )
        return found

    def _age_unbounded(self, taken: Mapping[str, str]) -> None:
        """Let the last use of all ids lie before the first step, in the same order."""
        for name in self._old_vocabularies(taken):
            slots = self.model.ids.slots[name]
            slots.last_used[slots.ids != 0] -= self.source.opened.state.step

    def _state(
        self, tables: Mapping[str, str], dense: Mapping[str, str], moves: Mapping[str, Tensor | None]
    ) -> list[_Job]:
        """The optimizers' state of what is taken."""
        existed = set(self.optimizers.dense_state())
        self.optimizers.allocate()
        of_tables, of_dense = self.optimizers.table_state(), self.optimizers.dense_state()
        jobs = []
        for new, old in tables.items():
            for key, value in of_tables.get(new, {}).items():
                jobs.append(_Job(f"table_state.{old}.{key}", value, moves[new]))
        for new, old in dense.items():
            for key, value in of_dense.get(new, {}).items():
                jobs.append(_Job(f"dense_state.{old}.{key}", value, None))
        for new, parameter in self.optimizers.dense_parameters.items():
            if new not in dense and new not in existed:
                del self.optimizers.dense.state[parameter]  # it begins at its first step
        on_every_process(lambda: self._check_state(jobs))  # a process may have no state of a table
        return jobs

    def _check_state(self, jobs: Sequence[_Job]) -> None:
        stored = self.source.opened.index.tensors
        for job in jobs:
            if job.name not in stored:
                raise UserError(
                    f"{KEY}.optimizer_state: {self.source.place} holds no {job.name}, so that it is of another optimizer; set "
                    "the one of that run, or optimizer_state: false."
                )
            if job.rows is None:
                self._check_size(job.name, stored[job.name].shape, tuple(job.tensor.size()), job.name.split(".", 1)[1])

    def _steps(self) -> int:
        """Applied steps in the optimizer's state, after telling the optimizers."""
        if not self.init.optimizer_state:
            return 0
        steps = self.source.opened.state.steps_applied
        self.optimizers.sparse.loaded(steps)
        return steps

    def _fill(self, jobs: Sequence[_Job]) -> None:
        reader = self.source.opened.reader
        reader.fill([part for job in jobs if job.rows is None for part in targets({job.name: job.tensor})])
        for job in jobs:
            if job.rows is not None:
                for part in targets({job.name: job.tensor}):
                    self._fill_moved(part, job.rows)

    def _fill_moved(self, part: Target, rows: Tensor) -> None:
        """Fill a shard whose row r is row ``rows[r]`` of the stored tensor; rows with -1 are left as they are."""
        if not part.tensor.numel():
            return
        first = part.offset[0]
        own = rows[first : first + part.tensor.shape[0]]
        row = part.tensor[:1].numel() * part.tensor.element_size()
        step = max(1, PIECE // row)
        for begin in range(0, int(own.max()) + 1, step):
            here = ((own >= begin) & (own < begin + step)).nonzero().flatten()
            if not len(here):
                continue
            wanted = own[here]
            low, high = int(wanted.min()), int(wanted.max()) + 1
            stored = torch.empty(high - low, *part.tensor.shape[1:], dtype=part.tensor.dtype)
            self.source.opened.reader.fill([Target(part.name, stored, (low, *part.offset[1:]))])
            part.tensor.detach()[here.to(part.tensor.device)] = stored[wanted - low].to(part.tensor.device)


@dataclass(frozen=True, eq=False)
class _Job:
    """A tensor to fill from the stored one ``name``, row by row where ``rows`` says from which."""

    name: str
    tensor: Any
    rows: Tensor | None


def _owners(model: ShardedModel, spec: DatasetSpec) -> dict[str, str]:
    known = {feature.name for feature in spec.features}
    owners = {}
    for table in model.tables:
        for feature in known.intersection(table.feature_names):
            owners[table.name] = spec.vocabulary_owner(feature)
    return owners


def _counts(rows: Tensor | None, before: int, now: int) -> dict[str, int]:
    if rows is None:
        return {"rows": now, "new_rows": 0, "left_rows": before - now}
    taken = int((rows >= 0).sum())
    return {"rows": taken, "new_rows": now - taken, "left_rows": before - taken}


def say(report: Report, place: str) -> None:
    """Log counts; the list is in the file ``place``."""
    logger.info(
        "%s: took %d tables and %d other tensors of %s (%s)%s; %d keep their initial weights, %d of the checkpoint are left: "
        "see %s",
        KEY,
        len(report.tables),
        len(report.dense),
        report.run,
        report.checkpoint,
        " with the optimizer's state" if report.optimizer_state else "",
        len(report.initialised),
        len(report.left),
        place,
    )
    for name, counts in report.tables.items():
        if counts["new_rows"] or counts["left_rows"]:
            logger.info(
                "%s: %s: %s rows taken, %s new, %s left",
                KEY,
                name,
                f"{counts['rows']:,}",
                f"{counts['new_rows']:,}",
                f"{counts['left_rows']:,}",
            )
