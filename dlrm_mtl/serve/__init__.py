"""Serving: a trained model as one folder, the bundle, and its scores without TorchRec."""

from dlrm_mtl.serve.scorer import Scorer

__all__ = ["Scorer"]
