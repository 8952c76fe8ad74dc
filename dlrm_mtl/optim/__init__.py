"""What trains a model: dense optimizers, learning-rate schedules, and the configuration of both."""

from dlrm_mtl.core.registry import home

home("dense_optimizer", "dlrm_mtl.optim.dense")
