"""Dense optimizers, learning-rate schedules, and the configuration of all optimizers."""

from dlrm_mtl.core.registry import home

home("dense_optimizer", "dlrm_mtl.optim.dense")
