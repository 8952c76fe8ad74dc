"""The adapter for AliExpress."""

from dlrm_mtl.prepare.aliexpress import adapter as adapter
