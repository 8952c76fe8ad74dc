"""Update rules of embedding tables, one file each; see :mod:`dlrm_mtl.embeddings.rules.base`."""

from dlrm_mtl.core.registry import home
from dlrm_mtl.embeddings.rules.adagrad import TableAdagrad
from dlrm_mtl.embeddings.rules.adam import TableAdam
from dlrm_mtl.embeddings.rules.base import StateSpec, TableRule, TouchedRows
from dlrm_mtl.embeddings.rules.clippy_rowwise_adagrad import ClippyRowWiseAdagrad
from dlrm_mtl.embeddings.rules.ftrl import FTRL
from dlrm_mtl.embeddings.rules.rowwise_adagrad import RowWiseAdagrad
from dlrm_mtl.embeddings.rules.rowwise_adam import RowWiseAdam
from dlrm_mtl.embeddings.rules.sgd import SGD

__all__ = [
    "FTRL",
    "SGD",
    "ClippyRowWiseAdagrad",
    "RowWiseAdagrad",
    "RowWiseAdam",
    "StateSpec",
    "TableAdagrad",
    "TableAdam",
    "TableRule",
    "TouchedRows",
]

home("table_optimizer", __name__)
