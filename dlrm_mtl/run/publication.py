"""Folder of a run's published versions: whose it is, checked before training starts."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from dlrm_mtl.checkpoint.state import RunState
from dlrm_mtl.config.publish import PublishConfig
from dlrm_mtl.config.run import RunConfig
from dlrm_mtl.core.errors import UserError
from dlrm_mtl.core.json_text import parse_mapping
from dlrm_mtl.core.processes import first_process_only
from dlrm_mtl.data.dataset import Dataset
from dlrm_mtl.optim.build import Optimizers
from dlrm_mtl.run.claim import Claim
from dlrm_mtl.run.folder import RunFolder
from dlrm_mtl.run.published_source import published_source
from dlrm_mtl.run.staging import store_at
from dlrm_mtl.storage.run_store import RunStore
from dlrm_mtl.training.golden_rows import GoldenRows
from dlrm_mtl.training.publisher import Published, Publisher
from dlrm_mtl.training.sharded_model import ShardedModel
from dlrm_mtl.versions.chain import Chain

OWN_FILE = "publish.json"
"""File in the run's folder with the identity of the chain of its versions."""
KEY = "training.publish.to"


class Publication:
    """Folder of versions of a run. To be made on every process.

    Args:
        config: ``training.publish`` part of the configuration.
        store: files of the folder.
        folder: folder of the run.

    Raises:
        UserError: the folder cannot be written to, or holds something other than this run's versions.
    """

    def __init__(self, config: PublishConfig, store: RunStore, folder: RunFolder) -> None:
        self.config = config
        self.chain = Chain(store)
        self._folder = folder
        self.identity = first_process_only(self._check)

    def _check(self) -> str:
        store = self.chain.store
        try:
            names = store.check_writable(KEY)
        except UserError as error:
            raise UserError(f"{KEY}: {error}") from None
        chain, own = self.chain.identity(), self._own()
        if chain is None and names:
            raise UserError(f"{KEY}: {store.place}: this folder holds other files; name a new or empty one.")
        if chain is not None and chain != own:
            raise UserError(
                f"{KEY}: {store.place}: holds the versions of another run; name another folder, or remove this one if no "
                "server follows it."
            )
        return own or uuid.uuid4().hex

    def _own(self) -> str | None:
        content = self._folder.store.read(OWN_FILE)
        if content is None:
            return None
        found = parse_mapping(content, f"{self._folder.place}/{OWN_FILE}", "remove it").get("chain")
        return found if isinstance(found, str) else None

    def publisher(
        self,
        config: RunConfig,
        dataset: Dataset,
        model: ShardedModel,
        optimizers: Optimizers,
        progress: RunState,
        claim: Claim,
    ) -> Publisher:
        """Publisher of the run's model; every process must call this, when the run's folder exists."""

        def begin() -> None:
            # The run's own file first: a folder that no run knows could never be published to again.
            self._folder.store.write(OWN_FILE, json.dumps({"chain": self.identity}))
            self.chain.begin(self.identity)

        golden = GoldenRows(config, dataset)
        first_process_only(begin)
        raw = published_source(dataset, progress) if dist.get_rank() == 0 else {}
        published = Published(model, optimizers.sparse, golden, progress, raw)
        background = config.training.async_checkpoints
        return Publisher(self.config, self.chain, self.identity, published, claim.lock.check, background)


@contextmanager
def publication(config: PublishConfig | None, folder: RunFolder) -> Iterator[Publication | None]:
    """Folder that a run publishes to, or None; raises :class:`UserError` as :class:`Publication` does."""
    if config is None:
        yield None
        return
    with store_at(config.to) as store:
        yield Publication(config, store, folder)
