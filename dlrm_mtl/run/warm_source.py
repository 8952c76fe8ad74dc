"""The checkpoint of a warm start, and which of its tensors go where; without a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dlrm_mtl.checkpoint.checkpoints import Opened
from dlrm_mtl.config.init_from import InitFromConfig, below, renamed
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.suggest import suggest
from dlrm_mtl.data.contract import Contract
from dlrm_mtl.run.contract import saved_contract
from dlrm_mtl.run.inspect_checkpoints import open_checkpoints

KEY = "init_from"
"""The key of the configuration."""


@dataclass(frozen=True)
class Source:
    """A checkpoint of another run."""

    run: str
    place: str
    opened: Opened
    contract: Contract | None
    """None in checkpoints of earlier versions."""

    def shapes(self, kind: str) -> dict[str, tuple[int, ...]]:
        """Sizes of the stored tensors of a ``kind``, such as ``tables``, by name."""
        tensors = self.opened.index.tensors
        return {name[len(kind) + 1 :]: tensor.shape for name, tensor in tensors.items() if name.startswith(f"{kind}.")}

    def owner(self, name: str) -> str | None:
        """The feature that owned the vocabulary of the table, or of the feature, ``name``; None if there is no such name."""
        if self.contract is None:
            return name if f"ids.{name}.ids" in self.opened.index.tensors else None
        try:
            return self.contract.dataset.vocabulary_owner(name)
        except KeyError:
            return None


def source_of(config: InitFromConfig, everywhere: bool = False) -> Source:
    """Open the checkpoint that ``config`` names, and check the names in ``config`` that it must have.

    Args:
        config: of the warm start.
        everywhere: whether every process calls this; otherwise one that is alone.

    Raises:
        UserError: there is no such run, checkpoint or name.
    """
    try:
        checkpoints = open_checkpoints(config.run)
        if everywhere:
            opened = checkpoints.open_everywhere(checkpoints.path(config.checkpoint))
        else:
            opened = checkpoints.open(checkpoints.find(config.checkpoint))
    except UserError as error:
        raise UserError(f"{KEY}: {error}") from None
    place = f"{checkpoints.place}/{opened.name}"
    source = Source(config.run, place, opened, saved_contract(opened.state, place))
    tables, dense = source.shapes("tables"), source.shapes("dense")
    features = source.contract.dataset.features if source.contract else []
    known = {*tables, *dense, *(feature.name for feature in features)}
    for old in config.map:
        if not any(below(name, old) for name in known):
            raise UserError(
                f"{KEY}.map: {place} has no table, parameter or feature {old!r}; {suggest(old, beginnings(known))}."
            )
    for key, names, there in (("tables", config.tables, tables), ("dense", config.dense, dense)):
        after = [renamed(name, config.map) for name in there]
        for name in names if isinstance(names, list) else []:
            if not any(below(other, name) for other in after):
                raise UserError(f"{KEY}.{key}: {place} has no {name!r}; {suggest(name, beginnings(after))}.")
    return source


def beginnings(names: Iterable[str]) -> set[str]:
    """The first parts of ``names``."""
    return {name.partition(".")[0] for name in names}


@dataclass
class Pairing:
    """Tensors of one kind that are taken, and those that are not."""

    taken: dict[str, str]
    """Old name by new name."""
    fresh: list[str]
    """New names that keep their initial weights."""
    left: list[str]
    """Old names that are not used."""


def pair_tensors(
    was: Iterable[str], now: Iterable[str], config: InitFromConfig, wanted: bool | Sequence[str], skip: Sequence[str]
) -> Pairing:
    """Pair the tensors of a checkpoint with those of a new model, by name.

    Args:
        was: names in the checkpoint.
        now: names in the new model.
        config: of the warm start.
        wanted: True for all, or new names to take.
        skip: new names not to take.
    """
    old_of: dict[str, str] = {}
    for old in sorted(was, key=lambda name: renamed(name, config.map) != name):  # a mapped name displaces an equal one
        old_of[renamed(old, config.map)] = old
    names = list(now)
    limits = [] if wanted is False else [""] if wanted is True else list(wanted)
    taken = {
        name: old_of[name]
        for name in names
        if name in old_of
        and any(limit == "" or below(name, limit) for limit in limits)
        and not any(below(name, other) for other in skip)
    }
    used = set(taken.values())
    return Pairing(taken, [name for name in names if name not in taken], sorted(set(was) - used))
