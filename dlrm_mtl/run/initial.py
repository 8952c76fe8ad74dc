"""What the weights of a new run begin with, besides random numbers."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from dlrm_mtl.checkpoint.state import RunState
from dlrm_mtl.config.init_from import InitFromConfig
from dlrm_mtl.core.processes import first_process_only
from dlrm_mtl.optim.build import Optimizers
from dlrm_mtl.run.folder import RunFolder
from dlrm_mtl.run.pretrained import load_pretrained
from dlrm_mtl.run.training_data import TrainingData
from dlrm_mtl.run.warm_start import say, warm_start
from dlrm_mtl.storage.output import write_whole
from dlrm_mtl.training.sharded_model import ShardedModel


def begin_weights(
    init: InitFromConfig | None,
    data: TrainingData,
    model: ShardedModel,
    optimizers: Optimizers,
    progress: RunState,
    folder: RunFolder,
) -> dict[str, Any]:
    """Fill the model of a new run from another run and from pretrained vectors; to be called on every process.

    Args:
        init: the warm start; None for none.
        data: of the run.
        model: with its initial weights.
        optimizers: before the first step.
        progress: of the run, which learns how many steps are in the optimizer's state.
        folder: of the run, for its name.

    Returns:
        The content of init.json; empty if nothing was filled.

    Raises:
        UserError: the other run or a file cannot be used.
    """
    content: dict[str, Any] = {}
    if init is not None:
        report, progress.steps_applied = warm_start(init, data.contract, data.dataset, model, optimizers)
        first_process_only(lambda: say(report, f"{folder.place}/{folder.initial.name}"))
        content["init_from"] = asdict(report)
    found = load_pretrained(model, data.dataset)
    if found:
        content["pretrained"] = {table: asdict(coverage) for table, coverage in found.items()}
    return content


def write_initial(folder: RunFolder, content: dict[str, Any]) -> None:
    """Write init.json, or remove that of an earlier attempt; for the first process."""
    if content:
        write_whole(folder.initial, json.dumps(content, indent=1, ensure_ascii=False))
    else:
        folder.store.remove(folder.initial.name)
