"""dlrm_mtl: multitask ranking models on sharded embedding tables.

The names in ``__all__`` are the public interface of the package: they are stable, and everything else may move. Each is
imported on first use, so that a dense optimizer needs only PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dlrm_mtl.core.extras import extras_named

if TYPE_CHECKING:
    from dlrm_mtl.balancing import (
        Balancer,
        BalancerConfig,
        BalancingConfig,
        NoBalancingConfig,
        TensorInfo,
        build_balancing,
        gram_of,
    )
    from dlrm_mtl.balancing.gradient_balance import GradientBalance
    from dlrm_mtl.balancing.metabalance import MetaBalanceConfig
    from dlrm_mtl.balancing.pcgrad import PCGradConfig
    from dlrm_mtl.config.load import load_config
    from dlrm_mtl.config.run import RunConfig
    from dlrm_mtl.core.errors import UserError
    from dlrm_mtl.core.parts import Misfit
    from dlrm_mtl.core.registry import register
    from dlrm_mtl.data.batch import Batch
    from dlrm_mtl.data.config import DataConfig
    from dlrm_mtl.data.dataset import open_dataset
    from dlrm_mtl.data.growing import Consumed, next_round
    from dlrm_mtl.data.negatives.config import NegativesConfig
    from dlrm_mtl.data.negatives.rewrite import Negatives
    from dlrm_mtl.data.reader import BatchLoader
    from dlrm_mtl.data.spec import DatasetSpec, FeatureSpec, LabelSpec, SplitSpec
    from dlrm_mtl.data.statistics import describe as describe_dataset
    from dlrm_mtl.embeddings.rules import SGD, ClippyRowWiseAdagrad, RowWiseAdagrad, RowWiseAdam
    from dlrm_mtl.embeddings.task_gradients import TaskGradients
    from dlrm_mtl.embeddings.torchrec.sharders import two_phase_sharders
    from dlrm_mtl.embeddings.two_phase import TwoPhaseOptimizer
    from dlrm_mtl.models.blocks import Block, ParallelMLP, StackConfig
    from dlrm_mtl.models.multitask import build_multitask
    from dlrm_mtl.models.multitask.adatt import AdaTT, AdaTTConfig, AdaTTSpConfig
    from dlrm_mtl.models.multitask.aitm import AITM, AITMConfig
    from dlrm_mtl.models.multitask.cross_stitch import CrossStitch, CrossStitchConfig
    from dlrm_mtl.models.multitask.mmoe import MMoE, MMoEConfig
    from dlrm_mtl.models.multitask.multi_level_mmoe import MultiLevelMMoE, MultiLevelMMoEConfig
    from dlrm_mtl.models.multitask.omoe import OMoE, OMoEConfig
    from dlrm_mtl.models.multitask.ple import PLE, PLEConfig
    from dlrm_mtl.models.multitask.shared_bottom import SharedBottom, SharedBottomConfig
    from dlrm_mtl.models.multitask.single_task import SingleTask, SingleTaskConfig
    from dlrm_mtl.optim.clippy import ClippyOptions
    from dlrm_mtl.optim.clippy import preset as clippy_preset
    from dlrm_mtl.optim.clippy_adagrad import ClippyAdagrad
    from dlrm_mtl.optim.dense import DenseOptimizerConfig
    from dlrm_mtl.prepare.common.ids import hash_ids
    from dlrm_mtl.reports.compare import compare_runs as compare
    from dlrm_mtl.reports.dataset_profile import profile_dataset
    from dlrm_mtl.reports.groups import group_runs, mean_and_interval
    from dlrm_mtl.reports.runs import read_runs
    from dlrm_mtl.run.api import Run, evaluate, open_run, predict, train
    from dlrm_mtl.serve.graphs.inputs import GraphInputs
    from dlrm_mtl.serve.scorer import Scorer
    from dlrm_mtl.tasks.binary import binary_cross_entropy, focal
    from dlrm_mtl.tasks.loss import RowLossConfig
    from dlrm_mtl.tasks.products import product_logit
    from dlrm_mtl.tasks.ranking import bpr, bpr_probability, in_batch_softmax, softmax_cross_entropy
    from dlrm_mtl.tasks.regression import absolute_error, huber, squared_error
    from dlrm_mtl.tasks.weighting import DynamicWeightAverage, UncertaintyWeighting
    from dlrm_mtl.training.events import Listener

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022  (by subject)
    "__version__",
    # Runs
    "load_config",
    "RunConfig",
    "train",
    "evaluate",
    "predict",
    "open_run",
    "Run",
    "Listener",
    "Scorer",
    "GraphInputs",
    "compare",
    "UserError",
    # Parts of your own
    "register",
    "Misfit",
    "Block",
    "ParallelMLP",
    "StackConfig",
    "Balancer",
    "BalancerConfig",
    "RowLossConfig",
    "DenseOptimizerConfig",
    # Dense and table optimizers
    "ClippyAdagrad",
    "ClippyOptions",
    "clippy_preset",
    "two_phase_sharders",
    "TwoPhaseOptimizer",
    "TaskGradients",
    "ClippyRowWiseAdagrad",
    "RowWiseAdagrad",
    "RowWiseAdam",
    "SGD",
    # Gradient balancing
    "GradientBalance",
    "build_balancing",
    "TensorInfo",
    "gram_of",
    "BalancingConfig",
    "NoBalancingConfig",
    "MetaBalanceConfig",
    "PCGradConfig",
    # Multitask architectures
    "build_multitask",
    "AdaTT",
    "AdaTTConfig",
    "AdaTTSpConfig",
    "AITM",
    "AITMConfig",
    "CrossStitch",
    "CrossStitchConfig",
    "MMoE",
    "MMoEConfig",
    "MultiLevelMMoE",
    "MultiLevelMMoEConfig",
    "OMoE",
    "OMoEConfig",
    "PLE",
    "PLEConfig",
    "SharedBottom",
    "SharedBottomConfig",
    "SingleTask",
    "SingleTaskConfig",
    # Losses and task weights
    "binary_cross_entropy",
    "focal",
    "squared_error",
    "absolute_error",
    "huber",
    "bpr",
    "bpr_probability",
    "softmax_cross_entropy",
    "in_batch_softmax",
    "product_logit",
    "UncertaintyWeighting",
    "DynamicWeightAverage",
    # Data
    "open_dataset",
    "DataConfig",
    "BatchLoader",
    "Batch",
    "describe_dataset",
    "DatasetSpec",
    "FeatureSpec",
    "LabelSpec",
    "SplitSpec",
    "NegativesConfig",
    "Negatives",
    "Consumed",
    "next_round",
    "hash_ids",
    # Finished runs
    "read_runs",
    "group_runs",
    "mean_and_interval",
    "profile_dataset",
]

_MODULES = {
    "balancing": "Balancer BalancerConfig BalancingConfig NoBalancingConfig TensorInfo build_balancing gram_of",
    "balancing.gradient_balance": "GradientBalance",
    "balancing.metabalance": "MetaBalanceConfig",
    "balancing.pcgrad": "PCGradConfig",
    "config.load": "load_config",
    "config.run": "RunConfig",
    "core.errors": "UserError",
    "core.parts": "Misfit",
    "core.registry": "register",
    "data.batch": "Batch",
    "data.config": "DataConfig",
    "data.dataset": "open_dataset",
    "data.growing": "Consumed next_round",
    "data.negatives.config": "NegativesConfig",
    "data.negatives.rewrite": "Negatives",
    "data.reader": "BatchLoader",
    "data.spec": "DatasetSpec FeatureSpec LabelSpec SplitSpec",
    "data.statistics": "describe:describe_dataset",
    "embeddings.rules": "ClippyRowWiseAdagrad RowWiseAdagrad RowWiseAdam SGD",
    "embeddings.task_gradients": "TaskGradients",
    "embeddings.torchrec.sharders": "two_phase_sharders",
    "embeddings.two_phase": "TwoPhaseOptimizer",
    "models.blocks": "Block ParallelMLP StackConfig",
    "models.multitask": "build_multitask",
    "models.multitask.adatt": "AdaTT AdaTTConfig AdaTTSpConfig",
    "models.multitask.aitm": "AITM AITMConfig",
    "models.multitask.cross_stitch": "CrossStitch CrossStitchConfig",
    "models.multitask.mmoe": "MMoE MMoEConfig",
    "models.multitask.multi_level_mmoe": "MultiLevelMMoE MultiLevelMMoEConfig",
    "models.multitask.omoe": "OMoE OMoEConfig",
    "models.multitask.ple": "PLE PLEConfig",
    "models.multitask.shared_bottom": "SharedBottom SharedBottomConfig",
    "models.multitask.single_task": "SingleTask SingleTaskConfig",
    "optim.clippy": "ClippyOptions preset:clippy_preset",
    "optim.clippy_adagrad": "ClippyAdagrad",
    "optim.dense": "DenseOptimizerConfig",
    "prepare.common.ids": "hash_ids",
    "reports.compare": "compare_runs:compare",
    "reports.dataset_profile": "profile_dataset",
    "reports.groups": "group_runs mean_and_interval",
    "reports.runs": "read_runs",
    "run.api": "train evaluate predict open_run Run",
    "serve.graphs.inputs": "GraphInputs",
    "serve.scorer": "Scorer",
    "tasks.binary": "binary_cross_entropy focal",
    "tasks.loss": "RowLossConfig",
    "tasks.products": "product_logit",
    "tasks.ranking": "bpr bpr_probability softmax_cross_entropy in_batch_softmax",
    "tasks.regression": "squared_error absolute_error huber",
    "tasks.weighting": "UncertaintyWeighting DynamicWeightAverage",
    "training.events": "Listener",
}
"""Public names by module; ``compare_runs:compare`` gives a name a different public one."""


def __getattr__(name: str) -> Any:
    """Import a public name; an ImportError for a missing optional package names its extra."""
    for module, names in _MODULES.items():
        for entry in names.split():
            attribute, _, public = entry.partition(":")
            if name == (public or attribute):
                with extras_named():
                    value = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
                globals()[name] = value
                return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, for completion."""
    return sorted(__all__)
