"""Gradient balancing: the tasks' gradients of shared parameters are combined according to their inner products.

A new method is one new file here, or in a plugin: a :class:`BalancerConfig`, and a :class:`Balancer` built from it, the
tasks' names and the number of groups of parameters, registered as ``balancer``.
"""

from dlrm_mtl.balancing.base import AnyBalancingConfig, Balancer, BalancerConfig
from dlrm_mtl.balancing.config import BalancingConfig, NoBalancingConfig, SequenceConfig, build_balancing
from dlrm_mtl.balancing.sequence import BalanceReport, Balancing, TensorInfo
from dlrm_mtl.core.gram import gram_of, not_finite_tasks
from dlrm_mtl.core.registry import home

home("balancer", __name__)

__all__ = [
    "AnyBalancingConfig",
    "BalanceReport",
    "Balancer",
    "BalancerConfig",
    "Balancing",
    "BalancingConfig",
    "NoBalancingConfig",
    "SequenceConfig",
    "TensorInfo",
    "build_balancing",
    "gram_of",
    "not_finite_tasks",
]
