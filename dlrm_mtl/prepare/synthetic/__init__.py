"""The adapter for synthetic data with a known best model."""

from dlrm_mtl.prepare.synthetic import adapter as adapter
