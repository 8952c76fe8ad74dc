"""One run of the study: a NeuMF trained with one method, its best epoch by validation, ranked on the test purchases."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.processes import Process, gather_objects, process_group
from dlrm_mtl.data.batch import Batch
from dlrm_mtl.metrics.ranking import Positions, all_metrics
from dlrm_mtl.training.build import build_model, build_optimizers, build_step
from studies.taobao_balancing.purchases import Epoch, Interactions
from studies.taobao_balancing.ranking import Scorer, ids, rank

LANES = 4
"""Parts of a batch with separate dropout masks: as many processes give the same model."""
WATCHED = "ndcg@10"
"""Decides on the best epoch and on the learning rate, on validation purchases."""

GRADIENTS = {
    "cosine": "balancing/cosine/buy~cart",
    "conflicts": "balancing/conflict_share",
    "coefficient of carts": "balancing/coefficient/cart",
    "norm of purchases": "balancing/norm/buy",
    "norm of carts": "balancing/norm/cart",
}
"""Logged figures of the gradients of shared parameters, where these are separate, and their names in a run's log."""


@dataclass(frozen=True)
class Method:
    """Options of one row of the tables."""

    title: str
    balancing: Any = "none"
    carts: bool = True
    """True if the auxiliary task, and pairs that were put into the cart and not bought, take part."""
    unbought_carts_count: bool = True
    """True if a pair that was put into the cart and not bought is a non-purchase for the purchase task; otherwise unknown."""


def _metabalance(relax: float) -> dict[str, Any]:
    return {"name": "metabalance", "target": "buy", "relax": relax, "beta": 0.9}


def _after_metabalance(stage: Any) -> dict[str, Any]:
    return {"name": "sequence", "stages": [_metabalance(0.5), stage]}


METHODS = {
    "single": Method("Purchases alone", carts=False),
    "vanilla": Method("Vanilla (r = 0)"),
    "metabalance_0.3": Method("MetaBalance, r = 0.3", _metabalance(0.3)),
    "metabalance_0.5": Method("MetaBalance, r = 0.5", _metabalance(0.5)),
    "metabalance_0.7": Method("MetaBalance, r = 0.7", _metabalance(0.7)),
    "metabalance_1": Method("MetaBalance, r = 1", _metabalance(1.0)),
    "surgery": Method("Surgery (adjusted)", {"name": "surgery", "target": "buy"}),
    "metabalance_surgery": Method(
        "MetaBalance + surgery (adjusted)", _after_metabalance({"name": "surgery", "target": "buy"})
    ),
    "metabalance_pcgrad": Method("MetaBalance + PCGrad", _after_metabalance("pcgrad")),
    "vanilla_unknown": Method("Vanilla, unbought carts unknown", unbought_carts_count=False),
}


@dataclass(frozen=True)
class Scale:
    """Size of the computation; the model and all other settings are the thesis's."""

    user_items: int = 4
    item_users: int = 6
    validation: float = 0.15
    epochs: int = 20
    patience: int = 3
    """Epochs without a better one after which a run stops."""
    batch: int = 4096
    negatives: int = 4
    validation_users: int = 1000
    """Users on whose validation purchases the best epoch is chosen, the same in all epochs and for all methods."""
    dim: int = 64
    deep: tuple[int, ...] = (32, 16, 8)
    tower: tuple[int, ...] = (64, 32)
    dropout: float = 0.5
    weight_decay: float = 1e-7


@dataclass(frozen=True)
class Run:
    """Settings of one run."""

    method: str
    rate: float
    seed: int


def configuration(run: Run, scale: Scale, folder: Path) -> RunConfig:
    """The run's configuration, as in a file for `dlrm-mtl train`."""
    method = METHODS[run.method]
    tasks = ["buy", "cart"] if method.carts else ["buy"]
    layer = {"dropout": scale.dropout}
    return RunConfig.model_validate(
        {
            "name": f"taobao_{run.method}_{run.seed}",
            "seed": run.seed,
            "data": {
                "path": str(folder),
                "batch_size": scale.batch,
                "lanes": LANES,
                "sparse": ["user", "item"],
                "sequence": [],
                "dense": [],
            },
            "tasks": [{"name": name} for name in tasks],
            "model": {
                "name": "neumf",
                "user": "user",
                "item": "item",
                "dim": scale.dim,
                "deep": {"layers": list(scale.deep), **layer},
                "tower": {"layers": list(scale.tower), **layer},
            },
            "balancing": method.balancing,
            "optimizer": {
                "sparse": {"name": "rowwise_adam", "learning_rate": run.rate},
                "dense": {"name": "adam", "learning_rate": run.rate, "weight_decay": scale.weight_decay},
            },
        }
    )


