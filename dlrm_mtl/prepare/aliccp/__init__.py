"""The adapter for Ali-CCP."""

from dlrm_mtl.prepare.aliccp import adapter as adapter
