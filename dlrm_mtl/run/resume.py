"""Resuming a run: its trained configuration, allowed changes, and whether it is finished."""

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
    """A checkpoint from which a run continues."""

    state: RunState
    contract: Contract | None
    """Contract of the run; None in checkpoints of earlier versions."""
    changes: list[Difference]
    """Settings that change from here on."""


def resumption(
    checkpoints: Checkpoints, config: RunConfig, folder: RunFolder, fallback: bool, wanted: Sequence[str]
) -> Resumption | None:
    """Checkpoint from which a run continues, after checking that ``config`` is compatible; None if there is none.

    Every process must call this.

    Args:
        checkpoints: checkpoints of the run.
        config: configuration to continue with.
        folder: folder of the run.
        fallback: True to continue from an older checkpoint if the latest one is damaged.
        wanted: ``key=value`` to change on purpose.

    Raises:
        UserError: the checkpoint is damaged, or a setting that determines the result differs.
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
    """Settings that determine the order of training rows."""
    values = {key: getattr(config.data, key.removeprefix("data.")) for key in ORDER if key.startswith("data.")}
    negatives = values.pop("data.negatives")
    drawn = {"data.negatives": negatives.model_dump()} if negatives else {}
    return {"seed": config.seed, **values, **drawn}


def check_same_data(progress: RunState, config: RunConfig, folder: RunFolder) -> None:
    """Check that a resumed run continues with the same rows in the same order."""
    now = data_order(config)
    for key in {**now, **progress.data}:
        if progress.data.get(key) != now.get(key):
            effect = "other rows would be drawn" if key == "data.negatives" else "rows would be skipped or read twice"
            raise UserError(
                f"{folder.path}: {key} was {progress.data.get(key)} and is now {now.get(key)}, so that {effect}; set it "
                "back to resume, or start anew with another --output."
            )


def apply_changes(changes: Sequence[Difference], progress: RunState) -> None:
    """Update the state for changed settings: the best value of another metric is dropped."""
    if any(key == "training.early_stopping.metric" for key, _, _ in changes):
        progress.best_step = progress.best_value = None
        progress.evaluations_without_improvement = 0


def say_changes(changes: Sequence[Difference]) -> None:
    """Log the settings that change from here on; for the first process."""
    for key, was, now in changes:
        logger.info("%s was %s and is %s from here on", key, was, now)


def finished(config: RunConfig, state: RunState, steps: int | None, folder: RunFolder) -> dict[str, float] | None:
    """Results of a run with nothing left to do; None if steps are left, or results are missing. For one process.

    Args:
        config: configuration to continue with.
        state: state of the latest checkpoint.
        steps: steps of the whole run; None for growing data.
        folder: folder of the run.
    """
    patience = config.training.early_stopping.patience
    impatient = 0 < patience <= state.evaluations_without_improvement
    if steps is None or not (impatient or state.step >= steps):
        return None
    return results_at(state.step, folder)


def results_at(step: int, folder: RunFolder) -> dict[str, float] | None:
    """Results on the test split of a run that ended after ``step`` steps; None if there are none. For one process."""
    try:
        results = json.loads(folder.store.read(folder.results.name) or b"{}")
        test: dict[str, float] = results["test"]
    except (ValueError, KeyError, TypeError):
        return None
    return test if results.get("last_step", step) == step else None
