"""Ranking models, and the interactions and multitask architectures of the model `ranker`."""

from dlrm_mtl.core.registry import home

home("model", "dlrm_mtl.models")
home("model", "dlrm_mtl.models.classical")
home("interaction", "dlrm_mtl.models.interactions")
home("architecture", "dlrm_mtl.models.multitask")
