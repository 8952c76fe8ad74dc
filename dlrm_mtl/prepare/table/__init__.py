"""The adapter for tables of any kind."""

from dlrm_mtl.prepare.table import adapter as adapter
