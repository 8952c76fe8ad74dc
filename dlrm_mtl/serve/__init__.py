"""Serving: a trained model as one folder, the bundle, and scoring without TorchRec."""

from dlrm_mtl.serve.scorer import Scorer

__all__ = ["Scorer"]
