"""Going on with a run: what it was trained with, what may have changed since, and whether it is finished already."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from dlrm_mtl.checkpoint.checkpoints import Checkpoints
from dlrm_mtl.checkpoint.state import RunState
from dlrm_mtl.config.load import load_config
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.contract import Contract
from dlrm_mtl.run.contract import in_full, saved_config, saved_contract
from dlrm_mtl.run.folder import RunFolder
from dlrm_mtl.run.settings import ORDER, Difference, check_same_settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumption:
    """A checkpoint from which a run goes on."""

    state: RunState
    contract: Contract | None
    """None in checkpoints of earlier versions."""
    changes: list[Difference]
    """Settings that are other ones from here on."""


def resumption(
    checkpoints: Checkpoints, config: RunConfig, folder: RunFolder, fallback: bool, wanted: Sequence[str]
) -> Resumption | None:
    """What a run goes on from, after checking that ``config`` may follow; None if there is no checkpoint.

    To be called on every process.

    Args:
        checkpoints: of the run.
        config: to go on with.
        folder: of the run.
        fallback: whether to go on from an older checkpoint where the latest one is damaged.
        wanted: ``key=value`` that are to change on purpose.

    Raises:
        UserError: the checkpoint is damaged, or a setting that changes the result is another one.
    """
    if not checkpoints.exists():
        return None
    state = checkpoints.state("latest", fallback)
    check_same_data(state, config, folder)
    was = saved_config(state, folder.place)
    if was is None:
        folder.store.restore(folder.config.name)
        was = load_config(folder.config) if folder.config.is_file() else config
    contract = saved_contract(state, folder.place)
    changes = check_same_settings(in_full(was, contract), in_full(config, contract), folder.place, wanted)
    return Resumption(state, contract, changes)


def data_order(config: RunConfig) -> dict[str, object]:
    """What the order of training rows depends on."""
    values = {key: getattr(config.data, key.removeprefix("data.")) for key in ORDER if key.startswith("data.")}
    negatives = values.pop("data.negatives")
    drawn = {"data.negatives": negatives.model_dump()} if negatives else {}
    return {"seed": config.seed, **values, **drawn}


def check_same_data(progress: RunState, config: RunConfig, folder: RunFolder) -> None:
    """Check that a resumed run goes on with the same rows in the same order."""
    now = data_order(config)
    for key in {**now, **progress.data}:
        if progress.data.get(key) != now.get(key):
            effect = "other rows would be drawn" if key == "data.negatives" else "rows would be skipped or read twice"
            raise UserError(
                f"{folder.path}: {key} was {progress.data.get(key)} and is now {now.get(key)}, so that {effect}; set it "
                "back to resume, or start anew with another --output."
            )


def apply_changes(changes: Sequence[Difference], progress: RunState) -> None:
    """Let the state follow changed settings: the best value of another metric says nothing."""
    if any(key == "training.early_stopping.metric" for key, _, _ in changes):
        progress.best_step = progress.best_value = None
        progress.evaluations_without_improvement = 0


def say_changes(changes: Sequence[Difference]) -> None:
    """Log which settings are other ones from here on; for the first process."""
    for key, was, now in changes:
        logger.info("%s was %s and is %s from here on", key, was, now)


def finished(config: RunConfig, state: RunState, steps: int | None, folder: RunFolder) -> dict[str, float] | None:
    """The results of a run that has nothing left to do; None if it has, or left none. For one process.

    Args:
        config: to go on with.
        state: of the latest checkpoint.
        steps: of the whole run; None where data are growing.
        folder: of the run.
    """
    patience = config.training.early_stopping.patience
    impatient = 0 < patience <= state.evaluations_without_improvement
    if steps is None or not (impatient or state.step >= steps):
        return None
    try:
        results = json.loads(folder.store.read(folder.results.name) or b"{}")
        test: dict[str, float] = results["test"]
    except (ValueError, KeyError, TypeError):
        return None
    return test if results.get("last_step", state.step) == state.step else None
