"""Modules that processes of tests import before they start: everything that a run needs."""

import importlib

from dlrm_mtl.config.load import know_all_parts

for module in (
    "torch.utils.tensorboard",
    "torchrec.distributed.model_parallel",
    "dlrm_mtl.cli",
    "dlrm_mtl.reports.compare",
    "dlrm_mtl.run.api",
    "dlrm_mtl.run.train",
):
    importlib.import_module(module)
know_all_parts()
