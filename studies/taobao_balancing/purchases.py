"""Data of the study: purchases and carts of Taobao's users, with negatives drawn in every epoch."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.data.dataset import open_dataset
from dlrm_mtl.data.negatives.drawn_rows import NegativeSampler
from dlrm_mtl.data.negatives.known_pairs import KnownPairs
from dlrm_mtl.data.spec import DatasetSpec
from dlrm_mtl.prepare.userbehavior import ehcf
from dlrm_mtl.prepare.userbehavior.adapter import prepare

Ids = NDArray[np.int64]

COLUMNS = ["user", "item", "buy", "cart"]


@dataclass(frozen=True)
class Epoch:
    """Rows in the order of training."""

    users: Tensor
    """[R] int64."""
    items: Tensor
    """[R] int64."""
    labels: Tensor
    """[R, 2] float32: buy, cart."""


def prepare_once(data: Path, cache: Path, user_items: int, item_users: int, validation: float, seed: int) -> Path:
    """The data set made from the EHCF files in ``data``, in a folder below ``cache``, which is made if missing.

    Users have at least ``user_items`` distinct purchases and items ``item_users`` distinct buyers, test purchases included;
    ``validation`` is the share of the other purchases that is held out by ``seed``. Carts of held-out pairs are removed.

    Raises:
        UserError: files are missing or malformed, or no pair is left.
    """
    if not data.is_dir():
        raise UserError(f"--data {data}: there is no such folder; name the one that holds the EHCF files of Taobao.")
    if "cart" not in ehcf.present(data):
        raise UserError(
            f"--data {data}: lacks cart.csv, the auxiliary behaviour; see docs/public_datasets.md for the EHCF files."
        )
    folder = cache / f"users{user_items}_items{item_users}_validation{validation:g}_seed{seed}"
    if not (folder / "dataset.yaml").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        prepare(
            data,
            folder,
            layout="ehcf",
            behaviours="buy,cart",
            target="buy",
            user_items=user_items,
            item_users=item_users,
            validation_share=validation,
            seed=seed,
            negatives=0,
            evaluation_negatives=0,
        )
    return folder


class Interactions:
    """A prepared data set in memory: pairs of user and item with the labels buy and cart.

    Args:
        folder: of the data set; its rows are observed pairs only.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        dataset = open_dataset(str(folder))
        self.spec: DatasetSpec = dataset.spec
        self.users, self.items = (self.spec.vocabulary_size(name) for name in ("user", "item"))
        self.train = _read(folder / "train")
        self.held = {name: _read(folder / name)[:, :2] for name in ("validation", "test")}
        self._known = KnownPairs.of(self.train[:, 0], self.train[:, 1])

    @property
    def counts(self) -> dict[str, int]:
        """Sizes; users and items are those of training."""
        known = {name: int((pairs > 0).all(axis=1).sum()) for name, pairs in self.held.items()}
        return {
            "users": self.users - 1,
            "items": self.items - 1,
            "training purchases": int(self.train[:, 2].sum()),
            "training carts": int(self.train[:, 3].sum()),
            "training pairs with both": int((self.train[:, 2] & self.train[:, 3]).sum()),
            **{f"{name} purchases of known users and items": count for name, count in known.items()},
        }

    def epoch(self, seed: int, number: int, negatives: int, carts: bool) -> Epoch:
        """All observed pairs and ``negatives`` for each, in random order, as a function of ``seed`` and ``number``.

        A negative is drawn uniformly from the items that the user has no training pair with; its labels are 0. Without
        ``carts`` pairs that were not bought are excluded.
        """
        pairs = self.train if carts else self.train[self.train[:, 2] > 0]
        keys = np.arange(len(pairs)) + number * len(self.train)
        drawn = self._sampler(seed).sample(pairs[:, 0], keys, negatives, self._known)  # [pairs, negatives]
        items = np.concatenate([pairs[:, 1:2], drawn], axis=1)
        labels = np.zeros((*items.shape, 2), dtype=np.float32)
        labels[:, 0] = pairs[:, 2:]
        users = np.repeat(pairs[:, 0], negatives + 1)
        order = np.random.default_rng([seed, number]).permutation(np.flatnonzero(items.ravel() > 0))
        arrays = (users[order], items.ravel()[order], labels.reshape(-1, 2)[order])
        return Epoch(*(torch.from_numpy(array) for array in arrays))

    def _sampler(self, seed: int) -> NegativeSampler:
        return NegativeSampler(np.ones(self.items - 1, dtype=np.int64), exponent=0.0, seed=seed)


def _read(folder: Path) -> Ids:
    """The columns user, item, buy and cart of a split, [N, 4]."""
    table = pq.read_table(folder, columns=COLUMNS)
    return np.stack([table[name].to_numpy().astype(np.int64) for name in COLUMNS], axis=1)
