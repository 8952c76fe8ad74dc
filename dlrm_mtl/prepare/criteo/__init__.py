"""The adapter for Criteo click logs."""

from dlrm_mtl.prepare.criteo import adapter as adapter