def train(run: Run, scale: Scale, folder: Path) -> dict[str, Any]:
    """Make one run; to be called on every process; all get the results: figures of every epoch and of the best one.

    Raises:
        UserError: the training split is smaller than a batch.
    """
    start = time.monotonic()
    with process_group() as process:
        result = _train(run, scale, Interactions(folder), process)
    return {**asdict(run), **result, "seconds": time.monotonic() - start}


def _train(run: Run, scale: Scale, data: Interactions, process: Process) -> dict[str, Any]:
    config, method = configuration(run, scale, data.folder), METHODS[run.method]
    steps = len(data.epoch(run.seed, 0, scale.negatives, method.carts).users) // scale.batch
    if steps == 0:
        raise UserError(f"--batch {scale.batch}: an epoch has fewer rows; lower it.")
    model = build_model(config, data.spec, process)
    _start_biases(model.ranker, data, scale, method)
    step = build_step(config, process, model, build_optimizers(config, model, scale.epochs * steps))
    targets = data.held["validation"]
    users = np.unique(targets[(targets > 0).all(axis=1), 0])
    users = np.random.default_rng(0).permutation(users)[: scale.validation_users]
    watched = targets[np.isin(targets[:, 0], users)]

    curve, gradients = [], []
    best: tuple[float, int, Scorer] = (-math.inf, 0, Scorer(model, data.users, data.items))
    number = 0
    for epoch in range(scale.epochs):
        model.module.train()
        losses = torch.zeros(len(config.tasks))
        for batch in _batches(data.epoch(run.seed, epoch, scale.negatives, method.carts), scale, method, process):
            parts, report = step([batch], number, epoch)
            assert not report.skipped, f"step {number} met a gradient that is not finite"
            losses += parts.detach()
            gradients.append(step.figures())
            number += 1
        dist.all_reduce(losses)
        model.module.eval()
        scorer = Scorer(model, data.users, data.items)
        figures = all_metrics(_rank(scorer, data, watched, process))
        curve.append({"loss": (losses / steps).tolist(), **figures})
        if figures[WATCHED] > best[0]:
            best = (figures[WATCHED], epoch + 1, scorer)
        if epoch + 1 - best[1] == scale.patience:
            break
    return {
        "steps": number,
        "best_epoch": best[1],
        "curve": curve,
        "validation": all_metrics(_rank(best[2], data, targets, process)),
        "test": all_metrics(_rank(best[2], data, data.held["test"], process)),
        "gradients": {
            name: float(np.nanmean([figures[key] for figures in gradients]))
            for name, key in GRADIENTS.items()
            if method.balancing != "none"
        },
    }


def _batches(epoch: Epoch, scale: Scale, method: Method, process: Process) -> Iterator[Batch]:
    """This process's parts of the batches; rows that do not fill the last one are dropped."""
    own = scale.batch // process.world_size
    for start in range(0, len(epoch.users) - scale.batch + 1, scale.batch):
        rows = slice(start + process.rank * own, start + (process.rank + 1) * own)
        labels = epoch.labels[rows]
        weights = torch.ones_like(labels)
        if not method.unbought_carts_count:
            weights[:, 0] = ((labels[:, 0] > 0) | (labels[:, 1] == 0)).float()
        if not method.carts:
            labels, weights = labels[:, :1], weights[:, :1]
        yield Batch(ids(epoch.users[rows], epoch.items[rows]), torch.empty(own, 0), labels, weights)


def _start_biases(ranker: Any, data: Interactions, scale: Scale, method: Method) -> None:
    """Let logits start from the tasks' rates among the rows of an epoch, negatives included."""
    bought = data.train[:, 2].sum()
    pairs = len(data.train) if method.carts else bought
    counts = [bought, data.train[:, 3].sum()] if method.carts else [bought]
    rates = [float(count) / (pairs * (1 + scale.negatives)) for count in counts]
    with torch.no_grad():
        ranker.start_from([math.log(rate / (1 - rate)) for rate in rates])


def _rank(scorer: Scorer, data: Interactions, targets: Any, process: Process) -> Positions:
    """Rank for a part of the users on every process; all get all positions."""
    own = targets[targets[:, 0] % process.world_size == process.rank]
    parts = gather_objects(rank(scorer, data.train[:, :2], own))
    return Positions(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("user", "above", "tied")))
