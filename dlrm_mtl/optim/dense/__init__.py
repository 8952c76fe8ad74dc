"""Optimizers of dense parameters, that is, of all but the tables.

A new one is one new file here, or in a plugin: a :class:`DenseOptimizerConfig`, registered as ``dense_optimizer``.
"""

from dlrm_mtl.core.schema import LearningRate
from dlrm_mtl.optim.dense.base import AnyDenseOptimizerConfig, DenseOptimizerConfig

__all__ = ["AnyDenseOptimizerConfig", "DenseOptimizerConfig", "LearningRate"]
